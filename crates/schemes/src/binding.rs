//! What conventions share: no spelling of any of them, only the way parts are looked up and described.

use safequant_container::{Dtype, TensorInfo};

use crate::{Error, Headers, Part, QuantizedTensor, Role, Storage};

/// The header of a part that must be there.
pub(crate) fn required<'a>(
    headers: Headers<'a>,
    module: &str,
    part: &str,
) -> Result<&'a TensorInfo, Error> {
    headers.tensor(part).ok_or_else(|| Error::MissingPart {
        module: module.to_owned(),
        part: part.to_owned(),
    })
}

/// A part as the header describes it.
pub(crate) fn part(role: Role, info: &TensorInfo, storage: Storage) -> Part {
    Part {
        role,
        name: info.name.to_string(),
        dtype: info.dtype,
        shape: info.shape.to_vec(),
        storage,
        extent: None,
        content: None,
    }
}

/// The error for a dtype that a role does not allow.
pub(crate) fn wrong_dtype(module: &str, info: &TensorInfo, expected: &str) -> Error {
    Error::PartDtype {
        module: module.to_owned(),
        part: info.name.to_string(),
        expected: expected.to_owned(),
        found: info.dtype,
    }
}

/// The error for a shape that does not fit.
pub(crate) fn wrong_shape(module: &str, info: &TensorInfo, expected: String) -> Error {
    Error::PartShape {
        module: module.to_owned(),
        part: info.name.to_string(),
        expected,
        found: info.shape.to_vec(),
    }
}

/// Checks a dtype.
pub(crate) fn check_dtype(module: &str, info: &TensorInfo, allowed: &[Dtype]) -> Result<(), Error> {
    if allowed.contains(&info.dtype) {
        return Ok(());
    }
    let names: Vec<&str> = allowed.iter().map(|d| d.name()).collect();
    Err(wrong_dtype(module, info, &names.join(" or ")))
}

/// The error for what we cannot read yet.
pub(crate) fn unsupported(module: &str, format: &str, detail: &str) -> Error {
    Error::Unsupported {
        module: module.to_owned(),
        format: format.to_owned(),
        detail: detail.to_owned(),
    }
}

/// Endings of tensors that make a `qweight` beside them neither GPTQ's nor AWQ's: Nunchaku, ParoQuant, QQQ,
/// bitsandbytes, EXL3.
const OTHER_OWNERS: [&str; 7] = [
    "wscales",
    "theta",
    "pairs",
    "channel_scales",
    "s_channel",
    "absmax",
    "trellis",
];

/// The modules with a `qweight` that may be GPTQ's or AWQ's, by name.
pub(crate) fn qweight_modules(headers: Headers<'_>) -> impl Iterator<Item = &str> {
    let modules = headers
        .tensors()
        .filter_map(|info| info.name.strip_suffix(".qweight"));
    modules.filter(move |module| {
        let is_there = |ending: &str| headers.tensor(&format!("{module}.{ending}")).is_some();
        !OTHER_OWNERS.iter().any(|ending| is_there(ending))
    })
}

/// A planned part.
pub(crate) fn planned(
    role: Role,
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    storage: Storage,
) -> Part {
    Part {
        role,
        name,
        dtype,
        shape,
        storage,
        extent: None,
        content: None,
    }
}

/// A planned part whose bytes follow from the layout alone.
pub(crate) fn constant(name: String, dtype: Dtype, shape: Vec<u64>, content: Vec<u8>) -> Part {
    Part {
        content: Some(content),
        ..planned(Role::Auxiliary, name, dtype, shape, Storage::Vector)
    }
}

/// The refusal of a writer: what was wanted (a preset's name, or the codes there are), and the reason with what could hold it.
pub(crate) fn cannot_write(
    convention: &'static str,
    module: &str,
    wanted: &str,
    reason: impl Into<String>,
) -> Error {
    Error::CannotWrite {
        convention,
        module: module.to_owned(),
        preset: wanted.to_owned(),
        reason: reason.into(),
    }
}

/// The rows and columns of a matrix; stacks are refused with the reason that writers give.
pub(crate) fn matrix_only(
    convention: &'static str,
    module: &str,
    shape: &[u64],
    wanted: &str,
) -> Result<[u64; 2], Error> {
    <[u64; 2]>::try_from(shape).map_err(|_| {
        cannot_write(
            convention,
            module,
            wanted,
            "stacked experts must be written one by one",
        )
    })
}

/// Bits of a module's integer codes; 8 for others.
pub(crate) fn integer_bits(tensor: &QuantizedTensor) -> u32 {
    crate::decode::integer_bits(tensor)
}

/// The bytes of the first part that follows from a layout alone.
pub(crate) fn first_constant(tensor: &QuantizedTensor) -> Option<Vec<u8>> {
    let regions = crate::encode::constant_regions(tensor);
    regions.into_iter().next().map(|region| region.bytes)
}
