//! Blocks from codes and one scale each, where that is all there is to a block: what quantizing writes most.

use super::super::BlockFormat;
use crate::Float;

impl BlockFormat {
    /// [`super::super::BlockLayout::pack`] for the types that have one scale and nothing else beside whole nibbles or bytes;
    /// gives false, and writes nothing, for all others. Scales are rounded to F16 where they are none.
    ///
    /// # Panics
    /// If `codes`, `scales` and `blocks` are not of as many blocks.
    pub fn pack_scaled(self, codes: &[u8], scales: &[f32], blocks: &mut [u8]) -> bool {
        if self == BlockFormat::Q4_0 {
            pack::<32, 18>(codes, scales, blocks, |codes, bytes| {
                let (low, high) = codes.split_at(16);
                for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
                    *byte = low | high << 4;
                }
            });
            return true;
        }
        if self == BlockFormat::Q8_0 {
            pack::<32, 34>(codes, scales, blocks, |codes, bytes| {
                for (byte, code) in bytes.iter_mut().zip(codes) {
                    *byte = code ^ 0x80;
                }
            });
            return true;
        }
        false
    }
}

fn pack<const ELEMENTS: usize, const BYTES: usize>(
    codes: &[u8],
    scales: &[f32],
    blocks: &mut [u8],
    codes_to: impl Fn(&[u8; ELEMENTS], &mut [u8]),
) {
    let n = scales.len();
    let lens = (codes.len(), blocks.len());
    assert_eq!(lens, (n * ELEMENTS, n * BYTES), "{n} blocks");
    let mut halves = vec![0; 2 * n];
    crate::portable::convert::round(Float::F16, scales, &mut halves);
    let parts = codes.as_chunks().0.iter().zip(halves.as_chunks::<2>().0);
    for ((codes, d), block) in parts.zip(blocks.as_chunks_mut::<BYTES>().0) {
        let (scale, bytes) = block.split_at_mut(2);
        scale.copy_from_slice(d);
        codes_to(codes, bytes);
    }
}

#[cfg(test)]
mod tests {
    use crate::{BlockFields, BlockFormat};

    #[test]
    fn what_is_packed_in_short_is_packed_at_length() {
        let mut n_formats = 0;
        for &format in BlockFormat::ALL {
            let Some(layout) = format.layout() else {
                continue;
            };
            let n = 5;
            let codes: Vec<u8> = (0..n * format.elements())
                .map(|i| (i * 37 % 251) as u8 & (((1_u32 << layout.code_bits) - 1) as u8))
                .collect();
            let scales = [0.0, -0.0, 0.3, -65504.0, 1e-7];
            let mut short = vec![0xa5; n * format.bytes()];
            if !format.pack_scaled(&codes, &scales, &mut short) {
                assert!(short.iter().all(|b| *b == 0xa5), "{}", format.name());
                continue;
            }
            let mut long = vec![0; short.len()];
            let fields = BlockFields {
                codes,
                d: scales.to_vec(),
                ..BlockFields::default()
            };
            layout.pack(&fields, &mut long);
            assert_eq!(short, long, "{}", format.name());
            n_formats += 1;
        }
        assert_eq!(n_formats, 2);
    }
}
