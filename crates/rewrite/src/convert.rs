//! `convert`: what becomes of each quantized weight in another convention, decided by schemes and numbers.

use safequant_container::{Checkpoint, Dtype};
use safequant_kernels::{Backend, Float};
use safequant_schemes::{
    Changes, Code, ConventionWriter, Decoder, Granularity, PRESETS, Preset, PresetGranularity,
    QuantizedTensor, Role, ScaleCoding, Transcoder, ZeroPoint, transcode,
};

use crate::Error;

/// How much of a weight survives the way to another convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// The same codes and the same scales in the same dtypes; the way back gives the same numbers, and the same bytes where
    /// the convention has one spelling for them.
    Exact,
    /// The same codes; scales or float zero points change their dtype (rounded or not), are repeated for smaller groups, or
    /// are read with another rounding.
    Cast,
    /// The codes change: the weight is dequantized and quantized again.
    Lossy,
    /// The convention cannot hold it at all.
    Impossible,
}

impl Label {
    /// Every label, from best to worst.
    pub const ALL: &'static [Label] = &[Label::Exact, Label::Cast, Label::Lossy, Label::Impossible];

    /// The word for it, in plans, summaries and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Label::Exact => "exact",
            Label::Cast => "cast",
            Label::Lossy => "lossy",
            Label::Impossible => "impossible",
        }
    }
}

/// What becomes of one weight.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// See [`Label`].
    pub label: Label,
    /// Why it is no better; empty for [`Label::Exact`].
    pub reason: String,
    /// What happens to the scales, where codes stay.
    pub changes: Changes,
    /// The source with its scheme as simple as its numbers allow, and the layout its codes are carried over to.
    pub(crate) carried: Option<(QuantizedTensor, QuantizedTensor)>,
    /// What it is quantized to anew, where codes change.
    pub(crate) preset: Option<Preset>,
}

impl Conversion {
    /// The source with its scheme as simple as its numbers allow, and the layout that its codes are carried over to; `None`
    /// where they cannot be.
    pub fn layouts(&self) -> Option<(&QuantizedTensor, &QuantizedTensor)> {
        self.carried.as_ref().map(|(plain, layout)| (plain, layout))
    }
}

/// Decides what becomes of one weight. Reads its scales and zero points, never its codes.
///
/// # Errors
/// I/O, or stored values that no reader accepts.
pub fn conversion(
    checkpoint: &Checkpoint,
    source: &QuantizedTensor,
    writer: &dyn ConventionWriter,
) -> Result<Conversion, Error> {
    let decoder = Decoder::new(source, checkpoint, Backend::detect())?;
    let plain = if source.convention == writer.id() {
        source.clone()
    } else {
        transcode::normalize(&decoder)?
    };
    let reason = match carry(&decoder, &plain, writer)? {
        Ok(conversion) => return Ok(conversion),
        Err(reason) => reason,
    };
    let preset = nearest_preset(writer, &plain, source.reference_dtype);
    Ok(Conversion {
        label: if preset.is_some() {
            Label::Lossy
        } else {
            Label::Impossible
        },
        reason,
        changes: Changes::default(),
        carried: None,
        preset,
    })
}

/// The way on which codes stay, or why there is none.
fn carry(
    decoder: &Decoder<'_>,
    plain: &QuantizedTensor,
    writer: &dyn ConventionWriter,
) -> Result<Result<Conversion, String>, Error> {
    let source = decoder.tensor;
    // What is of this convention already stays as it is, down to its spelling.
    let layout = if source.convention == writer.id() {
        transcode::with_own_parts(source)?
    } else {
        match writer.lay_out_like(plain) {
            Ok(layout) => layout,
            Err(error) => return Ok(Err(why(&error))),
        }
    };
    if let Some(part) = missing_part(source, &layout) {
        return Ok(Err(format!("{part} would have to be made up")));
    }
    let transcoder = match Transcoder::new(source, plain, &layout) {
        Ok(transcoder) => transcoder,
        Err(reason) => return Ok(Err(reason)),
    };
    let changes = match transcoder.survey(decoder) {
        Ok(changes) => changes,
        Err(error @ safequant_schemes::Error::Unstorable { .. }) => return Ok(Err(why(&error))),
        Err(error) => return Err(error.into()),
    };
    let (label, reason) = if changes.n_rounded > 0 {
        let reason = format!(
            "{} of {} scales are rounded, by at most {:.1e}",
            changes.n_rounded, changes.n_numbers, changes.max_relative_error
        );
        (Label::Cast, reason)
    } else if !transcoder.keeps_arithmetic() {
        let reason = "readers round differently: codes, scales and zero points are the same, weights only to the last bit".to_owned();
        (Label::Cast, reason)
    } else if let Some((from, to)) = changed_dtype(source, &layout) {
        let reason = format!(
            "numbers beside the codes are stored as {to} instead of {from}, none is rounded"
        );
        (Label::Cast, reason)
    } else if !transcoder.keeps_structure() {
        let reason = "scales are repeated for smaller groups, or multiplied together".to_owned();
        (Label::Cast, reason)
    } else {
        (Label::Exact, String::new())
    };
    Ok(Ok(Conversion {
        label,
        reason,
        changes,
        carried: Some((plain.clone(), layout)),
        preset: None,
    }))
}

/// The dtypes of the first kind of numbers (scales, super-scales, float zero points) that change theirs.
fn changed_dtype(
    source: &QuantizedTensor,
    layout: &QuantizedTensor,
) -> Option<(&'static str, &'static str)> {
    let kind = |tensor: &QuantizedTensor| match tensor.scheme.scale {
        ScaleCoding::Float(_) => "floats",
        ScaleCoding::E8M0(_) => "powers of two",
        ScaleCoding::Minifloat(_) => "small floats",
        ScaleCoding::StoredTable => "indices of a table",
        ScaleCoding::Integer => "integers",
        ScaleCoding::One => "nothing",
    };
    if kind(source) != kind(layout) {
        return Some((kind(source), kind(layout)));
    }
    [Role::Scale, Role::SuperScale, Role::Offset]
        .into_iter()
        .filter_map(|role| Some((source.part(role)?, layout.part(role)?)))
        .find(|(from, to)| is_float(from.dtype) && is_float(to.dtype) && from.dtype != to.dtype)
        .map(|(from, to)| (from.dtype.name(), to.dtype.name()))
}

/// Bytes of one-byte floats stand in tensors of their own dtype or of `U8`, which is no change.
fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The reason in an error of a writer, without the names that the reader knows already.
fn why(error: &safequant_schemes::Error) -> String {
    if let safequant_schemes::Error::CannotWrite { reason, .. } = error {
        return reason.clone();
    }
    error.to_string()
}

/// A part of the layout that neither follows from it nor stands in the source.
fn missing_part(source: &QuantizedTensor, layout: &QuantizedTensor) -> Option<String> {
    let missing = carried_parts(layout).find(|(_, part)| counterpart(source, part).is_none());
    missing.map(|(_, part)| part.name.clone())
}

/// The parts of a layout that are copied from the source, with their indices.
pub(crate) fn carried_parts(
    layout: &QuantizedTensor,
) -> impl Iterator<Item = (usize, &safequant_schemes::Part)> {
    layout
        .parts
        .iter()
        .enumerate()
        .filter(|(_, part)| safequant_schemes::encode::is_carried(layout, part))
}

/// The part of the source that stands for this one: the same role, dtype and number of bytes, and for companions of no
/// role the same name.
pub(crate) fn counterpart<'t>(
    source: &'t QuantizedTensor,
    part: &safequant_schemes::Part,
) -> Option<&'t safequant_schemes::Part> {
    let n = |shape: &[u64]| shape.iter().fold(1_u64, |n, &d| n.saturating_mul(d));
    source.parts.iter().find(|p| {
        let is_same = p.role == part.role && p.dtype == part.dtype && n(&p.shape) == n(&part.shape);
        is_same && (p.role != safequant_schemes::Role::Auxiliary || p.name == part.name)
    })
}

/// The scheme of a writer that is nearest to a tensor's: the same kind of code, as many bits or the next more, its group
/// size where the scheme has groups and the writer can hold it; only one that the writer can lay out for this very weight.
fn nearest_preset(
    writer: &dyn ConventionWriter,
    source: &QuantizedTensor,
    float: Float,
) -> Option<Preset> {
    let (bits, is_integer) = match source.scheme.code {
        Code::Integer { bits, .. } => (bits, true),
        Code::Minifloat(format) => (format.bits(), false),
        Code::Codebook(_) | Code::StoredCodebook => (4, false),
        Code::Dense(_) => (8, false),
    };
    let is_symmetric = matches!(source.scheme.zero_point, ZeroPoint::Fixed(_));
    let size = match source.scheme.granularity {
        Granularity::Group { size }
        | Granularity::IndexedGroup { size }
        | Granularity::Flat { size } => Some(size),
        Granularity::Tensor
        | Granularity::Channel
        | Granularity::Block { .. }
        | Granularity::Strided { .. } => None,
    };
    let fits = |preset: &&Preset| writer.presets().contains(&preset.name);
    let mut all: Vec<Preset> = PRESETS
        .iter()
        .filter(fits)
        .flat_map(|preset| [sized(preset, size), preset.clone()])
        .collect();
    // Stable: the source's group size before the preset's own.
    all.sort_by_key(|preset| {
        let fewer = preset.bits() < bits;
        let other_kind = preset.weights.is_integer() != is_integer;
        let loses_zero = !is_symmetric && !preset.weights.is_asymmetric();
        (fewer, preset.bits().abs_diff(bits), other_kind, loses_zero)
    });
    all.into_iter().find(|preset| {
        let layout = writer.lay_out(&source.module, &source.shape, preset, float);
        layout.is_ok()
    })
}

/// The preset with the source's group size, if it has groups.
fn sized(preset: &Preset, size: Option<u64>) -> Preset {
    let wanted = size.and_then(|n| i64::try_from(n).ok());
    let has_groups = matches!(preset.granularity, PresetGranularity::Group { .. });
    let resized = wanted
        .filter(|_| has_groups)
        .and_then(|n| preset.clone().with_group_size(Some(n)).ok());
    resized.unwrap_or_else(|| preset.clone())
}
