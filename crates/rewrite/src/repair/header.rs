//! A shard with a new header before the old data.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use safequant_container::{Header, ReadAt, Shard, TensorInfo};
use serde_json::Value;

use super::Edits;
use crate::Error;

/// The header is padded, so that data begins at a multiple of this.
const ALIGNMENT: usize = 8;

/// Longest header that the official parser reads.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What a shard becomes.
pub(super) struct Rewritten {
    /// The first bytes: length word and padded JSON.
    pub(super) prefix: Vec<u8>,
    /// What follows it.
    pub(super) pieces: Vec<Piece>,
    /// Length of the whole file.
    pub(super) len_bytes: u64,
}

/// Bytes of the source, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len_bytes: u64,
}

impl Rewritten {
    /// What a shard becomes; `None` if nothing of it changes. Tensors keep their order.
    pub(super) fn of(shard: &Shard, edits: &Edits) -> Result<Option<Self>, Error> {
        let is_dropped = |tensor: &TensorInfo| {
            let mut dropped = edits.dropped.iter();
            dropped.any(|(file, name)| *file == shard.name && *name == tensor.name)
        };
        let tensors: Vec<&TensorInfo> = shard.header.tensors.iter().collect();
        let kept: Vec<&TensorInfo> = tensors.iter().copied().filter(|t| !is_dropped(t)).collect();
        let is_renamed = kept
            .iter()
            .any(|t| edits.renames.contains_key(t.name.as_str()));
        let metadata = edits.metadata.get(&shard.name);
        if kept.len() == tensors.len() && !is_renamed && metadata.is_none() {
            return Ok(None);
        }
        let prefix = prefix(shard, &kept, edits, metadata)?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = prefix.len() as u64;
        for tensor in kept {
            let len_bytes = tensor.len_bytes();
            let from = tensor.range.start;
            match pieces.last_mut() {
                Some(last) if last.from + last.len_bytes == from => last.len_bytes += len_bytes,
                Some(_) | None => pieces.push(Piece {
                    from,
                    to: at,
                    len_bytes,
                }),
            }
            // The new file is no longer than the old one and a header.
            at = at.saturating_add(len_bytes);
        }
        Ok(Some(Self {
            prefix,
            pieces,
            len_bytes: at,
        }))
    }

    /// The new file, to be read before it is there.
    pub(super) fn source(&self, old: &Arc<dyn ReadAt>) -> Patched {
        Patched {
            prefix: self.prefix.clone(),
            pieces: self.pieces.clone(),
            len_bytes: self.len_bytes,
            old: Arc::clone(old),
        }
    }
}

fn prefix(
    shard: &Shard,
    tensors: &[&TensorInfo],
    edits: &Edits,
    metadata: Option<&Vec<(String, String)>>,
) -> Result<Vec<u8>, Error> {
    let mut json = String::from("{");
    let header: &Header = &shard.header;
    let entries = metadata.or(header.metadata.as_ref());
    if let Some(entries) = entries.filter(|entries| !entries.is_empty()) {
        let object: serde_json::Map<String, Value> = entries
            .iter()
            .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
            .collect();
        let _ = write!(json, "\"__metadata__\":{}", Value::Object(object));
    }
    let mut at = 0_u64;
    for tensor in tensors {
        let end = at.saturating_add(tensor.len_bytes());
        let new = edits.renames.get(tensor.name.as_str());
        let name = Value::from(new.map_or(tensor.name.as_str(), String::as_str));
        let comma = if json.len() > 1 { "," } else { "" };
        let (dtype, shape) = (tensor.dtype, Value::from(tensor.shape.to_vec()));
        let _ = write!(
            json,
            "{comma}{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{at},{end}]}}"
        );
        at = end;
    }
    json.push('}');
    let padded = json.len().next_multiple_of(ALIGNMENT);
    let found = padded as u64;
    if found > MAX_HEADER_BYTES {
        return Err(Error::Container(
            safequant_container::Error::HeaderTooLarge {
                file: shard.name.clone(),
                found,
                limit: MAX_HEADER_BYTES,
            },
        ));
    }
    let mut bytes = found.to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(ALIGNMENT + padded, b' ');
    Ok(bytes)
}

/// A file of which some bytes are in memory and the others in another file.
pub(super) struct Patched {
    prefix: Vec<u8>,
    pieces: Vec<Piece>,
    len_bytes: u64,
    old: Arc<dyn ReadAt>,
}

impl ReadAt for Patched {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        let end = end.filter(|end| *end <= self.len_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let place = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        let prefix_end = self.prefix.len() as u64;
        if offset < prefix_end {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let n = place(end.min(prefix_end));
            out[..n].copy_from_slice(&self.prefix[start..start + n]);
        }
        for piece in &self.pieces {
            let (start, stop) = (piece.to.max(offset), (piece.to + piece.len_bytes).min(end));
            if start < stop {
                let part = &mut out[place(start)..place(stop)];
                self.old
                    .read_exact_at(piece.from + (start - piece.to), part)?;
            }
        }
        Ok(())
    }
}
