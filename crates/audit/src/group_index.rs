//! Group indices (`g_idx`): in order or not, and whether every group has its share.
//!
//! An index has one number for each input feature, no more than a row of scales. It is read where rules look at it and not in the
//! pass over scales, which never needs it as such.

use std::collections::BTreeMap;

use safequant_container::Dtype;
use safequant_schemes::{Granularity, Part, QuantizedTensor, Role};
use serde_json::{Map, Value};

use crate::Subject;

/// Most bytes of an index that are read.
const MAX_BYTES: u64 = 8 << 20;

/// What an index is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Feature `k` is of group `k / size`.
    Trivial,
    /// Groups of the right size in another order.
    Scattered,
    /// A group has the wrong number of members.
    Ragged {
        /// Which.
        group: i64,
        members: u64,
        /// Members of a group.
        size: u64,
    },
    /// It could not be read.
    Unknown,
}

/// The orders of all weights that have an index.
pub(crate) fn orders<'a>(subject: &'a Subject<'_>) -> Vec<(&'a QuantizedTensor, Order)> {
    let indexed = subject.model.quantized.iter().filter_map(|tensor| {
        let part = tensor.part(Role::GroupIndex)?;
        let Granularity::IndexedGroup { size } = tensor.scheme.granularity else {
            return None;
        };
        let index = read(subject, part);
        let order = index.map_or(Order::Unknown, |index| order(&index, size));
        Some((tensor, order))
    });
    indexed.collect()
}

fn read(subject: &Subject<'_>, part: &Part) -> Option<Vec<i64>> {
    let tensor = subject.checkpoint.tensor(&part.name)?;
    let bytes = tensor.read_all(MAX_BYTES).ok()?;
    if part.dtype == Dtype::I64 {
        let (words, _) = bytes.as_chunks::<8>();
        return Some(words.iter().map(|word| i64::from_le_bytes(*word)).collect());
    }
    let (words, _) = bytes.as_chunks::<4>();
    let number = |word: &[u8; 4]| i64::from(i32::from_le_bytes(*word));
    (part.dtype == Dtype::I32).then(|| words.iter().map(number).collect())
}

fn order(index: &[i64], size: u64) -> Order {
    let size = size.max(1);
    let of = |feature: usize| i64::try_from(feature as u64 / size).unwrap_or(i64::MAX);
    if index.iter().enumerate().all(|(k, &group)| group == of(k)) {
        return Order::Trivial;
    }
    let mut members: BTreeMap<i64, u64> = BTreeMap::new();
    for group in index {
        *members.entry(*group).or_default() += 1;
    }
    let short = members.iter().filter(|(_, n)| **n < size).count();
    let is_ragged = |n: u64| n > size || (n < size && short > 1);
    match members.iter().find(|(_, n)| is_ragged(**n)) {
        Some((&group, &members)) => Order::Ragged {
            group,
            members,
            size,
        },
        None => Order::Scattered,
    }
}

/// Whether the configuration asks for activation order; `None` where it says nothing, or not of this module alone.
pub(crate) fn is_declared(subject: &Subject<'_>, tensor: &QuantizedTensor) -> Option<bool> {
    if !tensor.convention.starts_with("gptq") {
        return None;
    }
    let flag = |value: &Value| value.get("desc_act").and_then(Value::as_bool);
    let stated = |map: &Map<String, Value>| map.get("desc_act").and_then(Value::as_bool);
    let declared = subject.settings.iter().find_map(|s| stated(&s.map))?;
    let differs = subject.settings.iter().any(|s| {
        let rules = s.map.get("dynamic").and_then(Value::as_object);
        let mut rules = rules.into_iter().flat_map(|rules| rules.values());
        rules.any(|rule| flag(rule).is_some_and(|of_rule| of_rule != declared))
    });
    (!differs).then_some(declared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_told_apart() {
        assert_eq!(order(&[0, 0, 1, 1, 2], 2), Order::Trivial);
        assert_eq!(order(&[1, 0, 1, 0, 2], 2), Order::Scattered);
        let ragged = |group, members| Order::Ragged {
            group,
            members,
            size: 2,
        };
        assert_eq!(order(&[0, 0, 0, 1, 1], 2), ragged(0, 3));
        assert_eq!(order(&[0, 1, 2, 2], 2), ragged(0, 1));
        assert_eq!(order(&[0, 0, 0, 0], 2), ragged(0, 4));
        assert_eq!(order(&[], 0), Order::Trivial);
    }
}
