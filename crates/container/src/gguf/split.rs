//! Models split over several files: `<base>-00001-of-0000N.gguf` (specs/container/gguf.md, clauses G16-G18).

use std::path::Path;
use std::sync::Arc;

use super::SUFFIX;
use crate::checkpoint::{check_shard_count, file_name, parent};
use crate::paths::Directory;
use crate::{Checkpoint, CheckpointKind, Error, FileSource, Limits, ReadAt, Shard};

pub(super) const COUNT_KEY: &str = "split.count";
pub(super) const NUMBER_KEY: &str = "split.no";
pub(super) const TENSORS_KEY: &str = "split.tensors.count";

/// The name of one part, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PartName<'a> {
    base: &'a str,
    /// From 1.
    number: u32,
    pub(crate) count: u32,
}

impl<'a> PartName<'a> {
    /// `None` for a name that is none of a part.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let stem = name.strip_suffix(SUFFIX)?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (base, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        (1..=count).contains(&number).then_some(Self {
            base,
            number,
            count,
        })
    }

    /// The names of all parts, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = String> {
        names(self.base, self.count)
    }
}

/// The names of all parts of a model, in order.
pub(super) fn names(base: &str, count: u32) -> impl Iterator<Item = String> {
    (1..=count).map(move |number| format!("{base}-{number:05}-of-{count:05}{SUFFIX}"))
}

/// A number of a part's metadata.
fn number(shard: &Shard, key: &str) -> Option<u64> {
    shard.header.gguf.as_ref()?.get(key)?.as_u64()
}

/// How many files a model has, as its metadata says: 1 without a word on it.
pub(crate) fn count(shard: &Shard) -> u64 {
    number(shard, COUNT_KEY).unwrap_or(1).max(1)
}

/// Checks that these shards, in the order of their names, are all parts of one model.
pub(crate) fn check(checkpoint: &str, shards: &[Shard]) -> Result<(), Error> {
    let wrong = |file: &str, what| Error::GgufSplit {
        checkpoint: checkpoint.to_owned(),
        file: file.to_owned(),
        what,
    };
    let n_parts = shards.len() as u64;
    for (i, shard) in (0_u64..).zip(shards) {
        if count(shard) != n_parts {
            return Err(wrong(&shard.name, "split.count is not the number of files"));
        }
        if n_parts > 1 && number(shard, NUMBER_KEY) != Some(i) {
            return Err(wrong(
                &shard.name,
                "split.no is not the file's place, counted from 0",
            ));
        }
    }
    let n_tensors: usize = shards.iter().map(|shard| shard.header.tensors.len()).sum();
    match shards.first() {
        Some(first)
            if n_parts > 1
                && number(first, TENSORS_KEY).is_some_and(|said| said != n_tensors as u64) =>
        {
            Err(wrong(
                &first.name,
                "split.tensors.count is not the number of tensors",
            ))
        }
        Some(_) | None => Ok(()),
    }
}

impl Checkpoint {
    /// A GGUF model: this file, or all parts of the model that it is a part of. Documents beside it belong to others.
    pub(crate) fn open_gguf(
        path: &Path,
        shown: &str,
        source: FileSource,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let name = file_name(path);
        let shard = read_gguf_shard(name.clone(), shown, Arc::new(source), limits)?;
        if count(&shard) == 1 {
            return Self::assemble(CheckpointKind::File, shown, vec![shard], None, limits);
        }
        let wrong = |what| Error::GgufSplit {
            checkpoint: shown.to_owned(),
            file: name.clone(),
            what,
        };
        let part = PartName::parse(&name)
            .ok_or_else(|| wrong("a part whose name is not <base>-00001-of-00002.gguf"))?;
        if count(&shard) != u64::from(part.count) {
            return Err(wrong("split.count is not the number in the name"));
        }
        check_shard_count(
            shown,
            usize::try_from(part.count).unwrap_or(usize::MAX),
            limits,
        )?;
        let directory = Directory::open(parent(path))?;
        let mut shards = Vec::new();
        for part in part.all() {
            let source = directory.try_open_file(&part).map_err(|refusal| {
                if refusal.is_missing() {
                    return Error::ShardMissing {
                        file: shown.to_owned(),
                        shard: part.clone(),
                    };
                }
                directory.error(&part, refusal)
            })?;
            let shown = directory.show(&part);
            shards.push(read_gguf_shard(part, &shown, Arc::new(source), limits)?);
        }
        check(shown, &shards)?;
        Self::assemble(CheckpointKind::File, shown, shards, None, limits)
    }
}

pub(crate) fn read_gguf_shard(
    name: String,
    shown: &str,
    source: Arc<dyn ReadAt>,
    limits: &Limits,
) -> Result<Shard, Error> {
    let header = super::read(&*source, shown, limits)?;
    Ok(Shard {
        name,
        header,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let part = PartName::parse("a-b-00002-of-00003.gguf").unwrap();
        assert_eq!((part.base, part.number, part.count), ("a-b", 2, 3));
        let all: Vec<String> = part.all().collect();
        assert_eq!(all[0], "a-b-00001-of-00003.gguf");
        assert_eq!(all.len(), 3);
        for name in [
            "a.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-1-of-3.gguf",
            "a-+0001-of-00003.gguf",
            "a-00001-of-00003.safetensors",
        ] {
            assert_eq!(PartName::parse(name), None, "{name}");
        }
    }
}
