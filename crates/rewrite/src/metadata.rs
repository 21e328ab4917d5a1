//! The `__metadata__` of the output: the source's, without what describes a quantization that is no more.

use std::collections::HashSet;

use serde_json::Value;

/// Keys that describe the quantization of the source.
const CONVENTION_METADATA: &[&str] = &["quantization_config", "_quantization_metadata"];
/// torchao's list of parameters; every one has an entry of its own under its name (formats: torchao §2).
const PARAMETERS: &str = "tensor_names";

/// The source's entries as they are; the first of a key wins.
pub(crate) fn same<'a>(
    source: impl Iterator<Item = &'a (String, String)>,
) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    source
        .filter(|(key, _)| seen.insert(key.as_str()))
        .cloned()
        .collect()
}

/// Merges the source's entries (the first of a key wins) with the new ones, and drops what is stale.
///
/// An entry that takes a parameter apart stays as long as tensors of its parts are written.
/// `is_written`: whether a tensor whose name begins so is in the output.
pub(crate) fn merged<'a>(
    source: impl Iterator<Item = &'a (String, String)>,
    new: &[(String, String)],
    is_written: impl Fn(&str) -> bool,
) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut seen: HashSet<&str> = new.iter().map(|(key, _)| key.as_str()).collect();
    let mut gone: HashSet<&str> = HashSet::new();
    let mut n_kept = 0;
    for (key, value) in source {
        // MLX names itself as the format; what is written is MLX's only if its writer says so.
        let is_mlx = key == "format" && value == "mlx";
        if !seen.insert(key) || is_mlx || CONVENTION_METADATA.contains(&key.as_str()) {
            continue;
        }
        match parts_prefix(key, value) {
            Some(prefix) if is_written(&prefix) => n_kept += 1,
            Some(_) => {
                gone.insert(key);
                continue;
            }
            None => {}
        }
        out.push((key.clone(), value.clone()));
    }
    if n_kept == 0 {
        out.retain(|(key, value)| key != PARAMETERS && !describes_parameter(value));
    } else {
        for (_, names) in out.iter_mut().filter(|(key, _)| key == PARAMETERS) {
            if let Ok(Value::Array(mut items)) = serde_json::from_str(names) {
                items.retain(|i| i.as_str().is_none_or(|name| !gone.contains(name)));
                *names = Value::Array(items).to_string();
            }
        }
    }
    out.extend(new.iter().cloned());
    out
}

/// Whether a value describes a parameter.
fn describes_parameter(value: &str) -> bool {
    value.starts_with('{') && value.contains("\"_type\"")
}

/// What the names of a parameter's parts begin with, if the entry takes it apart: `M._p_` for `M.p`.
fn parts_prefix(key: &str, value: &str) -> Option<String> {
    if !describes_parameter(value) || !value.contains("\"_tensor_data_names\"") {
        return None;
    }
    let (module, parameter) = key.rsplit_once('.')?;
    Some(format!("{module}._{parameter}_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        list.iter().map(own).collect()
    }

    const INT8: &str = r#"{"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": ["qdata"]}"#;

    #[test]
    fn entries_of_parameters_that_are_dense_now_go_with_their_list() {
        let source = entries(&[
            ("format", "pt"),
            ("tensor_names", r#"["a.weight", "n.weight"]"#),
            ("a.weight", INT8),
            ("n.weight", r#"{"_type": "Tensor"}"#),
        ]);
        let out = merged(source.iter(), &[], |_| false);
        assert_eq!(out, entries(&[("format", "pt")]));
    }

    #[test]
    fn entries_of_parameters_that_stay_are_kept_as_they_are() {
        let source = entries(&[
            ("tensor_names", r#"["a.weight", "b.weight"]"#),
            ("a.weight", INT8),
            ("b.weight", INT8),
        ]);
        let out = merged(source.iter(), &[], |p| p == "b._weight_");
        let expected = entries(&[("tensor_names", r#"["b.weight"]"#), ("b.weight", INT8)]);
        assert_eq!(out, expected);
    }

    #[test]
    fn new_entries_win_over_the_sources() {
        let source = entries(&[("k", "old"), ("quantization_config", "{}"), ("x", "1")]);
        let new = entries(&[("k", "new")]);
        let out = merged(source.iter(), &new, |_| true);
        assert_eq!(out, entries(&[("x", "1"), ("k", "new")]));
    }
}
