//! bitsandbytes: NF4 and FP4 with one or two levels of scales, and int8 by rows (specs/conventions/bitsandbytes.md).

mod state;
mod write;

use std::collections::BTreeMap;

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::Float;

use self::state::{Kind, State};
use crate::binding::{check_dtype, part, required, unsupported, wrong_dtype, wrong_shape};
use crate::scheme::Packing;
use crate::{
    Arithmetic, Axes, Code, Convention, ConventionWriter, Error, Granularity, Headers,
    IntegerEncoding, Part, QuantizedTensor, Recognized, Role, ScaleCoding, Scheme, Storage,
    SuperScale, ZeroPoint,
};

/// See the module.
pub struct Bitsandbytes;

/// The id.
const ID: &str = "bitsandbytes";
/// Before the type's name in the name of a descriptor.
const STATE: &str = ".quant_state.bitsandbytes__";

impl Convention for Bitsandbytes {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "bitsandbytes: NF4 and FP4 in flat blocks, with or without double quantization, and LLM.int8()"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let weights = weights(headers)?;
        let config = Config::find(headers)?;
        if weights.is_empty() && config.is_none() {
            return Ok(None);
        }
        let modules = weights.keys().cloned().collect();
        let mut found = Found {
            headers,
            weights,
            config,
            modules,
            evidence: Vec::new(),
        };
        found.evidence = found.describe()?;
        Ok(Some(Box::new(found)))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// How the tensors of a weight are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// `<weight>.absmax`: the library and transformers.
    Dotted,
    /// `<weight>_absmax`: GPTQModel.
    Underscored,
}

/// The tensors by which a weight was found.
#[derive(Clone, Debug)]
enum Evidence {
    /// A descriptor, and the type in its name.
    FourBit {
        spelling: Spelling,
        state: String,
        named: Option<Kind>,
    },
    /// The scales of int8 rows.
    Int8 { spelling: Spelling, scale: String },
}

/// A weight and its evidence.
#[derive(Clone, Debug)]
struct Weight {
    name: String,
    evidence: Evidence,
}

/// Every weight by module.
fn weights(headers: Headers<'_>) -> Result<BTreeMap<String, Weight>, Error> {
    let mut found = BTreeMap::new();
    for info in headers.tensors() {
        let Some(weight) = weight_of(&info.name) else {
            continue;
        };
        let name = weight.name.as_str();
        let module = name.strip_suffix(".weight").unwrap_or(name).to_owned();
        let second = info.name.clone();
        if let Some(first) = found.insert(module.clone(), weight) {
            let first: Weight = first;
            return Err(Error::Contradiction {
                module,
                config: format!("{} by {}", first.name, first.evidence.tensor()),
                tensors: format!("another state in {second}"),
            });
        }
    }
    Ok(found)
}

/// The weight whose evidence the tensor of this name is.
fn weight_of(name: &str) -> Option<Weight> {
    let four_bit = |weight: &str, spelling, named| Weight {
        name: weight.to_owned(),
        evidence: Evidence::FourBit {
            spelling,
            state: name.to_owned(),
            named,
        },
    };
    for kind in Kind::ALL {
        let stem = name
            .strip_suffix(kind.name())
            .and_then(|s| s.strip_suffix(STATE));
        if let Some(weight) = stem {
            return Some(four_bit(weight, Spelling::Dotted, Some(kind)));
        }
    }
    let int8 = |module: &str, spelling| Weight {
        name: format!("{module}.weight"),
        evidence: Evidence::Int8 {
            spelling,
            scale: name.to_owned(),
        },
    };
    if let Some(module) = name.strip_suffix(".weight_quant_state") {
        let weight = format!("{module}.weight");
        return Some(four_bit(&weight, Spelling::Underscored, None));
    }
    if let Some(module) = name.strip_suffix(".SCB") {
        return Some(int8(module, Spelling::Dotted));
    }
    let module = name.strip_suffix(".weight_scb")?;
    Some(int8(module, Spelling::Underscored))
}

impl Evidence {
    fn tensor(&self) -> &str {
        match self {
            Evidence::FourBit { state, .. } => state,
            Evidence::Int8 { scale, .. } => scale,
        }
    }
}

/// What the configuration says; the tensors know the rest better.
#[derive(Debug)]
struct Config {
    place: String,
    /// `load_in_4bit`.
    four_bit: Option<bool>,
    /// `load_in_8bit`.
    int8: Option<bool>,
}

impl Config {
    fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let all = headers.settings()?;
        let ours = all
            .iter()
            .find(|s| s.method().as_deref() == Some("bitsandbytes"));
        let Some(settings) = ours else {
            return Ok(None);
        };
        let either = |key: &str, hidden: &str| -> Result<Option<bool>, Error> {
            Ok(settings.boolean(key)?.or(settings.boolean(hidden)?))
        };
        Ok(Some(Self {
            place: settings.place.clone(),
            four_bit: either("load_in_4bit", "_load_in_4bit")?,
            int8: either("load_in_8bit", "_load_in_8bit")?,
        }))
    }

    /// The classes that the configuration announces must be able to hold the tensors.
    fn check(&self, module: &str, evidence: &Evidence) -> Result<(), Error> {
        let (announced, other, tensors) = match evidence {
            Evidence::FourBit { .. } => (self.four_bit, self.int8, "they are 4-bit"),
            Evidence::Int8 { .. } => (self.int8, self.four_bit, "they are int8"),
        };
        if announced != Some(true) && other == Some(true) {
            let key = match evidence {
                Evidence::FourBit { .. } => "load_in_8bit",
                Evidence::Int8 { .. } => "load_in_4bit",
            };
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("{key} ({})", self.place),
                tensors: tensors.to_owned(),
            });
        }
        Ok(())
    }
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    weights: BTreeMap<String, Weight>,
    config: Option<Config>,
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
        let weight = self.weights.get(module).ok_or_else(|| Error::MissingPart {
            module: module.to_owned(),
            part: "the quantization state".to_owned(),
        })?;
        if let Some(config) = &self.config {
            config.check(module, &weight.evidence)?;
        }
        let codes = required(self.headers, module, &weight.name)?;
        match &weight.evidence {
            Evidence::FourBit {
                spelling,
                state,
                named,
            } => {
                let bytes = self.headers.descriptor(state)?;
                check_dtype(module, required(self.headers, module, state)?, &[Dtype::U8])?;
                let read = State::read(state, &bytes)?;
                if named.is_some_and(|kind| kind != read.kind) {
                    return Err(Error::Contradiction {
                        module: module.to_owned(),
                        config: format!("quant_type {}", read.kind.name()),
                        tensors: format!("the descriptor is called {state}"),
                    });
                }
                let descriptor = Part {
                    content: Some(bytes),
                    ..part(
                        Role::Shape,
                        required(self.headers, module, state)?,
                        Storage::Vector,
                    )
                };
                let bind = FourBit {
                    headers: self.headers,
                    module,
                    weight: codes,
                    prefix: match spelling {
                        Spelling::Dotted => format!("{}.", weight.name),
                        Spelling::Underscored => format!("{}_", weight.name),
                    },
                };
                bind.bind(&read, descriptor)
            }
            Evidence::Int8 { spelling, scale } => self.bind_int8(module, codes, scale, *spelling),
        }
    }
}

impl Found<'_> {
    fn describe(&self) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        if let Some(config) = &self.config {
            lines.push(format!("{} is of bitsandbytes", config.place));
        }
        let (mut four, mut eight, mut others) = (0, 0, 0);
        for weight in self.weights.values() {
            match &weight.evidence {
                Evidence::FourBit {
                    spelling, named, ..
                } => {
                    four += 1;
                    others += u64::from(self.has_other_book(&weight.name, *spelling, *named)?);
                }
                Evidence::Int8 { .. } => eight += 1,
            }
        }
        if four > 0 {
            lines.push(format!("{four} 4-bit weights with a quant_state"));
        }
        if eight > 0 {
            lines.push(format!("{eight} int8 weights with SCB"));
        }
        if others > 0 {
            lines.push(format!(
                "{others} code books (quant_map) differ from the library's own, which every kernel uses instead"
            ));
        }
        Ok(lines)
    }

    /// Whether the stored code book is not the built-in one of the type in the descriptor's name.
    fn has_other_book(
        &self,
        weight: &str,
        spelling: Spelling,
        named: Option<Kind>,
    ) -> Result<bool, Error> {
        let name = match spelling {
            Spelling::Dotted => format!("{weight}.quant_map"),
            Spelling::Underscored => format!("{weight}_quant_map"),
        };
        let Some(info) = self.headers.tensor(&name) else {
            return Ok(false);
        };
        if info.dtype != Dtype::F32 || info.n_elements() != 16 {
            return Ok(false);
        }
        let bytes = self.headers.descriptor(&name)?;
        Ok(!Kind::ALL
            .into_iter()
            .filter(|&kind| named.is_none_or(|n| n == kind))
            .any(|kind| book_bytes(kind) == bytes))
    }

    fn bind_int8(
        &self,
        module: &str,
        codes: &TensorInfo,
        scale: &str,
        spelling: Spelling,
    ) -> Result<QuantizedTensor, Error> {
        check_dtype(module, codes, &[Dtype::I8])?;
        let &[rows, _] = codes.shape.as_slice() else {
            return Err(wrong_shape(module, codes, "a matrix".to_owned()));
        };
        let scale = required(self.headers, module, scale)?;
        check_dtype(module, scale, &[Dtype::F32])?;
        if scale.shape != [rows] {
            return Err(wrong_shape(module, scale, format!("[{rows}]")));
        }
        let elements = Storage::Elements { axes: Axes::OutIn };
        let mut parts = vec![
            part(Role::Codes, codes, elements),
            part(Role::Scale, scale, elements),
        ];
        if let Some(info) = self.headers.tensor(&format!("{module}.weight_format")) {
            parts.push(self.row_format(module, info)?);
        }
        let code = Code::Integer {
            bits: 8,
            encoding: IntegerEncoding::TwosComplement,
        };
        Ok(QuantizedTensor {
            module: module.to_owned(),
            weight: codes.name.to_string(),
            convention: ID,
            shape: codes.shape.to_vec(),
            scheme: Scheme {
                zero_point: ZeroPoint::Fixed(128),
                arithmetic: match spelling {
                    Spelling::Dotted => Arithmetic::Over127,
                    Spelling::Underscored => Arithmetic::ScaleOver127,
                },
                ..Scheme::plain(code, Granularity::Channel, ScaleCoding::Float(Float::F32))
            },
            reference_dtype: Float::F32,
            parts,
        })
    }

    /// The marker for rows as they are; other layouts belong to kernels that are gone.
    fn row_format(&self, module: &str, info: &TensorInfo) -> Result<Part, Error> {
        check_dtype(module, info, &[Dtype::U8])?;
        if info.n_elements() != 1 {
            return Err(wrong_shape(module, info, "one number".to_owned()));
        }
        let content = self.headers.descriptor(&info.name)?;
        if content != [0] {
            return Err(unsupported(
                module,
                "bitsandbytes int8 in a layout of tensor cores",
                &format!("weight_format is {content:?}, not 0 (rows)"),
            ));
        }
        Ok(Part {
            content: Some(content),
            ..part(Role::Auxiliary, info, Storage::Vector)
        })
    }
}

/// The 16 values of a code book as stored.
fn book_bytes(kind: Kind) -> Vec<u8> {
    let values = kind.book().values();
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// One 4-bit weight to be bound.
struct FourBit<'a> {
    headers: Headers<'a>,
    module: &'a str,
    weight: &'a TensorInfo,
    /// What stands before `absmax`.
    prefix: String,
}

impl FourBit<'_> {
    fn bind(&self, state: &State, descriptor: Part) -> Result<QuantizedTensor, Error> {
        self.check_codes(state)?;
        let granularity = self.granularity(state)?;
        let elements = Storage::Elements { axes: Axes::OutIn };
        let packing = Packing::NibblesHighFirst;
        let absmax = self.required("absmax")?;
        let expected = if state.nested.is_some() {
            Dtype::U8
        } else {
            Dtype::F32
        };
        check_dtype(self.module, absmax, &[expected])?;
        let n_blocks = n_elements(&state.shape).div_ceil(state.block);
        self.check_len(absmax, n_blocks)?;
        let mut parts = vec![
            part(Role::Codes, self.weight, Storage::Flat { packing }),
            part(Role::Scale, absmax, elements),
            self.table(Role::Codebook, "quant_map", 16)?,
        ];
        if let Some(nested) = state.nested {
            let above = self.required("nested_absmax")?;
            check_dtype(self.module, above, &[Dtype::F32])?;
            self.check_len(above, n_blocks.div_ceil(nested.block))?;
            parts.push(part(Role::SuperScale, above, elements));
            parts.push(self.table(Role::ScaleTable, "nested_quant_map", 256)?);
        }
        parts.push(descriptor);
        Ok(QuantizedTensor {
            module: self.module.to_owned(),
            weight: self.weight.name.to_string(),
            convention: ID,
            shape: state.shape.clone(),
            scheme: scheme(state, granularity),
            reference_dtype: state.dtype,
            parts,
        })
    }

    fn required(&self, ending: &str) -> Result<&TensorInfo, Error> {
        let name = format!("{}{ending}", self.prefix);
        required(self.headers, self.module, &name)
    }

    fn check_len(&self, info: &TensorInfo, n: u64) -> Result<(), Error> {
        if info.n_elements() == n {
            return Ok(());
        }
        Err(wrong_shape(self.module, info, format!("{n} elements")))
    }

    /// A table of F32 values, whole.
    fn table(&self, role: Role, ending: &str, n: u64) -> Result<Part, Error> {
        let info = self.required(ending)?;
        check_dtype(self.module, info, &[Dtype::F32])?;
        self.check_len(info, n)?;
        let content = self.headers.descriptor(&info.name)?;
        Ok(Part {
            content: Some(content),
            ..part(role, info, Storage::Elements { axes: Axes::OutIn })
        })
    }

    /// Two codes to a byte, in elements of whatever dtype the bytes were seen as.
    fn check_codes(&self, state: &State) -> Result<(), Error> {
        let storages = [
            Dtype::U8,
            Dtype::I8,
            Dtype::BF16,
            Dtype::F16,
            Dtype::F32,
            Dtype::F64,
        ];
        if !storages.contains(&self.weight.dtype) {
            let expected = "U8, I8, BF16, F16, F32 or F64 (quant_storage)";
            return Err(wrong_dtype(self.module, self.weight, expected));
        }
        let word = self.weight.dtype.bits() / 8;
        let words = n_elements(&state.shape).div_ceil(2).div_ceil(word);
        if self.weight.n_elements() == words {
            return Ok(());
        }
        let expected = format!("{words} elements for a weight of shape {:?}", state.shape);
        Err(wrong_shape(self.module, self.weight, expected))
    }

    /// Blocks are groups of a row where they divide it; what stands on its own in each matrix of a stack is read matrix by
    /// matrix.
    fn granularity(&self, state: &State) -> Result<Granularity, Error> {
        let columns = state.shape.last().copied().unwrap_or(1);
        let stack = state.shape.len().saturating_sub(2);
        let (outer, matrix) = state.shape.split_at(stack);
        let (n_matrices, n) = (n_elements(outer), n_elements(matrix));
        let nested = state
            .nested
            .is_none_or(|nested| (n / state.block).is_multiple_of(nested.block));
        let is_separate = n.is_multiple_of(state.block) && nested;
        if n_matrices > 1 && !is_separate {
            return Err(unsupported(
                self.module,
                "bitsandbytes blocks across the matrices of a stack",
                &format!("blocks of {} in matrices of {n} elements", state.block),
            ));
        }
        Ok(if columns.is_multiple_of(state.block) {
            Granularity::Group { size: state.block }
        } else {
            Granularity::Flat { size: state.block }
        })
    }
}

/// What the codes of a weight with this state mean.
fn scheme(state: &State, granularity: Granularity) -> Scheme {
    let (coding, super_scale) = match state.nested {
        None => (ScaleCoding::Float(Float::F32), SuperScale::None),
        Some(nested) => (
            ScaleCoding::StoredTable,
            SuperScale::Nested {
                size: nested.block,
                offset: nested.offset,
            },
        ),
    };
    Scheme {
        super_scale,
        ..Scheme::plain(Code::Codebook(state.kind.book()), granularity, coding)
    }
}

/// Elements of a shape whose product was checked.
fn n_elements(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |n: u64, &d| n.saturating_mul(d))
}
