//! Whether two weights are stored as the same bytes, which settles everything else.

use safequant_container::TensorRef;
use safequant_schemes::{Error, Part, QuantizedTensor, Role};

use super::align::Pair;
use super::side::{Kind, Side, resize};

/// What is compared at once.
const TILE_BYTES: u64 = 1 << 20;

/// Whether both are the same bytes in tensors of the same form.
///
/// # Errors
/// What cannot be read.
pub(super) fn are_equal(pair: &Pair<'_>) -> Result<bool, Error> {
    let (a, b) = (&pair.a, &pair.b);
    if !a.is_as_stored() || !b.is_as_stored() {
        return Ok(false);
    }
    match (a.kind, b.kind) {
        (Kind::Plain(of_a) | Kind::Companion(of_a), Kind::Plain(of_b) | Kind::Companion(of_b)) => {
            let same_form = of_a.dtype() == of_b.dtype()
                && of_a.shape() == of_b.shape()
                && of_a.info.block == of_b.info.block;
            Ok(same_form && same_bytes(of_a, of_b)?)
        }
        (Kind::Quantized(of_a), Kind::Quantized(of_b)) => parts(a, of_a, b, of_b),
        (Kind::Quantized(_), Kind::Plain(_) | Kind::Companion(_))
        | (Kind::Plain(_) | Kind::Companion(_), Kind::Quantized(_)) => Ok(false),
    }
}

/// The parts that have a say in the weight.
fn counting(tensor: &QuantizedTensor) -> impl Iterator<Item = &Part> {
    let parts = tensor.parts.iter();
    parts.filter(|part| part.role != Role::Auxiliary)
}

fn parts(
    a: &Side<'_>,
    of_a: &QuantizedTensor,
    b: &Side<'_>,
    of_b: &QuantizedTensor,
) -> Result<bool, Error> {
    if of_a.scheme != of_b.scheme || counting(of_a).count() != counting(of_b).count() {
        return Ok(false);
    }
    for part in counting(of_a) {
        let Some(other) = of_b.part(part.role) else {
            return Ok(false);
        };
        let form = |part: &Part| (part.dtype, part.storage, part.extent);
        if form(part) != form(other) || part.shape != other.shape {
            return Ok(false);
        }
        let stored = (
            a.checkpoint.tensor(&part.name),
            b.checkpoint.tensor(&other.name),
        );
        let (Some(one), Some(two)) = stored else {
            return Ok(false);
        };
        if !same_bytes(one, two)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_bytes(a: TensorRef<'_>, b: TensorRef<'_>) -> Result<bool, Error> {
    let len = a.info.len_bytes();
    if len != b.info.len_bytes() {
        return Ok(false);
    }
    let mut buffers = [Vec::new(), Vec::new()];
    let mut at = 0;
    while at < len {
        let n = TILE_BYTES.min(len - at);
        for (tensor, buffer) in [a, b].into_iter().zip(&mut buffers) {
            resize(buffer, n, tensor.name())?;
            tensor.read_exact_at(at, buffer)?;
        }
        let [of_a, of_b] = &buffers;
        if of_a != of_b {
            return Ok(false);
        }
        at += n;
    }
    Ok(true)
}
