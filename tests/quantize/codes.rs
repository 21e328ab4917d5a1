//! Equality with what further tools chose, in the neutral form: their files are decoded to codes, scales, zero points,
//! offsets and super-scales (`tests/interop` proves that), and the dense source quantized to the same scheme gives the same
//! numbers, bit for bit (`fixtures/tools/make_rtn.py`, `make_rtn_llama.py`, `make_rtn_comfy.py`).

use std::path::Path;
use std::sync::Arc;

use safequant::container::{BytesSource, Checkpoint, Limits, ReadAt};
use safequant::kernels::Backend;
use safequant::quantize::{Error, Quantizer, RoundToNearest, ScaleRule, Statistics};
use safequant::schemes::{
    CodeTile, Decoder, Model, QuantizedTensor, Scheme, SuperScale, ZeroPoint, transcode,
};

use super::fixture::{Fixture, Weight, folders};
use super::reference::target;

/// What was compared.
#[derive(Debug, Default, PartialEq)]
struct Visited {
    fixtures: usize,
    modules: usize,
}

/// The checkpoint without what lies beside it.
fn checkpoint(folder: &Path) -> Checkpoint {
    let shard: Arc<dyn ReadAt> = Arc::new(BytesSource(
        std::fs::read(folder.join("model.safetensors"))
            .unwrap()
            .into(),
    ));
    let documents = ["config.json", "quanto_qmap.json"].into_iter();
    let documents = documents.filter_map(|name| {
        let bytes = std::fs::read(folder.join(name)).ok()?;
        Some((name.to_owned(), bytes))
    });
    Checkpoint::from_sources(
        "fixture",
        vec![("model.safetensors".to_owned(), shard)],
        documents.collect(),
        &Limits::default(),
    )
    .unwrap()
}

/// Siblings of the module that share a scale of scales with it.
fn fused<'w>(rule: ScaleRule, tensor: &QuantizedTensor, weights: &'w [Weight]) -> Vec<&'w Weight> {
    // llm-compressor shares scales of scales alone; the product shares the only scale of a matrix too.
    let shares = rule.shares_fused_scales() && tensor.scheme.super_scale != SuperScale::None;
    let module = tensor.module.as_str();
    let sets: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];
    let (parent, leaf) = module.rsplit_once('.').unwrap();
    let set = sets.into_iter().find(|set| set.contains(&leaf));
    let is_sibling = |weight: &Weight| match weight.module.rsplit_once('.') {
        _ if weight.module == module => true,
        Some((other, leaf)) if shares => {
            other == parent && set.is_some_and(|set| set.contains(&leaf))
        }
        _ => false,
    };
    weights.iter().filter(|w| is_sibling(w)).collect()
}

fn ours(
    rule: ScaleRule,
    tensor: &QuantizedTensor,
    scheme: Scheme,
    weights: &[Weight],
) -> Result<CodeTile, Error> {
    let backend = Backend::detect();
    let target = target(scheme, rule);
    let mut statistics = Statistics::default();
    for weight in fused(rule, tensor, weights) {
        statistics.merge(&RoundToNearest.observe(&target, weight.rows(), backend)?);
    }
    let weight = weights.iter().find(|w| w.module == tensor.module).unwrap();
    RoundToNearest.quantize(&target, weight.rows(), Some(&statistics), backend)
}

/// The first difference, in words.
fn difference(ours: &CodeTile, theirs: &CodeTile) -> Option<String> {
    let floats = |what: &str, a: &[f32], b: &[f32]| {
        if a.len() != b.len() {
            return Some(format!("{what}: {} for {}", a.len(), b.len()));
        }
        let n = a
            .iter()
            .zip(b)
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
        let at = a
            .iter()
            .zip(b)
            .position(|(a, b)| a.to_bits() != b.to_bits())?;
        Some(format!(
            "{what} {at}: {:e} for {:e} ({n} of {})",
            a[at],
            b[at],
            a.len()
        ))
    };
    let codes = || {
        let pairs = || ours.codes.iter().zip(&theirs.codes);
        let n = pairs().filter(|(a, b)| a != b).count();
        let at = pairs().position(|(a, b)| a != b)?;
        let (a, b) = (ours.codes[at], theirs.codes[at]);
        Some(format!(
            "code {at}: {a} for {b} ({n} of {})",
            ours.codes.len()
        ))
    };
    floats("super-scale", &ours.supers, &theirs.supers)
        .or_else(|| floats("scale", &ours.scales, &theirs.scales))
        .or_else(|| {
            // Which zero is the smallest value depends on the tool's vector width.
            let unsigned = |offsets: &[f32]| offsets.iter().map(|o| o + 0.0).collect::<Vec<_>>();
            floats(
                "offset",
                &unsigned(&ours.offsets),
                &unsigned(&theirs.offsets),
            )
        })
        .or_else(|| (ours.zeros != theirs.zeros).then(|| "zero points".to_owned()))
        .or_else(codes)
}

fn compare(folder: &Path, rule: ScaleRule, visited: &mut Visited, faults: &mut Vec<String>) {
    let fixture = Fixture::open(folder);
    let weights = fixture.weights();
    let checkpoint = checkpoint(folder);
    let model = Model::bind(&checkpoint).unwrap();
    for tensor in &model.quantized {
        // Embeddings and heads have no dense source here.
        if weights.iter().all(|w| w.module != tensor.module) {
            continue;
        }
        let decoder = Decoder::new(tensor, &checkpoint, Backend::detect()).unwrap();
        let mut theirs = decoder.codes(0..tensor.n_rows()).unwrap();
        // torchao stores the zero points of symmetric integers, too.
        let mut scheme = tensor.scheme.clone();
        if rule == ScaleRule::TorchAo {
            scheme = transcode::normalize(&decoder).unwrap().scheme;
            if matches!(scheme.zero_point, ZeroPoint::Fixed(_)) {
                theirs.zeros.clear();
            }
        }
        let fault = match ours(rule, tensor, scheme, &weights) {
            Ok(ours) => difference(&ours, &theirs),
            Err(error) => Some(error.to_string()),
        };
        if let Some(fault) = fault {
            faults.push(format!("{}: {}: {fault}", fixture.name, tensor.module));
        }
        visited.modules += 1;
    }
    visited.fixtures += 1;
}

#[test]
fn what_further_tools_chose_is_what_we_choose() {
    let producers = [
        ("llm-compressor", ScaleRule::CompressedTensors),
        ("transformers", ScaleRule::FineGrainedFp8),
        ("bitsandbytes", ScaleRule::Bitsandbytes),
        ("mlx", ScaleRule::Mlx),
        ("torchao", ScaleRule::TorchAo),
        ("hqq", ScaleRule::Hqq),
        ("optimum-quanto", ScaleRule::Quanto),
        ("comfyui", ScaleRule::ComfyUi),
    ];
    let (mut visited, mut faults) = (Visited::default(), Vec::new());
    for (producer, rule) in producers {
        for folder in folders(producer) {
            let is_on_a_gpu = folder.to_string_lossy().ends_with("div-f32");
            if !is_on_a_gpu {
                compare(&folder, rule, &mut visited, &mut faults);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(
        visited,
        Visited {
            fixtures: 37,
            modules: 164
        }
    );
}
