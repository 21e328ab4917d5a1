//! Every fixture cut short and with flipped bits: an error or a result, never a panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safequant::container::{BytesSource, Checkpoint, Header, Limits, ReadAt};
use safequant::kernels::Backend;
use safequant::schemes::{Decoder, Model, RowsOut};

/// Lengths at which each file is cut, beside the places around the header's end.
const CUTS: usize = 40;

/// Bits flipped in each file, one at a time.
const FLIPS: usize = 160;

/// Rows decoded of each weight of a mutant: enough to reach every part.
const ROWS: u64 = 4;

/// A checkpoint's files in memory.
struct Fixture {
    name: String,
    shards: Vec<(String, Vec<u8>)>,
    documents: BTreeMap<String, Vec<u8>>,
}

/// Every folder of `fixtures/` that holds a checkpoint.
fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
    let mut folders = Vec::new();
    collect(&root, &mut folders);
    folders.sort();
    let found: Vec<_> = folders
        .iter()
        .filter_map(|folder| fixture(&root, folder))
        .collect();
    // The 37 that other tools wrote, and more as they come.
    assert!(found.len() >= 37, "{} fixtures", found.len());
    found
}

fn collect(folder: &Path, out: &mut Vec<PathBuf>) {
    out.push(folder.to_owned());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, out);
        }
    }
}

fn fixture(root: &Path, folder: &Path) -> Option<Fixture> {
    let (mut shards, mut documents) = (Vec::new(), BTreeMap::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let told = name == "fixture.json"
            || ["expected", "source", "extra"]
                .iter()
                .any(|t| name.starts_with(t));
        if told || path.is_dir() {
            continue;
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => shards.push((name, std::fs::read(&path).unwrap())),
            Some("json") => drop(documents.insert(name, std::fs::read(&path).unwrap())),
            _ => {}
        }
    }
    let name = folder.strip_prefix(root).unwrap().display().to_string();
    (!shards.is_empty()).then_some(Fixture {
        name,
        shards,
        documents,
    })
}

/// How far a reader got with a mutant.
#[derive(Debug, Default)]
struct Tally {
    mutants: usize,
    refused: usize,
    unbound: usize,
    decoded: usize,
    undecoded: usize,
}

/// Opens, binds and decodes; everything but a panic is fine.
fn read(fixture: &Fixture, shards: Vec<(String, Vec<u8>)>, tally: &mut Tally) {
    tally.mutants += 1;
    let source = |bytes: Vec<u8>| Arc::new(BytesSource(bytes.into())) as Arc<dyn ReadAt>;
    let shards = shards
        .into_iter()
        .map(|(name, bytes)| (name, source(bytes)))
        .collect();
    let opened = Checkpoint::from_sources(
        &fixture.name,
        shards,
        fixture.documents.clone(),
        &Limits::default(),
    );
    let Ok(checkpoint) = opened else {
        tally.refused += 1;
        return;
    };
    let Ok(model) = Model::bind(&checkpoint) else {
        tally.unbound += 1;
        return;
    };
    for tensor in &model.quantized {
        let Ok(decoder) = Decoder::new(tensor, &checkpoint, Backend::detect()) else {
            tally.undecoded += 1;
            continue;
        };
        let rows = tensor.n_rows().min(ROWS);
        let mut out = vec![0.0; usize::try_from(rows * tensor.in_features()).unwrap()];
        match decoder.rows(0..rows, RowsOut::F32(&mut out)) {
            Ok(()) => tally.decoded += 1,
            Err(_) => tally.undecoded += 1,
        }
    }
}

/// The fixture with one shard replaced.
fn with(fixture: &Fixture, at: usize, bytes: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut shards = fixture.shards.clone();
    shards[at].1 = bytes;
    shards
}

/// Bytes before the data section.
fn head_len(bytes: &[u8]) -> usize {
    let prefix = bytes[..8].try_into().unwrap();
    8 + usize::try_from(u64::from_le_bytes(prefix)).unwrap()
}

#[test]
fn a_fixture_cut_short_is_refused() {
    let mut tally = Tally::default();
    for fixture in fixtures() {
        for (at, (name, bytes)) in fixture.shards.iter().enumerate() {
            let head = head_len(bytes);
            let step = (bytes.len() / CUTS).max(1);
            let around = [0, 1, 7, 8, 9, head - 1, head, head + 1, bytes.len() - 1];
            for len in (0..bytes.len()).step_by(step).chain(around) {
                let cut = bytes[..len].to_vec();
                let source = BytesSource(cut.clone().into());
                let header = Header::read(&source, name, &Limits::default());
                assert!(
                    header.is_err(),
                    "{}/{name} cut at {len} was accepted",
                    fixture.name
                );
                if len == head || len == 0 {
                    read(&fixture, with(&fixture, at, cut), &mut tally);
                } else {
                    tally.mutants += 1;
                    tally.refused += 1;
                }
            }
        }
    }
    println!("{tally:?}");
    assert_eq!(tally.refused, tally.mutants);
    assert!(tally.mutants > 37 * CUTS, "{tally:?}");
}

#[test]
fn a_fixture_with_a_flipped_bit_is_read_or_refused() {
    let mut tally = Tally::default();
    for fixture in fixtures() {
        let mut random = Random(0x5afe_0000 + fixture.name.len() as u64);
        for flip in 0..FLIPS {
            let at = random.below(fixture.shards.len());
            let mut bytes = fixture.shards[at].1.clone();
            // Half of them in the header, where a bit matters most.
            let end = if flip % 2 == 0 {
                head_len(&bytes)
            } else {
                bytes.len()
            };
            let place = random.below(end);
            bytes[place] ^= 1 << random.below(8);
            read(&fixture, with(&fixture, at, bytes), &mut tally);
        }
    }
    println!("{tally:?}");
    assert!(tally.mutants >= 37 * FLIPS, "{tally:?}");
    assert!(tally.refused > 0 && tally.decoded > 0, "{tally:?}");
}

/// xorshift64*: seeded, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(value).unwrap() % end
    }
}
