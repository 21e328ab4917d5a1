//! Stores past the caches.
//!
//! Where the output lies on vector boundaries, kernels stream their results themselves ([`super::lanes::put`]). Where it
//! does not, they write into a buffer of a few KiB that stays in L1, and this module moves it on: the target's first bytes
//! up to a boundary of 16, and the last ones, ordinarily. Doing so always was tried: it reached half the rate of the copy, as
//! computing and storing then take turns instead of overlapping.

use std::arch::x86_64::{_mm_sfence, _mm_stream_si128, _mm256_stream_si256};

use super::lanes::{load, load16, prefetch_ahead};
use crate::Stores;

/// Bytes of a non-temporal store, and their alignment.
const VECTOR: usize = 32;

/// The same of a smaller one, for what begins or ends with half a vector: allocators give multiples of 16, and a line of
/// cache that is written both ways costs as much as several.
const HALF: usize = 16;

/// Copies `from` to `to` with non-temporal stores.
///
/// # Safety
/// The caller calls [`fence`] on this thread before `to` is used in any way: non-temporal stores are not ordered with
/// others.
///
/// # Panics
/// If the lengths differ.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "a copy");
    let head = to.as_ptr().align_offset(HALF).min(to.len());
    let (first, from) = from.split_at(head);
    let (start, to) = to.split_at_mut(head);
    start.copy_from_slice(first);
    let (from, to) = if to.as_ptr().addr().is_multiple_of(VECTOR) {
        (from, to)
    } else {
        // SAFETY: the address is a multiple of 16 since `head` bytes were split off; the caller orders the store.
        unsafe { copy_half(from, to) }
    };
    let (vectors, rest) = to.as_chunks_mut::<VECTOR>();
    let (sources, last) = from.as_chunks::<VECTOR>();
    for (to, from) in vectors.iter_mut().zip(sources) {
        prefetch_ahead(from.as_ptr());
        // SAFETY: 32 writable bytes on a boundary of 32: the one before was half a vector away at most; the caller orders
        // the store.
        unsafe { _mm256_stream_si256(to.as_mut_ptr().cast(), load(from)) }
    }
    // SAFETY: whole vectors were split off; the caller orders the store.
    let (last, rest) = unsafe { copy_half(last, rest) };
    rest.copy_from_slice(last);
}

/// Copies half a vector, if there is so much, and gives what is left.
///
/// # Safety
/// `to` begins at a multiple of 16 unless it is shorter; the caller orders the store.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn copy_half<'f, 't>(from: &'f [u8], to: &'t mut [u8]) -> (&'f [u8], &'t mut [u8]) {
    match (from.split_first_chunk::<HALF>(), to.len()) {
        (Some((half, from)), HALF..) => {
            let (start, to) = to.split_at_mut(HALF);
            // SAFETY: 16 writable bytes at a multiple of 16, as the caller says.
            unsafe { _mm_stream_si128(start.as_mut_ptr().cast(), load16(half)) }
            (from, to)
        }
        (Some(_) | None, _) => (from, to),
    }
}

/// See [`crate::portable::rows::copy`].
#[target_feature(enable = "avx2")]
pub(super) fn copy_bytes(from: &[u8], to: &mut [u8], stores: Stores) {
    match stores {
        Stores::Ordinary => to.copy_from_slice(from),
        Stores::Streaming => {
            // SAFETY: the fence follows.
            unsafe { copy(from, to) }
            fence();
        }
    }
}

/// Orders all non-temporal stores of this thread before whatever follows.
#[target_feature(enable = "avx2")]
pub(super) fn fence() {
    _mm_sfence();
}
