//! The one bit trick of this folder: eight `B`-bit codes to eight bytes and back, inside a `u64`.
//!
//! ```text
//! 8B bits   |h|g|f|e|d|c|b|a|                     a in the lowest B bits
//! step 1    |   h g f e     |     d c b a     |   halves of 4B bits, moved to bits 0 and 32
//! step 2    |   h g |   f e |   d c |   b a   |   quarters of 2B bits, moved to bits 0, 16, 32, 48
//! step 3    | h | g | f | e | d | c | b | a   |   codes, moved to bits 0, 8, ..., 56
//! ```
//!
//! Three masks and shifts for eight codes, no loop, no table, the same for every width: rustc vectorizes it where the
//! input is a power of two wide, and it needs no BMI2 `pdep` where it is not.

/// The lowest `bits` bits.
const fn low(bits: usize) -> u64 {
    if bits == 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

/// Eight `B`-bit codes in the lowest `8 * B` bits (`1 <= B <= 8`) to one code per byte; other bits are ignored.
#[inline(always)]
pub(super) const fn spread8<const B: usize>(x: u64) -> u64 {
    let halves = low(4 * B);
    let quarters = low(2 * B) | low(2 * B) << 32;
    let eighths = low(B) | low(B) << 16 | low(B) << 32 | low(B) << 48;
    let x = (x & halves) | (x << (32 - 4 * B)) & (halves << 32);
    let x = (x & quarters) | (x << (16 - 2 * B)) & (quarters << 16);
    (x & eighths) | (x << (8 - B)) & (eighths << 8)
}

/// The inverse of [`spread8`]: bits of a byte above `B` are ignored, result bits above `8 * B` are zero.
#[inline(always)]
pub(super) const fn gather8<const B: usize>(x: u64) -> u64 {
    let halves = low(4 * B);
    let quarters = low(2 * B) | low(2 * B) << 32;
    let eighths = low(B) | low(B) << 16 | low(B) << 32 | low(B) << 48;
    let x = (x & eighths) | (x & (eighths << 8)) >> (8 - B);
    let x = (x & quarters) | (x & (quarters << 16)) >> (16 - 2 * B);
    (x & halves) | (x & (halves << 32)) >> (32 - 4 * B)
}

/// Calls a function that is generic over the width with the width as a constant.
macro_rules! with_width {
    ($bits:expr, $function:ident($($argument:expr),*)) => {
        match $bits {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            3 => $function::<3>($($argument),*),
            4 => $function::<4>($($argument),*),
            5 => $function::<5>($($argument),*),
            6 => $function::<6>($($argument),*),
            7 => $function::<7>($($argument),*),
            8 => $function::<8>($($argument),*),
            _ => unreachable!("widths are checked by Packing"),
        }
    };
}
pub(super) use with_width;

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const B: usize>() {
        for lane in 0..8 {
            let code = low(B);
            assert_eq!(
                spread8::<B>(code << (lane * B)),
                code << (lane * 8),
                "{B} bits, lane {lane}"
            );
            assert_eq!(
                gather8::<B>(code << (lane * 8)),
                code << (lane * B),
                "{B} bits, lane {lane}"
            );
        }
        assert_eq!(gather8::<B>(u64::MAX), low(8 * B));
    }

    #[test]
    fn each_lane_goes_to_its_byte_and_back() {
        for bits in 1..=8 {
            with_width!(bits, check());
        }
    }
}
