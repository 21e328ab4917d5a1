//! Which tensor of which shard a name stands for.

use crate::checkpoint::Fail;
use crate::{Error, Index, Shard, order};

/// (shard, tensor in its header).
pub(crate) type Place = (u32, u32);

/// Every tensor once, by name: the one that the index lists, or the only one. Where `fail` goes on: what the index lists and
/// no shard has is left out (a shard that is not there is no second error for each of its tensors), and of several tensors
/// the first one counts.
pub(crate) fn match_names(
    checkpoint: &str,
    shards: &[Shard],
    index: Option<&Index>,
    fail: Fail<'_>,
) -> Result<Vec<Place>, Error> {
    if let Some(places) = index.and_then(|index| follow(index, shards)) {
        return Ok(places);
    }
    let out_of_memory = || Error::OutOfMemory {
        file: checkpoint.to_owned(),
        len_bytes: n_stored(shards) as u64 * 24,
    };
    if let (None, [only]) = (index, shards) {
        // No name occurs twice in a header.
        return Ok(only.header.by_name().map(|tensor| (0, tensor)).collect());
    }
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
        while let Some((missing, shard)) = listed.next_if(|(tensor, _)| tensor.as_str() < name) {
            missing_tensor(shards, index, (missing, shard), fail)?;
        }
        let place = match (listed.next_if(|(tensor, _)| tensor == name), same) {
            (Some((_, shard)), _) => {
                let meant = same
                    .iter()
                    .find(|(i, _)| shards[*i as usize].name == **shard);
                if meant.is_none() {
                    fail(Error::IndexWrongShard {
                        file: index.map(|index| index.name.clone()).unwrap_or_default(),
                        tensor: name.to_owned(),
                        listed: shard.to_string(),
                        stored: shards[same[0].0 as usize].name.clone(),
                    })?;
                }
                meant.unwrap_or(&same[0])
            }
            (None, [only]) => only,
            (None, several) => {
                fail(Error::TensorInTwoShards {
                    checkpoint: checkpoint.to_owned(),
                    tensor: name.to_owned(),
                    first: shards[several[0].0 as usize].name.clone(),
                    second: shards[several[1].0 as usize].name.clone(),
                })?;
                &several[0]
            }
        };
        places.push(*place);
    }
    for (missing, shard) in listed {
        missing_tensor(shards, index, (missing, shard), fail)?;
    }
    Ok(places)
}

fn missing_tensor(
    shards: &[Shard],
    index: Option<&Index>,
    (tensor, shard): (&str, &str),
    fail: Fail<'_>,
) -> Result<(), Error> {
    let is_open = shards.binary_search_by(|open| open.name.as_str().cmp(shard));
    if is_open.is_err() {
        return Ok(());
    }
    fail(Error::IndexMissingTensor {
        file: index.map(|index| index.name.clone()).unwrap_or_default(),
        tensor: tensor.to_owned(),
        shard: shard.to_owned(),
    })
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
    // Which shard a name stands for, by the name's place in the index.
    let mut numbers: Vec<(u32, u32)> = Vec::new();
    numbers.try_reserve_exact(index.shards.len()).ok()?;
    for name in &index.shards {
        let number = shards.binary_search_by(|shard| shard.name.as_str().cmp(name));
        numbers.push((name.place(), narrow(number.ok()?)));
    }
    numbers.sort_unstable();
    let mut left: Vec<_> = shards.iter().map(|shard| shard.header.by_name()).collect();
    let mut places = Vec::new();
    places.try_reserve_exact(n_stored).ok()?;
    let mut last = *numbers.first()?;
    for (tensor, name) in &index.weight_map {
        if name.place() != last.0 {
            let found = numbers.binary_search_by_key(&name.place(), |&(place, _)| place);
            last = numbers[found.ok()?];
        }
        let shard = last.1 as usize;
        let next = left[shard].next()?;
        if shards[shard].header.tensors[next as usize].name != *tensor {
            return None;
        }
        places.push((last.1, next));
    }
    // As many tensors are listed as there are, and each is another one: none is left.
    Some(places)
}

/// All places by name, and by shard where names are equal; `None` if there is no memory.
fn sorted(shards: &[Shard]) -> Option<Vec<Place>> {
    let name_of = |(shard, tensor): Place| -> &str {
        &shards[shard as usize].header.tensors[tensor as usize].name
    };
    let mut places = Vec::new();
    places.try_reserve_exact(n_stored(shards)).ok()?;
    for (i, shard) in shards.iter().enumerate() {
        places.extend(shard.header.by_name().map(|tensor| (narrow(i), tensor)));
    }
    if places.is_sorted_by(|a, b| name_of(*a) <= name_of(*b)) {
        return Some(places);
    }
    let order = order::sorted(places.len(), |i| name_of(places[i as usize]).as_bytes())?;
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(places.len()).ok()?;
    sorted.extend(order.places.into_iter().map(|i| places[i as usize]));
    Some(sorted)
}
