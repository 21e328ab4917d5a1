//! Sixteen-entry code books.

/// A table of 16 values that 4-bit codes index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// bitsandbytes NF4, sorted.
    Nf4,
    /// bitsandbytes FP4 (not OCP E2M1): {0, 1/16, 8, 12, 4, 6, 2, 3} / 12, bit 3 is the sign.
    BnbFp4,
}

impl Codebook {
    /// Every code book.
    pub const ALL: &'static [Codebook] = &[Codebook::Nf4, Codebook::BnbFp4];

    /// The values, indexed by code.
    pub const fn values(self) -> &'static [f32; 16] {
        unimplemented!()
    }
}
