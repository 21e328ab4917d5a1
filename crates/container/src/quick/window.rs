//! A text that is read piece by piece, so that a long one needs no memory of its length.

use std::io;
use std::ops::Range;

use super::cursor::Cursor;
use crate::ReadAt;

/// Bytes in hand at most, but for tests: small enough to stay in the second-level cache, large enough for any plain member.
pub(crate) const WINDOW_BYTES: usize = 32 << 10;

/// The part of a text that is in hand.
pub(super) struct Window<'s> {
    source: &'s dyn ReadAt,
    /// Where the first byte lies that was not read yet.
    offset: u64,
    /// Bytes from there to the end of the text.
    left: u64,
    /// Room for the bytes in hand, which are those before `filled`.
    buffer: Vec<u8>,
    filled: usize,
    /// The first byte in hand that was not taken yet.
    at: usize,
}

impl<'s> Window<'s> {
    /// The text at `range`, which lies in the source, with room for `room` bytes; `None` if there is no memory.
    pub(super) fn new(source: &'s dyn ReadAt, range: Range<u64>, room: usize) -> Option<Self> {
        let len_bytes = range.end - range.start;
        let len = usize::try_from(len_bytes).map_or(room, |len| len.min(room));
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).ok()?;
        buffer.resize(len, 0);
        Some(Self {
            source,
            offset: range.start,
            left: len_bytes,
            buffer,
            filled: 0,
            at: 0,
        })
    }

    /// Lets `take` take something that begins at the cursor. If it says `None`, it is asked again with more bytes in hand, as
    /// long as there are more: it must have no effect then.
    #[inline]
    pub(super) fn step<T>(
        &mut self,
        mut take: impl FnMut(&mut Cursor<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        loop {
            let mut cursor = Cursor {
                bytes: &self.buffer[..self.filled],
                at: self.at,
            };
            if let Some(taken) = take(&mut cursor) {
                self.at = cursor.at;
                return Ok(Some(taken));
            }
            if !self.refill()? {
                return Ok(None);
            }
        }
    }

    /// Lets `take` take as much as it likes of what is in hand.
    #[inline]
    pub(super) fn with(&mut self, take: impl FnOnce(&mut Cursor<'_>)) {
        let mut cursor = Cursor {
            bytes: &self.buffer[..self.filled],
            at: self.at,
        };
        take(&mut cursor);
        self.at = cursor.at;
    }

    /// Whether nothing but whitespace is left.
    pub(super) fn is_at_end(&mut self) -> io::Result<bool> {
        loop {
            let mut cursor = Cursor {
                bytes: &self.buffer[..self.filled],
                at: self.at,
            };
            if cursor.peek().is_some() {
                return Ok(false);
            }
            self.at = cursor.at;
            if !self.refill()? {
                return Ok(true);
            }
        }
    }

    /// Drops what was taken and reads more; `false` if there is no more, or no room for it.
    #[cold]
    fn refill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.at..self.filled, 0);
        self.filled -= self.at;
        self.at = 0;
        let room = &mut self.buffer[self.filled..];
        let len = usize::try_from(self.left).map_or(room.len(), |left| left.min(room.len()));
        self.source.read_exact_at(self.offset, &mut room[..len])?;
        self.offset += len as u64;
        self.left -= len as u64;
        self.filled += len;
        Ok(len > 0)
    }
}
