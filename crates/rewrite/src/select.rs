//! Which weights are linear, which of them a recipe selects, and which must share statistics (specs/selection.md).
//!
//! A file holds no classes, only names and shapes: what follows is a rule on names, written down where users can read
//! it, and overridden by `--targets` and `--ignore`.

use std::collections::BTreeMap;

use safequant_schemes::pattern::Pattern;

use crate::{Error, QuantizeRecipe, SchemeGroup};

/// Why a weight is not quantized by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A linear weight.
    Linear,
    /// An embedding, an output head or a router: dense unless a target names it.
    DenseByDefault,
    /// No matrix that multiplies activations: norms, convolutions, biases, tables of unknown orientation.
    NotLinear,
}

/// Last components of names that are dense by default: output heads, and routers that runtimes load dense.
const DENSE_LAST: &[&str] = &[
    "lm_head",
    "gate",
    "router",
    "shared_expert_gate",
    "wte",
    "wpe",
    "relative_attention_bias",
    "shared",
    "ffn_gate_inp",
];

/// Whole names that are dense by default: the original Llama's and Falcon's heads.
const DENSE_WHOLE: &[&str] = &["output", "head", "model.output"];

/// Models in an all-in-one checkpoint of a diffusion model that `ComfyUI` loads dense: the autoencoder, which it gives no
/// quantized layers, and the CLIP of older ones, whose tensors it rearranges while it loads.
const DENSE_MODELS: &[&str] = &["first_stage_model.", "vae.", "cond_stage_model."];

/// What a tensor of this name and shape is.
pub(crate) fn kind(tensor: &str, shape: &[u64]) -> Kind {
    let Some(module) = tensor.strip_suffix(".weight") else {
        return Kind::NotLinear;
    };
    let is_matrix = match shape {
        [_, _] => true,
        [_, _, _] => module
            .split('.')
            .any(|c| c == "experts" || c.ends_with("_exps")),
        _ => false,
    };
    let last = last_component(module);
    let lower = last.to_ascii_lowercase();
    let is_norm = lower.contains("norm") || lower.starts_with("ln_") || lower == "ln";
    if !is_matrix || is_norm || shape.contains(&0) {
        return Kind::NotLinear;
    }
    let is_embedding = module
        .split('.')
        .any(|c| c.contains("embed") || c.contains("embd"));
    let is_dense_model = DENSE_MODELS.iter().any(|prefix| module.starts_with(prefix));
    if is_embedding || is_dense_model || DENSE_LAST.contains(&last) || DENSE_WHOLE.contains(&module)
    {
        return Kind::DenseByDefault;
    }
    Kind::Linear
}

fn last_component(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Stacks of experts whose orientation no name tells: `[experts, in, out]` with one library, `[experts, out, in]` with
/// another.
pub(crate) fn is_unoriented_stack(tensor: &str, shape: &[u64]) -> bool {
    shape.len() == 3
        && !tensor.ends_with(".weight")
        && tensor.split('.').any(|c| c == "experts")
        && !tensor.contains("bias")
}

/// The patterns of a recipe, compiled, with what they matched.
pub(crate) struct Selection {
    groups: Vec<Rules>,
    ignore: Vec<Rule>,
}

/// The patterns of a group.
struct Rules {
    targets: Vec<Rule>,
    ignore: Vec<Rule>,
}

struct Rule {
    pattern: Pattern,
    is_used: bool,
}

/// What a recipe says of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choice {
    /// Quantize it, as this group of the recipe says.
    Quantize(usize),
    /// A linear weight that stays dense, by a pattern or by default.
    Ignore,
    /// No linear weight.
    Copy,
}

/// How much a target says of a module, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Says {
    Everything,
    Pattern,
    Name,
}

impl Says {
    fn of(pattern: &str) -> Self {
        match pattern {
            "*" => Says::Everything,
            text if text.starts_with("re:") || text.contains(['*', '?', '[', '{']) => Says::Pattern,
            _ => Says::Name,
        }
    }
}

impl Rules {
    /// How much the group says of a module that it wants.
    fn wants(&mut self, module: &str, kind: Kind) -> Result<Option<Says>, Error> {
        if mark(&mut self.ignore, module, |_| true)?.is_some() {
            return Ok(None);
        }
        let last = last_component(module);
        Ok(match kind {
            // Only a pattern that spells the name out means it: `*` does not mean the head.
            Kind::DenseByDefault => mark(&mut self.targets, module, |text| text.contains(last))?,
            Kind::Linear if self.targets.is_empty() => Some(Says::Everything),
            Kind::Linear => mark(&mut self.targets, module, |_| true)?,
            Kind::NotLinear => None,
        })
    }
}

impl Selection {
    /// Compiles a recipe's patterns.
    pub(crate) fn new(recipe: &QuantizeRecipe) -> Result<Self, Error> {
        let rules = |group: &SchemeGroup| {
            Ok(Rules {
                targets: compile(&group.targets)?,
                ignore: compile(&group.ignore)?,
            })
        };
        Ok(Self {
            groups: recipe
                .groups
                .iter()
                .map(rules)
                .collect::<Result<_, Error>>()?,
            ignore: compile(&recipe.ignore)?,
        })
    }

    /// What becomes of a module.
    pub(crate) fn choose(&mut self, module: &str, kind: Kind) -> Result<Choice, Error> {
        if kind == Kind::NotLinear {
            return Ok(Choice::Copy);
        }
        let is_ignored = mark(&mut self.ignore, module, |_| true)?.is_some();
        let mut best: Option<(Says, usize)> = None;
        for (i, group) in self.groups.iter_mut().enumerate() {
            if let Some(says) = group.wants(module, kind)?
                && best.is_none_or(|(most, _)| says > most)
            {
                best = Some((says, i));
            }
        }
        Ok(match best.filter(|_| !is_ignored) {
            Some((_, group)) => Choice::Quantize(group),
            None => Choice::Ignore,
        })
    }

    /// One line for each pattern that matched nothing.
    pub(crate) fn notes(&self) -> Vec<String> {
        let unused = |rules: &[Rule], option: &str| -> Vec<String> {
            let unused = rules.iter().filter(|rule| !rule.is_used);
            unused
                .map(|rule| {
                    format!(
                        "{option} {:?} matches no linear module",
                        rule.pattern.text()
                    )
                })
                .collect()
        };
        let mut notes = Vec::new();
        for group in &self.groups {
            notes.extend(unused(&group.targets, "--targets"));
            notes.extend(unused(&group.ignore, "--ignore"));
        }
        notes.extend(unused(&self.ignore, "--ignore"));
        notes
    }
}

fn compile(texts: &[String]) -> Result<Vec<Rule>, Error> {
    let one = |text: &String| {
        Ok(Rule {
            pattern: Pattern::new(text)?,
            is_used: false,
        })
    };
    texts.iter().map(one).collect()
}

/// How much the admitted pattern that matches says, the most if several do; every pattern that does is marked as used.
fn mark(
    rules: &mut [Rule],
    module: &str,
    admit: impl Fn(&str) -> bool,
) -> Result<Option<Says>, Error> {
    let mut found = None;
    for rule in rules {
        if admit(rule.pattern.text()) && rule.pattern.is_match(module)? {
            rule.is_used = true;
            found = found.max(Some(Says::of(rule.pattern.text())));
        }
    }
    Ok(found)
}

/// Modules that runtimes load as one: they share what a runtime needs shared.
const FUSED: &[&[&str]] = &[
    &["q_proj", "k_proj", "v_proj"],
    &["query", "key", "value"],
    &["to_q", "to_k", "to_v"],
    &["q", "k", "v"],
    &["gate_proj", "up_proj"],
    &["w1", "w3"],
    &["wi_0", "wi_1"],
];

/// Groups of at least two modules with the same parent, the same family and the same input features, as indices into
/// `modules`, in their order.
pub(crate) fn fused_groups<'a>(modules: impl Iterator<Item = (&'a str, u64)>) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<(&str, usize, u64), Vec<usize>> = BTreeMap::new();
    for (i, (module, in_features)) in modules.enumerate() {
        let last = last_component(module);
        let parent = module.strip_suffix(last).unwrap_or(module);
        if let Some(family) = FUSED.iter().position(|names| names.contains(&last)) {
            groups
                .entry((parent, family, in_features))
                .or_default()
                .push(i);
        }
    }
    let mut found: Vec<Vec<usize>> = groups.into_values().filter(|g| g.len() > 1).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_weights_are_told_from_the_rest_by_name_and_shape() {
        let linear = [
            "model.layers.0.self_attn.q_proj.weight",
            "encoder.layer.0.attention.self.query.weight",
            "encoder.layer.0.attention.output.dense.weight",
            "encoder.layer.0.output.dense.weight",
            "pooler.dense.weight",
            "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
            "model.layers.0.mlp.experts.7.gate_proj.weight",
        ];
        for name in linear {
            assert_eq!(kind(name, &[4, 4]), Kind::Linear, "{name}");
        }
        let dense = [
            "lm_head.weight",
            "model.embed_tokens.weight",
            "embeddings.word_embeddings.weight",
            "embeddings.token_type_embeddings.weight",
            "transformer.wte.weight",
            "model.layers.0.mlp.gate.weight",
            "output.weight",
            "token_embd.weight",
            "blk.0.ffn_gate_inp.weight",
            "first_stage_model.decoder.mid.attn_1.q.weight",
            "vae.encoder.mid.attn_1.k.weight",
        ];
        for name in dense {
            assert_eq!(kind(name, &[4, 4]), Kind::DenseByDefault, "{name}");
        }
        for name in [
            "encoder.layer.0.output.LayerNorm.weight",
            "x.bias",
            "model.norm.weight",
        ] {
            assert_eq!(kind(name, &[4, 4]), Kind::NotLinear, "{name}");
        }
        assert_eq!(kind("conv.weight", &[4, 4, 3, 3]), Kind::NotLinear);
        assert_eq!(kind("mixer.conv1d.weight", &[4, 1, 4]), Kind::NotLinear);
        assert_eq!(kind("a.experts.up.weight", &[4, 1, 4]), Kind::Linear);
        assert_eq!(kind("blk.0.ffn_up_exps.weight", &[4, 1, 4]), Kind::Linear);
        assert_eq!(kind("blk.0.ffn_gate.weight", &[4, 4]), Kind::Linear);
        assert_eq!(kind("a.weight", &[0, 4]), Kind::NotLinear);
        assert!(is_unoriented_stack("a.experts.gate_up_proj", &[8, 4, 4]));
    }

    #[test]
    fn fused_siblings_share_parent_family_and_input_features() {
        let modules = [
            ("l.0.q_proj", 8),
            ("l.0.k_proj", 8),
            ("l.0.o_proj", 8),
            ("l.0.v_proj", 8),
            ("l.1.q_proj", 8),
            ("l.1.k_proj", 4),
            ("l.1.gate_proj", 8),
            ("l.1.up_proj", 8),
        ];
        assert_eq!(
            fused_groups(modules.into_iter()),
            vec![vec![0, 1, 3], vec![6, 7]]
        );
    }
}
