//! What is chosen for a group, and how its codes follow.

use safequant_kernels::GroupRules;

pub(super) use safequant_kernels::CodeRule;

/// What was chosen for one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// The scale as stored: a value that the scale's coding holds.
    pub(crate) scale: f32,
    /// Zero of the unsigned form; 0 for floats.
    pub(crate) zero: i32,
    /// The float zero point or bias, as stored; 0 where there is none.
    pub(crate) offset: f32,
    /// How the codes follow from the values.
    pub(crate) coder: CodeRule,
}

impl Choice {
    /// Without zero point and offset.
    pub(super) fn scaled(scale: f32, coder: CodeRule) -> Self {
        Choice {
            scale,
            zero: 0,
            offset: 0.0,
            coder,
        }
    }
}

/// The rules of consecutive groups, as the kernels take them: mostly one, with a number for each group.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// With the number 0.
    same: Option<CodeRule>,
    numbers: Vec<f32>,
    /// All of them, once two have differed.
    each: Vec<CodeRule>,
}

impl Rules {
    pub(crate) fn clear(&mut self) {
        self.same = None;
        self.numbers.clear();
        self.each.clear();
    }

    /// One rule for so many groups, whose numbers the caller fills in.
    pub(super) fn start(&mut self, rule: CodeRule, n_groups: usize) -> &mut [f32] {
        self.clear();
        self.same = Some(rule.with_number(0.0));
        self.numbers.resize(n_groups, 0.0);
        &mut self.numbers
    }

    #[inline]
    pub(crate) fn push(&mut self, rule: CodeRule) {
        let form = rule.with_number(0.0);
        match self.same {
            Some(same) if same == form && self.each.is_empty() => self.numbers.push(rule.number()),
            None => {
                self.same = Some(form);
                self.numbers.push(rule.number());
            }
            Some(same) => {
                if self.each.is_empty() {
                    let numbers = self.numbers.iter();
                    self.each
                        .extend(numbers.map(|&number| same.with_number(number)));
                }
                self.each.push(rule);
            }
        }
    }

    pub(crate) fn all(&self) -> GroupRules<'_> {
        match self.same {
            Some(same) if self.each.is_empty() => GroupRules::Same(same, &self.numbers),
            _ => GroupRules::Each(&self.each),
        }
    }
}

#[cfg(test)]
mod tests {
    use safequant_kernels::{Codebook, Float, Minifloat};

    use super::*;

    #[test]
    fn rules_are_one_until_two_differ() {
        let book = Codebook::Nf4;
        let nearest = |factor| CodeRule::Nearest { book, factor };
        let mut rules = Rules::default();
        for turn in 0..2 {
            rules.clear();
            assert!(rules.all().is_empty(), "{turn}");
            rules.push(nearest(2.0));
            rules.push(nearest(3.0));
            assert!(matches!(rules.all(), GroupRules::Same(_, [2.0, 3.0])));
            let other = CodeRule::Divided {
                arith: Float::F32,
                format: Minifloat::E4M3,
                divisor: 3.0,
            };
            rules.push(other);
            rules.push(nearest(4.0));
            let found: Vec<CodeRule> = (0..4).map(|i| rules.all().rule(i)).collect();
            assert_eq!(found, [nearest(2.0), nearest(3.0), other, nearest(4.0)]);
            assert_eq!(rules.all().len(), 4);
        }
    }
}
