//! The table, and what is made of it.

use std::collections::BTreeSet;

use super::pairs::{ARCHITECTURES, Gain, Match, Source, matches, of_class};

#[test]
fn every_row_of_the_table_is_sound() {
    let (mut classes, mut n_pairs) = (BTreeSet::new(), 0);
    for row in ARCHITECTURES {
        for class in row.classes {
            assert!(classes.insert(*class), "{class} has two rows");
            assert!(of_class(class).is_some_and(|found| std::ptr::eq(found, row)));
        }
        let mut sources = BTreeSet::new();
        let mut readers = BTreeSet::new();
        for pair in row.pairs {
            n_pairs += 1;
            let source = pair.source.name();
            assert!(sources.insert(source), "{:?}: {source} twice", row.classes);
            assert!(!pair.readers.is_empty());
            for reader in pair.readers.iter().chain(pair.routers) {
                // A column is multiplied once.
                assert!(readers.insert(*reader), "{:?}: {reader} twice", row.classes);
                assert!(!row.others.contains(reader));
                assert!(!reader.contains("norm"), "{reader}");
            }
            match pair.source {
                Source::Norm(name) => assert!(name.ends_with("norm"), "{name}"),
                Source::Linear(name, times) => {
                    assert!((1..=3).contains(&times));
                    assert!(pair.routers.is_empty(), "{name}");
                    // An expert feeds itself only.
                    let stars = |name: &str| name.matches('*').count();
                    assert!(
                        pair.readers
                            .iter()
                            .all(|reader| stars(reader) == stars(name))
                    );
                    assert!(stars(name) <= 1);
                }
            }
            // 1 + w divided by a power of two is seldom one plus a number of BF16: routers could not follow exactly.
            assert!(pair.routers.is_empty() || row.gain == Gain::Weight);
        }
        // Whatever is divided by rows is multiplied by columns of a norm's pair.
        for pair in row.pairs {
            if let Source::Linear(name, _) = pair.source {
                assert!(readers.contains(name), "{:?}: {name}", row.classes);
            }
        }
    }
    assert!(classes.len() >= 12, "{classes:?}");
    assert!(n_pairs >= 30, "{n_pairs}");
}

#[test]
fn stars_are_numbers() {
    assert_eq!(
        matches("mlp.experts.*.up_proj", "mlp.experts.12.up_proj"),
        Some(Match::Expert("12"))
    );
    for name in [
        "mlp.experts.up_proj",
        "mlp.experts.a.up_proj",
        "mlp.experts..up_proj",
    ] {
        assert_eq!(matches("mlp.experts.*.up_proj", name), None, "{name}");
    }
    assert_eq!(matches("mlp.gate", "mlp.gate"), Some(Match::Plain));
    assert_eq!(matches("mlp.gate", "mlp.gate_proj"), None);
}
