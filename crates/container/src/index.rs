//! The index of a sharded checkpoint (specs/container/checkpoint.md, clauses I1-I5).

use crate::json::{MAX_TEXT_BYTES, Reader};
use crate::paths::check_shard_name;
use crate::{Error, Limits};

/// What `*.safetensors.index.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The name of the file inside the checkpoint.
    pub name: String,
    /// The name of the shard of each tensor, as (tensor, shard), by tensor name (byte order).
    pub weight_map: Vec<(String, String)>,
    /// `metadata.total_size`, if it is there and a plain integer: advisory, producers do not agree on what it counts.
    pub total_size: Option<u64>,
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
        let text = std::str::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            file: file.to_owned(),
            offset: error.valid_up_to() as u64,
        })?;
        let mut reader = Reader::new(file, text, limits.max_json_depth);
        let mut weight_map = Vec::new();
        let mut total_size = None;
        reader.object(|reader, key| match &*key {
            "weight_map" => parse_weight_map(reader, file, &mut weight_map),
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
        })
    }

    /// The names of the shards, sorted, each once.
    pub fn shard_names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self
            .weight_map
            .iter()
            .map(|(_, shard)| shard.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
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
    weight_map: &mut Vec<(String, String)>,
) -> Result<(), Error> {
    reader.object(|reader, tensor| {
        let shard = reader.string()?;
        check_shard_name(file, &shard)?;
        weight_map.push((tensor.into_owned(), shard.into_owned()));
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
