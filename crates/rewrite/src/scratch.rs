//! Buffers that go from tile to tile, so that no tile waits for fresh memory: a page that was never touched costs the system
//! more than what is then computed on it.

use std::sync::{Mutex, PoisonError};

use safequant_quantize::OutputLoss;
use safequant_schemes::CodeTile;

/// The buffers of one tile, as large as its largest run needed. What they hold is left over.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Bytes as the source holds them.
    pub(crate) stored: Buffer<u8>,
    /// Floats.
    pub(crate) floats: Buffer<f32>,
    /// Bytes to write.
    pub(crate) encoded: Buffer<u8>,
    /// What was chosen beside codes.
    pub(crate) chosen: CodeTile,
    /// What rows lost.
    pub(crate) output_losses: Vec<OutputLoss>,
}

impl Scratch {
    fn len_bytes(&self) -> u64 {
        let chosen = &self.chosen;
        let numbers = chosen.scales.capacity()
            + chosen.zeros.capacity()
            + chosen.offsets.capacity()
            + chosen.supers.capacity();
        let floats = self.floats.0.len() + numbers;
        let losses = self.output_losses.capacity() * size_of::<OutputLoss>();
        let codes = chosen.codes.capacity() + self.encoded.0.len();
        let bytes = self.stored.0.len() + 4 * floats + codes + losses;
        bytes as u64
    }
}

/// Memory that is lent out again and again.
#[derive(Debug, Default)]
pub(crate) struct Buffer<T>(Vec<T>);

impl<T: Clone + Default> Buffer<T> {
    /// So many elements, of any value.
    pub(crate) fn lend(&mut self, n: usize) -> &mut [T] {
        if self.0.len() < n {
            // What is held goes first: it is neither kept nor copied.
            self.0 = Vec::new();
            self.0 = vec![T::default(); n];
        }
        &mut self.0[..n]
    }
}

/// Buffers that no tile uses.
#[derive(Debug)]
pub(crate) struct Scratches {
    free: Mutex<Vec<Scratch>>,
    /// Larger ones are not kept: one tile alone may take most of the budget, and the next ones none of it.
    most_bytes: u64,
}

impl Scratches {
    pub(crate) fn new(most_bytes: u64) -> Self {
        Self {
            free: Mutex::new(Vec::new()),
            most_bytes,
        }
    }

    pub(crate) fn take(&self) -> Scratch {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&self, scratch: Scratch) {
        if scratch.len_bytes() <= self.most_bytes {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.push(scratch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_lent_again_unless_they_are_large() {
        let scratches = Scratches::new(100);
        let mut scratch = scratches.take();
        scratch.stored.lend(60).fill(7);
        assert_eq!(scratch.floats.lend(10), [0.0; 10]);
        scratches.give_back(scratch);
        let mut again = scratches.take();
        assert_eq!(again.stored.lend(30), [7; 30], "the same memory");
        assert_eq!(again.stored.lend(61), [0; 61], "larger, and nothing copied");
        scratches.give_back(again);
        assert_eq!(scratches.take().len_bytes(), 0, "101 bytes are not kept");
    }
}
