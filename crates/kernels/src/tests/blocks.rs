//! [`crate::Backend::decode_blocks`] of each backend against portable.

use crate::{Backend, BlockFormat, Float, FloatsMut, PORTABLE, Stores};

/// Blocks of random bytes: scales of any bits, NaN and infinities among them.
fn random(format: BlockFormat, n_blocks: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..n_blocks * format.bytes()).map(|_| next()).collect()
}

/// Puts an F16 number that decides, in turn, at every place where a block may have one.
fn with_halves(format: BlockFormat, blocks: &mut [u8]) {
    const HALVES: [u16; 13] = [
        0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0x7c00, 0xfc00, 0x7c01,
        0xfe34, 0x7fff,
    ];
    let Some(layout) = format.layout() else {
        return;
    };
    for (i, block) in blocks.chunks_exact_mut(format.bytes()).enumerate() {
        for (at, half) in [(layout.d, i % 13), (layout.m, i / 13 % 13)] {
            if let Some(at) = at {
                block[at..at + 2].copy_from_slice(&HALVES[half].to_le_bytes());
            }
        }
    }
}

/// Decodes with every backend and compares, for each output and kind of store; returns the number of comparisons. The
/// output starts at each of several addresses, and nothing around it may change.
fn check(format: BlockFormat, blocks: &[u8], case: &str) -> usize {
    let n = blocks.len() / format.bytes() * format.elements();
    let mut visited = 0;
    for stores in [Stores::Ordinary, Stores::Streaming] {
        for &float in Float::ALL {
            let len = n * float.size_bytes();
            for offset in [0, 1, 2, 32] {
                let mut expected = vec![0xa5; len + 96];
                let start = expected.as_ptr().align_offset(32) + offset;
                let out = FloatsMut::Bytes(float, &mut expected[start..start + len]);
                (PORTABLE.decode_blocks)(format, blocks, out, stores);
                for backend in Backend::available() {
                    let mut found = vec![0xa5; len + 96];
                    let at = found.as_ptr().align_offset(32) + offset;
                    let out = FloatsMut::Bytes(float, &mut found[at..at + len]);
                    (backend.decode_blocks)(format, blocks, out, stores);
                    let case = format!("{} {case} {float:?} {stores:?}", backend.name);
                    let results = &found[at..at + len];
                    let same = results.iter().zip(&expected[start..start + len]);
                    assert_eq!(same.clone().position(|(a, b)| a != b), None, "{case}");
                    let around = found[..at].iter().chain(&found[at + len..]);
                    assert!(around.clone().all(|&byte| byte == 0xa5), "{case}");
                    visited += 1;
                }
            }
        }
        let mut expected = vec![0.0; n];
        (PORTABLE.decode_blocks)(format, blocks, FloatsMut::F32(&mut expected), stores);
        for backend in Backend::available() {
            let mut found = vec![0.0f32; n];
            (backend.decode_blocks)(format, blocks, FloatsMut::F32(&mut found), stores);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{} {case}", backend.name);
            visited += 1;
        }
    }
    visited
}

#[test]
fn every_type_of_block() {
    for &format in BlockFormat::ALL {
        let mut visited = 0;
        for n_blocks in [0, 1, 2, 3, 67, 300] {
            let mut blocks = random(format, n_blocks);
            let case = format!("{} x {n_blocks}", format.name());
            visited += check(format, &blocks, &case);
            with_halves(format, &mut blocks);
            visited += check(format, &blocks, &format!("{case}, chosen halves"));
        }
        let names: Vec<&str> = Backend::available().map(|b| b.name).collect();
        assert_eq!(visited, 12 * 26 * names.len());
        println!(
            "{}: {names:?} equal portable in {visited} cases",
            format.name()
        );
    }
}

/// All codes of the scales that are bytes: E8M0 and E4M3.
#[test]
fn every_scale_that_is_a_byte() {
    for format in [BlockFormat::Mxfp4, BlockFormat::Nvfp4] {
        let mut blocks = random(format, 256);
        for (scale, block) in (0..=255).zip(blocks.chunks_exact_mut(format.bytes())) {
            block[0] = scale;
        }
        assert!(check(format, &blocks, format.name()) >= 26);
    }
}

/// The portable result in 16 bits is the value of ggml, rounded once, and FFFF for a NaN in BF16.
#[test]
fn portable_rounds_values_once() {
    for &format in BlockFormat::ALL {
        let mut blocks = random(format, 200);
        with_halves(format, &mut blocks);
        let mut values = vec![0.0; 200 * format.elements()];
        format.dequantize(&blocks, &mut values);
        let mut n_nan = 0;
        for float in [Float::F16, Float::Bf16] {
            let mut words = vec![0; 2 * values.len()];
            let out = FloatsMut::Bytes(float, &mut words);
            (PORTABLE.decode_blocks)(format, &blocks, out, Stores::Ordinary);
            for (&value, &word) in values.iter().zip(words.as_chunks().0) {
                let word = u16::from_le_bytes(word);
                let nearest = float.nearest(value);
                match float {
                    Float::Bf16 if value.is_nan() => assert_eq!(word, 0xffff),
                    Float::Bf16 => assert_eq!(u32::from(word) << 16, nearest.to_bits()),
                    Float::F16 | Float::F32 => {
                        let wide = crate::portable::convert::f16_to_f32(word);
                        assert_eq!(wide.to_bits(), nearest.to_bits());
                    }
                }
                n_nan += usize::from(value.is_nan());
            }
        }
        let has_d = format.layout().is_none_or(|layout| layout.d.is_some());
        assert_eq!(n_nan > 0, has_d, "{}", format.name());
    }
}

#[test]
#[should_panic(expected = "bytes of 2 blocks")]
fn too_few_blocks_panic() {
    let out = &mut [0.0; 64];
    (Backend::detect().decode_blocks)(
        BlockFormat::Q4_0,
        &[0; 18],
        FloatsMut::F32(out),
        Stores::Ordinary,
    );
}
