//! What the tensors of a module say of its layout (specs/conventions/awq.md, clauses A1 to A5).

use safequant_container::Dtype;

use super::Layout;
use crate::Headers;

/// The layout that dtypes and shapes prove; `None` where they do not.
pub(super) fn layout_of(headers: Headers<'_>, module: &str) -> Option<Layout> {
    let matrix = |ending: &str| {
        let info = headers.tensor(&format!("{module}.{ending}"))?;
        let shape = <[u64; 2]>::try_from(info.shape.as_slice()).ok()?;
        Some((info.dtype, shape))
    };
    // A group index is GPTQ's.
    let index = headers.tensor(&format!("{module}.g_idx"));
    if index.is_some_and(|i| i.n_elements() > 0) {
        return None;
    }
    let (dtype, codes) = matrix("qweight")?;
    let (_, scales) = matrix("scales")?;
    let zeros = matrix("qzeros");
    let is_float = |dtype| matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
    if dtype == Dtype::I16 {
        if matrix("scaled_zeros").is_some() {
            return Some(Layout::Llm);
        }
        return zeros
            .is_some_and(|(d, _)| is_float(d))
            .then_some(Layout::GemvFast);
    }
    if dtype != Dtype::I32 || zeros.is_some_and(|(d, _)| d != Dtype::I32) {
        return None;
    }
    let (zero_rows, zero_columns) = match zeros {
        Some((_, [rows, columns])) => (rows, columns),
        // Without zero points only 4 bits can be told.
        None => (scales[0], scales[1] / 8),
    };
    // Packed along output features, eight times 4 bits or another width: fewer columns than features.
    let is_gemm = zero_rows == scales[0]
        && zero_columns == codes[1]
        && codes[1] < scales[1]
        && codes[0] >= scales[0];
    // A row for each output feature everywhere.
    let is_gemv = zero_rows == scales[0]
        && scales[0] == codes[0]
        && zero_columns.checked_mul(8) == Some(scales[1]);
    match (is_gemm, is_gemv) {
        (true, false) => Some(Layout::Gemm),
        (false, true) => Some(Layout::Gemv),
        (true, true) | (false, false) => None,
    }
}
