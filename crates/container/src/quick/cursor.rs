//! Tokens of plain JSON: no escapes, no fractions. `None` means "not so plain, or cut off", never "wrong".

use std::ops::Range;

/// A place in bytes of which more may follow.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

impl<'a> Cursor<'a> {
    /// The next byte that is no whitespace, without taking it.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Takes one byte, after whitespace.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> Option<()> {
        if self.peek()? != byte {
            return None;
        }
        self.at += 1;
        Some(())
    }

    /// Takes exactly these bytes, without whitespace before them.
    #[inline]
    pub(super) fn take_text<const N: usize>(&mut self, text: &[u8; N]) -> bool {
        let found = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.first_chunk());
        let is_there = found == Some(text);
        if is_there {
            self.at += N;
        }
        is_there
    }

    /// After a member or an item: `true` if another follows, `false` if the closing byte came.
    #[inline]
    pub(super) fn separator(&mut self, close: u8) -> Option<bool> {
        let byte = self.peek()?;
        if byte != b',' && byte != close {
            return None;
        }
        self.at += 1;
        Some(byte == b',')
    }

    /// Takes a string without escapes, UTF-8 in itself, after whitespace: the bytes between the quotes.
    #[inline]
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let range = self.plain_run()?;
        self.at = range.end + 1;
        Some(&self.bytes[range])
    }

    /// From the cursor to the closing quote. Eight bytes at a time; of the bits of `stops`, the lowest is exact (borrows go
    /// upwards only).
    #[inline]
    fn plain_run(&self) -> Option<Range<usize>> {
        let rest = &self.bytes[self.at..];
        let mut high = 0;
        let mut len = 0;
        for chunk in rest.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*chunk);
            let stops = stops(word);
            if stops != 0 {
                let n_plain = stops.trailing_zeros() / 8;
                high |= word & HIGH & (stops & stops.wrapping_neg()).wrapping_sub(1);
                len += n_plain as usize;
                break;
            }
            high |= word & HIGH;
            len += 8;
        }
        while !matches!(*rest.get(len)?, b'"' | b'\\' | 0..0x20) {
            high |= u64::from(rest[len] & 0x80);
            len += 1;
        }
        if rest[len] != b'"' || (high != 0 && std::str::from_utf8(&rest[..len]).is_err()) {
            return None;
        }
        Some(self.at..self.at + len)
    }

    /// Takes a plain integer below 2^64, after whitespace. Its end must be in sight.
    #[inline]
    pub(super) fn integer(&mut self) -> Option<u64> {
        let first = self.peek()?;
        if first == b'0' {
            self.at += 1;
            return self.ends_integer(0);
        }
        let mut value = 0_u64;
        let mut n_digits = 0;
        while let Some(chunk) = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.first_chunk())
        {
            let (digits, count) = leading_digits(u64::from_le_bytes(*chunk));
            value = value.checked_mul(POWERS[count])?.checked_add(digits)?;
            self.at += count;
            n_digits += count;
            if count < 8 {
                return if n_digits == 0 {
                    None
                } else {
                    self.ends_integer(value)
                };
            }
        }
        // The last bytes in hand.
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(self.at) {
            value = value
                .checked_mul(10)?
                .checked_add(u64::from(digit - b'0'))?;
            self.at += 1;
            n_digits += 1;
        }
        if n_digits == 0 {
            None
        } else {
            self.ends_integer(value)
        }
    }

    /// Takes a plain integer of at most 15 digits, without whitespace before it. What ends it is the caller's business.
    #[expect(
        clippy::inline_always,
        reason = "four of them are a third of what an entry costs: a call takes as long as the digits"
    )]
    #[inline(always)]
    pub(super) fn short_integer(&mut self) -> Option<u64> {
        let digits_at = |at: usize| {
            let chunk = self.bytes.get(at..)?.first_chunk()?;
            Some(leading_digits(u64::from_le_bytes(*chunk)))
        };
        let (high, n_high) = digits_at(self.at)?;
        if n_high < 8 {
            let is_zero = self.bytes[self.at] == b'0';
            self.at += n_high;
            return (n_high == 1 || (n_high > 1 && !is_zero)).then_some(high);
        }
        let (low, n_low) = digits_at(self.at + 8)?;
        if n_low == 8 || self.bytes[self.at] == b'0' {
            return None;
        }
        self.at += 8 + n_low;
        Some(high * POWERS[n_low] + low)
    }

    #[inline]
    fn ends_integer(&self, value: u64) -> Option<u64> {
        match self.bytes.get(self.at)? {
            b'0'..=b'9' | b'.' | b'e' | b'E' => None,
            _ => Some(value),
        }
    }
}

/// The high bit of each byte at which a plain string stops: a quote, a backslash, a control character. A bit above the
/// lowest may be set for nothing.
#[inline]
fn stops(word: u64) -> u64 {
    let zero_byte = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
    control | zero_byte(word ^ (ONES * 0x22)) | zero_byte(word ^ (ONES * 0x5C))
}

const POWERS: [u64; 9] = [
    1,
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
];

/// The value and the number of the decimal digits with which eight bytes begin.
///
/// The digits are moved to the high end, so that zeros stand in front of them, and added up in pairs, fours and eights.
#[inline]
fn leading_digits(word: u64) -> (u64, usize) {
    let digits = word ^ (ONES * 0x30);
    // A byte is a digit if it is below 10: adding 0x76 sets its high bit otherwise, unless it had one already.
    let others = ((digits & !HIGH).wrapping_add(ONES * 0x76) | digits) & HIGH;
    let count = (others.trailing_zeros() / 8) as usize;
    if count == 0 {
        return (0, 0);
    }
    let digits = digits << (64 - 8 * count);
    let pairs = (digits.wrapping_mul(10).wrapping_add(digits >> 8)) & 0x00FF_00FF_00FF_00FF;
    let fours = (pairs.wrapping_mul(100).wrapping_add(pairs >> 16)) & 0x0000_FFFF_0000_FFFF;
    let value = (fours.wrapping_mul(10_000).wrapping_add(fours >> 32)) & 0xFFFF_FFFF;
    (value, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Reader;

    #[test]
    fn integers_are_those_of_the_reader() {
        let mut n_read = 0;
        let mut texts = [
            "18446744073709551615",
            "18446744073709551616",
            "00",
            "01",
            "-1",
            "",
            "x",
            "1.0",
            "1e0",
            "1E0",
        ]
        .map(str::to_owned)
        .to_vec();
        texts.extend((1..=20).flat_map(|n| ["1", "9", "0", "7"].map(|digit| digit.repeat(n))));
        texts.extend((1..=20).map(|n| "12345678901234567890"[..n].to_owned()));
        for text in texts {
            for (before, after) in [("", ","), (" ", "] \n    "), ("\n\t", "}:\"/;.e")] {
                let text = format!("{before}{text}{after}");
                let read = Cursor {
                    bytes: text.as_bytes(),
                    at: 0,
                }
                .integer();
                assert_eq!(read, Reader::new("x", &text, 9).u64(), "{text:?}");
                n_read += usize::from(read.is_some());
            }
        }
        assert!(n_read > 150, "{n_read}");
        for cut in ["1", "12345678", "123456789", "0"] {
            assert_eq!(
                Cursor {
                    bytes: cut.as_bytes(),
                    at: 0
                }
                .integer(),
                None,
                "{cut}: its end is not in sight"
            );
        }
    }

    #[test]
    fn plain_strings_are_those_of_the_reader() {
        let mut n_plain = 0;
        for place in 0..20 {
            for special in [
                "a",
                "\"",
                "\\n",
                "\u{1}",
                "\u{1f}",
                " ",
                "é",
                "\u{1F600}",
                "\u{7f}",
                "!",
                "#",
                "[",
                "]",
            ] {
                let mut text = "bcdefghijklmnopqrstuv".to_owned();
                text.insert_str(place, special);
                let text = format!("\"{text}\" \"next\"");
                let theirs = Reader::new("x", &text, 9).string();
                let expected = theirs.ok().filter(|_| !special.starts_with('\\'));
                let mut cursor = Cursor {
                    bytes: text.as_bytes(),
                    at: 0,
                };
                let found = cursor.string();
                assert_eq!(found, expected.as_deref().map(str::as_bytes), "{text}");
                n_plain += usize::from(found.is_some());
            }
        }
        assert_eq!(n_plain, 20 * 10);
        for bytes in [
            &b"\"abc\xc3\""[..],
            b"\"abcdefgh\xff\"",
            b"\"abcdefg\x80hijkl\"",
            b"\"cut",
            b"\"cut in the middle",
        ] {
            assert_eq!(Cursor { bytes, at: 0 }.string(), None);
        }
    }
}
