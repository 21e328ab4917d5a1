//! Faults, planted in what real tools wrote: for each rule at least one. A fault knows how to spoil a checkpoint in one place,
//! chosen at random, and which rule must say so there.

mod config;
mod container;
mod index;
mod parallel;
mod provenance;
mod runtime;
mod scales;
mod tensors;

use safequant::audit::Wanted;
use safequant::schemes::{Model, QuantizedTensor};

use super::draft::Draft;

/// One way to spoil a checkpoint.
pub(super) struct Fault {
    /// The rule that must find it.
    pub(super) rule: &'static str,
    /// What is done (`scale-is-nan`).
    pub(super) name: &'static str,
    /// What the audit is asked for besides.
    pub(super) wanted: fn() -> Wanted,
    /// Does it, and answers what the finding must name; `None` where this checkpoint offers no place for it (it may be
    /// changed all the same then).
    pub(super) plant: fn(&mut Draft, &mut Random) -> Option<Planted>,
}

impl Fault {
    /// One for which nothing is asked.
    pub(super) const fn new(
        rule: &'static str,
        name: &'static str,
        plant: fn(&mut Draft, &mut Random) -> Option<Planted>,
    ) -> Self {
        Self {
            rule,
            name,
            wanted: Wanted::default,
            plant,
        }
    }
}

/// What a finding must name: this must be its file, its module or its tensor, or stand in its message. Empty: anything.
pub(super) struct Planted(pub(super) String);

/// All of them.
pub(super) fn faults() -> impl Iterator<Item = &'static Fault> {
    [
        container::FAULTS,
        index::FAULTS,
        config::FAULTS,
        tensors::FAULTS,
        scales::FAULTS,
        parallel::FAULTS,
        runtime::FAULTS,
        provenance::FAULTS,
    ]
    .into_iter()
    .flatten()
}

/// Numbers that look random and are the same in every run (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    /// Below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        usize::try_from(z % n as u64).unwrap()
    }

    /// One of some; `None` of none.
    pub(super) fn choose<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        match of.len() {
            0 => None,
            n => Some(&of[self.below(n)]),
        }
    }
}

/// The quantized weights of a draft, as they bind now.
pub(super) fn weights(draft: &Draft) -> Vec<QuantizedTensor> {
    Model::survey(&draft.open().0).0.quantized
}
