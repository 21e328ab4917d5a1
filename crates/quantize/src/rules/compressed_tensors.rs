//! compressed-tensors: clauses 10-19 and 50-56.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};
use safequant_schemes::Code;

use super::choice::{Choice, CodeRule};
use super::micro::{Kind, SuperScaleKind, divided, kind, power, power_or_nan};
use super::numbers::{e4m3, eps, exact_f32, float_scale, nearest_i32, smallest_normal, stored};
use super::{
    Chosen, Found, Group, Groups, IntegerRange, Reference, Sight, Symmetry, Wanted, found,
    one_by_one, plainly, unsupported,
};
use crate::Division;

/// Largest value of E2M1 times that of E4M3.
const NVFP4_MAX: f32 = 6.0 * 448.0;

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    let Wanted {
        scheme,
        source,
        division,
    } = wanted;
    let arith = match division {
        Division::SourceDtype => source,
        Division::F32 => Float::F32,
    };
    match (scheme.code, kind(scheme)) {
        (Code::Integer { bits, encoding: _ }, _) => found(Integer {
            range: IntegerRange::new(bits, scheme.zero_point)?,
            scale: float_scale(scheme)?,
            source,
            arith,
        }),
        (_, Some(Kind::Dense { format, scale })) => found(Float8 {
            format,
            scale,
            source,
            arith,
        }),
        (
            _,
            Some(Kind::Nvfp4 {
                above: SuperScaleKind::Divide,
            }),
        ) => found(Nvfp4 { source }),
        (_, Some(Kind::Mx { format, bytes })) => found(Mx {
            format,
            bytes,
            source,
            arith,
        }),
        _ => unsupported("compressed-tensors has no such scheme"),
    }
}

/// A scale in its stored dtype, a zero replaced by that dtype's eps (clause 13), and the same as a value of the weight's
/// dtype, which is what weights are divided by.
fn stored_or_eps(dtype: Float, source: Float, scale: f32) -> Result<(f32, f32), f32> {
    let stored = stored(dtype, scale)?;
    let stored = if stored == 0.0 { eps(dtype) } else { stored };
    Ok((stored, source.nearest(stored)))
}

#[derive(Debug)]
struct Integer {
    range: IntegerRange,
    scale: Float,
    source: Float,
    arith: Float,
}

impl Reference for Integer {
    fn sight(&self) -> Sight {
        match self.range.symmetry {
            Symmetry::Symmetric => Sight::Magnitude,
            Symmetry::Asymmetric => Sight::Ends,
        }
    }

    /// `calculate_qparams` runs in the weight's dtype wherever the division runs.
    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (low, high) = group.with_zero();
        let (range, t) = (self.range, self.source);
        let (min, max) = (-range.middle(), range.middle() - 1);
        let steps = exact_f32(range.max());
        let (scale, zero) = match range.symmetry {
            Symmetry::Symmetric => (t.nearest(high.max(-low) / (steps / 2.0)), 0),
            Symmetry::Asymmetric => {
                let scale = t.nearest(t.nearest(high - low) / steps);
                // 0 / 0 is NaN, which the conversion makes 0, as torch's does.
                let zero = t.nearest(exact_f32(min) - t.nearest(low / scale));
                (
                    scale,
                    nearest_i32(zero.clamp(exact_f32(min), exact_f32(max))),
                )
            }
        };
        let (scale, divisor) = stored_or_eps(self.scale, t, scale)?;
        Ok(Choice {
            scale,
            zero: zero - min,
            offset: 0.0,
            coder: CodeRule::Integer {
                arith: self.arith,
                divisor,
                zero,
                min,
                max,
            },
        })
    }

    fn choose_all(
        &self,
        groups: Groups<'_>,
        last_is_short: bool,
        above: f32,
        chosen: &mut Chosen<'_>,
    ) -> Result<(), (usize, f32)> {
        let (range, t) = (self.range, self.source);
        let (min, max) = (-range.middle(), range.middle() - 1);
        let half = exact_f32(range.max()) / 2.0;
        let rule = CodeRule::Integer {
            arith: self.arith,
            divisor: 0.0,
            zero: 0,
            min,
            max,
        };
        let scales = |magnitude: f32| {
            let scale = self.scale.nearest(t.nearest(magnitude / half));
            (scale, t.nearest(scale))
        };
        // Magnitudes are what symmetric codes look at; a scale of 0 is replaced below.
        if plainly(groups, chosen, (-min, rule), scales) {
            return Ok(());
        }
        one_by_one(self, (groups, last_is_short), above, chosen)
    }
}

/// Clauses 12, 13, 18.
#[derive(Debug)]
struct Float8 {
    format: Minifloat,
    scale: Float,
    source: Float,
    arith: Float,
}

impl Reference for Float8 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let scale = self.source.nearest(group.amax() / self.format.max_finite());
        let (scale, divisor) = stored_or_eps(self.scale, self.source, scale)?;
        let coder = CodeRule::Divided {
            arith: self.arith,
            format: self.format,
            divisor,
        };
        Ok(Choice::scaled(scale, coder))
    }
}

/// Clauses 50-53. What is divided here is divided in F32 under either division: the scale of scales is F32.
#[derive(Debug)]
struct Nvfp4 {
    source: Float,
}

impl Reference for Nvfp4 {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn super_scale(&self, extremes: Group) -> Result<f32, f32> {
        let t = self.source;
        let amax = extremes.amax().max(smallest_normal(t));
        // torch turns `2688.0 / tensor` into `tensor.reciprocal() * 2688.0`: two roundings.
        let global = t.nearest(t.nearest(1.0 / amax) * NVFP4_MAX);
        Ok(if global.is_finite() { global } else { 1.0 })
    }

    fn choose(&self, group: Group, global: f32) -> Result<Choice, f32> {
        let local = self.source.nearest(group.amax() / 6.0);
        let scale = e4m3(global * local);
        let scale = if scale == 0.0 { 0.125 } else { scale };
        let coder = CodeRule::E2M1 {
            rule: E2M1Rule::EvenPlusZero,
            arith: Float::F32,
            divisor: scale / global,
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
        let rule = CodeRule::E2M1 {
            rule: E2M1Rule::EvenPlusZero,
            arith: Float::F32,
            divisor: 0.0,
        };
        let scales = |magnitude: f32| {
            let scale = e4m3(above * self.source.nearest(magnitude / 6.0));
            (scale, scale / above)
        };
        if plainly(groups, chosen, (0, rule), scales) {
            return Ok(());
        }
        one_by_one(self, (groups, last_is_short), above, chosen)
    }
}

/// Clauses 54-56.
#[derive(Debug)]
struct Mx {
    format: Minifloat,
    bytes: E8M0Rule,
    source: Float,
    arith: Float,
}

impl Reference for Mx {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let rule = MxScaleRule::SevenFourths { amax: self.source };
        let (_, scale) = power(rule, self.bytes, self.format, group.amax())?;
        // The power passes through the weight's dtype; where that makes it 0, the eps of the scale's dtype, an integer,
        // takes its place: 1.
        let divisor = stored(self.source, scale)?;
        let divisor = if divisor == 0.0 { 1.0 } else { divisor };
        let coder = divided(self.format, E2M1Rule::EvenPlusZero, self.arith, divisor);
        Ok(Choice::scaled(divisor, coder))
    }

    fn choose_all(
        &self,
        groups: Groups<'_>,
        last_is_short: bool,
        above: f32,
        chosen: &mut Chosen<'_>,
    ) -> Result<(), (usize, f32)> {
        let power_rule = MxScaleRule::SevenFourths { amax: self.source };
        let rule = divided(self.format, E2M1Rule::EvenPlusZero, self.arith, 0.0);
        let scales = |magnitude: f32| {
            let (_, power) = power_or_nan(power_rule, self.bytes, self.format, magnitude);
            let divisor = self.source.nearest(power);
            (divisor, divisor)
        };
        if plainly(groups, chosen, (0, rule), scales) {
            return Ok(());
        }
        one_by_one(self, (groups, last_is_short), above, chosen)
    }
}
