//! Reading the files of a checkpoint: index, documents, headers of shards.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Fail, kept};
use crate::header::read_range;
use crate::paths::{Directory, check_shard_name};
use crate::{Error, Header, Index, Limits, ReadAt, Shard};

pub(super) fn read_index(
    source: &dyn ReadAt,
    name: &str,
    shown: &str,
    limits: &Limits,
) -> Result<Index, Error> {
    crate::index::check_len(shown, source.len_bytes(), limits)?;
    if let Some(index) = Index::parse_plain(name, shown, source, limits)? {
        check_unchanged(source, shown)?;
        return Ok(index);
    }
    let bytes = read_whole(source, shown)?;
    Index::parse_any(name, shown, &bytes, limits)
}

/// Reads a whole file, and makes sure that it did not change meanwhile.
fn read_whole(source: &dyn ReadAt, shown: &str) -> Result<Vec<u8>, Error> {
    let bytes = read_range(source, shown, 0, source.len_bytes())?;
    check_unchanged(source, shown)?;
    Ok(bytes)
}

fn check_unchanged(source: &dyn ReadAt, shown: &str) -> Result<(), Error> {
    source.verify_unchanged().map_err(|source| Error::Changed {
        file: shown.to_owned(),
        source,
    })
}

/// Reads those of the named documents that exist; their sum is limited like each of them, times two.
pub(super) fn read_documents<'a>(
    directory: &Directory,
    names: impl Iterator<Item = &'a str>,
    limits: &Limits,
    fail: Fail<'_>,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut documents = BTreeMap::new();
    let mut left = limits.max_document_bytes.saturating_mul(2);
    for name in names {
        let source = match directory.try_open_file(name) {
            Err(refusal) if refusal.is_missing() => continue,
            opened => opened.map_err(|refusal| directory.error(name, refusal)),
        };
        let Some(source) = kept(source, fail)? else {
            continue;
        };
        let found = source.len_bytes();
        let limit = limits.max_document_bytes.min(left);
        if found > limit {
            let file = directory.show(name);
            fail(Error::DocumentTooLarge { file, found, limit })?;
            continue;
        }
        left -= found;
        let bytes = kept(read_whole(&source, &directory.show(name)), fail)?;
        documents.extend(bytes.map(|bytes| (name.to_owned(), bytes)));
    }
    Ok(documents)
}

pub(super) fn open_shard(
    directory: &Directory,
    index: Option<&Index>,
    name: String,
    limits: &Limits,
) -> Result<Shard, Error> {
    check_shard_name(&directory.shown, &name)?;
    let source = directory
        .try_open_file(&name)
        .map_err(|refusal| match index {
            Some(index) if refusal.is_missing() => Error::ShardMissing {
                file: directory.show(&index.name),
                shard: name.clone(),
            },
            Some(_) | None => directory.error(&name, refusal),
        })?;
    let shown = directory.show(&name);
    read_shard(name, &shown, Arc::new(source), limits)
}

pub(super) fn read_shard(
    name: String,
    shown: &str,
    source: Arc<dyn ReadAt>,
    limits: &Limits,
) -> Result<Shard, Error> {
    let header = Header::read(&*source, shown, limits)?;
    Ok(Shard {
        name,
        header,
        source,
    })
}

/// Reads the header of a file under the name that it has in the checkpoint and the one for messages.
pub(super) type ReadShard = fn(String, &str, Arc<dyn ReadAt>, &Limits) -> Result<Shard, Error>;
