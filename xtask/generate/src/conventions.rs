//! `docs/conventions.md`: every convention and every scheme.

use std::fmt::Write as _;

use safequant::schemes::convention::{offered_presets, writers_of};
use safequant::schemes::{CONVENTIONS, Convention, Preset};

/// The page.
pub(crate) const PAGE: &str = "docs/conventions.md";

/// The page's text.
pub(crate) fn page() -> String {
    let mut out = String::from(
        "# Conventions and schemes\n\n\
         Generated from the registries by `cargo xtask generate`; do not edit.\n\n\
         A *scheme* is what the numbers mean, a *convention* how one toolchain spells it.\n\n\
         ## Conventions\n\n\
         In the order in which evidence is looked for.\n\n\
         | id | read | write | schemes it can hold | what it is |\n| --- | --- | --- | --- | --- |\n",
    );
    for convention in CONVENTIONS {
        out.push_str(&convention_row(*convention));
    }
    out.push_str(
        "\n## Schemes\n\n| scheme | written by default as | what it is |\n| --- | --- | --- |\n",
    );
    for preset in offered_presets() {
        out.push_str(&preset_row(preset));
    }
    out
}

fn convention_row(convention: &dyn Convention) -> String {
    let writer = convention.writer();
    let presets = writer.map_or(&[][..], |w| w.presets());
    let names = presets
        .iter()
        .map(|p| format!("`{p}`"))
        .collect::<Vec<_>>()
        .join(" ");
    let write = if writer.is_some() { "yes" } else { "no" };
    let mut row = String::new();
    let _ = writeln!(
        row,
        "| `{}` | yes | {write} | {names} | {} |",
        convention.id(),
        convention.summary()
    );
    row
}

fn preset_row(preset: &Preset) -> String {
    let mut row = String::new();
    let is_written = writers_of(preset).any(|id| id == preset.default_convention);
    let default = if is_written {
        format!("`{}`", preset.default_convention)
    } else {
        "(must be named)".to_owned()
    };
    let _ = writeln!(
        row,
        "| `{}` | {default} | {} |",
        preset.name, preset.summary
    );
    row
}
