//! Whether all names of a header differ, without sorting them.

/// Steps for each name on average, before the table is given up. Half-full tables need 1.5.
const STEPS_PER_NAME: usize = 8;

/// `true` only if no two of the `n_names` names are equal. Equal names, names that collide on purpose, and a lack of memory
/// all give `false`: the caller has a slower way to tell.
pub(super) fn are_distinct<'a>(n_names: usize, name: impl Fn(usize) -> &'a [u8]) -> bool {
    let n_slots = n_names.saturating_mul(2).next_power_of_two();
    let mut slots: Vec<(u32, u32)> = Vec::new();
    if slots.try_reserve_exact(n_slots).is_err() {
        return false;
    }
    // (0, 0) is free: places in the list are counted from 1.
    slots.resize(n_slots, (0, 0));
    let mut steps_left = n_names.saturating_mul(STEPS_PER_NAME);
    (0..n_names).all(|i| {
        let hash = hash(name(i));
        let Ok(place) = u32::try_from(i + 1) else {
            return false;
        };
        let mut at = hash as usize & (n_slots - 1);
        loop {
            let (found, other) = slots[at];
            if other == 0 {
                slots[at] = (hash, place);
                return true;
            }
            let is_equal = found == hash && name(other as usize - 1) == name(i);
            if is_equal || steps_left == 0 {
                return false;
            }
            steps_left -= 1;
            at = (at + 1) & (n_slots - 1);
        }
    })
}

/// Folded multiplication, eight bytes at a time. It needs no secret: collisions cost steps, and steps are counted.
fn hash(bytes: &[u8]) -> u32 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 / golden ratio
    let fold = |state: u64, word: u64| {
        let word = (state ^ word).wrapping_mul(MULTIPLIER);
        word ^ (word >> 32)
    };
    let (chunks, tail) = bytes.as_chunks::<8>();
    let mut state = bytes.len() as u64;
    for chunk in chunks {
        state = fold(state, u64::from_le_bytes(*chunk)).rotate_left(17);
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    let [a, b, c, d, ..] = fold(state, u64::from_le_bytes(last)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_found_and_others_are_not_confused() {
        let names: Vec<String> = (0..50_000)
            .map(|i| format!("layers.{}.{}", i % 61, i))
            .collect();
        let all = |names: &[String]| are_distinct(names.len(), |i| names[i].as_bytes());
        assert!(all(&names) && all(&names[..1]) && all(&[]));
        for (from, to) in [(0, 49_999), (777, 778), (49_999, 0)] {
            let mut names = names.clone();
            names[to] = names[from].clone();
            assert!(!all(&names), "{from} as {to}");
        }
    }

    #[test]
    fn a_flood_of_collisions_ends_early() {
        let n_names = 1 << 14;
        let asked = std::cell::Cell::new(0_usize);
        // Names that share their last 8 slots' worth of hash: found by trying.
        let names: Vec<[u8; 8]> = (0_u64..)
            .map(u64::to_le_bytes)
            .filter(|name| hash(name) & 0xFF == 7)
            .take(n_names)
            .collect();
        let distinct = are_distinct(n_names, |i| {
            asked.set(asked.get() + 1);
            &names[i]
        });
        assert!(!distinct);
        assert!(
            asked.get() < n_names * (STEPS_PER_NAME + 3),
            "{}",
            asked.get()
        );
    }
}
