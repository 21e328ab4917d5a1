//! Backends for one instruction set each. Reached through [`crate::BACKENDS`] only.
//!
//! This is the only folder with `unsafe`: each module that needs it opens it for itself.

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
