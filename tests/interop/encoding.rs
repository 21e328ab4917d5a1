//! Encoding what was decoded gives back the stored bytes of every part.

use safequant::container::Checkpoint;
use safequant::kernels::Backend;
use safequant::schemes::encode::{
    constant_regions, encode, group_index_region, held_regions, row_unit,
};
use safequant::schemes::{Decoder, EncodedRegion, Model, QuantizedTensor, Role, Storage};

use super::fixture;

/// Puts regions into the parts; which bytes were filled how often.
struct Parts {
    bytes: Vec<Vec<u8>>,
    filled: Vec<Vec<u8>>,
}

impl Parts {
    fn new(tensor: &QuantizedTensor) -> Self {
        let len = |p: &safequant::schemes::Part| {
            usize::try_from(p.shape.iter().product::<u64>() * p.dtype.bits() / 8).unwrap()
        };
        let zeros: Vec<Vec<u8>> = tensor.parts.iter().map(|p| vec![0; len(p)]).collect();
        Self {
            bytes: zeros.clone(),
            filled: zeros,
        }
    }

    fn put(&mut self, tensor: &QuantizedTensor, region: &EncodedRegion) {
        let part = &tensor.parts[region.part];
        let row_len = region.row_len;
        let width = usize::try_from(region.columns.end - region.columns.start).unwrap();
        let n_rows = usize::try_from(region.rows.end - region.rows.start).unwrap();
        assert_eq!(region.bytes.len(), n_rows * width, "{}", part.name);
        assert!(region.columns.end <= row_len, "{}", part.name);
        for (row, bytes) in region
            .rows
            .clone()
            .zip(region.bytes.chunks_exact(width.max(1)))
        {
            let at = usize::try_from(row * row_len + region.columns.start).unwrap();
            self.bytes[region.part][at..at + width].copy_from_slice(bytes);
            for f in &mut self.filled[region.part][at..at + width] {
                *f += 1;
            }
        }
    }
}

/// Decodes and encodes in tiles; how many parts were compared.
fn round_trip(name: &str, tensor: &QuantizedTensor, checkpoint: &Checkpoint) -> usize {
    let backend = Backend::detect();
    let decoder = Decoder::new(tensor, checkpoint, backend).unwrap();
    let mut parts = Parts::new(tensor);
    let step = row_unit(tensor) * 3;
    let mut at = 0;
    while at < tensor.n_rows() {
        let end = tensor.n_rows().min(at + step);
        let tile = decoder.codes(at..end).unwrap();
        for region in encode(tensor, &tile, backend).unwrap() {
            parts.put(tensor, &region);
        }
        at = end;
    }
    for region in constant_regions(tensor) {
        parts.put(tensor, &region);
    }
    let index = decoder
        .group_index()
        .and_then(|index| group_index_region(tensor, index));
    if let Some(region) = index {
        parts.put(tensor, &region);
    }
    for region in held_regions(tensor, decoder.held(), backend).unwrap() {
        parts.put(tensor, &region);
    }
    let mut compared = 0;
    for (i, part) in tensor.parts.iter().enumerate() {
        // A group index that turned out trivial is written by whoever writes the module.
        let is_trivial_index = part.role == Role::GroupIndex && decoder.group_index().is_none();
        let is_shared = matches!(part.storage, Storage::SharedElements { .. });
        // What the runtime does to the activations is no part of the weight's numbers.
        let is_beside = matches!(part.role, Role::Auxiliary | Role::ColumnFactor);
        if is_beside || is_trivial_index || is_shared {
            continue;
        }
        let stored = checkpoint
            .tensor(&part.name)
            .unwrap()
            .read_all(u64::MAX)
            .unwrap();
        assert!(
            parts.filled[i].iter().all(|&f| f == 1),
            "{name} {}: not filled once",
            part.name
        );
        assert!(
            parts.bytes[i] == stored,
            "{name} {}: other bytes",
            part.name
        );
        compared += 1;
    }
    compared
}

#[test]
fn encoding_what_was_decoded_gives_back_the_stored_bytes() {
    let (mut compared, mut modules) = (0, 0);
    for fixture in fixture::all() {
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        assert!(
            !model.quantized.is_empty(),
            "nobody claims {}",
            fixture.name
        );
        for tensor in &model.quantized {
            compared += round_trip(&fixture.name, tensor, &checkpoint);
            modules += 1;
        }
    }
    assert!(modules > 250, "{modules} modules");
    assert!(compared > 700, "{compared} parts");
}
