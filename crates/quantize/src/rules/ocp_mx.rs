//! OCP's rule for power-of-two scales, as gpt-oss checkpoints have it: clauses 140-141.

use safequant_kernels::{E2M1Rule, E8M0Rule, Float, Minifloat, MxScaleRule};

use super::choice::Choice;
use super::micro::{Kind, divided, kind, power, power_or_nan};
use super::{
    Chosen, Found, Group, Groups, Reference, Sight, Wanted, found, one_by_one, plainly, unsupported,
};

pub(super) fn reference(wanted: Wanted<'_>) -> Found {
    match kind(wanted.scheme) {
        Some(Kind::Mx { format, bytes }) => found(OcpMx { format, bytes }),
        Some(Kind::Dense { .. } | Kind::Nvfp4 { .. }) | None => {
            unsupported("OCP's rule is for power-of-two scales")
        }
    }
}

#[derive(Debug)]
struct OcpMx {
    format: Minifloat,
    bytes: E8M0Rule,
}

impl Reference for OcpMx {
    fn sight(&self) -> Sight {
        Sight::Magnitude
    }

    fn choose(&self, group: Group, _above: f32) -> Result<Choice, f32> {
        let (byte, scale) = power(MxScaleRule::Floor, self.bytes, self.format, group.amax())?;
        let divisor = E8M0Rule::Ocp.decode(byte);
        let rule = E2M1Rule::EvenSigned;
        Ok(Choice::scaled(
            scale,
            divided(self.format, rule, Float::F32, divisor),
        ))
    }

    fn choose_all(
        &self,
        groups: Groups<'_>,
        last_is_short: bool,
        above: f32,
        chosen: &mut Chosen<'_>,
    ) -> Result<(), (usize, f32)> {
        let rule = divided(self.format, E2M1Rule::EvenSigned, Float::F32, 0.0);
        let scales = |magnitude: f32| {
            let (byte, scale) =
                power_or_nan(MxScaleRule::Floor, self.bytes, self.format, magnitude);
            (scale, E8M0Rule::Ocp.decode(byte))
        };
        if plainly(groups, chosen, (0, rule), scales) {
            return Ok(());
        }
        one_by_one(self, (groups, last_is_short), above, chosen)
    }
}
