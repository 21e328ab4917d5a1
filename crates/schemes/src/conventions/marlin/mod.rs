//! Marlin: 4-bit symmetric codes in the order in which one GPU kernel loads them, as `AutoGPTQ` (`B` and `s`) and `AutoAWQ`
//! (`qweight` and `scales`) stored them (specs/conventions/marlin.md).

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::Tile;

use crate::binding::{check_dtype, part, qweight_modules, required, unsupported, wrong_shape};
use crate::config::{GroupSize, implied_group_size};
use crate::scheme::float_of;
use crate::{
    Code, Convention, Error, Granularity, Headers, IntegerEncoding, QuantizedTensor, Recognized,
    Role, ScaleCoding, Scheme, Settings, Storage, ZeroPoint,
};

/// See the module.
pub struct Marlin;

const ID: &str = "marlin";
/// Methods under which it was announced.
const METHODS: [&str; 3] = ["gptq", "awq", "marlin"];
const BITS: [&str; 3] = ["bits", "w_bit", "wbits"];
const GROUP_SIZE: [&str; 2] = ["group_size", "q_group_size"];
/// Input and output features of a tile of codes.
const TILE: [u64; 2] = [16, 64];

impl Convention for Marlin {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "Marlin tiles of AutoGPTQ (B, s) and AutoAWQ: 4 bits, symmetric, in groups or rows (read only)"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let settings = headers.settings()?;
        let is_ours = |s: &Settings| s.method().is_none_or(|m| METHODS.contains(&m.as_str()));
        if !settings.iter().all(is_ours) {
            return Ok(None);
        }
        let mut modules: Vec<String> = short_names(headers).map(str::to_owned).collect();
        let long = qweight_modules(headers).filter(|module| is_tiled(headers, module));
        modules.extend(long.map(str::to_owned));
        if modules.is_empty() {
            return Ok(None);
        }
        let evidence = vec![format!(
            "{} modules with codes in tiles of 16 x 64 and no zero points",
            modules.len()
        )];
        Ok(Some(Box::new(Found {
            headers,
            settings,
            modules,
            evidence,
        })))
    }
}

/// Modules with `B` and `s`; QQQ's have `s_channel` beside `B`.
fn short_names(headers: Headers<'_>) -> impl Iterator<Item = &str> {
    let codes = headers.tensors().filter(|info| info.dtype == Dtype::I32);
    let modules = codes.filter_map(|info| info.name.strip_suffix(".B"));
    modules.filter(move |module| headers.tensor(&format!("{module}.s")).is_some())
}

/// Whether a `qweight` has two words for each output feature and a row for each 16 input features (clause M2): neither
/// GPTQ nor AWQ has so many columns.
fn is_tiled(headers: Headers<'_>, module: &str) -> bool {
    let get = |ending: &str| headers.tensor(&format!("{module}.{ending}"));
    let matrix = |info: &TensorInfo| <[u64; 2]>::try_from(info.shape.as_slice()).ok();
    let (Some(codes), Some(scales)) = (get("qweight"), get("scales")) else {
        return false;
    };
    let is_alone = ["qzeros", "scaled_zeros", "g_idx"]
        .iter()
        .all(|ending| get(ending).is_none_or(|info| info.n_elements() == 0));
    let (Some([rows, words]), Some([groups, out])) = (matrix(codes), matrix(scales)) else {
        return false;
    };
    codes.dtype == Dtype::I32 && is_alone && out.checked_mul(2) == Some(words) && groups < rows
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    settings: Vec<Settings>,
    modules: Vec<String>,
    evidence: Vec<String>,
}

impl Recognized for Found<'_> {
    fn modules(&self) -> &[String] {
        &self.modules
    }

    fn orphans(&self) -> &[String] {
        &[]
    }

    fn evidence(&self) -> &[String] {
        &self.evidence
    }

    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error> {
        let weight = format!("{module}.weight");
        if self.headers.tensor(&weight).is_some() {
            return Err(contradiction(
                module,
                "it is quantized",
                "it has both a weight and Marlin tiles",
            ));
        }
        let (codes, scales) = self.parts(module)?;
        let (shape, groups) = shape_of(module, codes, scales)?;
        self.check_bits(module)?;
        let size = self.group_size(module, scales, shape[1], groups)?;
        let float = float_of(scales.dtype).ok_or_else(|| {
            crate::binding::wrong_dtype(module, scales, "F16 or BF16, as its tiles are")
        })?;
        let code = Code::Integer {
            bits: 4,
            encoding: IntegerEncoding::Unsigned,
        };
        let tile = if groups == 1 {
            Tile::MarlinScalesSingle
        } else {
            Tile::MarlinScales
        };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight,
            convention: ID,
            shape: shape.to_vec(),
            scheme: Scheme {
                zero_point: ZeroPoint::Fixed(8),
                ..Scheme::plain(code, Granularity::Group { size }, ScaleCoding::Float(float))
            },
            reference_dtype: float,
            parts: vec![
                part(Role::Codes, codes, Storage::Tiled { tile: Tile::Marlin }),
                part(Role::Scale, scales, Storage::Tiled { tile }),
            ],
        })
    }
}

impl<'a> Found<'a> {
    /// Codes and scales, their dtypes and ranks checked.
    fn parts(&self, module: &str) -> Result<(&'a TensorInfo, &'a TensorInfo), Error> {
        let name = |ending: &str| format!("{module}.{ending}");
        let is_short = self.headers.tensor(&name("B")).is_some();
        let (codes, scales) = if is_short {
            ("B", "s")
        } else {
            ("qweight", "scales")
        };
        let codes = required(self.headers, module, &name(codes))?;
        let scales = required(self.headers, module, &name(scales))?;
        check_dtype(module, codes, &[Dtype::I32])?;
        check_dtype(module, scales, &[Dtype::F16, Dtype::BF16])?;
        for info in [codes, scales] {
            if info.shape.len() != 2 {
                return Err(wrong_shape(module, info, "a matrix".to_owned()));
            }
        }
        Ok((codes, scales))
    }

    /// No document may state another width than 4 bits.
    fn check_bits(&self, module: &str) -> Result<(), Error> {
        for settings in &self.settings {
            for key in BITS {
                if let Some(bits) = settings.integer(key, 2..=8)?.filter(|bits| *bits != 4) {
                    let format = format!("Marlin with {bits} bits ({})", settings.place);
                    return Err(unsupported(module, &format, "its tiles are of 4 bits"));
                }
            }
        }
        Ok(())
    }

    /// Input features per group: all documents and the number of scales must agree.
    fn group_size(
        &self,
        module: &str,
        scales: &TensorInfo,
        in_features: u64,
        groups: u64,
    ) -> Result<u64, Error> {
        let mut found = None;
        for settings in &self.settings {
            for key in GROUP_SIZE {
                let size = match settings.group_size(key)? {
                    Some(GroupSize::Features(size)) => size,
                    Some(GroupSize::WholeRow) => in_features.max(1),
                    None => continue,
                };
                let expected = in_features.div_ceil(size);
                if expected != groups || !(in_features.is_multiple_of(size) || groups == 1) {
                    let expected = format!("{expected} groups of {size} ({})", settings.place);
                    return Err(wrong_shape(module, scales, expected));
                }
                found = Some(size);
            }
        }
        found
            .or_else(|| implied_group_size(in_features, groups))
            .ok_or_else(|| {
                let expected = format!("groups that divide {in_features} input features");
                wrong_shape(module, scales, expected)
            })
    }
}

/// `[out_features, in_features]` and the number of groups (clause M3).
fn shape_of(
    module: &str,
    codes: &TensorInfo,
    scales: &TensorInfo,
) -> Result<([u64; 2], u64), Error> {
    let [rows, words] = [codes.shape[0], codes.shape[1]];
    let [groups, out_features] = [scales.shape[0], scales.shape[1]];
    let is_whole = out_features.is_multiple_of(TILE[1]);
    if out_features.checked_mul(2) != Some(words) || !is_whole {
        let expected = format!(
            "two words for each of {out_features} output features, which are multiples of 64"
        );
        return Err(wrong_shape(module, codes, expected));
    }
    let in_features = rows.checked_mul(TILE[0]).ok_or_else(|| {
        let expected = "rows of 16 input features each".to_owned();
        wrong_shape(module, codes, expected)
    })?;
    Ok(([out_features, in_features], groups))
}

fn contradiction(module: &str, config: &str, tensors: &str) -> Error {
    Error::Contradiction {
        module: module.to_owned(),
        config: config.to_owned(),
        tensors: tensors.to_owned(),
    }
}
