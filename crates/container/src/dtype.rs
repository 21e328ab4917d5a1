//! THE dtype table: every element type of safetensors 0.8, its spelling and its width, from one macro call.

/// Declares [`Dtype`] and everything that is a list of dtypes.
///
/// The order is the *rank* of the official writer: it sorts tensors by descending rank, and because wider types have
/// higher ranks, natural alignment follows (specs/container/safetensors.md, clause W2).
macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal;)*) => {
        /// The element type of a tensor, as spelled in a safetensors header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Dtype { $($(#[$doc])* $variant,)* }

        impl Dtype {
            /// Every dtype, in ascending rank.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant,)*];

            /// The exact spelling in a header (case-sensitive).
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name,)* }
            }

            /// Bits per element. Only the *total* of a tensor must be a multiple of 8.
            pub const fn bits(self) -> u64 {
                match self { $(Dtype::$variant => $bits,)* }
            }

            /// The dtype with this spelling, if there is one.
            pub fn from_name(name: &str) -> Option<Dtype> {
                match name { $($name => Some(Dtype::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    /// One byte per element, 0 or 1; other byte values are legal in a file and must never become a Rust `bool`.
    Bool = "BOOL", 8;
    /// OCP E2M1, two per byte; the even element sits in the low nibble. Shapes count elements.
    F4 = "F4", 4;
    /// OCP E2M3; the bit order inside bytes is specified nowhere.
    F6E2M3 = "F6_E2M3", 6;
    /// OCP E3M2; the bit order inside bytes is specified nowhere.
    F6E3M2 = "F6_E3M2", 6;
    /// Unsigned byte; the carrier of most packed formats.
    U8 = "U8", 8;
    /// Signed byte.
    I8 = "I8", 8;
    /// OCP E5M2, with infinities.
    F8E5M2 = "F8_E5M2", 8;
    /// OCP E4M3, the `FN` variant: no infinities, NaN 7F and FF.
    F8E4M3 = "F8_E4M3", 8;
    /// Power-of-two scale, 2^(code - 127); FF is NaN.
    F8E8M0 = "F8_E8M0", 8;
    /// AMD's E4M3 with bias 8; 80 is the only NaN.
    F8E4M3Fnuz = "F8_E4M3FNUZ", 8;
    /// AMD's E5M2 with bias 16; 80 is the only NaN.
    F8E5M2Fnuz = "F8_E5M2FNUZ", 8;
    /// Signed 16 bits.
    I16 = "I16", 16;
    /// Unsigned 16 bits.
    U16 = "U16", 16;
    /// IEEE binary16.
    F16 = "F16", 16;
    /// The upper half of an F32.
    BF16 = "BF16", 16;
    /// Signed 32 bits; the carrier of GPTQ, AWQ and compressed-tensors codes.
    I32 = "I32", 32;
    /// Unsigned 32 bits; MLX's carrier.
    U32 = "U32", 32;
    /// IEEE binary32.
    F32 = "F32", 32;
    /// Two F32: real, imaginary.
    C64 = "C64", 64;
    /// IEEE binary64.
    F64 = "F64", 64;
    /// Signed 64 bits.
    I64 = "I64", 64;
    /// Unsigned 64 bits.
    U64 = "U64", 64;
}

impl Dtype {
    /// Bytes that `n_elements` occupy, or `None` if the total is no whole number of bytes or does not fit 64 bits.
    pub fn size_bytes(self, n_elements: u64) -> Option<u64> {
        let bits = n_elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether the elements are dense floats that a quantizer takes and a dequantizer gives: F32, F16, BF16 or F64.
    pub const fn is_dense_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
