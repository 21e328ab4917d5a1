//! Where a quantizer may write codes itself: in which part, and in which form.

use safequant_kernels::{BlockFormat, CodeForm, Packing};

use super::is_streamed;
use crate::decode::holds_bare_fields;
use crate::storage::{blocks, to_u64};
use crate::{Axes, Axis, Code, IntegerEncoding, QuantizedTensor, Role, Storage};

/// The part that holds nothing but the codes, row after row without a gap, and their form there; `None` where codes lie
/// otherwise.
pub fn code_form(tensor: &QuantizedTensor) -> Option<(usize, CodeForm)> {
    let found = tensor.parts.iter().enumerate();
    let (i, part) = found
        .into_iter()
        .find(|(_, part)| part.role == Role::Codes)?;
    let packing = match part.storage {
        Storage::Elements { axes: Axes::OutIn } if part.dtype.bits() == 8 => Packing::Bytes,
        Storage::Packed {
            axes: Axes::OutIn,
            along: Axis::In,
            packing,
        }
        | Storage::Flat { packing } => packing,
        Storage::Elements { .. }
        | Storage::SharedElements { .. }
        | Storage::Common
        | Storage::Packed { .. }
        | Storage::PackedConstant { .. }
        | Storage::Vector
        | Storage::Sparse { .. }
        | Storage::Tiled { .. }
        | Storage::LowHigh { .. }
        | Storage::Blocks { .. }
        | Storage::Planes { .. } => return None,
    };
    let flip = match tensor.scheme.code {
        Code::Integer {
            bits,
            encoding: IntegerEncoding::TwosComplement,
        } if bits == 8 || holds_bare_fields(part, bits) => 1 << (bits - 1),
        Code::Integer {
            encoding: IntegerEncoding::TwosComplement,
            ..
        }
        | Code::Dense(_) => return None,
        Code::Integer {
            encoding: IntegerEncoding::Unsigned,
            ..
        }
        | Code::Minifloat(_)
        | Code::Codebook(_)
        | Code::StoredCodebook => 0,
    };
    let word = usize::try_from(part.dtype.bits() / 8).ok()?.max(1);
    let (unit, _) = packing.codes_per_word_unit(word);
    let is_whole = tensor.in_features().is_multiple_of(to_u64(unit));
    let is_plain = is_streamed(part, tensor) && part.extent.is_none();
    (is_whole && is_plain).then_some((i, CodeForm { packing, flip }))
}

/// The part that is blocks of ggml, and their type: rows lie one after the other.
pub fn block_format(tensor: &QuantizedTensor) -> Option<(usize, BlockFormat)> {
    let found = tensor
        .parts
        .iter()
        .position(|part| part.role == Role::Codes)?;
    Some((found, blocks::of(tensor)?))
}
