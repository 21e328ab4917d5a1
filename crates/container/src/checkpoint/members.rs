//! The tensors of one module, found in one search.

use std::cmp::Ordering;

use super::Checkpoint;
use crate::TensorRef;

/// The tensors of a module by name: those that are called as the module, a dot, and more.
///
/// Binding asks for half a dozen tensors of each of many thousand modules. They lie side by side in the order of names, so that one
/// search finds all of them, and what is asked for then is compared with these few.
#[derive(Clone, Copy)]
pub struct Members<'a> {
    checkpoint: &'a Checkpoint,
    /// Their places, by name.
    places: &'a [(u32, u32)],
    /// How many tensors come before them.
    first: usize,
    /// Bytes of the module's name and the dot.
    prefix_len: usize,
}

impl<'a> Members<'a> {
    /// The tensor whose name goes on like this behind the dot (`weight_scale`).
    pub fn get(self, ending: &str) -> Option<TensorRef<'a>> {
        let found = self.places.get(self.find(ending)?);
        found.map(|&place| self.checkpoint.at(place))
    }

    /// The number of that tensor in [`Checkpoint::tensors`].
    pub fn place(self, ending: &str) -> Option<usize> {
        Some(self.first + self.find(ending)?)
    }

    fn find(self, ending: &str) -> Option<usize> {
        let order = |&place: &_| self.ending(place).cmp(ending.as_bytes());
        self.places.binary_search_by(order).ok()
    }

    fn ending(self, place: (u32, u32)) -> &'a [u8] {
        let name = self.checkpoint.at(place).info.name.as_bytes();
        name.get(self.prefix_len..).unwrap_or_default()
    }
}

impl Checkpoint {
    /// The tensors whose names begin with this module and a dot.
    pub fn members(&self, module: &str) -> Members<'_> {
        let order = |&place: &(u32, u32)| {
            let name = self.at(place).info.name.as_bytes();
            compare(name, module.as_bytes())
        };
        let first = self.by_name.partition_point(|place| order(place).is_lt());
        let from = self.by_name.get(first..).unwrap_or_default();
        // A module has few members, a model all of them: the end is looked for in steps that double.
        let mut bound = 1;
        while from.get(bound).is_some_and(|place| order(place).is_eq()) {
            bound *= 2;
        }
        let near = from.get(..bound).unwrap_or(from);
        let n_members = near.partition_point(|place| order(place).is_eq());
        Members {
            checkpoint: self,
            places: near.get(..n_members).unwrap_or_default(),
            first,
            prefix_len: module.len() + 1,
        }
    }
}

/// Whether a name comes before all that begin with the module and a dot, is one of them, or comes behind them.
fn compare(name: &[u8], module: &[u8]) -> Ordering {
    let (start, rest) = name.split_at(module.len().min(name.len()));
    start.cmp(module).then_with(|| match rest.first() {
        None => Ordering::Less,
        Some(byte) => byte.cmp(&b'.'),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::{BytesSource, Limits};

    /// A checkpoint of empty tensors with these names.
    fn named(names: &[&str]) -> Checkpoint {
        let entries: Vec<String> = names
            .iter()
            .map(|name| format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        let source = Arc::new(BytesSource(file.into()));
        let shards: Vec<(String, Arc<dyn crate::ReadAt>)> =
            vec![("model.safetensors".to_owned(), source)];
        Checkpoint::from_sources("x", shards, BTreeMap::new(), &Limits::default()).unwrap()
    }

    #[test]
    fn members_are_what_a_look_up_by_whole_names_finds() {
        let names = [
            "", ".", "..b", "a", "a-b.c", "a.", "a.b", "a.b.c", "a.b.d", "a.c", "a/b", "aa.b",
            "ab", "b.c", "\u{e4}.b", "\u{e4}.c", "\u{e4}b",
        ];
        let checkpoint = named(&names);
        let modules = [
            "",
            ".",
            "a",
            "a.b",
            "a-b",
            "aa",
            "b",
            "c",
            "\u{e4}",
            "\u{10ffff}",
        ];
        let mut n_found = 0;
        for module in modules {
            let members = checkpoint.members(module);
            for ending in ["", "b", "c", "d", "b.c", ".b", "b.d"] {
                let whole = checkpoint.tensor(&format!("{module}.{ending}"));
                let found = members.get(ending).map(TensorRef::name);
                assert_eq!(found, whole.map(TensorRef::name), "{module} {ending}");
                let place = members.place(ending);
                let named = place.and_then(|place| checkpoint.tensors().nth(place));
                assert_eq!(found, named.map(TensorRef::name), "{module} {ending}");
                n_found += usize::from(found.is_some());
            }
        }
        assert_eq!(n_found, 15);
    }

    #[test]
    fn a_module_may_have_any_number_of_members() {
        for n in 0..40 {
            let mut names = vec!["a".to_owned(), "c".to_owned()];
            names.extend((0..n).map(|i| format!("b.{i:02}")));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let checkpoint = named(&names);
            let members = checkpoint.members("b");
            let n_found = (0..50).filter(|i| members.get(&format!("{i:02}")).is_some());
            assert_eq!(n_found.count(), n);
        }
    }
}
