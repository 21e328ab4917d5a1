//! Sizes on the command line: `256MiB`, `5GB`, `1.5GiB`, plain bytes.

use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Units by spelling, lower case; decimal units are powers of 1000 as in the hub's `max_shard_size`.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Digits after the point that are read: more than any unit has meaningful ones.
const MAX_DECIMALS: usize = 12;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| {
            "expected a size of at least 1 byte such as 256MiB, 1.5GiB, 5GB or a number of bytes".to_owned()
        })
    }
}

/// Exact: a fraction of a byte is dropped, nothing goes through a float.
fn parse(text: &str) -> Option<Size> {
    let text = text.trim();
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = u128::from(UNITS.iter().find(|(name, _)| *name == unit)?.1);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if decimals.is_empty() || decimals.len() > MAX_DECIMALS {
        return None;
    }
    let power = 10u128.pow(u32::try_from(decimals.len()).ok()?);
    let whole = u128::from(whole.parse::<u64>().ok()?).checked_mul(unit)?;
    let part = u128::from(decimals.parse::<u64>().ok()?) * unit / power;
    let bytes = u64::try_from(whole.checked_add(part)?).ok()?;
    (bytes > 0).then_some(Size(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        let cases = [
            ("256MiB", 256 << 20),
            ("5GB", 5_000_000_000),
            ("1.5GiB", 3 << 29),
            ("4096", 4096),
            ("1 kb", 1000),
            ("0.5KiB", 512),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let cases = [
            "",
            "GB",
            "-1",
            "1.",
            ".5GB",
            "1e9",
            "5 apples",
            "1.5.5GB",
            "0",
            "0GB",
            "0.1B",
            "18446744073709551616",
            "99999999999TiB",
            "1.0000000000001GB",
            "٥GB",
            "+5",
        ];
        for text in cases {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
