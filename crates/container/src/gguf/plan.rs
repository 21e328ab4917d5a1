//! GGUF files to be written, laid out before the first byte (specs/container/gguf.md, clauses W1-W5).

use super::{GgufMetadata, GgufTensor, GgufValue, SUFFIX, split, write_gguf_header};
use crate::writer::{check_names, split_groups};
use crate::{CheckpointPlan, Error, FilePlan, PlannedTensor, TensorGroup, TensorInfo};

impl PlannedTensor {
    /// How a GGUF file describes it.
    fn to_gguf(&self) -> GgufTensor {
        let info = TensorInfo {
            name: self.name.clone().into(),
            dtype: self.dtype,
            shape: self.shape.clone().into(),
            range: 0..0,
            block: self.block,
        };
        info.to_gguf()
    }
}

impl FilePlan {
    /// Lays out one GGUF file: tensors in the order given, each padded to the alignment, the last one too.
    ///
    /// # Errors
    /// Those of [`write_gguf_header`]: what no reader would accept.
    pub fn gguf(
        name: &str,
        tensors: &[PlannedTensor],
        metadata: &GgufMetadata,
    ) -> Result<Self, Error> {
        let listed: Vec<GgufTensor> = tensors.iter().map(PlannedTensor::to_gguf).collect();
        let (prefix, header) = write_gguf_header(name, metadata, &listed)?;
        let end = header.tensors.last().map(|tensor| tensor.range.end);
        let overflow = |tensor: &str| Error::PlanOverflow {
            file: name.to_owned(),
            tensor: tensor.to_owned(),
        };
        let len_bytes = match end {
            None => prefix.len() as u64,
            Some(end) => end
                .checked_next_multiple_of(metadata.alignment())
                .filter(|&end| i64::try_from(end).is_ok())
                .ok_or_else(|| overflow("the last one"))?,
        };
        Ok(Self {
            name: name.to_owned(),
            prefix,
            tensors: header.tensors,
            len_bytes,
        })
    }
}

impl CheckpointPlan {
    /// All files of a GGUF model: `<stem>.gguf`, or parts of at most `max_shard_bytes` of payload as llama.cpp's `gguf-split`
    /// numbers them, of which the first holds the metadata.
    ///
    /// # Errors
    /// As [`FilePlan::gguf`]; a name that occurs in two groups.
    pub fn gguf(
        stem: &str,
        groups: Vec<TensorGroup>,
        max_shard_bytes: u64,
        metadata: &GgufMetadata,
    ) -> Result<Self, Error> {
        let all = groups.iter().flat_map(|group| &group.tensors);
        check_names("checkpoint", all.map(|tensor| tensor.name.as_str()))?;
        let n_tensors: usize = groups.iter().map(|group| group.tensors.len()).sum();
        let shards = split_groups(groups, max_shard_bytes)?;
        if let [tensors] = shards.as_slice() {
            let file = FilePlan::gguf(&format!("{stem}{SUFFIX}"), tensors, metadata)?;
            return Ok(Self {
                files: vec![file],
                index: None,
            });
        }
        let n_parts = u16::try_from(shards.len()).map_err(|_| Error::TooManyShards {
            file: stem.to_owned(),
            found: shards.len(),
            limit: usize::from(u16::MAX),
        })?;
        let names = split::names(stem, n_parts.into());
        let files = (0_u16..).zip(names).zip(&shards);
        let files = files.map(|((number, name), tensors)| {
            let mut part = match number {
                0 => metadata.clone(),
                _ => GgufMetadata::new(),
            };
            part.push(split::NUMBER_KEY, GgufValue::U16(number));
            part.push(split::COUNT_KEY, GgufValue::U16(n_parts));
            let n_tensors = i32::try_from(n_tensors).unwrap_or(i32::MAX);
            part.push(split::TENSORS_KEY, GgufValue::I32(n_tensors));
            FilePlan::gguf(&name, tensors, &part)
        });
        Ok(Self {
            files: files.collect::<Result<_, Error>>()?,
            index: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockType, Dtype};

    fn tensor(name: &str, dtype: Dtype, shape: &[u64], block: Option<&str>) -> PlannedTensor {
        PlannedTensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            block: block.map(|name| BlockType::from_name(name).unwrap()),
        }
    }

    #[test]
    fn the_worked_example_of_the_format_page_is_reproduced() {
        let mut metadata = GgufMetadata::new();
        metadata.push("general.architecture", GgufValue::String(b"llama"));
        metadata.push("llama.block_count", GgufValue::U32(1));
        metadata.push_i32s("k.arr", &[1, 2, 3]);
        metadata.push("general.name", GgufValue::String("é".as_bytes()));
        let tensors = [
            tensor("a.weight", Dtype::F32, &[2, 3], None),
            tensor("b.weight", Dtype::U8, &[2, 34], Some("Q8_0")),
        ];
        let plan = FilePlan::gguf("x.gguf", &tensors, &metadata).unwrap();
        assert_eq!((plan.prefix.len(), plan.len_bytes), (0x120, 416));
        assert_eq!(plan.tensors[0].range, 0x120..0x120 + 24);
        assert_eq!(plan.tensors[1].range, 0x140..0x140 + 68);
        assert_eq!(plan.tensors[1].logical_shape(), [2, 32]);
    }

    #[test]
    fn parts_are_numbered_and_the_first_has_the_metadata() {
        let mut metadata = GgufMetadata::new();
        metadata.push("general.architecture", GgufValue::String(b"llama"));
        let groups = ["a", "b", "c"].map(|name| TensorGroup {
            tensors: vec![tensor(name, Dtype::F32, &[8], None)],
        });
        let plan = CheckpointPlan::gguf("m", groups.to_vec(), 64, &metadata).unwrap();
        let names: Vec<&str> = plan.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
        let whole = CheckpointPlan::gguf("m", groups.to_vec(), 1 << 20, &metadata).unwrap();
        assert_eq!(whole.files.len(), 1);
        assert_eq!(whole.files[0].name, "m.gguf");
        let twice = [groups[0].clone(), groups[0].clone()].to_vec();
        assert!(CheckpointPlan::gguf("m", twice, 64, &metadata).is_err());
    }
}
