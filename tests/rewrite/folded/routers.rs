//! Layouts of fixtures and mixtures of experts, whose routers follow their norms.

use std::path::Path;

use safequant::container::{Checkpoint, Limits, OsDisk};
use safequant::rewrite::{self, AWQ, CancelToken, Verb};

use super::super::tiny::{Quiet, options, quantize};
use super::bench::{Lack, save, statistics};
use super::models::{HIDDEN, INNER, Kind, LAYERS, Numbers, Seen, bf16, model};

/// The router of a layer follows its norm exactly, and every fixture of a Hugging Face model is folded or refused by name.
#[test]
fn real_layouts_are_folded_and_routers_follow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/llama.cpp");
    let (mut n_models, mut n_routers) = (0, 0);
    for folder in [
        "hf-llama-spm",
        "hf-llama3-bpe",
        "hf-mistral-fast",
        "hf-mixtral-spm",
        "hf-qwen2",
        "hf-qwen3-moe",
    ] {
        let source = Checkpoint::open(&root.join(folder), &Limits::default()).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let mut seen = Seen::new();
        let mut numbers = Numbers(3);
        for tensor in source.tensors().filter(|t| t.shape().len() == 2) {
            let width = usize::try_from(tensor.shape()[1]).unwrap();
            let module = tensor.name().strip_suffix(".weight").unwrap();
            let token = |_| {
                let loud = |i: usize| if i % 3 == 1 { 20.0 } else { 1.0 };
                (0..width)
                    .map(|i| f64::from(numbers.next()) * loud(i))
                    .collect()
            };
            seen.insert(module.to_owned(), (0..32).map(token).collect());
        }
        let Verb::Quantize(mut recipe) = quantize("W4A16", "compressed-tensors") else {
            panic!("a quantize verb");
        };
        recipe.groups[0].method = AWQ;
        recipe.groups[0].preset = recipe.groups[0]
            .preset
            .clone()
            .with_group_size(Some(8))
            .unwrap();
        recipe.calibration = Some(statistics(
            &temporary.path().join("statistics"),
            &seen,
            Lack::Nothing,
        ));
        let to = temporary.path().join("dst");
        let plan = rewrite::plan(&source, &Verb::Quantize(recipe), &to, &options()).unwrap();
        assert!(
            plan.notes.join("\n").contains("--method awq: inputs of"),
            "{folder}"
        );
        rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
        let after = Checkpoint::open(&to, &Limits::default()).unwrap();
        for tensor in source.tensors() {
            let Some((at, router)) = ["block_sparse_moe.gate.weight", "mlp.gate.weight"]
                .iter()
                .find_map(|name| Some((tensor.name().strip_suffix(name)?, tensor.name())))
            else {
                continue;
            };
            router_follows(&source, &after, at, router.strip_prefix(at).unwrap());
            n_routers += 1;
        }
        n_models += 1;
    }
    assert_eq!(n_models, 6);
    assert_eq!(n_routers, 2);
}

/// A mixture of experts whose norms are divided: its routers are multiplied, without rounding.
#[test]
fn routers_follow_their_norm() {
    let mut n_moved = 0;
    for (loud, period) in [(3.0, 19), (5.0, 7), (6.0, 40), (12.0, 60), (30.0, 120)] {
        n_moved += routers_that_follow(loud, period);
    }
    assert!(n_moved >= 1);
}

/// Routers that moved, in a mixture of experts of whose features one in so many is so loud.
fn routers_that_follow(factor: f64, period: usize) -> usize {
    let mut all = model(Kind::Llama);
    let mut numbers = Numbers(5);
    let mut seen = Seen::new();
    all.retain(|name, _| !name.contains(".mlp."));
    for layer in 0..LAYERS {
        let mut add = |name: String, rows: usize, columns: usize| {
            let values = (0..rows * columns).map(|_| bf16(numbers.next() * 0.2));
            all.insert(name, (vec![rows, columns], values.collect()));
        };
        let at = |name: &str| format!("model.layers.{layer}.mlp.{name}");
        add(at("gate.weight"), 3, HIDDEN);
        for expert in 0..3 {
            add(
                at(&format!("experts.{expert}.gate_proj.weight")),
                INNER,
                HIDDEN,
            );
            add(
                at(&format!("experts.{expert}.up_proj.weight")),
                INNER,
                HIDDEN,
            );
            add(
                at(&format!("experts.{expert}.down_proj.weight")),
                HIDDEN,
                INNER,
            );
        }
    }
    for (name, (shape, _)) in all.iter().filter(|(_, (shape, _))| shape.len() == 2) {
        let loud = |i: usize| if i % period == 3 { factor } else { 1.0 };
        let token = |_| {
            (0..shape[1])
                .map(|i| f64::from(numbers.next()) * loud(i))
                .collect()
        };
        let module = name.strip_suffix(".weight").unwrap();
        seen.insert(module.to_owned(), (0..32).map(token).collect());
    }
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("src"), "Qwen3MoeForCausalLM", &all);
    let source = Checkpoint::open(&folder.path().join("src"), &Limits::default()).unwrap();
    let Verb::Quantize(mut recipe) = quantize("W4A16", "compressed-tensors") else {
        panic!("a quantize verb");
    };
    recipe.groups[0].method = AWQ;
    let file = statistics(&folder.path().join("statistics"), &seen, Lack::Nothing);
    recipe.calibration = Some(file);
    let to = folder.path().join("dst");
    let plan = rewrite::plan(&source, &Verb::Quantize(recipe), &to, &options()).unwrap();
    rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    let after = Checkpoint::open(&to, &Limits::default()).unwrap();
    let mut n_moved = 0;
    for layer in 0..LAYERS {
        let at = format!("model.layers.{layer}.");
        n_moved += router_follows(&source, &after, &at, "mlp.gate.weight");
    }
    n_moved
}

/// That router and norm of a layer have the same products as before; whether they changed.
fn router_follows(before: &Checkpoint, after: &Checkpoint, at: &str, router: &str) -> usize {
    let (norm, router) = (
        format!("{at}post_attention_layernorm.weight"),
        format!("{at}{router}"),
    );
    let norms = [values_of(before, &norm), values_of(after, &norm)];
    let routers = [values_of(before, &router), values_of(after, &router)];
    let width = norms[0].len();
    for (i, (a, b)) in routers[0].iter().zip(&routers[1]).enumerate() {
        let product = a * norms[0][i % width];
        assert_eq!(
            product.to_bits(),
            (b * norms[1][i % width]).to_bits(),
            "{router} {i}"
        );
    }
    usize::from(routers[0] != routers[1])
}

fn values_of(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.tensor(name).unwrap().read_all(1 << 20).unwrap();
    let value = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    bytes.chunks(2).map(value).collect()
}
