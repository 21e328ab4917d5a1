//! ggml's element types by number.

use crate::Dtype;

/// A type whose elements are stored in blocks along the last dimension.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct BlockType {
    /// The number in the file.
    pub id: u32,
    /// The name in ggml (`Q4_K`).
    pub name: &'static str,
    /// Elements in a block.
    pub elements: u64,
    /// Bytes in a block.
    pub bytes: u64,
}

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// Elements one after the other.
    Dense(Dtype),
    /// Blocks.
    Block(&'static BlockType),
}

const fn block(id: u32, name: &'static str, elements: u64, bytes: u64) -> BlockType {
    BlockType {
        id,
        name,
        elements,
        bytes,
    }
}

/// Numbers of the dense types.
const DENSE: &[(u32, Dtype)] = &[
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

/// Every block type. The numbers 4, 5, 31 to 33 and 36 to 38 were removed from ggml and are refused.
static BLOCKS: &[BlockType] = &[
    block(2, "Q4_0", 32, 18),
    block(3, "Q4_1", 32, 20),
    block(6, "Q5_0", 32, 22),
    block(7, "Q5_1", 32, 24),
    block(8, "Q8_0", 32, 34),
    block(9, "Q8_1", 32, 36),
    block(10, "Q2_K", 256, 84),
    block(11, "Q3_K", 256, 110),
    block(12, "Q4_K", 256, 144),
    block(13, "Q5_K", 256, 176),
    block(14, "Q6_K", 256, 210),
    block(15, "Q8_K", 256, 292),
    block(16, "IQ2_XXS", 256, 66),
    block(17, "IQ2_XS", 256, 74),
    block(18, "IQ3_XXS", 256, 98),
    block(19, "IQ1_S", 256, 50),
    block(20, "IQ4_NL", 32, 18),
    block(21, "IQ3_S", 256, 110),
    block(22, "IQ2_S", 256, 82),
    block(23, "IQ4_XS", 256, 136),
    block(29, "IQ1_M", 256, 56),
    block(34, "TQ1_0", 256, 54),
    block(35, "TQ2_0", 256, 66),
    block(39, "MXFP4", 32, 17),
    block(40, "NVFP4", 64, 36),
    block(41, "Q1_0", 128, 18),
    block(42, "Q2_0", 64, 18),
];

impl BlockType {
    /// Every block type, by number.
    pub const fn all() -> &'static [BlockType] {
        BLOCKS
    }

    /// The type of this name, spelled as in ggml.
    pub fn from_name(name: &str) -> Option<&'static BlockType> {
        BLOCKS.iter().find(|block| block.name == name)
    }
}

impl GgmlType {
    /// The type with this number, if ggml has it.
    pub fn from_id(id: u32) -> Option<Self> {
        let dense = DENSE.iter().find(|(found, _)| *found == id);
        let block = BLOCKS.iter().find(|block| block.id == id);
        dense
            .map(|&(_, dtype)| GgmlType::Dense(dtype))
            .or(block.map(GgmlType::Block))
    }

    /// The number, if ggml has the type: it has no unsigned integers, booleans or 8-bit floats.
    pub fn id(self) -> Option<u32> {
        match self {
            GgmlType::Dense(dtype) => {
                let found = DENSE.iter().find(|(_, found)| *found == dtype);
                found.map(|(id, _)| *id)
            }
            GgmlType::Block(block) => Some(block.id),
        }
    }

    /// The name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            GgmlType::Dense(dtype) => dtype.name(),
            GgmlType::Block(block) => block.name,
        }
    }

    /// Elements that are stored together: 1 for a dense type.
    pub fn elements(self) -> u64 {
        match self {
            GgmlType::Dense(_) => 1,
            GgmlType::Block(block) => block.elements,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_removed_numbers_unknown() {
        let known: Vec<GgmlType> = (0..64).filter_map(GgmlType::from_id).collect();
        assert_eq!(known.len(), DENSE.len() + BLOCKS.len());
        assert!(
            (0..64)
                .filter_map(|id| Some((id, GgmlType::from_id(id)?)))
                .all(|(id, found)| found.id() == Some(id))
        );
        for removed in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_id(removed), None, "{removed}");
        }
        let names: std::collections::HashSet<_> = known.iter().map(|known| known.name()).collect();
        assert_eq!(names.len(), known.len());
        assert_eq!(GgmlType::Dense(Dtype::U8).id(), None);
    }
}
