//! Zero points, as conventions spell them.

use safequant_kernels::Backend;

use super::{stored_floats, unstorable};
use crate::decode::integer_bits;
use crate::storage::{WordShift, to_u64};
use crate::{Error, Part, QuantizedTensor, ZeroCoding, ZeroPoint};

/// Zero points as the file spells them, before packing.
pub(super) fn stored_zeros(
    tensor: &QuantizedTensor,
    part: &Part,
    (zeros, scales): (&[i32], &[f32]),
    groups: usize,
    backend: &'static Backend,
) -> Result<(Vec<u8>, WordShift), Error> {
    let ZeroPoint::Stored(coding) = tensor.scheme.zero_point else {
        return Ok((Vec::new(), WordShift::None));
    };
    let bits = integer_bits(tensor);
    let (top, half) = ((1 << bits) - 1, 1 << (bits - 1));
    let mut lanes = Vec::with_capacity(zeros.len());
    for (at, &zero) in zeros.iter().enumerate() {
        let lane = match coding {
            ZeroCoding::Direct | ZeroCoding::MinusOneWord | ZeroCoding::NegatedProduct
                if (0..=top).contains(&zero) =>
            {
                Some(zero)
            }
            ZeroCoding::MinusOne if (1..=top + 1).contains(&zero) => Some(zero - 1),
            ZeroCoding::MinusOneModulo if (0..=top).contains(&zero) => Some((zero - 1) & top),
            ZeroCoding::Signed if (0..=top).contains(&zero) => Some((zero - half) & 0xff),
            ZeroCoding::Direct
            | ZeroCoding::MinusOneWord
            | ZeroCoding::MinusOne
            | ZeroCoding::MinusOneModulo
            | ZeroCoding::Signed
            | ZeroCoding::NegatedProduct => None,
        };
        let detail = match coding {
            ZeroCoding::MinusOne => "gptq stores zero points minus one; gptq_v2 can hold it",
            ZeroCoding::Direct
            | ZeroCoding::MinusOneWord
            | ZeroCoding::MinusOneModulo
            | ZeroCoding::Signed
            | ZeroCoding::NegatedProduct => "",
        };
        lanes.push(
            lane.and_then(|l| u8::try_from(l).ok())
                .ok_or_else(|| Error::Unstorable {
                    module: tensor.module.clone(),
                    what: "zero point",
                    value: zero.to_string(),
                    row: to_u64(at / groups.max(1)),
                    group: to_u64(at % groups.max(1)),
                    detail: detail.to_owned(),
                })?,
        );
    }
    let shift = match coding {
        ZeroCoding::MinusOneWord => WordShift::PerLane(bits),
        ZeroCoding::Direct
        | ZeroCoding::MinusOne
        | ZeroCoding::MinusOneModulo
        | ZeroCoding::Signed => WordShift::None,
        ZeroCoding::NegatedProduct => {
            let float = crate::decode::float_dtype(tensor, part)?;
            let pairs = zeros.iter().zip(scales);
            let product = |(&zero, &scale)| crate::arithmetic::negated_product(float, zero, scale);
            let products: Vec<f32> = pairs.map(product).collect();
            let what = "product of scale and zero point";
            if let Some(at) = products.iter().position(|p| !p.is_finite()) {
                return Err(unstorable(tensor, what, products[at], at, groups));
            }
            let what = (what, groups);
            lanes = stored_floats(tensor, part, what, &products, backend)?;
            WordShift::None
        }
    };
    Ok((lanes, shift))
}
