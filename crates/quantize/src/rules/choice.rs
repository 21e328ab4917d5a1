//! What is chosen for a group, and how its codes follow.

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
