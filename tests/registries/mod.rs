//! The registries test themselves: ids unique, pages present, generated documents current.

mod conventions;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use safequant::container::{Carrier, Dtype, LogicalDtype};
use safequant::kernels::{BACKENDS, Minifloat, Packing, Planes, Tile};
use safequant::quantize::QUANTIZERS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Asserts that there are `count` ids, each once and of these characters.
fn assert_ids(what: &str, ids: &[&str], count: usize, legal: fn(char) -> bool) {
    let unique: BTreeSet<_> = ids.iter().collect();
    assert_eq!(
        unique.len(),
        ids.len(),
        "{what}: an id occurs twice: {ids:?}"
    );
    for id in ids {
        assert!(
            !id.is_empty() && id.chars().all(legal),
            "{what}: `{id}` is not well formed"
        );
    }
    println!("{what}: {}", ids.len());
    assert_eq!(ids.len(), count, "{what}: {ids:?}");
}

fn is_upper(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'
}

fn is_lower(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-'
}

/// A summary is one line: a sentence without its full stop, fit for a table.
fn assert_summary(what: &str, id: &str, summary: &str) {
    let fits = !summary.is_empty() && !summary.contains(['\n', '|']) && !summary.ends_with('.');
    assert!(fits, "{what} {id}: {summary:?}");
}

/// All text of the pages in a folder of `specs/`, and how many there were.
fn pages(folder: &str) -> (String, usize) {
    let place = root().join("specs").join(folder);
    let mut text = String::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&place).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "md") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
            count += 1;
        }
    }
    assert!(count > 0, "{}: no page", place.display());
    (text, count)
}

#[test]
fn dtypes_are_unique_and_have_a_page() {
    let names: Vec<_> = Dtype::ALL.iter().map(|d| d.name()).collect();
    assert_ids("dtypes", &names, 22, is_upper);
    let (text, count) = pages("dtypes");
    println!("specs/dtypes: {count} pages");
    for dtype in Dtype::ALL {
        assert_eq!(Dtype::from_name(dtype.name()), Some(*dtype));
        let name = dtype.name();
        let told = text.contains(&format!("`{name}`")) || text.contains(&format!("# {name}: "));
        assert!(told, "specs/dtypes: no page tells {name}");
    }
}

#[test]
fn logical_dtypes_are_unique_and_have_a_page() {
    let names: Vec<_> = LogicalDtype::ALL.iter().map(|d| d.name()).collect();
    assert_ids("logical dtypes", &names, LogicalDtype::ALL.len(), is_upper);
    assert!(names.len() >= 20, "{names:?}");
    let (text, _) = pages("dtypes");
    for dtype in LogicalDtype::ALL {
        assert_eq!(LogicalDtype::from_name(dtype.name()), Some(*dtype));
        assert!(!dtype.carriers().is_empty(), "{}", dtype.name());
        let (name, bits) = (dtype.name(), dtype.bits());
        let carriers: Vec<_> = dtype.carriers().iter().map(carrier_cell).collect();
        let row = format!("| `{name}` | {bits} | {} |", carriers.join(", "));
        assert!(text.contains(&row), "specs/dtypes/logical.md: no row {row}");
    }
}

/// As specs/dtypes/logical.md writes it.
fn carrier_cell(carrier: &Carrier) -> String {
    format!(
        "`{}` {}/{}",
        carrier.dtype.name(),
        carrier.codes,
        carrier.elements
    )
}

#[test]
fn minifloats_are_unique() {
    let names: Vec<_> = Minifloat::ALL.iter().map(|m| format!("{m:?}")).collect();
    let unique: BTreeSet<_> = names.iter().collect();
    assert_eq!((unique.len(), names.len()), (8, 8), "{names:?}");
}

#[test]
fn packings_have_a_page_each() {
    let mut names = BTreeSet::new();
    let mut visited = 0;
    let packings = Packing::all().map(|packing| format!("{packing:?}"));
    let planes = Planes::ALL.iter().map(|planes| format!("Planes{planes:?}"));
    let tiles = Tile::ALL.iter().map(|tile| format!("{tile:?}"));
    for shown in packings.chain(planes).chain(tiles) {
        visited += 1;
        let variant: String = shown
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        names.insert(snake_case(&variant));
    }
    println!("packings: {visited} of {} layouts", names.len());
    // Whole blocks of bytes have one page for all types.
    names.insert("ggml_blocks".to_owned());
    assert_eq!(names.len(), 6 + 2 + 16 + 1, "{names:?}");
    for name in &names {
        let page = root().join(format!("specs/packings/{name}.md"));
        assert!(page.exists(), "{}", page.display());
    }
    assert_eq!(
        pages("packings").1,
        names.len(),
        "a page that no packing has"
    );
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[test]
fn quantizers_and_backends_are_unique() {
    let ids: Vec<_> = QUANTIZERS.iter().map(|q| q.id()).collect();
    assert_ids("quantizers", &ids, 5, is_lower);
    for quantizer in QUANTIZERS {
        assert_summary("quantizer", quantizer.id(), quantizer.summary());
    }
    let names: Vec<_> = BACKENDS.iter().map(|b| b.name).collect();
    assert_ids("backends", &names, BACKENDS.len(), is_lower);
    assert_eq!(names.last(), Some(&"portable"), "the fallback stands last");
}
