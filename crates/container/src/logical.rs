//! The extended registry: logical element types that ride in a carrier dtype.
//!
//! A header says `I32` and means four-bit integers, eight to a word. This table says which pairs exist and how many
//! stored elements a run of codes takes; it says nothing of the order of bits (that is a packing, in `kernels`) and
//! nothing of meaning (a scheme, in `schemes`).

use crate::Dtype;

/// How a logical dtype sits in stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The dtype in the header.
    pub dtype: Dtype,
    /// `codes` logical elements occupy `elements` carrier elements.
    pub codes: u32,
    /// See `codes`.
    pub elements: u32,
}

impl Carrier {
    /// Carrier elements that a run of `n_codes` takes, the last one padded; `None` if the number does not fit 64 bits.
    ///
    /// ```
    /// use safequant_container::{Carrier, Dtype};
    /// let words = Carrier { dtype: Dtype::I32, codes: 32, elements: 3 };
    /// assert_eq!(words.stored_elements(64), Some(6));
    /// assert_eq!(words.stored_elements(33), Some(4)); // 99 bits
    /// ```
    pub fn stored_elements(self, n_codes: u64) -> Option<u64> {
        let words = u128::from(n_codes) * u128::from(self.elements);
        u64::try_from(words.div_ceil(u128::from(self.codes))).ok()
    }

    /// Codes that `n_elements` carrier elements have room for; `None` if the number does not fit 64 bits.
    pub fn codes_in(self, n_elements: u64) -> Option<u64> {
        let codes = u128::from(n_elements) * u128::from(self.codes);
        u64::try_from(codes / u128::from(self.elements)).ok()
    }
}

/// Declares [`LogicalDtype`] and everything that is a list of them: variant, name, bits, and the carriers as
/// `dtype codes/elements`.
macro_rules! logical_dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal: $($carrier:ident $codes:literal/$elements:literal),+;)*) => {
        /// A logical element type, smaller than or different from the dtype that a header can say.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum LogicalDtype { $($(#[$doc])* $variant,)* }

        impl LogicalDtype {
            /// Every logical dtype.
            pub const ALL: &'static [LogicalDtype] = &[$(LogicalDtype::$variant,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(LogicalDtype::$variant => $name,)* }
            }

            /// Bits of one code.
            pub const fn bits(self) -> u32 {
                match self { $(LogicalDtype::$variant => $bits,)* }
            }

            /// The ways in which it is stored, the commonest first.
            pub const fn carriers(self) -> &'static [Carrier] {
                match self {
                    $(LogicalDtype::$variant => &[
                        $(Carrier { dtype: Dtype::$carrier, codes: $codes, elements: $elements },)+
                    ],)*
                }
            }

            /// The logical dtype of this name, if there is one.
            pub fn from_name(name: &str) -> Option<LogicalDtype> {
                match name { $($name => Some(LogicalDtype::$variant),)* _ => None }
            }
        }
    };
}

logical_dtypes! {
    /// Unsigned, 1 bit: HQQ bytes; compressed-tensors words.
    U1 = "U1", 1: I32 32/1, U8 8/1;
    /// Unsigned, 2 bits: GPTQ and compressed-tensors words, MLX words, HQQ and quanto bytes.
    U2 = "U2", 2: I32 16/1, U32 16/1, U8 4/1;
    /// Unsigned, 3 bits: as one stream of bits (GPTQ, compressed-tensors since 0.18, MLX), or ten to a word (HQQ,
    /// compressed-tensors up to 0.17).
    U3 = "U3", 3: I32 32/3, U32 32/3, I32 10/1;
    /// Unsigned, 4 bits: GPTQ, AWQ and compressed-tensors words, AWQ's `gemv_fast` half words, MLX words, HQQ and quanto
    /// byte pairs (`I8` in `ComfyUI`'s `awq_w4a16`).
    U4 = "U4", 4: I32 8/1, U32 8/1, U8 2/1, I8 2/1, I16 4/1;
    /// Unsigned, 5 bits: as one stream (`GPTQModel`, compressed-tensors, MLX), six to a word (compressed-tensors up to
    /// 0.17), or one to a byte (HQQ).
    U5 = "U5", 5: I32 32/5, U32 32/5, I32 6/1, U8 1/1;
    /// Unsigned, 6 bits: as one stream, five to a word, or one to a byte; users as [`LogicalDtype::U5`].
    U6 = "U6", 6: I32 16/3, U32 16/3, I32 5/1, U8 1/1;
    /// Unsigned, 7 bits: as one stream or four to a word (compressed-tensors).
    U7 = "U7", 7: I32 32/7, I32 4/1;
    /// Unsigned, 8 bits, four to a word: GPTQ, compressed-tensors, MLX.
    U8 = "U8", 8: I32 4/1, U32 4/1;
    /// Two's complement, 2 bits, one to a byte: torchao's `IntxUnpackedToInt8Tensor`.
    I2 = "I2", 2: I8 1/1;
    /// Two's complement, 3 bits, one to a byte: torchao's `IntxUnpackedToInt8Tensor`.
    I3 = "I3", 3: I8 1/1;
    /// Two's complement, 4 bits: pairs (`I8` in torchao's `Int4Tensor` and `ComfyUI`, `U8` in `ModelOpt`) or one to a byte
    /// (torchao's `IntxUnpackedToInt8Tensor`).
    I4 = "I4", 4: I8 2/1, U8 2/1, I8 1/1;
    /// Two's complement, 5 bits, one to a byte: torchao's `IntxUnpackedToInt8Tensor`.
    I5 = "I5", 5: I8 1/1;
    /// Two's complement, 6 bits: four in three bytes (`ComfyUI`'s `asym_w4a8_int8`), or one to a byte (torchao).
    I6 = "I6", 6: I8 4/3, I8 1/1;
    /// Two's complement, 7 bits, one to a byte: torchao's `IntxUnpackedToInt8Tensor`.
    I7 = "I7", 7: I8 1/1;
    /// Index into the 16 quantiles of a normal distribution: bitsandbytes, whose `quant_storage` may be any of these.
    NF4 = "NF4", 4: U8 2/1, BF16 4/1, F16 4/1, F32 8/1, I8 2/1, F64 16/1;
    /// Index into bitsandbytes' table of 4-bit floats, which is *not* E2M1.
    Fp4 = "FP4", 4: U8 2/1, BF16 4/1, F16 4/1, F32 8/1, I8 2/1, F64 16/1;
    /// OCP E2M1 in pairs: NVFP4 and MXFP4 (`I8` in `DeepSeek-V4`), or eight to a word in MLX. The dtype [`Dtype::F4`] is
    /// the same layout, but counts elements.
    E2M1 = "E2M1", 4: U8 2/1, I8 2/1, U32 8/1;
    /// OCP E2M3, one to a byte: torchao.
    E2M3 = "E2M3", 6: U8 1/1;
    /// OCP E3M2, one to a byte: torchao.
    E3M2 = "E3M2", 6: U8 1/1;
    /// OCP E4M3 (finite and NaN only) in plain bytes, as MLX saves it again, or four to a word in MLX's `mxfp8`.
    E4M3 = "E4M3", 8: U8 1/1, U32 4/1;
    /// AMD's E4M3 in plain bytes.
    E4M3Fnuz = "E4M3FNUZ", 8: U8 1/1;
    /// Power-of-two scale in plain bytes: MX scales of writers older than the dtype `F8_E8M0`.
    E8M0 = "E8M0", 8: U8 1/1;
}

impl LogicalDtype {
    /// The carriers of this dtype that a header with `dtype` can mean.
    pub fn carriers_in(self, dtype: Dtype) -> impl Iterator<Item = Carrier> {
        self.carriers()
            .iter()
            .copied()
            .filter(move |carrier| carrier.dtype == dtype)
    }
}

impl std::fmt::Display for LogicalDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        for &dtype in LogicalDtype::ALL {
            assert_eq!(LogicalDtype::from_name(dtype.name()), Some(dtype));
        }
        let n_names = LogicalDtype::ALL.iter().map(|dtype| dtype.name());
        assert_eq!(
            n_names.collect::<std::collections::HashSet<_>>().len(),
            LogicalDtype::ALL.len()
        );
        assert_eq!(LogicalDtype::from_name("u4"), None);
    }

    #[test]
    fn codes_fit_their_carriers_and_carriers_are_listed_once() {
        let mut n_carriers = 0;
        for &dtype in LogicalDtype::ALL {
            for (i, &carrier) in dtype.carriers().iter().enumerate() {
                let room = u64::from(carrier.elements) * carrier.dtype.bits();
                let used = u64::from(carrier.codes) * u64::from(dtype.bits());
                assert!(used <= room, "{dtype} in {carrier:?}");
                // No carrier wastes room for another code, but for one code to an element.
                let spare = room - used;
                assert!(
                    spare < u64::from(dtype.bits()) || carrier.codes == 1,
                    "{dtype} in {carrier:?}"
                );
                assert!(
                    !dtype.carriers()[..i].contains(&carrier),
                    "{dtype} lists {carrier:?} twice"
                );
                n_carriers += 1;
            }
        }
        assert_eq!(n_carriers, 55);
    }

    #[test]
    fn stored_elements_agree_with_the_shapes_of_the_format_pages() {
        let stored = |dtype: LogicalDtype, i: usize, n| dtype.carriers()[i].stored_elements(n);
        assert_eq!(stored(LogicalDtype::U3, 0, 256), Some(24)); // compressed-tensors W3A16: [256, 24]
        assert_eq!(stored(LogicalDtype::U4, 0, 256), Some(32)); // W4A16: [256, 32]
        assert_eq!(stored(LogicalDtype::U3, 2, 11), Some(2)); // HQQ: ceil(R / 10)
        assert_eq!(stored(LogicalDtype::I6, 0, 8), Some(6)); // ComfyUI: 3K/4
        assert_eq!(stored(LogicalDtype::NF4, 0, 5), Some(3)); // bitsandbytes: ceil(n / 2)
        assert_eq!(
            stored(LogicalDtype::U6, 0, u64::MAX),
            Some(u64::MAX.div_ceil(16) * 3)
        );
        let wide = Carrier {
            dtype: Dtype::U8,
            codes: 1,
            elements: 2,
        };
        assert_eq!(wide.stored_elements(u64::MAX), None);
        assert_eq!(LogicalDtype::U1.carriers()[0].codes_in(u64::MAX), None);
        assert_eq!(LogicalDtype::U3.carriers()[0].codes_in(4), Some(42));
        assert_eq!(LogicalDtype::U3.carriers_in(Dtype::I32).count(), 2);
    }
}
