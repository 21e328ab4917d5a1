//! Faults for the rules of `crates/audit/src/rules/container`.

use safequant::container::Dtype;
use serde_json::{Map, Value, json};

use super::{Fault, Planted, Random};
use crate::audit::draft::{Beside, Draft, INDEX};
use crate::interop::fixture::Dense;

pub(super) const FAULTS: &[Fault] = &[
    Fault::new("ST001", "file-cut-in-its-data", |draft, random| {
        let file = file(draft, random)?;
        let (_, data) = draft.parts(&file);
        let cut = 1 + random.below(data.len().max(1));
        Some(shorten(draft, file, |bytes| {
            bytes.len() - cut.min(data.len().max(1))
        }))
    }),
    Fault::new("ST001", "file-cut-in-its-header", |draft, random| {
        let file = file(draft, random)?;
        let (header, _) = draft.parts(&file);
        draft.put(&file, &text(&header), &[]);
        Some(shorten(draft, file, |bytes| bytes.len() - 1))
    }),
    Fault::new("ST001", "file-cut-in-its-length", |draft, random| {
        let file = file(draft, random)?;
        let (header, _) = draft.parts(&file);
        draft.put(&file, &text(&header), &[]);
        let len = random.below(8);
        Some(shorten(draft, file, |_| len))
    }),
    Fault::new("ST002", "bytes-appended", |draft, random| {
        let file = file(draft, random)?;
        let mut bytes = draft.bytes(&file);
        bytes.resize(bytes.len() + 1 + random.below(64), 0);
        draft.raw.insert(file.clone(), bytes);
        Some(Planted(file))
    }),
    Fault::new("ST003", "git-lfs-pointer", |draft, random| {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        replace(draft, random, pointer.as_bytes())
    }),
    Fault::new("ST003", "html-page", |draft, random| {
        replace(
            draft,
            random,
            b"<!DOCTYPE html><html><body>404</body></html>",
        )
    }),
    Fault::new("ST003", "zip-archive", |draft, random| {
        replace(draft, random, b"PK\x03\x04\0\0\x08\x08\0\0archive/data.pkl")
    }),
    Fault::new("ST004", "length-is-noise", |draft, random| {
        let file = file(draft, random)?;
        let mut bytes = draft.bytes(&file);
        bytes[..8].copy_from_slice(&(0x0123_4567_89ab_cdef_u64).to_le_bytes());
        draft.raw.insert(file.clone(), bytes);
        Some(Planted(file))
    }),
    Fault::new("ST005", "header-without-its-end", |draft, random| {
        spoil_text(draft, random, |text| text.truncate(text.len() - 1))
    }),
    Fault::new("ST005", "header-not-utf8", |draft, random| {
        spoil_text(draft, random, |text| text[2] = 0xff)
    }),
    Fault::new("ST005", "index-not-json", |draft, _| {
        let index = draft.documents.get_mut(INDEX)?;
        while index.pop()? != b'}' {}
        Some(Planted(INDEX.to_owned()))
    }),
    Fault::new("ST006", "tensor-listed-twice", |draft, random| {
        spoil_header(draft, random, |header, _| {
            let (name, entry) = header.iter().find(|(name, _)| *name != METADATA)?;
            let mut again = Map::new();
            again.insert(name.clone(), entry.clone());
            let mut twice = text(&again);
            twice.pop();
            twice.push(b',');
            twice.extend_from_slice(&text(header)[1..]);
            Some(twice)
        })
    }),
    Fault::new("ST006", "index-lists-a-tensor-twice", |draft, _| {
        let bytes = draft.documents.get_mut(INDEX)?;
        let index: Value = serde_json::from_slice(bytes).unwrap();
        let map = text(index["weight_map"].as_object()?);
        let map = String::from_utf8(map).unwrap();
        let (first, _) = map.split_once(',')?;
        *bytes = format!(r#"{{"weight_map":{first},{}}}"#, &map[1..]).into_bytes();
        Some(Planted(INDEX.to_owned()))
    }),
    Fault::new("ST007", "metadata-holds-a-number", |draft, random| {
        spoil_header(draft, random, |header, _| {
            header.insert(METADATA.to_owned(), json!({"format": "pt", "step": 1}));
            Some(text(header))
        })
    }),
    Fault::new("ST008", "field-is-missing", |draft, random| {
        spoil_entry(draft, random, |entry, random| {
            let field = *random.choose(&["dtype", "shape", "data_offsets"])?;
            entry.remove(field).map(drop)
        })
    }),
    Fault::new("ST008", "shape-of-floats", |draft, random| {
        spoil_entry(draft, random, |entry, _| {
            entry["shape"] = json!([1.0]);
            Some(())
        })
    }),
    Fault::new("ST009", "dtype-nobody-knows", |draft, random| {
        spoil_entry(draft, random, |entry, random| {
            let spellings = ["F8_E4M3FN", "I4", "float16", "bf16", "U128"];
            entry["dtype"] = (*random.choose(&spellings)?).into();
            Some(())
        })
    }),
    Fault::new("ST010", "tensors-overlap", |draft, random| {
        spoil_entry(draft, random, |entry, _| shift(entry, -1, -1))
    }),
    Fault::new("ST010", "offsets-reversed", |draft, random| {
        spoil_entry(draft, random, |entry, _| {
            let offsets = entry["data_offsets"].as_array_mut()?;
            offsets.swap(0, 1);
            (offsets[0] != offsets[1]).then_some(())
        })
    }),
    Fault::new("ST010", "hole-between-tensors", |draft, random| {
        let file = file(draft, random)?;
        let (mut header, data) = draft.parts(&file);
        let names = tensors(&header);
        let name = random.choose(&names)?;
        let from = header[name]["data_offsets"][0].as_u64()?;
        for name in &names {
            let entry = header[name].as_object_mut()?;
            if entry["data_offsets"][0].as_u64()? >= from {
                shift(entry, 8, 8)?;
            }
        }
        let (before, after) = data.split_at(usize::try_from(from).unwrap());
        draft.put(&file, &text(&header), &[before, &[0; 8], after].concat());
        Some(Planted(file))
    }),
    Fault::new("ST011", "shape-of-other-size", |draft, random| {
        spoil_entry(draft, random, |entry, _| {
            let shape = entry["shape"].as_array_mut()?;
            let is_empty = shape.iter().any(|dim| *dim == 0);
            let last = shape.last_mut()?;
            *last = (last.as_u64()? + 2).into();
            (!is_empty).then_some(())
        })
    }),
    Fault::new("ST011", "shape-overflows", |draft, random| {
        spoil_entry(draft, random, |entry, _| {
            entry["shape"] = json!([1_u64 << 32, 1_u64 << 32]);
            Some(())
        })
    }),
    Fault::new("ST011", "half-a-byte", |draft, random| {
        spoil_entry(draft, random, |entry, _| {
            entry["dtype"] = "F4".into();
            entry["shape"] = json!([3]);
            Some(())
        })
    }),
    Fault::new("ST012", "index-leaves-the-directory", |draft, random| {
        let names = draft.names();
        let name = random.choose(&names)?.clone();
        let outside = "../model.safetensors";
        let index = json!({"metadata": {}, "weight_map": {name: outside}});
        draft
            .documents
            .insert(INDEX.to_owned(), serde_json::to_vec(&index).unwrap());
        Some(Planted(outside.to_owned()))
    }),
    Fault::new("ST012", "link-leaves-the-directory", |draft, _| {
        let link = Beside::Link("../outside.safetensors");
        link_shard(draft, link)
    }),
    Fault::new("ST013", "no-weights-at-all", |draft, _| {
        draft.lay_out();
        draft.shards.clear();
        Some(Planted(String::new()))
    }),
    Fault::new("ST013", "gguf-in-a-directory", |draft, _| {
        let gguf = Beside::File(b"GGUF".to_vec());
        draft.lay_out().insert("model.gguf".to_owned(), gguf);
        draft.shards.clear();
        Some(Planted("model.gguf".to_owned()))
    }),
    Fault::new("ST014", "config-without-its-end", |draft, _| {
        let config = draft.documents.get_mut("config.json")?;
        while config.pop()? != b'}' {}
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new("ST014", "config-says-a-thing-twice", |draft, _| {
        let config = draft.documents.get_mut("config.json")?;
        let at = config.iter().position(|&byte| byte == b'{')?;
        let twice = br#""torch_dtype":"a","torch_dtype":"b","#;
        config.splice(at + 1..=at, twice.iter().copied());
        Some(Planted("config.json".to_owned()))
    }),
    Fault::new("ST015", "folders-without-end", |draft, _| {
        let file = Beside::File(Vec::new());
        let name = format!("{}notes.txt", "folder/".repeat(12));
        draft.lay_out().insert(name, file);
        Some(Planted("levels of folders".to_owned()))
    }),
    Fault::new("ST016", "gguf-of-version-9", |draft, _| {
        spoil_gguf(draft, |gguf| gguf.version = 9)
    }),
    Fault::new("ST016", "gguf-key-twice", |draft, _| {
        spoil_gguf(draft, |gguf| {
            let again = gguf.keys[0].clone();
            gguf.keys.push(again);
        })
    }),
    Fault::new("ST016", "gguf-of-odd-alignment", |draft, _| {
        spoil_gguf(draft, |gguf| {
            let alignment = ("general.alignment", GgufValue::U32(24));
            gguf.keys.push(alignment);
        })
    }),
    Fault::new("ST016", "gguf-counts-too-far", |draft, _| {
        spoil_gguf(draft, |gguf| gguf.n_tensors = 1 << 40)
    }),
    Fault::new("ST017", "gguf-part-is-missing", |draft, _| {
        spoil_gguf(draft, |gguf| {
            gguf.keys.push(("split.count", GgufValue::U16(2)));
            gguf.keys.push(("split.no", GgufValue::U16(0)));
        })
    }),
    Fault::new("ST018", "link-to-nothing", |draft, _| {
        link_shard(draft, Beside::Link("../blobs/0123456789abcdef"))
    }),
    Fault::new("ST020", "header-not-padded", |draft, random| {
        let file = file(draft, random)?;
        let is_wide =
            |(_, dense): &&(String, Dense)| dense.dtype.bits() > 8 && !dense.bytes.is_empty();
        draft.shards[&file].iter().find(is_wide)?;
        let (header, data) = draft.parts(&file);
        draft.put(&file, &text(&header), &data);
        let bytes = draft.raw.get_mut(&file)?;
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let len = u64::from_le_bytes(*len) + 1;
        let at = usize::try_from(len).unwrap() - 1;
        let spoilt = [&len.to_le_bytes(), &rest[..at], b" ", &rest[at..]].concat();
        *bytes = spoilt;
        Some(Planted(file))
    }),
    Fault::new("ST021", "format-is-unknown", |draft, random| {
        draft.config().get("model_type")?;
        spoil_header(draft, random, |header, _| {
            header.insert(METADATA.to_owned(), json!({"format": "zz"}));
            Some(text(header))
        })
    }),
    Fault::new("ST021", "format-is-lost", |draft, random| {
        draft.config().get("model_type")?;
        spoil_header(draft, random, |header, _| {
            header.insert(METADATA.to_owned(), json!({"step": "1"}));
            Some(text(header))
        })
    }),
    Fault::new("ST022", "metadata-is-empty", |draft, random| {
        spoil_header(draft, random, |header, _| {
            header.insert(METADATA.to_owned(), json!({}));
            Some(text(header))
        })
    }),
    Fault::new("ST023", "tensor-of-nothing", |draft, _| {
        Some(add(draft, "model.offloaded.weight", &[0, 16], 0))
    }),
    Fault::new("ST024", "names-that-differ-by-case", |draft, random| {
        let names = draft.names();
        let name = random.choose(&names)?;
        let other = name.to_uppercase();
        let is_new = !names.contains(&other);
        is_new.then(|| add(draft, &other, &[1], 4))
    }),
    Fault::new("ST025", "name-turns-the-direction", |draft, random| {
        let names = draft.names();
        let name = format!("{}\u{202e}", random.choose(&names)?);
        Some(add(draft, &name, &[1], 4))
    }),
    Fault::new("ST025", "name-is-empty-or-worse", |draft, random| {
        let names = ["", " ", "a\nb", "a\u{1b}[31m", "../../a", "a\u{200b}"];
        let name = *random.choose(&names)?;
        Some(add(draft, name, &[1], 4))
    }),
    Fault::new("ST026", "nine-dimensions", |draft, _| {
        Some(add(draft, "model.many.weight", &[1; 9], 4))
    }),
    Fault::new("ST027", "header-of-25-megabytes", |draft, random| {
        spoil_header(draft, random, |header, _| {
            let mut text = text(header);
            text.resize(25_000_008, b' ');
            Some(text)
        })
    }),
    Fault::new("ST028", "gguf-without-architecture", |draft, _| {
        spoil_gguf(draft, |gguf| {
            gguf.keys.retain(|(key, _)| *key != "general.architecture");
        })
    }),
    Fault::new("ST029", "gguf-labeled-otherwise", |draft, random| {
        let label = *random.choose(&[2, 15, 18, 1024 + 7])?;
        spoil_gguf(draft, |gguf| {
            gguf.keys.retain(|(key, _)| *key != "general.file_type");
            let label = ("general.file_type", GgufValue::U32(label));
            gguf.keys.push(label);
        })
    }),
];

const METADATA: &str = "__metadata__";

/// A random shard.
fn file(draft: &Draft, random: &mut Random) -> Option<String> {
    let files: Vec<&String> = draft.shards.keys().collect();
    random.choose(&files).map(|file| (*file).clone())
}

/// The tensors that a header lists.
fn tensors(header: &Map<String, Value>) -> Vec<String> {
    let names = header.keys().filter(|name| *name != METADATA);
    names.cloned().collect()
}

fn text(object: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(object).unwrap()
}

/// Leaves so many bytes of a file.
fn shorten(draft: &mut Draft, file: String, len: impl FnOnce(&[u8]) -> usize) -> Planted {
    let mut bytes = draft.bytes(&file);
    bytes.truncate(len(&bytes));
    draft.raw.insert(file.clone(), bytes);
    Planted(file)
}

/// Something else in place of a shard.
fn replace(draft: &mut Draft, random: &mut Random, bytes: &[u8]) -> Option<Planted> {
    let file = file(draft, random)?;
    draft.raw.insert(file.clone(), bytes.to_vec());
    Some(Planted(file))
}

/// Spoils the text of a random shard's header.
fn spoil_text(draft: &mut Draft, random: &mut Random, spoil: fn(&mut Vec<u8>)) -> Option<Planted> {
    spoil_header(draft, random, |header, _| {
        let mut text = text(header);
        spoil(&mut text);
        Some(text)
    })
}

/// Puts what `spoil` makes of a random shard's header in its place.
fn spoil_header(
    draft: &mut Draft,
    random: &mut Random,
    spoil: impl FnOnce(&mut Map<String, Value>, &mut Random) -> Option<Vec<u8>>,
) -> Option<Planted> {
    let file = file(draft, random)?;
    let (mut header, data) = draft.parts(&file);
    let text = spoil(&mut header, random)?;
    draft.put(&file, &text, &data);
    Some(Planted(file))
}

/// Spoils the entry of a random tensor in the header of its shard.
fn spoil_entry(
    draft: &mut Draft,
    random: &mut Random,
    spoil: impl FnOnce(&mut Map<String, Value>, &mut Random) -> Option<()>,
) -> Option<Planted> {
    let file = file(draft, random)?;
    let (mut header, data) = draft.parts(&file);
    let name = random.choose(&tensors(&header))?.clone();
    spoil(header[&name].as_object_mut()?, random)?;
    draft.put(&file, &text(&header), &data);
    Some(Planted(name))
}

/// Moves both ends of a tensor that is not empty; `None` where that leads below 0.
fn shift(entry: &mut Map<String, Value>, begin: i64, end: i64) -> Option<()> {
    let offsets = entry["data_offsets"].as_array_mut()?;
    let is_empty = offsets[0] == offsets[1];
    for (offset, by) in offsets.iter_mut().zip([begin, end]) {
        *offset = offset.as_u64()?.checked_add_signed(by)?.into();
    }
    (!is_empty || begin > 0).then_some(())
}

/// Adds a tensor of floats that are zero.
fn add(draft: &mut Draft, name: &str, shape: &[u64], len_bytes: usize) -> Planted {
    let dense = Dense {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: vec![0; len_bytes],
    };
    draft.add(name, dense);
    Planted(name.to_owned())
}

/// A link beside the only shard, in a directory without an index.
fn link_shard(draft: &mut Draft, link: Beside) -> Option<Planted> {
    if draft.documents.contains_key(INDEX) {
        return None;
    }
    let name = "other.safetensors".to_owned();
    draft.lay_out().insert(name.clone(), link);
    Some(Planted(name))
}

/// A GGUF file of dense tensors, to be spoilt.
struct Gguf {
    version: u32,
    n_tensors: u64,
    keys: Vec<(&'static str, GgufValue)>,
    tensors: Vec<(String, Dense)>,
}

#[derive(Clone)]
enum GgufValue {
    U16(u16),
    U32(u32),
    Text(&'static str),
}

/// Puts a GGUF file of the draft's floats in place of all shards, spoilt.
fn spoil_gguf(draft: &mut Draft, spoil: impl FnOnce(&mut Gguf)) -> Option<Planted> {
    let fits = |(name, dense): &(String, Dense)| {
        name.len() < 64 && dense.shape.len() <= 4 && gguf_type(dense.dtype).is_some()
    };
    let shards = std::mem::take(&mut draft.shards);
    let all = shards.into_values().flatten();
    let tensors: Vec<_> = all.filter(fits).collect();
    let mut gguf = Gguf {
        version: 3,
        n_tensors: tensors.len() as u64,
        keys: vec![
            ("general.architecture", GgufValue::Text("llama")),
            ("general.file_type", GgufValue::U32(0)),
        ],
        tensors,
    };
    if gguf.tensors.is_empty() {
        return None;
    }
    spoil(&mut gguf);
    let file = "model.gguf".to_owned();
    draft.documents.clear();
    draft.raw.insert(file.clone(), gguf.bytes());
    Some(Planted(file))
}

fn gguf_type(dtype: Dtype) -> Option<u32> {
    let known = [(Dtype::F32, 0_u32), (Dtype::F16, 1), (Dtype::BF16, 30)];
    let found = known.iter().find(|(known, _)| *known == dtype);
    found.map(|(_, id)| *id)
}

impl Gguf {
    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            push_text(&mut out, key);
            match value {
                GgufValue::U16(value) => {
                    out.extend(2_u32.to_le_bytes());
                    out.extend(value.to_le_bytes());
                }
                GgufValue::U32(value) => {
                    out.extend(4_u32.to_le_bytes());
                    out.extend(value.to_le_bytes());
                }
                GgufValue::Text(value) => {
                    out.extend(8_u32.to_le_bytes());
                    push_text(&mut out, value);
                }
            }
        }
        let mut data = Vec::new();
        for (name, dense) in &self.tensors {
            push_text(&mut out, name);
            out.extend(u32::try_from(dense.shape.len()).unwrap().to_le_bytes());
            for dim in dense.shape.iter().rev() {
                out.extend(dim.to_le_bytes());
            }
            out.extend(gguf_type(dense.dtype).unwrap().to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend_from_slice(&dense.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.append(&mut data);
        out
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}
