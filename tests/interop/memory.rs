//! Tensors that exist only in memory: parts as a checkpoint, tiles as parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use safequant::container::{BytesSource, Checkpoint, Limits, ReadAt};
use safequant::kernels::Backend;
use safequant::schemes::encode::{
    constant_regions, encode, group_index_region, row_unit, trivial_index_region,
};
use safequant::schemes::{CodeTile, Decoder, EncodedRegion, QuantizedTensor, RowsOut};
use serde_json::{Map, json};

/// A checkpoint that holds the parts of a tensor.
pub(super) fn checkpoint(tensor: &QuantizedTensor, bytes: &[Vec<u8>]) -> Checkpoint {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (part, bytes) in tensor.parts.iter().zip(bytes) {
        let at = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({
            "dtype": part.dtype.name(),
            "shape": part.shape,
            "data_offsets": [at, data.len()],
        });
        header.insert(part.name.clone(), entry);
    }
    let text = serde_json::to_vec(&header).unwrap();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text);
    file.extend(data);
    let source: Arc<dyn ReadAt> = Arc::new(BytesSource(file.into()));
    let shards = vec![("model.safetensors".to_owned(), source)];
    Checkpoint::from_sources("memory", shards, BTreeMap::new(), &Limits::default()).unwrap()
}

/// All values in F32, as bits.
pub(super) fn values(tensor: &QuantizedTensor, checkpoint: &Checkpoint) -> Vec<u32> {
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
    let n = usize::try_from(tensor.n_rows() * tensor.in_features()).unwrap();
    let mut out = vec![0.0; n];
    decoder
        .rows(0..tensor.n_rows(), RowsOut::F32(&mut out))
        .unwrap();
    out.into_iter().map(f32::to_bits).collect()
}

/// Zeroed parts of a tensor.
pub(super) fn empty(tensor: &QuantizedTensor) -> Vec<Vec<u8>> {
    let len = |part: &safequant::schemes::Part| {
        let n: u64 = part.shape.iter().product();
        usize::try_from(part.dtype.size_bytes(n).unwrap()).unwrap()
    };
    tensor.parts.iter().map(|part| vec![0; len(part)]).collect()
}

pub(super) fn put(region: &EncodedRegion, bytes: &mut [Vec<u8>]) {
    let width = usize::try_from(region.columns.end - region.columns.start).unwrap();
    for (row, line) in region.rows.clone().zip(region.bytes.chunks(width.max(1))) {
        let at = usize::try_from(row * region.row_len + region.columns.start).unwrap();
        bytes[region.part][at..at + line.len()].copy_from_slice(line);
    }
}

/// The parts that a whole tensor becomes: `tile` gives the rows asked for, `index` is the group index if it is not trivial.
pub(super) fn parts(
    layout: &QuantizedTensor,
    index: Option<&[u32]>,
    mut tile: impl FnMut(std::ops::Range<u64>) -> CodeTile,
) -> Vec<Vec<u8>> {
    let mut bytes = empty(layout);
    let backend = Backend::detect();
    for region in constant_regions(layout) {
        put(&region, &mut bytes);
    }
    let region = match index {
        Some(index) => group_index_region(layout, index),
        None => trivial_index_region(layout),
    };
    if let Some(region) = region {
        put(&region, &mut bytes);
    }
    let step = (row_unit(layout) * 2).max(layout.n_rows());
    let mut at = 0;
    while at < layout.n_rows() {
        let end = layout.n_rows().min(at + step);
        for region in encode(layout, &tile(at..end), backend).unwrap() {
            put(&region, &mut bytes);
        }
        at = end;
    }
    bytes
}
