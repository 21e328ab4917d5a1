//! What the tensors of a module say without a configuration (specs/conventions/gptq.md, clauses G1 and G2).

use super::config::Format;
use super::{Parts, words, write};
use crate::binding::unsupported;
use crate::scheme::Packing;
use crate::storage::to_u64;
use crate::{Error, Headers};

/// Modules whose zero points are looked at, at most; and bytes of one.
const MAX_MODULES: usize = 16;
const MAX_BYTES: u64 = 1 << 16;

/// Whether the shapes are GPTQ's: columns are output features in codes and scales alike. Without a group index AWQ's `gemv`
/// can look the same; it has as many rows of codes as of scales.
pub(super) fn is_gptq(headers: Headers<'_>, module: &str) -> bool {
    let Ok(parts) = Parts::find(headers, module) else {
        return false;
    };
    let (codes, scales) = (&parts.qweight.shape, &parts.scales.shape);
    codes[1] == scales[1]
        && parts.qzeros.shape[0] == scales[0]
        && (parts.g_idx.is_some() || codes[0] != scales[0])
}

/// Whether codes and zero points are both packed along output features.
pub(super) fn is_awq(parts: &Parts<'_>) -> bool {
    let (codes, zeros) = (&parts.qweight.shape, &parts.qzeros.shape);
    codes[1] == zeros[1] && codes[1] < parts.scales.shape[1]
}

/// The one width that fits the words of the zero points and, where there is a group index, of the codes.
pub(super) fn bits_of(parts: &Parts<'_>) -> Option<u32> {
    let out = parts.scales.shape[1];
    let fits = |bits: &u32| {
        let packing = Packing::LsbFirst { bits: *bits };
        let of_index = |k: u64| words(packing, k, parts.word) == parts.qweight.shape[0];
        words(packing, out, parts.word) == parts.qzeros.shape[1]
            && parts.g_idx.is_none_or(|i| of_index(i.n_elements()))
    };
    let mut fitting = (2..=8).filter(fits);
    let bits = fitting.next()?;
    fitting.next().is_none().then_some(bits)
}

/// The format, from the zero points: symmetric ones have the same number in every lane, and each format another one.
/// `None` without modules.
///
/// # Errors
/// [`Error::Unsupported`] if they are not symmetric: names what a configuration would have to say.
pub(super) fn format_of(headers: Headers<'_>, modules: &[String]) -> Result<Option<Format>, Error> {
    let mut decided: Option<Format> = None;
    let mut n_looked_at = 0;
    for module in modules {
        let parts = Parts::find(headers, module)?;
        let len = parts.qzeros.len_bytes();
        if n_looked_at == MAX_MODULES || len == 0 || len > MAX_BYTES {
            continue;
        }
        n_looked_at += 1;
        let stored = headers.descriptor(&parts.qzeros.name)?;
        let format = symmetric_format(&parts, &stored);
        if format.is_none() || decided.is_some_and(|d| Some(d) != format) {
            return Err(undecided(module));
        }
        decided = format;
    }
    match (decided, modules.first()) {
        (None, Some(module)) => Err(undecided(module)),
        (decided, _) => Ok(decided),
    }
}

fn symmetric_format(parts: &Parts<'_>, stored: &[u8]) -> Option<Format> {
    let bits = bits_of(parts)?;
    let [groups, out] = [parts.scales.shape[0], parts.scales.shape[1]];
    let equal = |format: Format| {
        let zeros = write::symmetric_zeros(format, bits, [groups, out], parts.qzeros.dtype);
        zeros
            .is_some_and(|bytes| to_u64(bytes.len()) == parts.qzeros.len_bytes() && bytes == stored)
    };
    // Of 2, 4 and 8 bits the planes are the stream: `gptq_p` then means what `gptq_v2` does.
    [Format::V1, Format::V2, Format::Planar]
        .into_iter()
        .find(|&format| equal(format))
}

fn undecided(module: &str) -> Error {
    unsupported(
        module,
        "GPTQ without a configuration",
        "its zero points do not tell how they are stored: add a quantize_config.json with \"bits\", \"group_size\", \"sym\" \
         and \"checkpoint_format\", which is \"gptq\" if they are stored minus one and \"gptq_v2\" if not",
    )
}
