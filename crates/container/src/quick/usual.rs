//! Entries as nearly every writer writes them: no whitespace, `dtype`, `shape`, `data_offsets`.
//!
//! Most of an entry is the text of an earlier one. What stands between a name and its numbers depends on dtype and shape,
//! and a model has few of those; and where tensors follow each other, one begins with the number with which the last one
//! ended. Both are compared as texts, and only what differs is read.

use std::ops::Range;

use super::cursor::Cursor;
use super::header::{Entry, len_bytes};
use crate::{Dtype, Shape};

/// Dtypes with shapes that are remembered: a layer has three to eight.
const N_MIDDLES: usize = 8;

/// The text from the quote behind a name to the bracket before the offsets, and what it says.
struct Middle {
    text: Vec<u8>,
    dtype: Dtype,
    shape: Shape,
    len_bytes: Option<u64>,
}

/// The last few middles that differ.
#[derive(Default)]
pub(super) struct Middles {
    /// No text is empty.
    known: Vec<Middle>,
    last: usize,
}

/// The number with which the last entry ended, and where its digits stand in the bytes in hand.
#[derive(Default)]
pub(super) struct End {
    digits: Range<usize>,
    value: u64,
}

/// Takes the rest of a member, from the quote behind its name to the comma behind it. If it is `None`, the cursor may stand
/// anywhere.
#[inline]
pub(super) fn entry(
    cursor: &mut Cursor<'_>,
    middles: &mut Middles,
    last_end: &mut End,
) -> Option<Entry> {
    let middle = middles.take(cursor)?;
    let start = match last_end.take(cursor) {
        Some(start) => start,
        None => cursor.short_integer()?,
    };
    if !cursor.take_text(b",") {
        return None;
    }
    let end_at = cursor.at;
    let end = cursor.short_integer()?;
    last_end.digits = end_at..cursor.at;
    last_end.value = end;
    cursor.take_text(b"]},").then(|| Entry {
        dtype: middle.dtype,
        shape: middle.shape.clone(),
        len_bytes: middle.len_bytes,
        range: start..end,
    })
}

impl End {
    /// Takes this number, if it is the one that stands here and a comma ends it.
    #[inline]
    fn take(&self, cursor: &mut Cursor<'_>) -> Option<u64> {
        let digits = &cursor.bytes[self.digits.clone()];
        let rest = cursor.bytes.get(cursor.at..)?.strip_prefix(digits)?;
        if digits.is_empty() || rest.first() != Some(&b',') {
            return None;
        }
        cursor.at += digits.len();
        Some(self.value)
    }
}

impl Middles {
    /// Takes a middle. The one after the last is looked at early: they were learned in the order in which they come.
    #[inline]
    fn take(&mut self, cursor: &mut Cursor<'_>) -> Option<&Middle> {
        let rest = cursor.bytes.get(cursor.at..)?;
        let mut order = (self.last..self.known.len()).chain(0..self.last);
        match order.find(|&i| rest.starts_with(&self.known[i].text)) {
            Some(i) => {
                self.last = i;
                cursor.at += self.known[i].text.len();
            }
            None => self.learn(cursor)?,
        }
        self.known.get(self.last)
    }

    /// Takes a middle that is not known yet.
    fn learn(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let start = cursor.at;
        let dtype = cursor
            .take_text(b"\":{\"dtype\":\"")
            .then(|| take_dtype(cursor))??;
        let shape = cursor
            .take_text(b"\",\"shape\":[")
            .then(|| take_shape(cursor))??;
        if !cursor.take_text(b",\"data_offsets\":[") {
            return None;
        }
        let text = &cursor.bytes[start..cursor.at];
        let mut middle = Middle {
            text: Vec::new(),
            dtype,
            len_bytes: len_bytes(dtype, &shape),
            shape,
        };
        self.last = if self.known.len() < N_MIDDLES {
            self.known.len()
        } else {
            (self.last + 1) % N_MIDDLES
        };
        if let Some(old) = self.known.get_mut(self.last) {
            middle.text = std::mem::take(&mut old.text);
            middle.text.clear();
            middle.text.extend_from_slice(text);
            *old = middle;
        } else {
            middle.text.extend_from_slice(text);
            self.known.push(middle);
        }
        Some(())
    }
}

/// A dtype up to its closing quote.
fn take_dtype(cursor: &mut Cursor<'_>) -> Option<Dtype> {
    let rest = &cursor.bytes[cursor.at..];
    let len = rest.iter().take(16).position(|&byte| byte == b'"')?;
    cursor.at += len;
    Dtype::from_name(std::str::from_utf8(&rest[..len]).ok()?)
}

/// Few dimensions, and the bracket behind them.
fn take_shape(cursor: &mut Cursor<'_>) -> Option<Shape> {
    let mut shape = Shape::inline(&[])?;
    if cursor.take_text(b"]") {
        return Some(shape);
    }
    loop {
        shape = shape.with(cursor.short_integer()?)?;
        if cursor.take_text(b"]") {
            return Some(shape);
        }
        if !cursor.take_text(b",") {
            return None;
        }
    }
}
