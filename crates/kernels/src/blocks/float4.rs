//! MXFP4 and NVFP4: E2M1 codes. ggml doubles the code book and halves the scale, so that the values are integers.

use super::layout::{BlockLayout, BlockOffset, BlockScale, CodeStore, CodeValue, Plane};
use super::scales::ScaleStore;

/// E2M1 doubled; code 8, the negative zero of E2M1, is plus zero here.
pub(crate) static VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) static MXFP4: BlockLayout = BlockLayout {
    elements: 32,
    bytes: 17,
    group: 32,
    code_bits: 4,
    value: CodeValue::Table(&VALUES),
    scale: BlockScale::HalfE8M0,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 1,
        len: 16,
        width: 4,
        shift: 0,
        repeat: 1,
    }]),
    scales: ScaleStore::Bytes { at: 0, n: 1 },
    d: None,
    m: None,
};

pub(super) static NVFP4: BlockLayout = BlockLayout {
    elements: 64,
    bytes: 36,
    group: 16,
    code_bits: 4,
    value: CodeValue::Table(&VALUES),
    scale: BlockScale::HalfE4M3,
    offset: BlockOffset::None,
    codes: CodeStore::Planes(&[Plane {
        offset: 4,
        len: 8,
        width: 4,
        shift: 0,
        repeat: 4,
    }]),
    scales: ScaleStore::Bytes { at: 0, n: 4 },
    d: None,
    m: None,
};

/// `ggml_e8m0_to_fp32_half`: 2^(code - 128), subnormal for 0 and 1; 255 is 2^127, not NaN.
pub(crate) fn half_e8m0(code: u8) -> f32 {
    f32::from_bits(match code {
        0 | 1 => 0x0020_0000 << code,
        _ => (u32::from(code) - 1) << 23,
    })
}

/// `ggml_ue4m3_to_fp32`: half of the E4M3 magnitude; 0 for 0 and 7F. Bit 7 is not looked at otherwise, so that FF is 240.
pub(super) fn half_e4m3(code: u8) -> f32 {
    if code == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), f32::from(code & 7));
    if exponent == 0 {
        return mantissa * f32::from_bits((127 - 10) << 23);
    }
    (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 127 - 8) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_at_the_edges() {
        assert_eq!(half_e8m0(0), 2_f32.powi(-126) / 4.0);
        assert_eq!(half_e8m0(1), 2_f32.powi(-126) / 2.0);
        assert_eq!(half_e8m0(2), 2_f32.powi(-126));
        assert_eq!(half_e8m0(255), 2_f32.powi(127));
        assert_eq!(half_e4m3(0), 0.0);
        assert_eq!(half_e4m3(1), 2_f32.powi(-10));
        assert_eq!(half_e4m3(0x38), 0.5);
        assert_eq!(half_e4m3(0x7e), 224.0);
        assert_eq!(half_e4m3(0x7f), 0.0);
        assert_eq!(half_e4m3(0xff), 240.0);
    }
}
