//! Which tensor of which shard a name stands for.

use crate::{Error, Index, Shard};

/// (shard, tensor in its header).
pub(crate) type Place = (u32, u32);

/// Every tensor once, by name: the one that the index lists, or the only one.
pub(crate) fn match_names(
    checkpoint: &str,
    shards: &[Shard],
    index: Option<&Index>,
) -> Result<Vec<Place>, Error> {
    if let Some(places) = index.and_then(|index| follow(index, shards)) {
        return Ok(places);
    }
    let out_of_memory = || Error::OutOfMemory {
        file: checkpoint.to_owned(),
        len_bytes: n_stored(shards) as u64 * 24,
    };
    let stored = sorted(shards).ok_or_else(out_of_memory)?;
    let name_of = |&(shard, tensor): &Place| -> &str {
        &shards[shard as usize].header.tensors[tensor as usize].name
    };
    if index.is_none() && stored.is_sorted_by(|a, b| name_of(a) < name_of(b)) {
        return Ok(stored);
    }
    let mut places = Vec::new();
    places
        .try_reserve_exact(stored.len())
        .map_err(|_| out_of_memory())?;
    let mut listed = index
        .map_or(&[][..], |index| &index.weight_map)
        .iter()
        .peekable();
    for same in stored.chunk_by(|a, b| name_of(a) == name_of(b)) {
        let name = name_of(&same[0]);
        if let Some((missing, shard)) = listed.next_if(|(tensor, _)| tensor.as_str() < name) {
            return Err(missing_tensor(index, missing, shard));
        }
        let place = match (listed.next_if(|(tensor, _)| tensor == name), same) {
            (Some((_, shard)), _) => {
                let meant = same
                    .iter()
                    .find(|(i, _)| shards[*i as usize].name == **shard);
                meant.ok_or_else(|| Error::IndexWrongShard {
                    file: index.map(|index| index.name.clone()).unwrap_or_default(),
                    tensor: name.to_owned(),
                    listed: shard.to_string(),
                    stored: shards[same[0].0 as usize].name.clone(),
                })?
            }
            (None, [only]) => only,
            (None, several) => {
                return Err(Error::TensorInTwoShards {
                    checkpoint: checkpoint.to_owned(),
                    tensor: name.to_owned(),
                    first: shards[several[0].0 as usize].name.clone(),
                    second: shards[several[1].0 as usize].name.clone(),
                });
            }
        };
        places.push(*place);
    }
    match listed.next() {
        Some((missing, shard)) => Err(missing_tensor(index, missing, shard)),
        None => Ok(places),
    }
}

fn missing_tensor(index: Option<&Index>, tensor: &str, shard: &str) -> Error {
    Error::IndexMissingTensor {
        file: index.map(|index| index.name.clone()).unwrap_or_default(),
        tensor: tensor.to_owned(),
        shard: shard.to_owned(),
    }
}

fn n_stored(shards: &[Shard]) -> usize {
    shards.iter().map(|shard| shard.header.tensors.len()).sum()
}

fn narrow(i: usize) -> u32 {
    u32::try_from(i).expect("headers and numbers of shards are limited")
}

/// The places in the order of the index, if index and shards agree in the plainest way: the index lists every tensor
/// once, in the shard that has it. Then the tensors of a shard by name are those that the index lists for it, one after
/// the other, and comparing them takes one step each. `None` if there is anything else to say (or no memory).
fn follow(index: &Index, shards: &[Shard]) -> Option<Vec<Place>> {
    let n_stored = n_stored(shards);
    if index.weight_map.len() != n_stored {
        return None;
    }
    let mut left = shards.iter().map(by_name).collect::<Option<Vec<_>>>()?;
    let mut places = Vec::new();
    places.try_reserve_exact(n_stored).ok()?;
    let mut last = None;
    for (tensor, name) in &index.weight_map {
        let shard = match last {
            Some((same, shard)) if name.is_same_place(same) => shard,
            Some(_) | None => {
                let place = shards.binary_search_by(|shard| shard.name.as_str().cmp(name));
                place.ok()?
            }
        };
        last = Some((name, shard));
        let next = left[shard].next()?;
        if shards[shard].header.tensors[next as usize].name != *tensor {
            return None;
        }
        places.push((narrow(shard), next));
    }
    // As many tensors are listed as there are, and each is another one: none is left.
    Some(places)
}

/// The places of a shard's tensors by name.
fn by_name(shard: &Shard) -> Option<std::vec::IntoIter<u32>> {
    let order = sorted(std::slice::from_ref(shard))?;
    let mut tensors = Vec::new();
    tensors.try_reserve_exact(order.len()).ok()?;
    tensors.extend(order.into_iter().map(|(_, tensor)| tensor));
    Some(tensors.into_iter())
}

/// All places by name, and by shard where names are equal; `None` if there is no memory.
///
/// Most headers are sorted already. The others are sorted by eight bytes of the name at a time, as numbers: names of a model
/// begin alike, and comparing whole ones would read the same beginnings over and over.
fn sorted(shards: &[Shard]) -> Option<Vec<Place>> {
    let name_of = |(shard, tensor): Place| -> &str {
        &shards[shard as usize].header.tensors[tensor as usize].name
    };
    let mut places = Vec::new();
    places.try_reserve_exact(n_stored(shards)).ok()?;
    for (i, shard) in shards.iter().enumerate() {
        places.extend((0..shard.header.tensors.len()).map(|j| (narrow(i), narrow(j))));
    }
    if !places.is_sorted_by(|a, b| name_of(*a) <= name_of(*b)) {
        sort(&mut places, |place| name_of(place).as_bytes())?;
    }
    Some(places)
}

/// Groups that are sorted by whole names at once.
const SMALL_GROUP: usize = 8;

fn sort<'a>(places: &mut [Place], name_of: impl Fn(Place) -> &'a [u8]) -> Option<()> {
    let mut keyed: Vec<(u64, Place)> = Vec::new();
    keyed.try_reserve_exact(places.len()).ok()?;
    keyed.extend(places.iter().map(|&place| (0, place)));
    // Groups of equal beginnings, and how long those are.
    let mut groups = vec![(0..keyed.len(), 0)];
    let mut ended = Vec::new();
    while let Some((range, skip)) = groups.pop() {
        let group = &mut keyed[range.clone()];
        if group.len() <= SMALL_GROUP {
            group.sort_unstable_by_key(|&(_, place)| (name_of(place), place));
            continue;
        }
        for (key, place) in &mut *group {
            *key = eight_bytes(name_of(*place), skip);
        }
        group.sort_unstable();
        let mut start = range.start;
        for same in keyed[range].chunk_by(|a, b| a.0 == b.0) {
            let rest = start..start + same.len();
            start = rest.end;
            let is_longer = |&(_, place): &(u64, Place)| name_of(place).len() > skip + 8;
            if same.len() > 1 && same.iter().any(is_longer) {
                groups.try_reserve(1).ok()?;
                groups.push((rest, skip + 8));
            } else if same.len() > 1 {
                ended.try_reserve(1).ok()?;
                ended.push(rest);
            }
        }
    }
    // Equal names, and names that differ in zeros at the end.
    for range in ended {
        keyed[range].sort_unstable_by_key(|&(_, place)| (name_of(place), place));
    }
    for (place, (_, sorted)) in places.iter_mut().zip(keyed) {
        *place = sorted;
    }
    Some(())
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
        for n_names in [0, 1, 2, 7, 9, 100, 3000] {
            let names: Vec<String> = (0..n_names)
                .map(|_| (0..next(9)).map(|_| letters[next(letters.len())]).collect())
                .collect();
            let mut places: Vec<Place> = (0..n_names).map(|i| (narrow(i % 3), narrow(i))).collect();
            let mut expected = places.clone();
            expected.sort_by_key(|&place| (&names[place.1 as usize], place));
            sort(&mut places, |place| names[place.1 as usize].as_bytes()).unwrap();
            assert_eq!(places, expected, "{n_names} names");
        }
    }
}
