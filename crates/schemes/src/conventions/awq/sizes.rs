//! Bits and groups from shapes (specs/conventions/awq.md, clauses A7 to A14).

use safequant_container::TensorInfo;

use crate::Error;
use crate::binding::wrong_shape;
use crate::config::GroupSize;

/// 32-bit words that `n` codes take.
pub(super) fn words(n: u64, bits: u32) -> u64 {
    let blocks = (n / 32).saturating_mul(u64::from(bits));
    blocks.saturating_add((n % 32 * u64::from(bits)).div_ceil(32))
}

/// The one width for which `n` codes take so many words.
pub(super) fn bits_of(n_words: u64, n: u64) -> Option<u32> {
    let mut fitting = (2..=8).filter(|&bits| words(n, bits) == n_words);
    let bits = fitting.next()?;
    fitting.next().is_none().then_some(bits)
}

/// The group size that a configuration states, for rows of so many input features.
pub(super) fn stated(size: Option<GroupSize>, in_features: u64) -> u64 {
    match size {
        Some(GroupSize::Features(size)) => size,
        Some(GroupSize::WholeRow) | None => in_features.max(1),
    }
}

/// The stated group size if it gives so many groups, else the one that the number of groups implies.
pub(super) fn group_size(size: Option<GroupSize>, in_features: u64, groups: u64) -> Option<u64> {
    let size = match size {
        Some(_) => stated(size, in_features),
        None => crate::config::implied_group_size(in_features, groups)?,
    };
    (in_features.div_ceil(size) == groups).then_some(size)
}

/// The error for a number of groups that does not fit.
pub(super) fn wrong_groups(
    module: &str,
    scales: &TensorInfo,
    size: Option<GroupSize>,
    in_features: u64,
) -> Error {
    let expected = match size {
        Some(_) => {
            let size = stated(size, in_features);
            format!("groups of {size} of {in_features} input features")
        }
        None => format!("a number of groups that divides {in_features} input features"),
    };
    wrong_shape(module, scales, expected)
}

/// `8 * ZW`: the scale columns of `gemv`, from AutoAWQ's `calculate_zeros_width`. Small groups are padded further, to what
/// its kernels load at once.
pub(super) fn padded_groups(in_features: u64, group_size: u64) -> u64 {
    let base = (in_features / group_size.max(1)).div_ceil(8);
    let multiple = match group_size {
        64..128 => 2,
        32..64 => 4,
        0..32 => 8,
        128.. => 1,
    };
    base.div_ceil(multiple)
        .saturating_mul(multiple)
        .saturating_mul(8)
}

/// The one group size whose padding gives so many scale columns: powers of two from 16 on, and the whole row.
pub(super) fn from_padding(in_features: u64, padded: u64) -> Option<u64> {
    let powers = (4..31)
        .map(|i| 1_u64 << i)
        .filter(|size| *size < in_features);
    let mut fitting = powers
        .chain([in_features.max(1)])
        .filter(|&size| in_features.is_multiple_of(size))
        .filter(|&size| padded_groups(in_features, size) == padded);
    let size = fitting.next()?;
    fitting.next().is_none().then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AutoAWQ modules/linear/gemv.py `calculate_zeros_width`, run for these.
    #[test]
    fn small_groups_are_padded_to_what_kernels_load() {
        let cases = [
            (4096, 128, 32),
            (4096, 64, 64),
            (4096, 32, 128),
            (128, 128, 8),
            (128, 64, 16),
            (256, 64, 16),
            (256, 32, 32),
            (11008, 128, 88),
        ];
        for (columns, size, expected) in cases {
            assert_eq!(padded_groups(columns, size), expected, "{columns} {size}");
        }
    }

    #[test]
    fn a_group_size_is_taken_from_padding_only_where_no_other_fits() {
        assert_eq!(from_padding(4096, 32), Some(128));
        assert_eq!(from_padding(4096, 64), Some(64));
        assert_eq!(from_padding(128, 8), Some(128));
        assert_eq!(from_padding(1024, 8), None, "128, 256, 512 or 1024");
        assert_eq!(from_padding(4096, 9), None);
        assert_eq!(from_padding(0, 8), None);
    }

    #[test]
    fn bits_are_those_of_one_width_only() {
        assert_eq!(bits_of(8, 64), Some(4));
        assert_eq!(bits_of(6, 64), Some(3));
        assert_eq!(bits_of(1, 8), None, "3 and 4 bits take one word");
        assert_eq!(bits_of(u64::MAX, u64::MAX), None);
        assert_eq!(words(40, 4), 5);
    }
}
