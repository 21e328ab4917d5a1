//! What we write, the official parser reads; and it is what the official writer writes.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use safequant_container::{Dtype, FilePlan, PlannedTensor};
use safetensors::tensor::TensorView;

use crate::peer::{Verdict, judge};

const N_SETS: u32 = 1_500;

/// Our file with this data in every tensor.
fn ours(plan: &FilePlan, data: &HashMap<String, Vec<u8>>) -> Vec<u8> {
    let mut file = plan.prefix.clone();
    for tensor in &plan.tensors {
        assert_eq!(file.len() as u64, tensor.range.start);
        file.extend_from_slice(&data[&*tensor.name]);
    }
    assert_eq!(file.len() as u64, plan.len_bytes);
    file
}

fn peer_dtype(dtype: Dtype) -> safetensors::Dtype {
    serde_json::from_value(dtype.name().into()).expect("the tables agree")
}

#[test]
fn files_are_those_of_the_official_writer_byte_for_byte() {
    let tensor = (
        ".{0,12}",
        0..Dtype::ALL.len(),
        prop::collection::vec(0..6_u64, 0..4),
    );
    let metadata = prop_oneof![
        Just(vec![]),
        prop::collection::vec((".{0,8}", ".{0,8}"), 1),
        prop::collection::vec(("[a-z]{0,8}", ".{0,8}"), 2..4),
    ];
    let sets = (prop::collection::vec(tensor, 0..12), metadata, any::<u8>());
    let config = Config {
        cases: N_SETS,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut n_equal = 0;
    let n_equal_cell = std::cell::RefCell::new(&mut n_equal);
    let outcome = TestRunner::new_with_rng(config, rng).run(&sets, |(tensors, metadata, fill)| {
        let mut planned: HashMap<String, PlannedTensor> = HashMap::new();
        let mut data: HashMap<String, Vec<u8>> = HashMap::new();
        for (name, dtype, mut shape) in tensors {
            let dtype = Dtype::ALL[dtype];
            if dtype.bits() < 8 {
                shape.push(4); // a whole number of bytes
            }
            let len = dtype.size_bytes(shape.iter().product()).expect("small");
            data.insert(name.clone(), vec![fill; usize::try_from(len).unwrap()]);
            let block = None;
            planned.insert(
                name.clone(),
                PlannedTensor {
                    name,
                    dtype,
                    shape,
                    block,
                },
            );
        }
        let metadata: HashMap<_, _> = metadata.into_iter().collect();
        let pairs: Vec<_> = metadata.clone().into_iter().collect();
        let plan = FilePlan::new("x", planned.values().cloned().collect(), &pairs).unwrap();
        let ours = ours(&plan, &data);
        prop_assert_eq!(judge(&ours), Verdict::BothAccept);
        prop_assert_eq!((ours[8], plan.prefix.len() % 8), (b'{', 0));
        if pairs.len() < 2 {
            let views: Vec<_> = planned
                .values()
                .map(|tensor| {
                    let shape = tensor
                        .shape
                        .iter()
                        .map(|&dim| usize::try_from(dim).unwrap())
                        .collect();
                    let view =
                        TensorView::new(peer_dtype(tensor.dtype), shape, &data[&*tensor.name]);
                    (tensor.name.as_str(), view.unwrap())
                })
                .collect();
            let metadata = (!metadata.is_empty()).then_some(metadata);
            let theirs = safetensors::serialize(views, metadata).unwrap();
            prop_assert_eq!(&ours, &theirs);
            **n_equal_cell.borrow_mut() += 1;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(n_equal >= 900, "{n_equal} files were compared");
}

#[test]
fn the_tables_of_dtypes_are_the_same() {
    for &dtype in Dtype::ALL {
        let peer = peer_dtype(dtype);
        assert_eq!(peer.to_string(), dtype.name());
        assert_eq!(peer.bitsize() as u64, dtype.bits());
        for &other in Dtype::ALL {
            assert_eq!(
                peer.cmp(&peer_dtype(other)),
                dtype.cmp(&other),
                "rank of {dtype} and {other}"
            );
        }
    }
    assert_eq!(Dtype::ALL.len(), 22);
}
