//! Which modules a file has, and by what each is to be read (specs/conventions/comfyui.md, clauses C1 to C11).

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::Float;

use super::is_fp8;
use super::markers::{HEADER_KEY, Layer, Markers};
use super::padding::{Logical, Padded};
use crate::scheme::float_of;
use crate::{Error, Headers};

/// What one module is read by.
pub(super) enum Kind {
    /// FP8 codes and nothing else.
    Plain {
        /// The tensor.
        weight: String,
    },
    /// FP8 codes and a scale.
    Scaled {
        /// The scale's ending.
        scale: &'static str,
    },
    /// A marker, or the header.
    Described {
        layer: Layer,
        /// Of formats with padding.
        logical: Option<Logical>,
    },
}

/// What was found.
pub(super) struct Found<'a> {
    pub(super) headers: Headers<'a>,
    pub(super) compute: Float,
    pub(super) kinds: BTreeMap<String, Kind>,
    pub(super) modules: Vec<String>,
    pub(super) orphans: Vec<String>,
    pub(super) evidence: Vec<String>,
    /// Whether an FP8 layer that is described has a scale: then each must.
    pub(super) fp8_scales: bool,
}

/// The name, or the ending, of the marker of older scaled FP8.
const LEGACY: &str = "scaled_fp8";
/// Scales beside FP8 weights, as legacy files and musubi-tuner, and as everyone else spells them.
const LEGACY_SCALE: &str = "scale_weight";
const SCALE: &str = "weight_scale";
/// Endings of tensors without which, or beside which, there is a scale that somebody multiplies by.
const SCALES: [&str; 4] = [SCALE, LEGACY_SCALE, "weight_scale_2", "scale_input"];

impl<'a> Found<'a> {
    /// Looks at every name; `None` if there is nothing of ours.
    pub(super) fn find(headers: Headers<'a>) -> Result<Option<Self>, Error> {
        let markers = Markers::find(headers)?;
        let settings = headers.settings()?;
        let mut found = Self {
            headers,
            compute: headers.model_dtype()?.unwrap_or(Float::Bf16),
            kinds: BTreeMap::new(),
            modules: Vec::new(),
            orphans: markers.idle.clone(),
            evidence: Vec::new(),
            fp8_scales: false,
        };
        let is_described = markers.has_header || !markers.layers.is_empty();
        check_prefixes(headers, &markers)?;
        found.add_described(&markers)?;
        found.add_scaled(&markers, is_described, settings.is_empty())?;
        // Settings of another tool own what nothing of ours describes.
        let is_comfy = |m: Option<String>| m.is_some_and(|m| m.starts_with("comfy"));
        if settings.is_empty() || settings.iter().any(|s| is_comfy(s.method())) {
            found.add_plain()?;
        }
        found.add_legacy_markers();
        if found.kinds.is_empty() && found.orphans.is_empty() && !is_described {
            return Ok(None);
        }
        found.find_orphans()?;
        found.modules = found.kinds.keys().cloned().collect();
        Ok(Some(found))
    }

    fn add_described(&mut self, markers: &Markers) -> Result<(), Error> {
        if !markers.layers.is_empty() {
            let n = markers.layers.len();
            let place = if markers.has_header {
                HEADER_KEY
            } else {
                "comfy_quant markers"
            };
            self.evidence
                .push(format!("{n} layers described by {place}"));
        }
        for name in &markers.idle {
            self.evidence
                .push(format!("{name} describes no quantized weight"));
        }
        for module in &markers.absent {
            self.evidence
                .push(format!("{HEADER_KEY} names {module}, which is not there"));
        }
        for (module, layer) in &markers.layers {
            let name = format!("{module}.weight");
            let Some(weight) = self.headers.tensor(&name) else {
                continue;
            };
            if float_of(weight.dtype).is_some() {
                return Err(Error::Contradiction {
                    module: module.clone(),
                    config: format!("{} ({})", layer.format()?.unwrap_or("?"), layer.place()),
                    tensors: format!("{name} is {}", weight.dtype),
                });
            }
            let has_scale = self.headers.tensor(&format!("{module}.{SCALE}")).is_some();
            self.fp8_scales |= has_scale && is_fp8(weight.dtype);
            let logical = self.logical(module, weight, layer)?;
            let kind = Kind::Described {
                layer: layer.clone(),
                logical,
            };
            self.kinds.insert(module.clone(), kind);
        }
        self.compare_siblings();
        Ok(())
    }

    /// The same layer of another block has the same shape: rows and columns that one of them uses are no padding in the
    /// others, though they be zero there.
    fn compare_siblings(&mut self) {
        let mut used: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        for (module, kind) in &self.kinds {
            if let Kind::Described {
                logical: Some(logical),
                ..
            } = kind
            {
                let most = used.entry(logical.family(module)).or_default();
                *most = [0, 1].map(|side| most[side].max(logical.shape[side]));
            }
        }
        for (module, kind) in &mut self.kinds {
            let Kind::Described {
                logical: Some(logical),
                ..
            } = kind
            else {
                continue;
            };
            if !logical.inferred {
                continue;
            }
            if let Some(most) = used.get(&logical.family(module)) {
                logical.shape = *most;
            }
            let [rows, columns] = logical.shape;
            self.evidence.push(format!(
                "{module}: the file does not state the shape [{rows}, {columns}]; what lies beyond is zero"
            ));
        }
    }

    /// The true shape of a weight in a format with padding.
    fn logical(
        &self,
        module: &str,
        weight: &TensorInfo,
        layer: &Layer,
    ) -> Result<Option<Logical>, Error> {
        let (unit, per_byte) = match layer.format()? {
            Some("nvfp4") => (16, 2),
            Some("mxfp8" | "hybrid_mxfp8") => (32, 1),
            _ => return Ok(None),
        };
        let &[.., rows, bytes] = weight.shape.as_slice() else {
            return Ok(None);
        };
        let padded = Padded {
            headers: self.headers,
            module,
            weight,
            stored: [rows, bytes.saturating_mul(per_byte)],
            unit,
            per_byte,
        };
        let is_stored = |n: u64| n > 0 && n.is_multiple_of(unit);
        if weight.dtype.size_bytes(1) != Some(1) || !padded.stored.iter().all(|&n| is_stored(n)) {
            let expected = format!("whole blocks of {unit} rows and columns");
            return Err(crate::binding::wrong_shape(module, weight, expected));
        }
        padded.logical(layer).map(Some)
    }

    /// FP8 weights with scales that no description names.
    fn add_scaled(
        &mut self,
        markers: &Markers,
        is_described: bool,
        is_unconfigured: bool,
    ) -> Result<(), Error> {
        let mut n = 0;
        let is_legacy = |info: &TensorInfo| info.name.ends_with(LEGACY_SCALE);
        let has_legacy = self.headers.tensors().any(is_legacy);
        if !(has_legacy || is_unconfigured || is_described) {
            return Ok(());
        }
        for info in self.headers.tensors().filter(|i| is_fp8(i.dtype)) {
            let Some(module) = info.name.strip_suffix(".weight") else {
                continue;
            };
            if self.kinds.contains_key(module) {
                continue;
            }
            let members = self.headers.members(module);
            let has = |ending: &str| members.get(ending).is_some();
            let (scale, ignored) = if has(LEGACY_SCALE) {
                // The header switches the conversion of old names off.
                (LEGACY_SCALE, markers.has_header)
            } else if (is_unconfigured || is_described) && has(SCALE) {
                (SCALE, is_described)
            } else {
                continue;
            };
            if ignored {
                return Err(Error::Contradiction {
                    module: module.to_owned(),
                    config: "nothing, though it describes other layers: ComfyUI would read the codes without their scale".to_owned(),
                    tensors: format!("{module}.{scale} is a scale"),
                });
            }
            n += 1;
            self.kinds.insert(module.to_owned(), Kind::Scaled { scale });
        }
        if n > 0 {
            self.evidence.push(format!("{n} FP8 weights with scales"));
        }
        Ok(())
    }

    /// FP8 tensors without any scale.
    fn add_plain(&mut self) -> Result<(), Error> {
        let companions = self.scaled_parents();
        let scaled: BTreeSet<&str> = self
            .kinds
            .iter()
            .filter(|(_, kind)| matches!(kind, Kind::Scaled { .. }) || self.fp8_scales)
            .map(|(module, _)| model_prefix(module))
            .collect();
        let mut plain = Vec::new();
        for info in self.headers.tensors().filter(|i| is_fp8(i.dtype)) {
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            let parent = info.name.rsplit_once('.').map_or("", |(parent, _)| parent);
            let is_part = matches!(self.kinds.get(parent), Some(Kind::Described { .. }))
                && info.name.strip_suffix(".bias").is_none();
            let is_part = is_part || info.name.ends_with("_scale") || is_legacy_marker(&info.name);
            if self.kinds.contains_key(module) || companions.contains(parent) || is_part {
                continue;
            }
            if info.name.ends_with(".weight")
                && info.shape.len() == 2
                && scaled.contains(model_prefix(module))
            {
                return Err(Error::MissingPart {
                    module: module.to_owned(),
                    part: format!("{module}.{SCALE} (other FP8 weights have one)"),
                });
            }
            plain.push((module.to_owned(), info.name.to_string()));
        }
        if !plain.is_empty() {
            let n = plain.len();
            self.evidence
                .push(format!("{n} FP8 tensors without scales"));
        }
        for (module, weight) in plain {
            self.kinds.insert(module, Kind::Plain { weight });
        }
        Ok(())
    }

    /// Where something stands that scales: beside it nothing is a plain cast. (A norm's `scale` that is FP8 itself is a
    /// weight.)
    fn scaled_parents(&self) -> BTreeSet<&'a str> {
        let is_scale = |info: &&TensorInfo| {
            let ending = info.name.rsplit('.').next().unwrap_or_default();
            ending.contains("scale") && !is_fp8(info.dtype)
        };
        let scales = self.headers.tensors().filter(is_scale);
        scales
            .filter_map(|info| info.name.rsplit_once('.').map(|(parent, _)| parent))
            .collect()
    }

    fn add_legacy_markers(&mut self) {
        let all = self.headers.tensors();
        for info in all.filter(|i| is_legacy_marker(&i.name)) {
            self.evidence.push(format!("{} is there", info.name));
            self.orphans.push(info.name.to_string());
        }
    }

    /// Scales without a weight, and scales of 1 beside dense weights.
    fn find_orphans(&mut self) -> Result<(), Error> {
        for info in self.headers.tensors() {
            let Some((module, ending)) = info.name.rsplit_once('.') else {
                continue;
            };
            if !SCALES.contains(&ending) || self.kinds.contains_key(module) {
                continue;
            }
            let weight = self.headers.tensor(&format!("{module}.weight"));
            match weight {
                None => self.evidence.push(format!("{} has no weight", info.name)),
                Some(weight) if float_of(weight.dtype).is_some() => {
                    self.check_idle_scale(module, info, weight.dtype)?;
                }
                Some(_) => continue,
            }
            self.orphans.push(info.name.to_string());
        }
        Ok(())
    }

    /// A scale beside a dense weight does nothing only if it is 1.
    fn check_idle_scale(
        &mut self,
        module: &str,
        scale: &TensorInfo,
        weight: Dtype,
    ) -> Result<(), Error> {
        let is_one = match (float_of(scale.dtype), scale.n_elements()) {
            (Some(float), 1) => {
                let bytes = self.headers.descriptor(&scale.name)?;
                let one: &[u8] = match float {
                    Float::F32 => &[0, 0, 0x80, 0x3f],
                    Float::Bf16 => &[0x80, 0x3f],
                    Float::F16 => &[0, 0x3c],
                };
                bytes == one
            }
            _ => false,
        };
        if !is_one {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("{} is a scale", scale.name),
                tensors: format!("{module}.weight is {weight}"),
            });
        }
        self.evidence.push(format!(
            "{} is 1 and stands beside a {weight} weight: it does nothing",
            scale.name
        ));
        Ok(())
    }
}

fn is_legacy_marker(name: &str) -> bool {
    name.strip_suffix(LEGACY)
        .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

/// The part of a name that tells one model of an all-in-one checkpoint from another.
fn model_prefix(name: &str) -> &str {
    const ONE_MORE: [&str; 2] = ["text_encoders.", "conditioner.embedders."];
    const WHOLE: [&str; 4] = [
        "model.diffusion_model.",
        "first_stage_model.",
        "cond_stage_model.",
        "vae.",
    ];
    for prefix in ONE_MORE {
        if let Some(rest) = name.strip_prefix(prefix) {
            let len = rest.find('.').map_or(rest.len(), |at| at + 1);
            return &name[..prefix.len() + len];
        }
    }
    WHOLE
        .into_iter()
        .find(|prefix| name.starts_with(prefix))
        .unwrap_or("")
}

/// A header that names layers without the prefix that they have in the file describes nothing, silently.
fn check_prefixes(headers: Headers<'_>, markers: &Markers) -> Result<(), Error> {
    let absent: BTreeSet<&str> = markers.absent.iter().map(String::as_str).collect();
    if absent.is_empty() {
        return Ok(());
    }
    for info in headers.tensors() {
        let Some(module) = info.name.strip_suffix(".weight") else {
            continue;
        };
        let mut endings = module.match_indices('.').map(|(at, _)| &module[at + 1..]);
        let is_dense = float_of(info.dtype).is_some();
        if let Some(named) = endings.find(|e| absent.contains(e))
            && !is_dense
            && !markers.layers.contains_key(module)
        {
            return Err(Error::Contradiction {
                module: module.to_owned(),
                config: format!("{named} ({HEADER_KEY})"),
                tensors: format!("the weight is called {}", info.name),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_an_all_in_one_checkpoint_are_told_apart() {
        assert_eq!(
            model_prefix("model.diffusion_model.blocks.0.q"),
            "model.diffusion_model."
        );
        assert_eq!(
            model_prefix("text_encoders.t5xxl.transformer.shared"),
            "text_encoders.t5xxl."
        );
        assert_eq!(model_prefix("blocks.0.q"), "");
        assert_eq!(model_prefix("text_encoders.x"), "text_encoders.x");
    }
}
