//! Stores past the caches, a whole line at a time: see [`super::super::avx2`] for when they are used.

use std::arch::x86_64::{_mm_sfence, _mm512_stream_si512};

use super::lanes::load;
use crate::Stores;

/// Copies `from` to `to` with non-temporal stores.
///
/// # Safety
/// The caller calls [`fence`] on this thread before `to` is used in any way: non-temporal stores are not ordered with
/// others.
///
/// # Panics
/// If the lengths differ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) unsafe fn copy(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "a copy");
    let head = to.as_ptr().align_offset(64).min(to.len());
    let (first, from) = from.split_at(head);
    let (start, to) = to.split_at_mut(head);
    start.copy_from_slice(first);
    let (lines, rest) = to.as_chunks_mut::<64>();
    let (sources, last) = from.as_chunks::<64>();
    for (to, from) in lines.iter_mut().zip(sources) {
        // SAFETY: 64 writable bytes, on a boundary of 64 since `head` bytes were split off; the caller orders the store.
        unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), load(from)) }
    }
    rest.copy_from_slice(last);
}

/// See [`crate::portable::rows::copy`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")]
pub(super) fn fence() {
    _mm_sfence();
}
