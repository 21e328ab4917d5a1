//! Properties that every packing has at every width.

use proptest::prelude::*;
use safequant_kernels::Packing;

/// A packing, and codes of its width.
fn run() -> impl Strategy<Value = (Packing, Vec<u8>)> {
    let packings: Vec<Packing> = Packing::all().collect();
    (
        proptest::sample::select(packings),
        proptest::collection::vec(any::<u8>(), 0..300),
    )
        .prop_map(|(packing, mut codes)| {
            for code in &mut codes {
                *code >>= 8 - packing.bits();
            }
            (packing, codes)
        })
}

/// One bit per bit: the definition of the lowest-bits-first stream.
fn stream_bit(codes: &[u8], bits: usize, i: usize) -> bool {
    codes[i / bits] >> (i % bits) & 1 == 1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn unpack_after_pack_is_the_identity(
        (packing, codes) in run(),
        word_bytes in proptest::sample::select(vec![1, 2, 4, 8]),
        excess in 0..9usize,
    ) {
        let len = packing.packed_len_bytes(codes.len(), word_bytes);
        let mut packed = vec![0xff; len + excess];
        packing.pack(&codes, &mut packed);
        let mut back = vec![0xff; codes.len()];
        packing.unpack(&packed, &mut back);
        prop_assert_eq!(&back, &codes);
        // Padding is zero: exactly the ones of the codes are there.
        let ones = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();
        prop_assert_eq!(ones(&packed), ones(&codes));
        prop_assert_eq!(&packed[len..], &vec![0; excess][..]);
    }

    #[test]
    fn padding_is_ignored_and_a_prefix_can_be_unpacked((packing, codes) in run(), n in 0..300usize) {
        let mut packed = vec![0; packing.packed_len_bytes(codes.len(), 1)];
        packing.pack(&codes, &mut packed);
        let n = n.min(codes.len());
        let mut prefix = vec![0xff; n];
        packing.unpack(&packed, &mut prefix);
        prop_assert_eq!(&prefix, &codes[..n]);
    }

    /// What `codes_per_unit` promises: units packed one by one are the run.
    #[test]
    fn a_run_can_be_cut_at_units((packing, codes) in run(), word in proptest::sample::select(vec![1, 2, 4, 8])) {
        let (unit_codes, unit_bytes) = packing.codes_per_word_unit(word);
        prop_assert_eq!(unit_bytes % word, 0);
        let mut whole = vec![0xff; packing.packed_len_bytes(codes.len(), word)];
        packing.pack(&codes, &mut whole);
        let mut parts = Vec::new();
        for unit in codes.chunks(unit_codes) {
            let mut packed = vec![0xff; packing.packed_len_bytes(unit.len(), word)];
            packing.pack(unit, &mut packed);
            parts.extend(packed);
        }
        prop_assert_eq!(parts, whole);
        prop_assert_eq!(packing.packed_len_bytes(unit_codes, word), unit_bytes);
    }

    #[test]
    fn lsb_first_is_one_bit_stream(bits in 1..=8u32, codes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let codes: Vec<u8> = codes.iter().map(|code| code >> (8 - bits)).collect();
        let packing = Packing::LsbFirst { bits };
        let mut packed = vec![0; packing.packed_len_bytes(codes.len(), 4)];
        packing.pack(&codes, &mut packed);
        for i in 0..codes.len() * bits as usize {
            let bit = packed[i / 8] >> (i % 8) & 1 == 1;
            prop_assert_eq!(bit, stream_bit(&codes, bits as usize, i));
        }
    }

    /// A length that a hostile header declares overflows nothing.
    #[test]
    fn lengths_saturate(n in prop_oneof![any::<usize>(), usize::MAX - 100..=usize::MAX]) {
        for packing in Packing::all() {
            for word in [1, 2, 4, 8] {
                let len = packing.packed_len_bytes(n, word);
                prop_assert!(len as u128 * 8 >= (n as u128 * u128::from(packing.bits())).min(usize::MAX as u128));
            }
        }
    }
}

#[test]
fn units_are_minimal() {
    let expected = [
        (Packing::Bytes, (1, 1), (4, 4)),
        (Packing::NibblesHighFirst, (2, 1), (8, 4)),
        (Packing::AwqInterleaved, (8, 4), (8, 4)),
        (Packing::LsbFirst { bits: 2 }, (4, 1), (16, 4)),
        (Packing::LsbFirst { bits: 3 }, (8, 3), (32, 12)),
        (Packing::LsbFirst { bits: 4 }, (2, 1), (8, 4)),
        (Packing::LsbFirst { bits: 6 }, (4, 3), (16, 12)),
        (Packing::LsbFirst { bits: 8 }, (1, 1), (4, 4)),
        (Packing::LsbFirstNoStraddle { bits: 3 }, (10, 4), (10, 4)),
        (Packing::Planar { bits: 5 }, (32, 20), (32, 20)),
    ];
    for (packing, unit, word_unit) in expected {
        assert_eq!(packing.codes_per_unit(), unit, "{packing:?}");
        assert_eq!(packing.codes_per_word_unit(4), word_unit, "{packing:?}");
    }
}

#[test]
fn a_short_slice_panics_before_anything_is_written() {
    for packing in Packing::all() {
        let len = packing.packed_len_bytes(33, 1);
        let short = vec![0; len - 1];
        let result = std::panic::catch_unwind(|| packing.unpack(&short, &mut [0; 33]));
        assert!(result.is_err(), "{packing:?}");
    }
}

#[test]
fn widths_that_a_layout_lacks_are_refused() {
    for packing in [
        Packing::LsbFirst { bits: 0 },
        Packing::LsbFirst { bits: 9 },
        Packing::Planar { bits: 1 },
    ] {
        assert!(!packing.is_valid());
        assert!(std::panic::catch_unwind(|| packing.packed_len_bytes(8, 1)).is_err());
    }
    assert!(Packing::all().all(Packing::is_valid));
}
