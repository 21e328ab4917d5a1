//! Method `awq`: scales of input features, folded into what comes before. Small models of several architectures are run here, in F64, before
//! and after.

#![expect(clippy::cast_precision_loss, reason = "counts of a few hundred")]

mod bench;
mod models;
mod outputs;
mod routers;

use safequant::container::OsDisk;
use safequant::rewrite::{self, AWQ, CancelToken, Error, JobOptions, Verb};
use serde_json::json;

use super::tiny::{Quiet, Watch, contents, options, resume};
use bench::{Bench, Lack, load, save};
use models::{HIDDEN, Kind};

#[test]
fn heads_that_share_values_are_left_and_said() {
    let bench = Bench::new(Kind::Qwen);
    let verb = bench.verb("W4A16", AWQ, Lack::Nothing);
    let notes = bench.notes(&verb);
    for text in [
        "grouped-query",
        "model.layers.0.self_attn.v_proj",
        "of 6 groups",
    ] {
        assert!(notes.contains(text), "{text}: {notes}");
    }
}

#[test]
fn what_an_ignored_module_reads_stays_and_is_said() {
    let bench = Bench::new(Kind::Llama);
    let Verb::Quantize(mut recipe) = bench.verb("W4A16", AWQ, Lack::Nothing) else {
        panic!("a quantize verb");
    };
    recipe.ignore = vec!["*.k_proj".to_owned(), "*.layers.1.mlp.up_proj".to_owned()];
    let verb = Verb::Quantize(recipe.clone());
    let notes = bench.notes(&verb);
    for text in [
        "model.layers.0.self_attn.k_proj",
        "model.layers.1.mlp.up_proj",
        "not quantized by it",
    ] {
        assert!(notes.contains(text), "{text}: {notes}");
    }
    bench.run("src", &verb, "dst", &options()).unwrap();
    let (before, after) = (load(&bench.open("src")), bench.dense("dst"));
    for (layer, norm, stays) in [
        (0, "input_layernorm", true),
        (0, "post_attention_layernorm", false),
        (1, "input_layernorm", true),
        (1, "post_attention_layernorm", true),
    ] {
        let name = format!("model.layers.{layer}.{norm}.weight");
        assert_eq!(before[&name] == after[&name], stays, "{name}");
    }
    assert!(bench.lost(&after) < 0.2, "{}", bench.lost(&after));
    // Nothing of it can be folded: that is an error, which says why.
    recipe.ignore = vec![
        "*.k_proj".to_owned(),
        "*.mlp.*".to_owned(),
        "*.o_proj".to_owned(),
    ];
    let text = bench.refusal(&Verb::Quantize(recipe));
    assert!(
        text.contains("nothing to fold") && text.contains("k_proj"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_folded_is_refused_by_name() {
    let bench = Bench::new(Kind::Llama);
    let refused = |verb: &Verb, words: &[&str]| {
        let text = bench.refusal(verb);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    };
    let full = |scheme| bench.verb(scheme, AWQ, Lack::Nothing);
    refused(
        &bench.verb("W4A16", AWQ, Lack::Means),
        &["statistics-Means", "q_proj", "mean magnitude"],
    );
    refused(
        &bench.verb("W4A16", AWQ, Lack::Module("down_proj")),
        &["layers.0.mlp.down_proj", "no statistics"],
    );
    refused(
        &full("NVFP4A16"),
        &["proj", "NVFP4A16", "scales of more than a row"],
    );
    let Verb::Quantize(recipe) = full("W4A16") else {
        panic!("a quantize verb");
    };
    let without = Verb::Quantize(rewrite::QuantizeRecipe {
        calibration: None,
        ..recipe.clone()
    });
    let error = bench
        .run("src", &without, "refused", &options())
        .unwrap_err();
    assert_eq!(error.code(), "no_calibration");

    let class = bench.path("src").join("config.json");
    for (config, word) in [
        (
            json!({"architectures": ["FalconForCausalLM"]}),
            "FalconForCausalLM",
        ),
        (json!({"architectures": []}), "none"),
        (json!({}), "none"),
    ] {
        std::fs::write(&class, config.to_string()).unwrap();
        refused(&full("W4A16"), &[word, "config.json", "LlamaForCausalLM"]);
    }
    std::fs::remove_file(&class).unwrap();
    refused(&full("W4A16"), &["config.json", "there is none"]);
}

#[test]
fn layers_that_are_not_as_the_table_has_them_are_refused() {
    let mut n_refused = 0;
    for (added, removed, word) in [
        (
            Some("self_attn.sinks_proj.weight"),
            None,
            "model.layers.0.self_attn.sinks_proj",
        ),
        (
            Some("input_layernorm.bias"),
            None,
            "model.layers.0.input_layernorm.bias",
        ),
        (
            None,
            Some("post_attention_layernorm.weight"),
            "model.layers.0.post_attention_layernorm",
        ),
        (
            None,
            Some("mlp.down_proj.weight"),
            "model.layers.0.mlp.up_proj",
        ),
    ] {
        let bench = Bench::new(Kind::Llama);
        let mut changed = load(&bench.open("src"));
        if let Some(name) = added {
            let values = vec![0.5; HIDDEN * HIDDEN];
            let name = format!("model.layers.0.{name}");
            let tensor = if name.ends_with("bias") {
                (vec![HIDDEN], values[..HIDDEN].to_vec())
            } else {
                (vec![HIDDEN, HIDDEN], values)
            };
            changed.insert(name, tensor);
        }
        if let Some(name) = removed {
            changed.remove(&format!("model.layers.0.{name}")).unwrap();
        }
        std::fs::remove_dir_all(bench.path("src")).unwrap();
        save(&bench.path("src"), bench.kind.class(), &changed);
        let text = bench.refusal(&bench.verb("W4A16", AWQ, Lack::Nothing));
        assert!(text.contains(word), "{word}: {text}");
        n_refused += 1;
    }
    assert_eq!(n_refused, 4);
}

#[test]
fn bytes_do_not_depend_on_threads_budget_or_interruptions() {
    let bench = Bench::new(Kind::Phi);
    let verb = bench.verb("W4A16", AWQ, Lack::Nothing);
    bench.run("src", &verb, "good", &options()).unwrap();
    let good = contents(&bench.path("good"));
    for (threads, memory_bytes) in [(1, 64 << 20), (5, 8 << 20)] {
        let options = JobOptions {
            threads,
            memory_bytes,
            ..options()
        };
        bench.run("src", &verb, "dst", &options).unwrap();
        assert!(contents(&bench.path("dst")) == good, "{threads} threads");
        std::fs::remove_dir_all(bench.path("dst")).unwrap();
    }
    let checkpoint = bench.open("src");
    let watch = Watch::new(5);
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &options()).unwrap();
    let ran = rewrite::run(&plan, &OsDisk, &watch, &watch.cancel);
    assert!(matches!(ran, Err(Error::Canceled)));
    let plan = rewrite::plan(&checkpoint, &verb, &bench.path("dst"), &resume()).unwrap();
    rewrite::run(&plan, &OsDisk, &Quiet, &CancelToken::default()).unwrap();
    assert!(contents(&bench.path("dst")) == good);
}
