//! Sparse layouts of compressed-tensors up to 0.14: `sparse-bitmask`, `sparse-24-bitmask`, `marlin-24`
//! (`specs/conventions/compressed_tensors.md`, clauses S1 to S8).

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Float, Tile};
use serde_json::{Value, json};

use super::config::{Kind, Order, Strategy, Zero};
use super::grids::wrong_scales;
use super::{Found, ID};
use crate::binding::{check_dtype, part, required, unsupported, wrong_shape};
use crate::scheme::{Packing, float_of, minifloat_of};
use crate::{
    Axes, Axis, Code, Error, Granularity, Headers, IntegerEncoding, Kept, QuantizedTensor, Role,
    ScaleCoding, Scheme, Storage, ZeroPoint,
};

/// The module of which a tensor holds the stored entries: `<m>.compressed` beside `<m>.bitmask`. Older files have
/// `<m>.weight.compressed`.
pub(super) fn module_of<'i>(headers: Headers<'_>, info: &'i TensorInfo) -> Option<&'i str> {
    let prefix = info.name.strip_suffix(".compressed")?;
    headers.tensor(&format!("{prefix}.bitmask"))?;
    Some(prefix.strip_suffix(".weight").unwrap_or(prefix))
}

/// What stands before `.compressed` of a sparse module.
pub(super) fn prefix(headers: Headers<'_>, module: &str) -> Option<String> {
    let candidates = [module.to_owned(), format!("{module}.weight")];
    candidates
        .into_iter()
        .find(|prefix| headers.tensor(&format!("{prefix}.compressed")).is_some())
}

impl Found<'_> {
    /// Dense, I8 or FP8 entries beside a bit mask (clauses S1 to S5).
    pub(super) fn bind_sparse(&self, module: &str, prefix: &str) -> Result<QuantizedTensor, Error> {
        let find = |ending: &str| required(self.headers, module, &format!("{prefix}.{ending}"));
        let (codes, mask) = (find("compressed")?, find("bitmask")?);
        let (shape, descriptor) = self.shape(module, &format!("{prefix}.shape"))?;
        let [rows, columns] = shape;
        check_dtype(module, mask, &[Dtype::U8])?;
        if mask.shape != [rows, columns.div_ceil(8)] {
            let expected = format!("[{rows}, {}], a bit per entry", columns.div_ceil(8));
            return Err(wrong_shape(module, mask, expected));
        }
        let starts = self.headers.tensor(&format!("{prefix}.row_offsets"));
        let (format, kept) = if starts.is_some() {
            ("sparse-bitmask", Kept::Ragged)
        } else {
            let per_row = columns / 2;
            ("sparse-24-bitmask", Kept::Rows { per_row })
        };
        self.check_sparsity(module, format)?;
        let fits = match kept {
            Kept::Ragged => codes.shape.len() == 1,
            Kept::Rows { per_row } | Kept::Tiles { per_row, .. } => {
                columns.is_multiple_of(4) && codes.shape == [rows, per_row]
            }
        };
        if !fits {
            let expected = format!("what {format} stores of {shape:?}");
            return Err(wrong_shape(module, codes, expected));
        }
        let bits = Storage::Packed {
            axes: Axes::OutIn,
            packing: Packing::LsbFirst { bits: 1 },
            along: Axis::In,
        };
        let mut parts = vec![
            part(Role::Codes, codes, Storage::Sparse { kept }),
            part(Role::Mask, mask, bits),
            part(Role::Shape, descriptor, Storage::Vector),
        ];
        if let Some(info) = starts {
            check_dtype(module, info, &[Dtype::I64])?;
            if info.shape != [rows] {
                return Err(wrong_shape(module, info, format!("[{rows}]")));
            }
            let storage = Storage::Elements { axes: Axes::OutIn };
            parts.push(part(Role::RowStart, info, storage));
        }
        let Some(float) = float_of(codes.dtype) else {
            if codes.dtype != Dtype::I8 && minifloat_of(codes.dtype).is_none() {
                return Err(unsupported(
                    module,
                    format,
                    &format!("over {}", codes.dtype),
                ));
            }
            return self.bind_bytes(module, shape, codes, parts);
        };
        self.add_auxiliaries(module, &mut parts);
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: shape.to_vec(),
            scheme: Scheme::plain(Code::Dense(float), Granularity::Tensor, ScaleCoding::One),
            reference_dtype: float,
            parts,
        })
    }

    /// The configuration must not say another sparse format.
    fn check_sparsity(&self, module: &str, format: &str) -> Result<(), Error> {
        match self.config.sparsity.as_deref() {
            None | Some("dense") => Ok(()),
            Some(declared) if declared == format => Ok(()),
            Some(declared) => Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("sparsity format {declared}"),
                tensors: format!("it is {format}"),
            }),
        }
    }

    /// `marlin-24`: 2:4 sparse integers in tiles (clauses S6 to S8).
    pub(super) fn bind_marlin(
        &self,
        module: &str,
        codes: &TensorInfo,
        scales: &TensorInfo,
    ) -> Result<QuantizedTensor, Error> {
        let meta = required(self.headers, module, &format!("{module}.meta"))?;
        check_dtype(module, codes, &[Dtype::I32])?;
        check_dtype(module, meta, &[Dtype::I16])?;
        check_dtype(module, scales, &[Dtype::F16, Dtype::BF16, Dtype::F32])?;
        let args = self.args(module, Kind::Integer, "marlin-24")?;
        let args =
            args.ok_or_else(|| unsupported(module, "marlin-24", "without a configuration"))?;
        let tile = match (args.bits, args.zero, args.order) {
            (4, Zero::Symmetric, Order::Natural) => Tile::SparseMarlin,
            (8, Zero::Symmetric, Order::Natural) => Tile::SparseMarlinBytes,
            _ => {
                let detail = "other than symmetric integers of 4 or 8 bits";
                return Err(unsupported(module, "marlin-24", detail));
            }
        };
        let &[tile_rows, twice] = meta.shape.as_slice() else {
            return Err(wrong_shape(module, meta, "[in / 32, 2 * out]".to_owned()));
        };
        let (rows, columns) = (twice / 2, tile_rows.saturating_mul(32));
        if !twice.is_multiple_of(128) {
            let expected = "[in / 32, 2 * out] with out a multiple of 64".to_owned();
            return Err(wrong_shape(module, meta, expected));
        }
        let words = rows.saturating_mul(u64::from(args.bits)) / 2;
        if codes.shape != [tile_rows, words] {
            return Err(wrong_shape(
                module,
                codes,
                format!("[{tile_rows}, {words}]"),
            ));
        }
        let (granularity, storage) = marlin_scales(args.strategy, [rows, columns], scales)
            .ok_or_else(|| wrong_scales(module, scales, [rows, columns]))?;
        let per_row = columns / 2;
        let kept = Kept::Tiles { per_row, tile };
        let meta_tile = Tile::SparseMarlinMeta;
        let mut parts = vec![
            part(Role::Codes, codes, Storage::Sparse { kept }),
            part(Role::Mask, meta, Storage::Tiled { tile: meta_tile }),
            part(Role::Scale, scales, storage),
        ];
        self.add_auxiliaries(module, &mut parts);
        let encoding = IntegerEncoding::Unsigned;
        let code = Code::Integer {
            bits: args.bits,
            encoding,
        };
        let scale = float_of(scales.dtype).unwrap_or(Float::F16);
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: format!("{module}.weight"),
            convention: ID,
            shape: vec![rows, columns],
            scheme: Scheme {
                zero_point: ZeroPoint::Fixed(1 << (args.bits - 1)),
                ..Scheme::plain(code, granularity, ScaleCoding::Float(scale))
            },
            // Nothing in the library decodes it: the weight is that of the model before it was packed.
            reference_dtype: self.headers.model_dtype()?.unwrap_or(scale),
            parts,
        })
    }
}

/// Granularity and storage of `scale_packed` [groups, out]. The writer permutes if a group is shorter than the *kept* half of
/// a row.
fn marlin_scales(
    strategy: Option<Strategy>,
    [rows, columns]: [u64; 2],
    scales: &TensorInfo,
) -> Option<(Granularity, Storage)> {
    let &[groups, n] = scales.shape.as_slice() else {
        return None;
    };
    let (granularity, n_groups, size) = match strategy? {
        Strategy::Channel => (Granularity::Channel, 1, columns),
        Strategy::Group(size) => {
            let n_groups = columns.div_ceil(size.max(1));
            (Granularity::Group { size }, n_groups, size)
        }
        Strategy::Tensor | Strategy::TensorGroup(_) | Strategy::Block(..) => return None,
    };
    let storage = if size < columns / 2 {
        Storage::Tiled {
            tile: Tile::SparseMarlinScales,
        }
    } else {
        Storage::Elements { axes: Axes::InOut }
    };
    ([groups, n] == [n_groups, rows]).then_some((granularity, storage))
}

/// The last version before sparse formats began to go.
pub(super) const VERSION: &str = "0.9.4";

/// `sparsity_config` for modules of which some are sparse.
pub(super) fn config_of(modules: &[QuantizedTensor]) -> Option<Value> {
    let kept = modules.iter().find_map(|t| {
        if let Storage::Sparse { kept } = t.part(Role::Codes)?.storage {
            return Some(kept);
        }
        None
    })?;
    let (format, structure) = match kept {
        Kept::Ragged => ("sparse-bitmask", "unstructured"),
        Kept::Rows { .. } => ("sparse-24-bitmask", "2:4"),
        // marlin-24 is a format of quantized weights.
        Kept::Tiles { .. } => return None,
    };
    let n = |shape: &[u64]| shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d));
    let (mut stored, mut all) = (0_u64, 0_u64);
    for tensor in modules.iter().filter(|t| t.part(Role::Mask).is_some()) {
        stored = stored.saturating_add(tensor.part(Role::Codes).map_or(0, |p| n(&p.shape)));
        all = all.saturating_add(n(&tensor.shape));
    }
    // Informative; in thousandths, which no reader's float format changes.
    let thousandths = 1000
        - stored
            .saturating_mul(1000)
            .checked_div(all)
            .unwrap_or(0)
            .min(1000);
    let sparsity = f64::from(u32::try_from(thousandths).unwrap_or(0)) / 1000.0;
    Some(json!({
        "format": format,
        "global_sparsity": sparsity,
        "ignore": [],
        "registry_requires_subclass": false,
        "sparsity_structure": structure,
        "targets": ["Linear"],
    }))
}
