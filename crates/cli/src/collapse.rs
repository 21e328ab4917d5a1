//! Names that differ only in numbers share a row: `model.layers.{0..31}.mlp.up_proj`.
//!
//! A component of a name (between dots) that is all digits is a number. Two names belong together if everything else of
//! them is equal, and whatever the caller wants equal besides (scheme, shape, dtype).

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Runs of numbers that one pair of braces shows.
const MAX_RUNS: usize = 4;

/// Digits of a number; longer ones are taken as text.
const MAX_DIGITS: usize = 9;

/// Items that share a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group<K> {
    /// `model.layers.{0..31}.mlp.up_proj`: hostile, as the names it was made of.
    pub(crate) name: String,
    /// What else the items have in common.
    pub(crate) key: K,
    /// The items, by position in the input.
    pub(crate) members: Vec<usize>,
}

/// Groups items in the order in which each group first occurs.
pub(crate) fn collapse<'a, K: Clone + Eq + Hash>(
    items: impl IntoIterator<Item = (&'a str, K)>,
) -> Vec<Group<K>> {
    let mut places: HashMap<(Template<'a>, K), usize> = HashMap::new();
    let mut drafts: Vec<Draft<'a, K>> = Vec::new();
    for (item, (name, key)) in items.into_iter().enumerate() {
        let (template, numbers) = split(name);
        let place = *places
            .entry((template.clone(), key.clone()))
            .or_insert_with(|| {
                let sets = vec![BTreeSet::new(); numbers.len()];
                drafts.push(Draft {
                    template,
                    key,
                    sets,
                    members: Vec::new(),
                });
                drafts.len() - 1
            });
        drafts[place].members.push(item);
        for (set, number) in drafts[place].sets.iter_mut().zip(numbers) {
            set.insert(number);
        }
    }
    drafts.into_iter().map(Draft::finish).collect()
}

/// The components of a name; `None` stands for a number.
type Template<'a> = Vec<Option<&'a str>>;

struct Draft<'a, K> {
    template: Template<'a>,
    key: K,
    /// For each number of the template the values seen.
    sets: Vec<BTreeSet<u32>>,
    members: Vec<usize>,
}

impl<K> Draft<'_, K> {
    fn finish(self) -> Group<K> {
        let mut sets = self.sets.iter();
        let pieces = self.template.iter().map(|piece| match piece {
            Some(text) => (*text).to_owned(),
            None => sets.next().map_or_else(String::new, braces),
        });
        let name = pieces.collect::<Vec<_>>().join(".");
        Group {
            name,
            key: self.key,
            members: self.members,
        }
    }
}

fn split(name: &str) -> (Template<'_>, Vec<u32>) {
    let mut numbers = Vec::new();
    let template = name
        .split('.')
        .map(|piece| match number(piece) {
            Some(number) => {
                numbers.push(number);
                None
            }
            None => Some(piece),
        })
        .collect();
    (template, numbers)
}

/// `007` and `7` are different names, so only the usual spelling is a number.
fn number(piece: &str) -> Option<u32> {
    let usual = piece == "0" || !piece.starts_with('0');
    let digits = piece.len() <= MAX_DIGITS && piece.bytes().all(|b| b.is_ascii_digit());
    (usual && digits).then(|| piece.parse().ok()).flatten()
}

/// `7`, `{0..31}`, `{0..3,5,8..31}`.
fn braces(set: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &n in set {
        match runs.last_mut() {
            Some(run) if run.1 + 1 == n => run.1 = n,
            Some(_) | None => runs.push((n, n)),
        }
    }
    let shown = runs
        .iter()
        .take(MAX_RUNS)
        .map(|&(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}..{last}"),
        });
    let mut text = shown.collect::<Vec<_>>().join(",");
    if runs.len() > MAX_RUNS {
        text += ",...";
    }
    if set.len() == 1 {
        text
    } else {
        format!("{{{text}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(items: &[&str]) -> Vec<(String, usize)> {
        let groups = collapse(items.iter().map(|name| (*name, ())));
        groups
            .into_iter()
            .map(|group| (group.name, group.members.len()))
            .collect()
    }

    #[test]
    fn layers_and_experts_share_a_row() {
        let mut items = Vec::new();
        for layer in 0..12 {
            for expert in 0..8 {
                items.push(format!("model.layers.{layer}.mlp.experts.{expert}.up_proj"));
            }
            items.push(format!("model.layers.{layer}.norm"));
        }
        let items: Vec<&str> = items.iter().map(String::as_str).collect();
        let expected = [
            (
                "model.layers.{0..11}.mlp.experts.{0..7}.up_proj".to_owned(),
                96,
            ),
            ("model.layers.{0..11}.norm".to_owned(), 12),
        ];
        assert_eq!(names(&items), expected);
    }

    #[test]
    fn gaps_show() {
        assert_eq!(
            names(&["a.1", "a.2", "a.5", "a.9", "a.10", "a.11"])[0].0,
            "a.{1,2,5,9..11}"
        );
        assert_eq!(
            names(&["a.1", "a.3", "a.5", "a.7", "a.9"])[0].0,
            "a.{1,3,5,7,...}"
        );
        assert_eq!(names(&["a.7"])[0].0, "a.7");
    }

    #[test]
    fn odd_names_are_text() {
        let items = [
            "",
            ".",
            "a..b",
            "007",
            "99999999999999999999",
            "a.-1",
            "٣",
            "\0",
        ];
        for (name, (shown, n)) in items.iter().zip(names(&items)) {
            assert_eq!((*name, 1), (shown.as_str(), n));
        }
    }

    #[test]
    fn what_differs_otherwise_stays_apart() {
        let groups = collapse([("a.0", 1), ("a.1", 2), ("a.2", 1)]);
        assert_eq!(groups.len(), 2);
        assert_eq!(
            (groups[0].name.as_str(), groups[0].members.as_slice()),
            ("a.{0,2}", &[0, 2][..])
        );
    }
}
