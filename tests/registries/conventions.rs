//! Conventions and presets: ids, summaries, pages, who writes what.

use std::collections::BTreeSet;

use safequant::schemes::convention::{offered_presets, writers_of};
use safequant::schemes::{CONVENTIONS, PRESETS};

use super::{assert_ids, assert_summary, is_lower, is_upper, root};

#[test]
fn conventions_are_unique_and_have_a_page_each() {
    let ids: Vec<_> = CONVENTIONS.iter().map(|c| c.id()).collect();
    assert_ids("conventions", &ids, CONVENTION_IDS.len(), is_lower);
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>(),
        CONVENTION_IDS.iter().collect()
    );
    for convention in CONVENTIONS {
        let id = convention.id();
        assert_summary("convention", id, convention.summary());
        // Versions of one convention share a page: gptq_v2 is told in gptq.md, awq_gemv_fast in awq.md.
        let id_words = id.replace('-', "_");
        let pages = std::iter::successors(Some(id_words.as_str()), |page| {
            page.rsplit_once('_').map(|(shorter, _)| shorter)
        });
        let page = |page: &str| root().join(format!("specs/conventions/{page}.md"));
        assert!(
            pages.map(page).any(|path| path.exists()),
            "no page for {id}"
        );
        if let Some(writer) = convention.writer() {
            let quantizes = !writer.presets().is_empty();
            assert!(
                quantizes || CONVERTS_ONLY.contains(&id),
                "{id}: writes nothing"
            );
            for name in writer.presets() {
                assert!(
                    PRESETS.iter().any(|p| p.name == *name),
                    "{id}: no preset {name}"
                );
            }
        }
    }
}

/// The conventions of issue 2, written here a second time: one that falls out of the list must be missed.
const CONVENTION_IDS: &[&str] = &[
    "awq",
    "awq_gemv",
    "awq_gemv_fast",
    "awq_llm",
    "bitsandbytes",
    "comfyui",
    "compressed-tensors",
    "fp8",
    "gguf",
    "gptq",
    "gptq_p",
    "gptq_v2",
    "hqq",
    "marlin",
    "mlx",
    "modelopt",
    "mxfp4",
    "nunchaku",
    "quanto",
    "torchao",
];

/// Conventions whose writer takes over codes, but quantizes nothing.
const CONVERTS_ONLY: &[&str] = &["mxfp4"];

#[test]
fn presets_are_unique_and_one_that_is_written_has_a_default_or_must_be_asked_for() {
    let names: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
    assert_ids("presets", &names, 42, is_upper);
    for preset in PRESETS {
        assert_summary("preset", preset.name, preset.summary);
        let mut writers = CONVENTIONS.iter().filter_map(|c| c.writer());
        let is_written = writers.any(|w| w.presets().contains(&preset.name));
        let is_offered = offered_presets().any(|p| p.name == preset.name);
        assert_eq!(is_written, is_offered, "{}", preset.name);
        let has_default = writers_of(preset).any(|id| id == preset.default_convention);
        let must_be_named = NO_DEFAULT.contains(&preset.name);
        assert!(
            !is_written || has_default != must_be_named,
            "{}",
            preset.name
        );
    }
}

/// Schemes that their usual convention has with static scales of the activations only.
const NO_DEFAULT: &[&str] = &["NVFP4"];

/// `cargo xtask generate --check` compares the whole page; this holds where only `cargo test` is run.
#[test]
fn the_generated_page_lists_the_registries() {
    let page = std::fs::read_to_string(root().join("docs/conventions.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(
        rows,
        CONVENTIONS.len() + offered_presets().count(),
        "run `cargo xtask generate`"
    );
    for convention in CONVENTIONS {
        let summary = convention.summary();
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", convention.id())));
        assert!(
            row.is_some_and(|row| row.contains(summary)),
            "{}: run `cargo xtask generate`",
            convention.id()
        );
    }
    for preset in offered_presets() {
        let default = if NO_DEFAULT.contains(&preset.name) {
            "(must be named)".to_owned()
        } else {
            format!("`{}`", preset.default_convention)
        };
        let row = format!("| `{}` | {default} |", preset.name);
        assert!(page.contains(&row), "{}", preset.name);
    }
}
