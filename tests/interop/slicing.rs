//! Tensor-parallel slices of what real tools wrote: dequantized and put together again they are the whole weight.

use std::collections::BTreeSet;

use safequant::container::Checkpoint;
use safequant::kernels::Backend;
use safequant::schemes::{
    Axis, Error, Model, QuantizedTensor, Selection, Slice, SliceBytes, slice,
};

use super::{fixture, memory};

/// The values of one slice, and how many of its parts needed no copy.
fn of_slice(tensor: &QuantizedTensor, slice: &Slice, checkpoint: &Checkpoint) -> (Vec<u32>, usize) {
    let bytes = slice
        .read(tensor, checkpoint, Backend::detect())
        .unwrap_or_else(|e| panic!("{}: {e}", tensor.module));
    let bytes: Vec<Vec<u8>> = bytes.iter().map(|part| part.to_vec()).collect();
    let made = memory::checkpoint(&slice.tensor, &bytes);
    let zero_copy = slice
        .parts
        .iter()
        .filter(|p| matches!(p, SliceBytes::Stored(_)));
    (memory::values(&slice.tensor, &made), zero_copy.count())
}

/// Slices put together along an axis; matrices of a stack stand one after the other.
fn joined(tensor: &QuantizedTensor, axis: Axis, slices: &[Vec<u32>]) -> Vec<u32> {
    let size = |n: u64| usize::try_from(n).unwrap();
    // Pieces of one slice between two places where the next slice has its turn.
    let turns = match axis {
        Axis::Out => size(tensor.n_matrices()),
        Axis::In => size(tensor.n_rows()),
    };
    let mut out = Vec::new();
    for turn in 0..turns {
        for slice in slices {
            let len = slice.len() / turns;
            out.extend_from_slice(&slice[turn * len..(turn + 1) * len]);
        }
    }
    out
}

#[test]
fn slices_put_together_are_the_whole() {
    let (mut n_sliced, mut n_refused, mut n_zero_copy) = (0, 0, 0);
    let mut conventions = BTreeSet::new();
    for fixture in fixture::all() {
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        // One of each kind of weight is enough: the two smallest of a fixture.
        let mut tensors: Vec<&QuantizedTensor> = model.quantized.iter().collect();
        tensors.sort_by_key(|t| (t.n_rows() * t.in_features(), &t.module));
        for tensor in tensors.into_iter().take(2) {
            let whole = memory::values(tensor, &checkpoint);
            for (axis, world) in [Axis::Out, Axis::In]
                .into_iter()
                .flat_map(|axis| [1, 2, 4, 8].map(|world| (axis, world)))
            {
                let name = format!("{} {} {axis:?} {world}", fixture.name, tensor.module);
                let ranks: Result<Vec<Slice>, Error> = (0..world)
                    .map(|rank| {
                        let selection = Selection::of_rank(tensor, axis, rank, world)?;
                        slice(tensor, &selection)
                    })
                    .collect();
                let slices = match ranks {
                    Ok(slices) => slices,
                    Err(error) => {
                        assert!(matches!(error, Error::Slice { .. }), "{name}: {error}");
                        assert!(world > 1, "{name}: {error}");
                        n_refused += 1;
                        continue;
                    }
                };
                let mut parts = Vec::new();
                for slice in &slices {
                    let (values, zero_copy) = of_slice(tensor, slice, &checkpoint);
                    n_zero_copy += zero_copy;
                    parts.push(values);
                }
                assert!(joined(tensor, axis, &parts) == whole, "{name} differs");
                conventions.insert(tensor.convention);
                n_sliced += slices.len();
            }
        }
    }
    assert!(n_sliced > 900, "{n_sliced} slices");
    assert!(n_zero_copy > 900, "{n_zero_copy} parts without a copy");
    assert!(n_refused > 50, "{n_refused} refusals");
    assert!(conventions.len() >= 4, "{conventions:?}");
}

#[test]
fn fused_weights_are_sliced_by_their_parts() {
    let fixture = fixture::all()
        .into_iter()
        .find(|f| f.name == "llm-compressor/ct-w4a16-g128")
        .unwrap();
    let checkpoint = fixture.open();
    let model = Model::bind(&checkpoint).unwrap();
    let tensor = &model.quantized[0];
    let rows = tensor.out_features();
    let (columns, half) = (
        usize::try_from(tensor.in_features()).unwrap(),
        usize::try_from(rows / 2).unwrap(),
    );
    let whole = memory::values(tensor, &checkpoint);
    let selection = Selection::of_fused(tensor, Axis::Out, &[rows / 2, rows / 2], 1, 2).unwrap();
    let (values, _) = of_slice(tensor, &slice(tensor, &selection).unwrap(), &checkpoint);
    let mut expected = whole[half / 2 * columns..half * columns].to_vec();
    expected.extend_from_slice(&whole[(half + half / 2) * columns..]);
    assert!(values == expected);
    let refused = Selection::of_fused(tensor, Axis::Out, &[rows, rows], 0, 2).unwrap_err();
    assert!(refused.to_string().contains("do not add up"), "{refused}");
}

#[test]
fn what_does_not_divide_is_refused_with_its_numbers() {
    let fixture = fixture::all()
        .into_iter()
        .find(|f| f.name == "llm-compressor/ct-w4a16-g128")
        .unwrap();
    let checkpoint = fixture.open();
    let model = Model::bind(&checkpoint).unwrap();
    let tensor = &model.quantized[0];
    let selection = Selection::of_rank(tensor, Axis::In, 0, 8).unwrap();
    let message = slice(tensor, &selection).unwrap_err().to_string();
    assert!(message.contains("the group size 128"), "{message}");
    let message = Selection::of_rank(tensor, Axis::In, 0, 7)
        .unwrap_err()
        .to_string();
    assert!(message.contains("do not divide among 7 ranks"), "{message}");
    assert!(Selection::of_rank(tensor, Axis::In, 2, 2).is_err());
}
