//! BLAKE3 of a tensor that many threads write: each digests its own bytes while they are in its cache, and what it gives is
//! put together in order.
//!
//! BLAKE3 is a binary tree over chunks of 1 KiB. Chunks `[a, a + n)`, with `n` a power of two that divides `a`, are a subtree
//! whatever lies around them, so that its chaining value can be computed without the bytes before it (the BLAKE3 paper,
//! section 2.1; `blake3::hazmat`). Tensors and tiles begin anywhere in the tree's grid: what does not fill a chunk at the ends
//! of a tile is handed over as bytes.
//!
//! ```text
//! tile 1                          tile 2
//! [chunk 0..4][chunk 4][bytes]    [bytes][chunk 6..8][chunk 8][bytes]
//! ```

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, max_subtree_len, merge_subtrees_non_root,
    merge_subtrees_root,
};

const CHUNK_BYTES: u64 = blake3::CHUNK_LEN as u64;
/// Bytes that are gathered until they are hashed together: sixteen chunks fill the lanes of every vector unit.
pub(crate) const GATHER_BYTES: u64 = 16 * CHUNK_BYTES;

/// What is known of a run of bytes.
#[derive(Debug)]
enum Leaf {
    /// The bytes themselves: less than a chunk, or all of a tensor that is no longer than one.
    Bytes(Vec<u8>),
    /// A whole subtree of so many bytes.
    Subtree(u64, ChainingValue),
}

/// The bytes of a tensor that one tile wrote, digested as far as they can be.
#[derive(Debug)]
pub(crate) struct Segment {
    tensor_bytes: u64,
    /// Bytes seen, in order or not.
    n_bytes: u64,
    /// Where the bytes lie; `None` once they did not come in order.
    span: Option<std::ops::Range<u64>>,
    /// The last bytes of the span, not hashed yet.
    gathered: Vec<u8>,
    leaves: Vec<Leaf>,
}

impl Segment {
    /// Nothing yet of a tensor with so many bytes.
    pub(crate) fn new(tensor_bytes: u64) -> Self {
        Self {
            tensor_bytes,
            n_bytes: 0,
            span: Some(0..0),
            gathered: Vec::new(),
            leaves: Vec::new(),
        }
    }

    /// Adds bytes, with their place in the tensor if they lie together.
    pub(crate) fn add(&mut self, offset: Option<u64>, bytes: &[u8]) {
        let is_first = self.n_bytes == 0;
        self.n_bytes += bytes.len() as u64;
        self.span = match (self.span.take(), offset) {
            (Some(_), Some(start)) if is_first => Some(start..start),
            (Some(span), Some(start)) if span.end == start => Some(span),
            (Some(_) | None, _) => None,
        };
        let Some(span) = &self.span else { return };
        let start = span.end;
        self.digest(start, bytes);
        if let Some(span) = &mut self.span {
            span.end += bytes.len() as u64;
        }
    }

    /// Where the bytes lie, if they came in order.
    pub(crate) fn span(&self) -> Option<std::ops::Range<u64>> {
        self.span.clone()
    }

    /// No bytes follow.
    pub(crate) fn finish(&mut self) {
        if let Some(span) = &self.span {
            let gathered = std::mem::take(&mut self.gathered);
            self.hash(span.end - gathered.len() as u64, &gathered);
        }
    }

    /// Takes bytes up to the next multiple of [`GATHER_BYTES`] into the gathered ones, and hashes what is whole.
    fn digest(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = GATHER_BYTES - at % GATHER_BYTES;
            let is_aligned = room == GATHER_BYTES && self.gathered.is_empty();
            let whole = bytes.len() as u64 / GATHER_BYTES * GATHER_BYTES;
            let n = if is_aligned && whole > 0 { whole } else { room };
            let n = usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(n);
            if is_aligned && whole > 0 {
                self.hash(at, now);
            } else {
                self.gathered.extend_from_slice(now);
            }
            (at, bytes) = (at + n as u64, later);
            if at.is_multiple_of(GATHER_BYTES) && !self.gathered.is_empty() {
                let gathered = std::mem::take(&mut self.gathered);
                self.hash(at - gathered.len() as u64, &gathered);
                self.gathered = gathered;
                self.gathered.clear();
            }
        }
    }

    /// Cuts bytes into subtrees.
    fn hash(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = bytes.len() as u64;
            let to_chunk = CHUNK_BYTES - at % CHUNK_BYTES;
            let n = if to_chunk < CHUNK_BYTES || left < CHUNK_BYTES {
                left.min(to_chunk)
            } else {
                self.subtree_bytes(at, left)
            };
            let (now, later) = bytes.split_at(usize::try_from(n).unwrap_or(usize::MAX));
            let is_subtree = n >= CHUNK_BYTES && self.tensor_bytes > CHUNK_BYTES;
            self.leaves.push(if is_subtree {
                Leaf::Subtree(n, subtree(at, now))
            } else {
                Leaf::Bytes(now.to_vec())
            });
            (at, bytes) = (at + n, later);
        }
    }

    /// The longest subtree at a chunk's border within so many bytes, of which there is at least a chunk. Never the whole
    /// tree: its root is hashed in another way.
    fn subtree_bytes(&self, at: u64, left: u64) -> u64 {
        let power = 1 << left.ilog2();
        let below_root = match self.tensor_bytes {
            0..=CHUNK_BYTES => CHUNK_BYTES,
            more => left_subtree_len(more),
        };
        power
            .min(below_root)
            .min(max_subtree_len(at).unwrap_or(u64::MAX))
    }
}

fn subtree(at: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher
        .set_input_offset(at)
        .update(bytes)
        .finalize_non_root()
}

/// The digest of a tensor, put together from segments.
#[derive(Debug)]
pub(crate) struct Digest {
    tensor_bytes: u64,
    /// Bytes seen, in order or not.
    n_bytes: u64,
    /// Where the next segment must begin; `None` once one did not.
    at: Option<u64>,
    /// The bytes of the last chunk, as far as they are known; whole only until more come.
    chunk: Vec<u8>,
    /// Subtrees from the left, with their bytes: larger ones first. The last two may be equal; they are merged when more
    /// comes, since the last merge of all is another one.
    subtrees: Vec<(u64, ChainingValue)>,
}

impl Digest {
    /// Nothing yet of a tensor with so many bytes.
    pub(crate) fn new(tensor_bytes: u64) -> Self {
        Self {
            tensor_bytes,
            n_bytes: 0,
            at: Some(0),
            chunk: Vec::new(),
            subtrees: Vec::new(),
        }
    }

    /// Bytes seen, in order or not.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Adds what a tile wrote.
    pub(crate) fn add(&mut self, segment: Segment) {
        if segment.n_bytes == 0 {
            return;
        }
        self.n_bytes += segment.n_bytes;
        self.at = match (self.at, segment.span) {
            (Some(at), Some(span)) if at == span.start => segment
                .leaves
                .into_iter()
                .fold(Some(at), |at, leaf| self.take(at?, leaf)),
            (Some(_) | None, _) => None,
        };
    }

    /// Takes a leaf; gives where the next one begins.
    fn take(&mut self, at: u64, leaf: Leaf) -> Option<u64> {
        if self.chunk.len() as u64 == CHUNK_BYTES {
            self.close_chunk(at);
        }
        match leaf {
            Leaf::Bytes(bytes) => {
                self.chunk.extend_from_slice(&bytes);
                Some(at + bytes.len() as u64)
            }
            Leaf::Subtree(n, value) => {
                self.push(n, value);
                Some(at + n)
            }
        }
    }

    /// Hashes the last chunk, which ends at `end`.
    fn close_chunk(&mut self, end: u64) {
        let chunk = std::mem::take(&mut self.chunk);
        let n = chunk.len() as u64;
        self.push(n, subtree(end - n, &chunk));
    }

    fn push(&mut self, n: u64, value: ChainingValue) {
        while let [.., (a, left), (b, right)] = self.subtrees.as_slice()
            && a == b
        {
            let merged = (a + b, merge_subtrees_non_root(left, right, Mode::Hash));
            self.subtrees.truncate(self.subtrees.len() - 2);
            self.subtrees.push(merged);
        }
        self.subtrees.push((n, value));
    }

    /// The digest; `None` if the bytes did not come in order, or not all of them.
    pub(crate) fn finish(mut self) -> Option<blake3::Hash> {
        let end = self.at.filter(|at| *at == self.tensor_bytes)?;
        if self.subtrees.is_empty() {
            return Some(blake3::hash(&self.chunk));
        }
        if !self.chunk.is_empty() {
            self.close_chunk(end);
        }
        let (_, mut right) = self.subtrees.pop()?;
        let (_, first) = *self.subtrees.first()?;
        for (_, left) in self.subtrees.drain(1..).rev() {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        Some(merge_subtrees_root(&first, &right, Mode::Hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pattern of BLAKE3's own vectors: a prime period, so that swapped blocks cannot go unnoticed.
    fn pattern(n: usize) -> Vec<u8> {
        (0..251).cycle().take(n).collect()
    }

    /// Digests bytes in tiles of the lengths given in turn, each tile in runs of the other lengths.
    fn digest(bytes: &[u8], tiles: &[usize], runs: &[usize]) -> Option<blake3::Hash> {
        let total = bytes.len() as u64;
        let mut whole = Digest::new(total);
        let (mut at, mut tiles, mut runs) = (0, tiles.iter().cycle(), runs.iter().cycle());
        while at < bytes.len() {
            let end = bytes.len().min(at + tiles.next()?);
            let mut segment = Segment::new(total);
            while at < end {
                let next = end.min(at + runs.next()?);
                segment.add(Some(at as u64), &bytes[at..next]);
                at = next;
            }
            segment.finish();
            whole.add(segment);
        }
        assert_eq!(whole.n_bytes(), total);
        whole.finish()
    }

    #[test]
    fn however_bytes_are_cut_the_digest_is_that_of_all() {
        // Around chunks, around what is gathered, around powers of two, and rows as weights have them.
        let lengths = [
            0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 4096, 5000, 16_383, 16_384, 16_385,
            32_768, 65_536, 65_537, 100_000, 131_072, 200_704,
        ];
        let cuts: [&[usize]; 7] = [
            &[1 << 20],
            &[1024],
            &[1],
            &[1000, 3],
            &[16_384],
            &[14_336, 1],
            &[65_536, 7, 2048],
        ];
        let mut visited = 0;
        for n in lengths {
            let bytes = pattern(n);
            for tiles in cuts {
                for runs in cuts {
                    let found = digest(&bytes, tiles, runs);
                    let text = format!("{n} bytes, tiles {tiles:?}, runs {runs:?}");
                    assert_eq!(found, Some(blake3::hash(&bytes)), "{text}");
                    visited += 1;
                }
            }
        }
        assert_eq!(visited, 20 * 49);
    }

    #[test]
    fn bytes_out_of_order_or_missing_have_no_digest() {
        let bytes = pattern(5000);
        let piece = |range: std::ops::Range<usize>| {
            let mut segment = Segment::new(5000);
            segment.add(Some(range.start as u64), &bytes[range]);
            segment.finish();
            segment
        };
        let digest = |segments: Vec<Segment>| {
            let mut whole = Digest::new(5000);
            segments.into_iter().for_each(|segment| whole.add(segment));
            whole
        };
        let whole = digest(vec![piece(0..100), piece(100..5000)]);
        assert_eq!(whole.finish(), Some(blake3::hash(&bytes)));
        let swapped = digest(vec![piece(100..5000), piece(0..100)]);
        assert_eq!((swapped.n_bytes(), swapped.finish()), (5000, None));
        assert_eq!(digest(vec![piece(0..4999)]).finish(), None);
        let mut scattered = Segment::new(5000);
        scattered.add(Some(0), &bytes[..10]);
        scattered.add(None, &bytes[10..]);
        scattered.finish();
        let whole = digest(vec![scattered]);
        assert_eq!((whole.n_bytes(), whole.finish()), (5000, None));
    }
}
