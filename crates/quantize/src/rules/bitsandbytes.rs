//! bitsandbytes on a CPU: clauses 80-84.

use safequant_kernels::{Codebook, Float};
use safequant_schemes::{Code, ScaleCoding};

use super::choice::{Choice, CodeRule};
use super::numbers::{float_scale, stored};
use super::{
    Chosen, Found, Group, Groups, IntegerRange, Reference, Sight, Symmetry, Wanted, found,
    one_by_one, plainly, unsupported,
};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let scheme = wanted.scheme;
    match scheme.code {
        Code::Codebook(book @ (Codebook::Nf4 | Codebook::BnbFp4)) => found(FourBits {
            book,
            // Scales that are quantized themselves are F32 before.
            scale: if scheme.scale == ScaleCoding::StoredTable {
                Float::F32
            } else {
                float_scale(scheme)?
            },
        }),
        Code::Integer { bits: 8, .. } => {
            let range = IntegerRange::new(8, scheme.zero_point)?;
            if range.symmetry == Symmetry::Asymmetric {
                return unsupported("bitsandbytes' 8-bit integers are symmetric");
            }
            found(Int8 {
                scale: float_scale(scheme)?,
            })
        }
        Code::Integer { .. }
        | Code::Minifloat(_)
        | Code::Codebook(_)
        | Code::StoredCodebook
        | Code::Dense(_) => unsupported("bitsandbytes has no such codes"),
    }
}

#[derive(Debug)]
struct FourBits {
    book: Codebook,
    scale: Float,
}

impl Reference for FourBits {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let amax = group.amax();
        let scale = stored(self.scale, amax)?;
        // Its clamp keeps a block of zeros from dividing by zero.
        let divisor = amax.max(1e-38);
        let book = self.book;
        let coder = if group.is_short {
            CodeRule::NearestQuotient { book, divisor }
        } else {
            CodeRule::Nearest {
                book,
                factor: 1.0 / divisor,
            }
        };
        Ok(Choice::scaled(scale, coder))
    }

    fn choose_all(
        &self,
        groups: Groups<'_>,
        last_is_short: bool,
        above: f32,
        chosen: &mut Chosen<'_>,
    ) -> Result<(), (usize, f32)> {
        let book = self.book;
        let rule = CodeRule::Nearest { book, factor: 0.0 };
        let scales = |magnitude: f32| (self.scale.nearest(magnitude), 1.0 / magnitude.max(1e-38));
        if !last_is_short && plainly(groups, chosen, (0, rule), scales) {
            return Ok(());
        }
        one_by_one(self, (groups, last_is_short), above, chosen)
    }
}

/// `LLM.int8()`: the row's absmax itself is what is stored.
#[derive(Debug)]
struct Int8 {
    scale: Float,
}

impl Reference for Int8 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let exact = Float::F16.nearest(group.amax());
        if !exact.is_finite() {
            return Err(group.amax());
        }
        let scale = stored(self.scale, exact)?;
        // torch turns `127.0 / tensor` into `tensor.reciprocal() * 127.0`: two roundings.
        let factor = if exact > 0.0 {
            (1.0 / exact) * 127.0
        } else {
            0.0
        };
        Ok(Choice {
            scale,
            zero: 128,
            offset: 0.0,
            coder: CodeRule::Product {
                input: Float::F16,
                arith: Float::F32,
                factor,
                offset: 0.0,
                min: -128,
                max: 127,
            },
        })
    }
}
