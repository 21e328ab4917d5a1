//! The order of tensors by name.

use crate::TensorInfo;

/// How the tensors of a header are ordered by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NameOrder {
    /// As they lie: each name comes after its predecessor, in byte order.
    Ascending,
    /// Their places in the list, by name.
    Places(Vec<u32>),
}

impl NameOrder {
    /// The order of these tensors; equal names keep the order of the list. `None` if there is no memory.
    pub(crate) fn of(tensors: &[TensorInfo]) -> Option<Self> {
        if tensors.is_sorted_by(|a, b| a.name < b.name) {
            return Some(Self::Ascending);
        }
        sorted(tensors.len(), |place| {
            tensors[place as usize].name.as_bytes()
        })
        .map(|sorted| Self::Places(sorted.places))
    }

    /// The places by name, of `n_tensors` tensors.
    pub(crate) fn places(&self, n_tensors: usize) -> impl Iterator<Item = u32> + '_ {
        let (ascending, places) = match self {
            Self::Ascending => (0..narrow(n_tensors), &[][..]),
            Self::Places(places) => (0..0, places.as_slice()),
        };
        ascending.chain(places.iter().copied())
    }

    /// The same order after the tensor at each place went to the place that `new_places` has for it; `None` if there is no
    /// memory.
    pub(crate) fn moved(self, new_places: &[u32]) -> Option<Self> {
        let places = match self {
            Self::Ascending => {
                let mut places = Vec::new();
                places.try_reserve_exact(new_places.len()).ok()?;
                places.extend_from_slice(new_places);
                places
            }
            Self::Places(mut places) => {
                for place in &mut places {
                    *place = new_places[*place as usize];
                }
                places
            }
        };
        let is_ascending = (0..).zip(&places).all(|(i, &place)| i == place);
        Some(if is_ascending {
            Self::Ascending
        } else {
            Self::Places(places)
        })
    }
}

fn narrow(i: usize) -> u32 {
    u32::try_from(i)
        .expect("a header has fewer tensors than bytes, and those are limited to 32 bits")
}

/// Groups that are sorted by whole names at once.
const SMALL_GROUP: usize = 8;

/// What sorting names tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// The numbers of the names, by name, and by number where names are equal.
    pub(crate) places: Vec<u32>,
    pub(crate) equals: Equals,
}

/// Whether any two names are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Equals {
    None,
    Some,
}

/// Sorts `n_names` names; `None` if there is no memory.
///
/// Names are compared by eight bytes at a time, as numbers, behind what all names of a group have in common: names of a model
/// begin alike, and comparing whole ones would read the same beginnings over and over. The sort keeps the order of equal
/// keys and finds runs that ascend already, of which a model in the order of its layers has few. All names of a group are
/// longer than what it has in common, and each step takes eight bytes off each of them: names cost what their bytes cost.
pub(crate) fn sorted<'a>(n_names: usize, name_of: impl Fn(u32) -> &'a [u8]) -> Option<Sorted> {
    let mut keyed: Vec<(u64, u32)> = Vec::new();
    keyed.try_reserve_exact(n_names).ok()?;
    keyed.extend((0..u32::try_from(n_names).ok()?).map(|place| (0, place)));
    let mut equals = Equals::None;
    // Groups of equal beginnings, and how long those are.
    let mut groups = vec![(0..n_names, 0)];
    while let Some((range, skip)) = groups.pop() {
        let group = &mut keyed[range.clone()];
        if group.len() <= SMALL_GROUP {
            group.sort_unstable_by_key(|&(_, place)| (name_of(place), place));
            if group
                .windows(2)
                .any(|pair| name_of(pair[0].1) == name_of(pair[1].1))
            {
                equals = Equals::Some;
            }
            continue;
        }
        let skip = skip + n_common(group, skip, &name_of);
        let mut shortest = usize::MAX;
        for (key, place) in &mut *group {
            let name = name_of(*place);
            shortest = shortest.min(name.len());
            *key = eight_bytes(name, skip);
        }
        group.sort_by_key(|&(key, _)| key);
        let mut start = range.start;
        for same in keyed[range].chunk_by_mut(|a, b| a.0 == b.0) {
            let end = start + same.len();
            if same.len() > 1 {
                let mut n_ended = 0;
                if shortest <= skip + 8 {
                    // Names that have ended differ in zeros at the end, if at all, and come first.
                    let len = |&(_, place): &(u64, u32)| name_of(place).len().min(skip + 9);
                    same.sort_by_key(len);
                    n_ended = same.partition_point(|keyed| len(keyed) < skip + 9);
                    if !same[..n_ended].is_sorted_by(|a, b| len(a) < len(b)) {
                        equals = Equals::Some;
                    }
                }
                groups.try_reserve(1).ok()?;
                groups.push((start + n_ended..end, skip + 8));
            }
            start = end;
        }
    }
    let mut places = Vec::new();
    places.try_reserve_exact(n_names).ok()?;
    places.extend(keyed.into_iter().map(|(_, place)| place));
    Some(Sorted { places, equals })
}

/// How many bytes behind `skip` all names of a group have in common.
fn n_common<'a>(group: &[(u64, u32)], skip: usize, name_of: impl Fn(u32) -> &'a [u8]) -> usize {
    let rest = |&(_, place): &(u64, u32)| name_of(place).get(skip..).unwrap_or_default();
    let Some((first, others)) = group.split_first() else {
        return 0;
    };
    let first = rest(first);
    let mut len = first.len();
    for other in others {
        if len == 0 {
            break;
        }
        len = n_equal(&first[..len], rest(other));
    }
    len
}

/// How many bytes at the beginning of both are the same.
fn n_equal(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let mut len = 0;
    for (a, b) in words {
        let difference = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if difference != 0 {
            return len + (difference.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    let rest = a[len..].iter().zip(&b[len..]);
    len + rest.take_while(|(a, b)| a == b).count()
}

/// The bytes from `skip` on, the first one the highest; zeros behind the end.
fn eight_bytes(name: &[u8], skip: usize) -> u64 {
    let rest = name.get(skip..).unwrap_or_default();
    if let Some(chunk) = rest.first_chunk() {
        return u64::from_be_bytes(*chunk);
    }
    let mut bytes = [0; 8];
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_as_strings_are() {
        let mut state = 1_u64;
        let mut next = |n: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % n
        };
        let letters = [
            "\0",
            "a",
            "layers.",
            "model.layers.1",
            "é",
            "\u{10ffff}",
            "9",
            "10",
        ];
        for n_names in [0, 1, 2, 5, 7, 9, 12, 15, 20, 100, 3000] {
            for prefix in ["", "model.layers."] {
                let names: Vec<String> = (0..n_names)
                    .map(|_| {
                        let rest: String = (0..next(9)).map(|_| letters[next(8)]).collect();
                        format!("{prefix}{rest}")
                    })
                    .collect();
                let mut expected: Vec<u32> = (0..narrow(n_names)).collect();
                expected.sort_by_key(|&place| (&names[place as usize], place));
                let same = |pair: &[u32]| names[pair[0] as usize] == names[pair[1] as usize];
                let found = sorted(n_names, |place| names[place as usize].as_bytes()).unwrap();
                let has_equals = found.equals == Equals::Some;
                assert_eq!(has_equals, expected.windows(2).any(same));
                assert_eq!(found.places, expected, "{n_names} names");
            }
        }
    }

    #[test]
    fn an_order_goes_along_when_tensors_move() {
        // By name: 2, 0, 1; then 0 goes to 1, 1 to 0.
        let order = NameOrder::Places(vec![2, 0, 1]);
        assert_eq!(order.places(3).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(
            order.clone().moved(&[1, 0, 2]),
            Some(NameOrder::Places(vec![2, 1, 0]))
        );
        assert_eq!(order.moved(&[1, 2, 0]), Some(NameOrder::Ascending));
        let ascending = NameOrder::Ascending;
        assert_eq!(ascending.places(3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(
            ascending.moved(&[1, 2, 0]),
            Some(NameOrder::Places(vec![1, 2, 0]))
        );
    }
}
