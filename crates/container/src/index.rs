//! The index of a sharded checkpoint (specs/container/checkpoint.md, clauses I1-I5).

use crate::json::{MAX_TEXT_BYTES, Reader, reserve_one};
use crate::name::{Interned, Names};
use crate::paths::check_shard_name;
use crate::{Error, Limits, Name, ReadAt, quick};

/// What `*.safetensors.index.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The name of the file inside the checkpoint.
    pub name: String,
    /// The name of the shard of each tensor, as (tensor, shard), by tensor name (byte order).
    pub weight_map: Vec<(Name, Name)>,
    /// `metadata.total_size`, if it is there and a plain integer: advisory, producers do not agree on what it counts.
    pub total_size: Option<u64>,
    /// The shards of `weight_map`, sorted; those names lie in one place each, to which all tensors of the shard refer.
    pub(crate) shards: Vec<Name>,
}

impl Index {
    /// Parses an index; `file` is the name that errors carry.
    pub(crate) fn parse(
        name: &str,
        file: &str,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Self, Error> {
        check_len(file, bytes.len() as u64, limits)?;
        match Self::parse_plain(name, file, &SliceSource(bytes), limits)? {
            Some(index) => Ok(index),
            None => Self::parse_any(name, file, bytes, limits),
        }
    }

    /// Reads an index the quick way; `None` if it is not plain enough for that, or wrong.
    pub(crate) fn parse_plain(
        name: &str,
        file: &str,
        source: &dyn ReadAt,
        limits: &Limits,
    ) -> Result<Option<Self>, Error> {
        let plain = quick::index(source, limits, quick::WINDOW_BYTES);
        let Some(plain) = plain.map_err(|error| Error::io(file, error))? else {
            return Ok(None);
        };
        // Which name is refused first is the other way's business.
        let is_refused = |shard: &Name| check_shard_name(file, shard).is_err();
        if plain.shards.iter().any(is_refused) {
            return Ok(None);
        }
        Ok(Some(Self {
            name: name.to_owned(),
            weight_map: plain.weight_map,
            total_size: plain.total_size,
            shards: plain.shards,
        }))
    }

    /// Parses an index by the whole grammar of JSON.
    pub(crate) fn parse_any(
        name: &str,
        file: &str,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            file: file.to_owned(),
            offset: error.valid_up_to() as u64,
        })?;
        let mut reader = Reader::new(file, text, limits.max_json_depth);
        let mut names = Names::with_capacity(0).map_err(|_| reader.out_of_memory(0))?;
        let mut weight_map = Vec::new();
        let mut shards = Interned::default();
        let mut total_size = None;
        reader.object(|reader, key| match &*key {
            "weight_map" => {
                parse_weight_map(reader, file, &mut names, &mut shards, &mut weight_map)
            }
            "metadata" if reader.peek() == Some(b'{') => reader.object(|reader, key| {
                if key == "total_size" {
                    total_size = reader.u64_or_skip()?;
                    return Ok(());
                }
                reader.skip_value()
            }),
            _ => reader.skip_value(),
        })?;
        reader.end()?;
        names.finish().expect("each of them is a string");
        if weight_map.is_empty() {
            return Err(Error::NoWeightMap {
                file: file.to_owned(),
            });
        }
        weight_map.sort_unstable();
        Ok(Self {
            name: name.to_owned(),
            weight_map,
            total_size,
            shards: shards.into_sorted(),
        })
    }

    /// The names of the shards, sorted, each once.
    pub fn shard_names(&self) -> Vec<&str> {
        self.shards.iter().map(Name::as_str).collect()
    }
}

/// Bytes in memory, borrowed.
struct SliceSource<'a>(&'a [u8]);

impl ReadAt for SliceSource<'_> {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let bytes = rest.and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Checks the length of an index before it is read.
pub(crate) fn check_len(file: &str, found: u64, limits: &Limits) -> Result<(), Error> {
    let limit = limits.max_index_bytes.min(MAX_TEXT_BYTES);
    if found > limit {
        return Err(Error::DocumentTooLarge {
            file: file.to_owned(),
            found,
            limit,
        });
    }
    Ok(())
}

fn parse_weight_map(
    reader: &mut Reader<'_>,
    file: &str,
    names: &mut Names,
    shards: &mut Interned,
    weight_map: &mut Vec<(Name, Name)>,
) -> Result<(), Error> {
    reader.object(|reader, tensor| {
        let shard = reader.string()?;
        check_shard_name(file, &shard)?;
        let pair = names.push(tensor.as_bytes()).and_then(|tensor| {
            let shard = shards.get(names, shard.as_bytes())?;
            reserve_one(weight_map)?;
            Ok((tensor, shard))
        });
        weight_map.push(pair.map_err(|_| reader.out_of_memory(tensor.len() + shard.len()))?);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Index, Error> {
        Index::parse("i", "i", text.as_bytes(), &Limits::default())
    }

    #[test]
    fn an_index_is_one_object_with_a_map_of_strings() {
        let refused = [
            ("", "container_json"),
            ("[]", "container_json"),
            ("{}", "index_no_weight_map"),
            (r#"{"weight_map":{}}"#, "index_no_weight_map"),
            (r#"{"weight_map":[]}"#, "container_json"),
            (r#"{"weight_map":null}"#, "container_json"),
            (r#"{"weight_map":{"a":1}}"#, "container_json"),
            (r#"{"weight_map":{"a":"../x.safetensors"}}"#, "shard_name"),
            (
                r#"{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}"#,
                "container_duplicate_key",
            ),
            (
                r#"{"weight_map":{"a":"x.safetensors"},"weight_map":{}}"#,
                "container_duplicate_key",
            ),
            (
                r#"{"weight_map":{"a":"x.safetensors"}} x"#,
                "container_json",
            ),
        ];
        for (text, code) in refused {
            assert_eq!(
                parse(text).map_err(|error| error.code()),
                Err(code),
                "{text}"
            );
        }
    }

    #[test]
    fn total_size_is_advisory_and_other_members_are_skipped() -> Result<(), Error> {
        for (metadata, expected) in [
            (r#"{"total_size":12,"x":[1]}"#, Some(12)),
            (r#"{"total_size":1.5e3}"#, None),
            (r#"{"total_size":-1}"#, None),
            ("null", None),
            ("[3]", None),
        ] {
            let text = format!(
                r#"{{"metadata":{metadata},"y":{{}},"weight_map":{{"b":"2.safetensors","a":"1.safetensors"}}}}"#
            );
            let index = parse(&text)?;
            assert_eq!(index.total_size, expected, "{metadata}");
            assert_eq!(index.shard_names(), ["1.safetensors", "2.safetensors"]);
            assert_eq!(index.weight_map[0].0, "a");
        }
        Ok(())
    }
}
