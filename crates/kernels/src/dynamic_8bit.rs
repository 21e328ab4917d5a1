//! bitsandbytes' dynamic 8-bit map: 256 sorted values that the scales of a double quantization index (bitsandbytes.md §4, §6).

/// Bit patterns of the values 128 to 255; the lower half mirrors them. sha256 of the whole table, little-endian:
/// `e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c`.
const POSITIVE: [u32; 128] = [
    0x3513_a3b7,
    0x365a_1a94,
    0x3702_05ff,
    0x37b2_4206,
    0x3837_8034,
    0x388a_efb3,
    0x38ba_1f4b,
    0x3923_d70b,
    0x398c_e705,
    0x39c7_e283,
    0x3a01_6f01,
    0x3a1e_ecc1,
    0x3a3c_6a80,
    0x3a59_e83e,
    0x3a77_65ff,
    0x3aa7_ef9d,
    0x3af1_a9fc,
    0x3b1d_b22d,
    0x3b42_8f5c,
    0x3b67_6c8a,
    0x3b86_24dd,
    0x3b98_9374,
    0x3bab_020d,
    0x3bbd_70a4,
    0x3bcf_df3b,
    0x3be2_4dd3,
    0x3bf4_bc6a,
    0x3c03_9581,
    0x3c0c_cccd,
    0x3c16_0418,
    0x3c1f_3b64,
    0x3c3a_e148,
    0x3c68_f5c3,
    0x3c8b_851f,
    0x3ca2_8f5d,
    0x3cb9_999a,
    0x3cd0_a3d7,
    0x3ce7_ae15,
    0x3cfe_b852,
    0x3d0a_e148,
    0x3d16_6667,
    0x3d21_eb85,
    0x3d2d_70a3,
    0x3d38_f5c3,
    0x3d44_7ae1,
    0x3d50_0000,
    0x3d5b_851f,
    0x3d67_0a3d,
    0x3d72_8f5d,
    0x3d7e_147b,
    0x3d84_cccd,
    0x3d8a_8f5d,
    0x3d90_51eb,
    0x3d96_147b,
    0x3d9b_d70a,
    0x3da1_999a,
    0x3da7_5c2a,
    0x3dad_1eb8,
    0x3db2_e148,
    0x3db8_a3d7,
    0x3dbe_6667,
    0x3dc4_28f7,
    0x3dc9_eb85,
    0x3ddb_3334,
    0x3df8_0000,
    0x3e0a_6666,
    0x3e18_cccd,
    0x3e27_3333,
    0x3e35_999a,
    0x3e44_0000,
    0x3e52_6666,
    0x3e60_cccd,
    0x3e6f_3333,
    0x3e7d_9999,
    0x3e86_0000,
    0x3e8d_3334,
    0x3e94_6666,
    0x3e9b_999a,
    0x3ea2_cccc,
    0x3eaa_0000,
    0x3eb1_3333,
    0x3eb8_6666,
    0x3ebf_999a,
    0x3ec6_cccc,
    0x3ece_0000,
    0x3ed5_3333,
    0x3edc_6666,
    0x3ee3_999a,
    0x3eea_cccc,
    0x3ef2_0000,
    0x3ef9_3332,
    0x3f00_3333,
    0x3f03_cccc,
    0x3f07_6666,
    0x3f0b_0000,
    0x3f0e_999a,
    0x3f12_3334,
    0x3f15_cccd,
    0x3f19_6666,
    0x3f1d_0000,
    0x3f20_999a,
    0x3f24_3334,
    0x3f27_cccd,
    0x3f2b_6666,
    0x3f2f_0000,
    0x3f32_999a,
    0x3f36_3334,
    0x3f39_cccd,
    0x3f3d_6666,
    0x3f41_0000,
    0x3f44_999a,
    0x3f48_3333,
    0x3f4b_cccd,
    0x3f4f_6666,
    0x3f53_0000,
    0x3f56_999a,
    0x3f5a_3333,
    0x3f5d_cccd,
    0x3f61_6666,
    0x3f65_0000,
    0x3f68_999a,
    0x3f6c_3333,
    0x3f6f_cccd,
    0x3f73_6666,
    0x3f77_0000,
    0x3f7a_999a,
    0x3f7e_3333,
    0x3f80_0000,
];

/// The map: sorted, `[127]` is 0, `[255]` is 1, and `[i] = -[254 - i]` below 127.
pub static DYNAMIC_8BIT: [f32; 256] = {
    let mut map = [0.0; 256];
    let mut i = 0;
    while i < 128 {
        map[128 + i] = f32::from_bits(POSITIVE[i]);
        if i < 127 {
            map[126 - i] = -f32::from_bits(POSITIVE[i]);
        }
        i += 1;
    }
    map
};

/// How bitsandbytes finds the code of a value in its dynamic map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dynamic8BitRule {
    /// The nearest entry; a value halfway takes the lower one. The library without its native code.
    Nearest,
    /// The nearest entry of the point of a grid of 65536 that is nearest to the value: the library's native CPU code, a
    /// look-up. About one code in a thousand differs from `Nearest`, around zero by up to three.
    Grid,
}

impl Dynamic8BitRule {
    /// Every rule.
    pub const ALL: &'static [Dynamic8BitRule] = &[Dynamic8BitRule::Nearest, Dynamic8BitRule::Grid];

    /// The code of a value, which is expected in -1 to 1 and clamped to it. NaN gives 0, which is what the native code
    /// makes of a block of zeros.
    pub fn encode(self, value: f32) -> u8 {
        if value.is_nan() {
            return 0;
        }
        let value = value.clamp(-1.0, 1.0);
        match self {
            Dynamic8BitRule::Nearest => nearest(value),
            Dynamic8BitRule::Grid => {
                let point = ((value + 1.0) * 32767.5 + 0.5) as u32;
                nearest(point as f32 / 32767.5 - 1.0)
            }
        }
    }
}

fn nearest(value: f32) -> u8 {
    let (mut low, mut high) = (0, 255);
    while low < high {
        let middle = usize::midpoint(low, high);
        if value > f32::midpoint(DYNAMIC_8BIT[middle], DYNAMIC_8BIT[middle + 1]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bitsandbytes.md §4: means of neighbors in `linspace(0.1, 1, 2^i + 1)`, times a power of ten.
    #[test]
    fn the_map_can_be_generated() {
        let mut values = vec![0.0, 1.0];
        for i in 0..7i32 {
            let n = (1usize << i) + 1;
            let step = (1.0f32 - 0.1) / (n - 1) as f32;
            let boundary = |k: usize| {
                if k < n / 2 {
                    step.mul_add(k as f32, 0.1)
                } else {
                    (-step).mul_add((n - 1 - k) as f32, 1.0)
                }
            };
            let power = 10f64.powi(i - 6) as f32;
            for k in 0..n - 1 {
                let mean = power * f32::midpoint(boundary(k), boundary(k + 1));
                values.extend([mean, -mean]);
            }
        }
        values.sort_by(f32::total_cmp);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&DYNAMIC_8BIT));
    }

    #[test]
    fn the_map_is_sorted_and_mirrored() {
        assert!(DYNAMIC_8BIT.is_sorted());
        assert_eq!((DYNAMIC_8BIT[127], DYNAMIC_8BIT[255]), (0.0, 1.0));
        for i in 0..127 {
            assert_eq!(DYNAMIC_8BIT[i], -DYNAMIC_8BIT[254 - i]);
        }
    }

    #[test]
    fn nearest_is_the_nearest_entry_and_the_lower_one_of_two() {
        for code in 0..=255u8 {
            let value = DYNAMIC_8BIT[usize::from(code)];
            assert_eq!(Dynamic8BitRule::Nearest.encode(value), code);
            if code < 255 {
                let tie = f32::midpoint(value, DYNAMIC_8BIT[usize::from(code) + 1]);
                assert_eq!(Dynamic8BitRule::Nearest.encode(tie), code);
                assert_eq!(Dynamic8BitRule::Nearest.encode(tie.next_up()), code + 1);
            }
        }
    }

    /// bitsandbytes.md §13: eight scales 0.50 to 0.57.
    #[test]
    fn double_quantization_of_the_dossier() {
        let scales = [0.50f32, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.57];
        let (offset, largest) = (0.534_999_97_f32, 0.035_000_026_f32);
        let codes = scales.map(|s| Dynamic8BitRule::Grid.encode((s - offset) * (1.0 / largest)));
        assert_eq!(codes, [0, 20, 40, 60, 194, 214, 234, 255]);
    }

    /// Run with bitsandbytes 0.50.2's CPU library: values beside the edges of grid points, and where the rules differ.
    #[test]
    fn grid_is_that_of_the_native_code() {
        assert_eq!(Dynamic8BitRule::Grid.encode(-9.536_752e-7), 123);
        assert_eq!(Dynamic8BitRule::Grid.encode(9.536_752e-7), 131);
        assert_eq!(Dynamic8BitRule::Nearest.encode(9.536_752e-7), 128);
        assert_eq!(Dynamic8BitRule::Grid.encode(f32::NAN), 0);
    }
}
