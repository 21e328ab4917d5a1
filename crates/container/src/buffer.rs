//! Memory for outputs that the library allocates for its callers.
//!
//! A page that was never touched costs the system more than what is then computed on it: it clears the page and enters it
//! in a table, 4 KiB at a time, while the writer waits. Large buffers are therefore mappings of their own that ask for pages
//! of 2 MiB; nothing here writes a zero. Where the system has no such pages to give, it gives small ones, and only time is
//! lost. Buffers that are used again and again cost less still: whoever can should keep one.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use bytemuck::{AnyBitPattern, NoUninit};
use memmap2::{MmapMut, MmapOptions};

use crate::Error;

/// Bytes on whole cache lines, zero when they are new. Their address stays the same as long as the buffer lives, wherever
/// the buffer itself is moved: an owner that others may borrow from.
///
/// ```
/// use safequant_container::AlignedBuffer;
///
/// let mut buffer = AlignedBuffer::zeroed(16 << 20, "an example")?;
/// buffer[..4].copy_from_slice(&1.5_f32.to_le_bytes());
/// assert_eq!(buffer.elements::<f32>()[..2], [1.5, 0.0]);
/// assert!(buffer.as_ptr().addr().is_multiple_of(AlignedBuffer::ALIGNMENT_BYTES));
/// # Ok::<(), safequant_container::Error>(())
/// ```
pub struct AlignedBuffer {
    memory: Memory,
    /// Where in the memory the buffer lies.
    range: Range<usize>,
}

/// Who gave the memory.
enum Memory {
    Allocator(Box<[u8]>),
    Mapping(MmapMut),
}

impl AlignedBuffer {
    /// Every buffer begins at a multiple: a line of the cache, and the longest vector of today's processors.
    pub const ALIGNMENT_BYTES: usize = 64;

    /// A buffer of so many bytes is a mapping of its own that asks for huge pages; shorter ones come from the allocator,
    /// which has memory that was touched before. Two huge pages: what lies beyond the end of the last one is at most half.
    pub const MAPPED_FROM_BYTES: usize = 2 * HUGE_PAGE_BYTES;

    /// So many zeros. `owner` is named in the error: the tensor that needs them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system refuses, or would have to end a process to keep its promise.
    pub fn zeroed(len_bytes: u64, owner: &str) -> Result<Self, Error> {
        let len = usize::try_from(len_bytes).ok();
        let new = len.and_then(|len| {
            if len < Self::MAPPED_FROM_BYTES {
                Self::allocated(len)
            } else {
                Self::mapped(len)
            }
        });
        new.ok_or_else(|| Error::OutOfMemory {
            file: owner.to_owned(),
            len_bytes,
        })
    }

    fn allocated(len: usize) -> Option<Self> {
        let room = len.checked_add(Self::ALIGNMENT_BYTES - 1)?;
        let memory = bytemuck::allocation::try_zeroed_slice_box(room).ok()?;
        let start = gap(&memory, Self::ALIGNMENT_BYTES);
        Some(Self {
            memory: Memory::Allocator(memory),
            range: start..start + len,
        })
    }

    fn mapped(len: usize) -> Option<Self> {
        if len >= ASKED_ABOUT_BYTES && free_bytes().is_some_and(|free| len as u64 > free) {
            return None;
        }
        // Pages that are never touched take no memory: the beginning may lie anywhere in the first huge page.
        let room = len.checked_add(HUGE_PAGE_BYTES)?;
        let memory = MmapOptions::new().len(room).map_anon().ok()?;
        let start = gap(&memory, HUGE_PAGE_BYTES);
        // A kernel without huge pages refuses, and has small ones.
        #[cfg(target_os = "linux")]
        let _ = memory.advise_range(memmap2::Advice::HugePage, start, len);
        Some(Self {
            memory: Memory::Mapping(memory),
            range: start..start + len,
        })
    }

    /// The bytes as numbers of this machine, in place.
    ///
    /// # Panics
    /// If their length is no multiple of an element's, or an element needs more than 64 bytes of alignment.
    pub fn elements<T: AnyBitPattern>(&self) -> &[T] {
        bytemuck::cast_slice(self)
    }

    /// As [`AlignedBuffer::elements`], to write.
    ///
    /// # Panics
    /// As there.
    pub fn elements_mut<T: AnyBitPattern + NoUninit>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self)
    }
}

/// A huge page of x86-64, and of arm64 with small pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// From so many bytes on the system is asked what it has before it is asked for them: Linux promises more than it can keep,
/// and ends a process when that comes out.
const ASKED_ABOUT_BYTES: usize = 256 << 20;

/// Bytes before the first multiple of `alignment`.
fn gap(memory: &[u8], alignment: usize) -> usize {
    memory.as_ptr().addr().wrapping_neg() % alignment
}

/// What processes can still be given, caches emptied; `None` where the system does not say.
fn free_bytes() -> Option<u64> {
    free_in(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// [`free_bytes`] from the text of `/proc/meminfo` (proc(5)): lines such as `MemAvailable:   21725 kB`.
fn free_in(text: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let (number, unit) = line.strip_prefix(':')?.trim().split_once(' ')?;
        let kib: u64 = number.parse().ok()?;
        (unit == "kB").then(|| kib.saturating_mul(1024))
    };
    Some(field("MemAvailable")?.saturating_add(field("SwapFree").unwrap_or(0)))
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory: &[u8] = match &self.memory {
            Memory::Allocator(memory) => memory,
            Memory::Mapping(memory) => memory,
        };
        &memory[self.range.clone()]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory: &mut [u8] = match &mut self.memory {
            Memory::Allocator(memory) => memory,
            Memory::Mapping(memory) => memory,
        };
        &mut memory[self.range.clone()]
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = AlignedBuffer::MAPPED_FROM_BYTES;

    fn of(len: usize) -> AlignedBuffer {
        AlignedBuffer::zeroed(len as u64, "m").unwrap()
    }

    #[test]
    fn buffers_of_every_length_are_aligned_zeros_that_can_be_written() {
        for len in [0, 1, 63, 64, 4097, LARGE - 1, LARGE, LARGE + 1] {
            let mut buffer = of(len);
            assert_eq!(buffer.len(), len);
            let alignment = if len < LARGE { 64 } else { HUGE_PAGE_BYTES };
            assert!(buffer.as_ptr().addr().is_multiple_of(alignment), "{len}");
            assert!(buffer.iter().all(|&byte| byte == 0), "{len}");
            buffer.fill(7);
            assert!(buffer.as_ref().iter().all(|&byte| byte == 7), "{len}");
        }
    }

    #[test]
    fn the_bytes_stay_where_they_are_when_the_buffer_moves_to_another_thread() {
        for len in [100, LARGE] {
            let buffer = of(len);
            let address = buffer.as_ptr().addr();
            let moved = std::thread::scope(|scope| {
                let there = scope.spawn(move || Box::new(buffer));
                there.join().expect("it does not panic")
            });
            assert_eq!(moved.as_ptr().addr(), address, "{len}");
        }
    }

    #[test]
    fn elements_are_the_bytes() {
        let mut buffer = of(8);
        buffer.elements_mut::<f32>()[1] = 2.5;
        assert_eq!(buffer[4..], 2.5_f32.to_ne_bytes());
        assert_eq!(
            buffer.elements::<u16>()[2..],
            [buffer[4..6].to_vec(), buffer[6..].to_vec()].map(|b| u16::from_ne_bytes([b[0], b[1]]))
        );
    }

    #[test]
    fn what_the_system_cannot_give_is_an_error() {
        for len_bytes in [u64::MAX, 1 << 62, 1 << 46] {
            let error = AlignedBuffer::zeroed(len_bytes, "m.weight").expect_err("too much");
            assert_eq!(error.code(), "out_of_memory");
            assert!(error.to_string().starts_with("m.weight: "), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_system_would_promise_but_not_keep_is_an_error() {
        let free = free_bytes().expect("proc(5)");
        assert!(AlignedBuffer::zeroed(free + (1 << 30), "m").is_err());
    }

    #[test]
    fn free_memory_is_what_is_available_and_what_can_be_swapped_out() {
        let text = "MemTotal:       24683904 kB\nMemFree: 1 kB\nMemAvailable:   22246400 kB\n";
        assert_eq!(free_in(text), Some(22_246_400 * 1024));
        let swap = format!("{text}SwapTotal: 8 kB\nSwapFree:              4 kB\n");
        assert_eq!(free_in(&swap), Some(22_246_404 * 1024));
        assert_eq!(free_in("MemFree: 1 kB\n"), None);
        assert_eq!(free_in("MemAvailable: many kB\n"), None);
    }
}
