//! Writing torchao: the tensors of a subclass, its entry in `__metadata__`, and a configuration that transformers parses
//! (specs/conventions/torchao.md, clauses T20 to T23).

use safequant_container::Dtype;
use safequant_kernels::{Float, Minifloat, Tile};
use serde_json::{Map, Value, json};

use super::ID;
use super::classes::{ELEMENTS, NIBBLES};
use super::describe::describe;
use crate::binding::{cannot_write, matrix_only, planned};
use crate::scheme::dtype_of;
use crate::storage::to_u64;
use crate::{
    Basis, Code, ConfigEdit, ConventionWriter, E8M0Rule, Error, Granularity, IntegerEncoding,
    OffsetForm, Part, Preset, PresetGranularity, QuantizedTensor, Role, ScaleCoding,
    ScaleDirection, ScaleRule, Scheme, Storage, SuperScale, WeightCode, Written, ZeroCoding,
    ZeroPoint,
};

pub(super) struct Writer;

impl ConventionWriter for Writer {
    fn id(&self) -> &'static str {
        ID
    }

    fn lay_out(
        &self,
        module: &str,
        shape: &[u64],
        preset: &Preset,
        source: Float,
    ) -> Result<QuantizedTensor, Error> {
        matrix_only(ID, module, shape, preset.name)?;
        let granularity = match preset.granularity {
            PresetGranularity::Tensor => Granularity::Tensor,
            PresetGranularity::Channel => Granularity::Channel,
            PresetGranularity::Group { size } => Granularity::Group { size },
            PresetGranularity::Block { rows, columns } => Granularity::Block { rows, columns },
        };
        let integer = |bits, zero_point| {
            let encoding = IntegerEncoding::TwosComplement;
            let is_int8 = bits == 8 && granularity == Granularity::Channel;
            let float = if is_int8 { Float::F32 } else { source };
            let code = Code::Integer { bits, encoding };
            Scheme {
                zero_point,
                ..Scheme::plain(code, granularity, ScaleCoding::Float(float))
            }
        };
        let scheme = match preset.weights {
            WeightCode::SymmetricInteger { bits } => {
                integer(bits, ZeroPoint::Fixed(1 << (bits - 1)))
            }
            WeightCode::AsymmetricInteger { bits } => {
                integer(bits, ZeroPoint::Stored(ZeroCoding::Signed))
            }
            WeightCode::Minifloat(minifloat) => {
                let scale = ScaleCoding::Float(Float::F32);
                Scheme::plain(Code::Minifloat(minifloat), granularity, scale)
            }
            WeightCode::Mx(minifloat) => {
                let scale = ScaleCoding::E8M0(E8M0Rule::Ocp);
                Scheme::plain(Code::Minifloat(minifloat), granularity, scale)
            }
            WeightCode::Nvfp4 => Scheme {
                super_scale: SuperScale::Multiply,
                ..Scheme::plain(
                    Code::Minifloat(Minifloat::E2M1),
                    granularity,
                    ScaleCoding::Minifloat(Minifloat::E4M3),
                )
            },
            WeightCode::Codebook(_) | WeightCode::NestedCodebook(_) | WeightCode::Block(_) => {
                return Err(refuse(module, "it has no code books and no blocks of ggml"));
            }
        };
        let weight = format!("{module}.weight");
        let mut layout = Layout::new(module, &weight, shape, scheme, source);
        // As the configurations for inference store them.
        layout.is_swizzled = matches!(preset.weights, WeightCode::Mx(_) | WeightCode::Nvfp4);
        layout.planned()
    }

    fn lay_out_like(&self, source: &QuantizedTensor) -> Result<QuantizedTensor, Error> {
        let mut scheme = source.scheme.clone();
        if let Code::Integer { encoding, .. } = &mut scheme.code {
            *encoding = IntegerEncoding::TwosComplement;
        }
        if scheme.basis != Basis::WEIGHT {
            return Err(refuse(&source.module, "it holds weights in no other basis"));
        }
        scheme.arithmetic = crate::Arithmetic::ScaledDifference;
        let (module, weight) = (&source.module, &source.weight);
        let mut layout = Layout::new(
            module,
            weight,
            &source.shape,
            scheme,
            source.reference_dtype,
        );
        let scale = source.part(Role::Scale);
        layout.is_swizzled = scale.is_some_and(|p| {
            p.storage
                == Storage::Tiled {
                    tile: Tile::Swizzled,
                }
        });
        layout.planned()
    }

    fn config(&self, written: &Written<'_>) -> Result<ConfigEdit, Error> {
        let mut names = Vec::new();
        let mut metadata = Vec::new();
        let mut configs: Vec<(&str, Value)> = Vec::new();
        for (i, tensor) in written.modules.iter().enumerate() {
            let (entry, config) = describe(tensor, written.asked.of(i))?;
            names.push(tensor.weight.clone());
            metadata.push((tensor.weight.clone(), entry.to_string()));
            configs.push((&tensor.module, config));
        }
        for module in written.ignored {
            let name = format!("{module}.weight");
            metadata.push((name.clone(), json!({"_type": "Tensor"}).to_string()));
            names.push(name);
        }
        metadata.push(("tensor_names".to_owned(), json!(names).to_string()));
        let quantization_config = json!({
            "quant_method": ID,
            "quant_type": { "default": of_all(&configs) },
            "modules_to_not_convert": if written.ignored.is_empty() { Value::Null } else { json!(written.ignored) },
            "include_input_output_embeddings": false,
            "untie_embedding_weights": false,
        });
        let quantization_config = quantization_config.as_object().cloned().unwrap_or_default();
        Ok(ConfigEdit {
            quantization_config,
            metadata,
            ..ConfigEdit::default()
        })
    }

    fn presets(&self) -> &'static [&'static str] {
        &[
            "W4A16",
            "W4A16_ASYM",
            "W8A16",
            "W3A16",
            "W2A16",
            "W8A8",
            "FP8",
            "FP8_DYNAMIC",
            "NVFP4A16",
            "MXFP4",
            "MXFP8",
        ]
    }

    fn scale_rule(&self) -> ScaleRule {
        ScaleRule::TorchAo
    }
}

/// One configuration for all modules, or one by name.
fn of_all(configs: &[(&str, Value)]) -> Value {
    match configs {
        [] => Value::Null,
        [(_, first), rest @ ..] if rest.iter().all(|(_, c)| c == first) => first.clone(),
        _ => {
            let by_name: Map<String, Value> = configs
                .iter()
                .map(|(name, config)| ((*name).to_owned(), config.clone()))
                .collect();
            json!({"_type": "FqnToConfig", "_version": 1, "_data": {
                "fqn_to_config": by_name, "module_fqn_to_config": by_name, "version": 1 }})
        }
    }
}

pub(super) fn refuse(module: &str, reason: &str) -> Error {
    cannot_write(ID, module, "these codes", reason)
}

/// What is to be laid out.
struct Layout<'a> {
    module: &'a str,
    weight: &'a str,
    shape: &'a [u64],
    scheme: Scheme,
    reference: Float,
    is_swizzled: bool,
}

impl<'a> Layout<'a> {
    fn new(
        module: &'a str,
        weight: &'a str,
        shape: &'a [u64],
        scheme: Scheme,
        reference: Float,
    ) -> Self {
        Self {
            module,
            weight,
            shape,
            scheme,
            reference,
            is_swizzled: false,
        }
    }

    fn refuse(&self, reason: &str) -> Error {
        refuse(self.module, reason)
    }

    fn planned(mut self) -> Result<QuantizedTensor, Error> {
        if !matches!(self.shape.len(), 2 | 3) || self.shape.contains(&0) {
            return Err(self.refuse("it holds matrices and stacks of matrices"));
        }
        if self.scheme.direction == ScaleDirection::Divide {
            return Err(self.refuse("its scales multiply"));
        }
        let grid = self.grid()?;
        let parts = match (self.scheme.code, self.scheme.scale) {
            (Code::Integer { bits, .. }, ScaleCoding::Float(_)) => self.integers(bits, &grid)?,
            (Code::Minifloat(m), ScaleCoding::Float(_)) if m.bits() == 8 => {
                self.scheme.scale = ScaleCoding::Float(Float::F32);
                self.no_supers()?;
                let dtype = self.dtype_of_codes(m)?;
                self.pair(dtype, self.shape.to_vec(), ELEMENTS, Dtype::F32, grid)?
            }
            (Code::Minifloat(m), ScaleCoding::E8M0(_)) => self.mx(m, grid)?,
            (Code::Minifloat(Minifloat::E2M1), ScaleCoding::Minifloat(Minifloat::E4M3)) => {
                self.nvfp4(grid)?
            }
            _ => {
                return Err(self.refuse(
                    "it has classes for integers and FP8 with float scales, for MX and for NVFP4",
                ));
            }
        };
        Ok(QuantizedTensor {
            module: self.module.to_owned(),
            weight: self.weight.to_owned(),
            convention: ID,
            shape: self.shape.to_vec(),
            scheme: self.scheme,
            reference_dtype: self.reference,
            parts,
        })
    }

    /// The shape of the scales; blocks must divide the weight.
    fn grid(&self) -> Result<Vec<u64>, Error> {
        let block = block_size(self.shape, self.scheme.granularity)
            .ok_or_else(|| self.refuse("its scales are per tensor, row, group or block"))?;
        if self
            .shape
            .iter()
            .zip(&block)
            .any(|(n, b)| !n.is_multiple_of(*b))
        {
            return Err(self.refuse("its blocks must divide the weight"));
        }
        Ok(self.shape.iter().zip(&block).map(|(n, b)| n / b).collect())
    }

    fn no_supers(&self) -> Result<(), Error> {
        if self.scheme.super_scale == SuperScale::None {
            return Ok(());
        }
        Err(self.refuse("only its NVFP4 has scales of scales"))
    }

    fn name(&self, part: &str) -> Result<String, Error> {
        let (module, parameter) = self
            .weight
            .rsplit_once('.')
            .ok_or_else(|| self.refuse("names of parameters have a dot"))?;
        Ok(format!("{module}._{parameter}_{part}"))
    }

    fn pair(
        &self,
        codes: Dtype,
        shape: Vec<u64>,
        storage: Storage,
        scale: Dtype,
        grid: Vec<u64>,
    ) -> Result<Vec<Part>, Error> {
        let (mut stored, mut dimensions) = (ELEMENTS, grid);
        if self.is_swizzled && !matches!(self.scheme.scale, ScaleCoding::Float(_)) {
            let tile = Tile::Swizzled;
            let n = dimensions.len();
            let (rows, columns) = (dimensions[n - 2], dimensions[n - 1]);
            if n > 2 && !rows.is_multiple_of(to_u64(tile.rows())) {
                return Err(self.refuse("swizzled scales of a stack need matrices of whole tiles"));
            }
            // A tile of 128 x 4 is 32 x 16 in the header.
            dimensions[n - 2] = rows.div_ceil(to_u64(tile.rows())).saturating_mul(32);
            dimensions[n - 1] = columns.div_ceil(to_u64(tile.columns())).saturating_mul(16);
            stored = Storage::Tiled { tile };
        }
        Ok(vec![
            planned(Role::Codes, self.name("qdata")?, codes, shape, storage),
            planned(Role::Scale, self.name("scale")?, scale, dimensions, stored),
        ])
    }

    fn integers(&mut self, bits: u32, grid: &[u64]) -> Result<Vec<Part>, Error> {
        self.no_supers()?;
        let half = 1_i32 << (bits - 1);
        let ScaleCoding::Float(float) = self.scheme.scale else {
            return Err(self.refuse("integers have float scales"));
        };
        let name = self.name("zero_point")?;
        let zero = |role, dtype| planned(role, name.clone(), dtype, grid.to_vec(), ELEMENTS);
        let zero = match self.scheme.zero_point {
            ZeroPoint::Fixed(value) if value == half => {
                let n = grid.iter().fold(1_u64, |n, &d| n.saturating_mul(d));
                let n = usize::try_from(n).map_err(|_| self.refuse("too many scales"))?;
                Part {
                    content: Some(vec![0; n]),
                    ..zero(Role::ZeroPoint, Dtype::I8)
                }
            }
            ZeroPoint::Stored(_) => {
                self.scheme.zero_point = ZeroPoint::Stored(ZeroCoding::Signed);
                zero(Role::ZeroPoint, Dtype::I8)
            }
            ZeroPoint::Offset {
                form: OffsetForm::BeforeScale,
                ..
            } if float == self.reference => {
                self.scheme.zero_point = ZeroPoint::Offset {
                    zero: half,
                    form: OffsetForm::BeforeScale,
                };
                self.scheme.arithmetic = crate::Arithmetic::EachStep(self.reference);
                zero(Role::Offset, dtype_of(float))
            }
            ZeroPoint::Fixed(_) | ZeroPoint::Offset { .. } => {
                return Err(self.refuse("its zero points are subtracted from codes"));
            }
        };
        let mut parts = self.pair(
            Dtype::I8,
            self.shape.to_vec(),
            ELEMENTS,
            dtype_of(float),
            grid.to_vec(),
        )?;
        parts.push(zero);
        Ok(parts)
    }

    fn dtype_of_codes(&self, minifloat: Minifloat) -> Result<Dtype, Error> {
        match minifloat {
            Minifloat::E4M3 => Ok(Dtype::F8E4M3),
            Minifloat::E5M2 => Ok(Dtype::F8E5M2),
            Minifloat::E4M3Fnuz
            | Minifloat::E5M2Fnuz
            | Minifloat::E8M0
            | Minifloat::E2M1
            | Minifloat::E2M3
            | Minifloat::E3M2 => Err(self.refuse("its 8-bit floats are E4M3 and E5M2")),
        }
    }

    /// The shape of codes, two in a byte.
    fn halved(&self) -> Vec<u64> {
        let mut shape = self.shape.to_vec();
        if let Some(last) = shape.last_mut() {
            *last /= 2;
        }
        shape
    }

    fn mx(&mut self, minifloat: Minifloat, grid: Vec<u64>) -> Result<Vec<Part>, Error> {
        self.no_supers()?;
        self.group_only()?;
        self.scheme.scale = ScaleCoding::E8M0(E8M0Rule::Ocp);
        if self.reference == Float::F16 {
            self.scheme.arithmetic = crate::Arithmetic::EachStep(Float::F16);
        }
        let (dtype, shape, storage) = match minifloat {
            Minifloat::E2M1 => (Dtype::U8, self.halved(), NIBBLES),
            Minifloat::E2M3 | Minifloat::E3M2 => (Dtype::U8, self.shape.to_vec(), ELEMENTS),
            Minifloat::E4M3
            | Minifloat::E5M2
            | Minifloat::E4M3Fnuz
            | Minifloat::E5M2Fnuz
            | Minifloat::E8M0 => {
                let dtype = self.dtype_of_codes(minifloat)?;
                (dtype, self.shape.to_vec(), ELEMENTS)
            }
        };
        self.pair(dtype, shape, storage, Dtype::F8E8M0, grid)
    }

    fn group_only(&mut self) -> Result<(), Error> {
        let columns = self.shape.last().copied().unwrap_or(1);
        match self.scheme.granularity {
            Granularity::Group { .. } => Ok(()),
            Granularity::Channel => {
                self.scheme.granularity = Granularity::Group { size: columns };
                Ok(())
            }
            Granularity::Tensor
            | Granularity::IndexedGroup { .. }
            | Granularity::Block { .. }
            | Granularity::Flat { .. }
            | Granularity::Strided { .. } => {
                Err(self.refuse("MX and NVFP4 have groups along a row"))
            }
        }
    }

    fn nvfp4(&mut self, grid: Vec<u64>) -> Result<Vec<Part>, Error> {
        self.group_only()?;
        let mut parts = self.pair(Dtype::U8, self.halved(), NIBBLES, Dtype::F8E4M3, grid)?;
        match self.scheme.super_scale {
            SuperScale::None => {}
            SuperScale::Multiply | SuperScale::Divide => {
                self.scheme.super_scale = SuperScale::Multiply;
                let shape = match self.shape {
                    [n, _, _] => vec![*n, 1, 1],
                    _ => Vec::new(),
                };
                let name = self.name("per_tensor_scale")?;
                parts.push(planned(Role::SuperScale, name, Dtype::F32, shape, ELEMENTS));
            }
            SuperScale::Nested { .. } | SuperScale::Grouped { .. } | SuperScale::Channel => {
                return Err(self.refuse("its scales of scales are one per matrix"));
            }
        }
        Ok(parts)
    }
}

/// The block that shares a scale, one number for each dimension.
pub(super) fn block_size(shape: &[u64], granularity: Granularity) -> Option<Vec<u64>> {
    let (stack, matrix) = shape.split_at(shape.len().checked_sub(2)?);
    let last = match granularity {
        Granularity::Tensor => [matrix[0], matrix[1]],
        Granularity::Channel => [1, matrix[1]],
        Granularity::Group { size } => [1, size.max(1)],
        Granularity::Block { rows, columns } => [rows.max(1), columns.max(1)],
        Granularity::IndexedGroup { .. }
        | Granularity::Flat { .. }
        | Granularity::Strided { .. } => {
            return None;
        }
    };
    Some(vec![1; stack.len()].into_iter().chain(last).collect())
}
