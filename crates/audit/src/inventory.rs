//! What a checkpoint holds, by module and by layer: the tables in which rules about names look things up.

use std::collections::{BTreeMap, BTreeSet};

use safequant_container::TensorInfo;
use safequant_schemes::scheme::float_of;
use safequant_schemes::{Error, Headers};

use crate::names::{around_layer, split_last};
use crate::{ModuleName, Part, Subject, problem};

/// Endings, behind a dot, of tensors that only quantized weights have beside them (`formats/*.md` of the dossiers), in order. Names
/// that dense models use as well (`scale`, `zero`, `shape`, `bias`) are not among them.
const COMPANIONS: &[&str] = &[
    "SCB",
    "W_q",
    "_weight_qdata",
    "_weight_scale",
    "_weight_zero_point",
    "activation_scale",
    "biases",
    "bitmask",
    "channel_wise",
    "comfy_quant",
    "encoded_state_dict",
    "g_idx",
    "input_global_scale",
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "offload_meta",
    "output_scale",
    "pre_quant_scale",
    "qbiases",
    "quant_scale",
    "quant_zero",
    "qweight",
    "qzeros",
    "row_offsets",
    "s_channel",
    "scale_input",
    "scale_packed",
    "scale_weight",
    "scales",
    "stores_quant_config",
    "trellis",
    "unpack_view_dtype",
    "view_as_float",
    "weight_codebook",
    "weight_format",
    "weight_g_idx",
    "weight_global_scale",
    "weight_packed",
    "weight_s_channel",
    "weight_s_rel",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_scale_inv_2",
    "weight_shape",
    "weight_zero_point",
    "wscales",
    "wzeros",
];

/// The same with a dot in them.
const OF_WEIGHTS: &[&str] = &[
    "weight._data",
    "weight._data._data",
    "weight._scale",
    "weight._shift",
    "weight.absmax",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_map",
    "weight.quant_state.bitsandbytes__fp4",
    "weight.quant_state.bitsandbytes__nf4",
];

/// The same without a dot, for experts that are stacked in one tensor.
const STACKED: &[&str] = &["_blocks", "_scales", "_scale_inv", "_weight_scale"];

/// The module of a tensor that belongs to a quantized weight by its name, and the ending that says so.
pub(crate) fn companion(tensor: &str) -> Option<(&str, &'static str)> {
    let (module, last) = split_last(tensor)?;
    // Most tensors are called so.
    if matches!(last, "weight" | "bias") {
        return None;
    }
    if let Ok(at) = COMPANIONS.binary_search(&last) {
        return COMPANIONS.get(at).map(|ending| (module, *ending));
    }
    let of_weight = |ending: &&'static str| {
        let module = tensor.strip_suffix(*ending)?;
        Some((module.strip_suffix('.')?, *ending))
    };
    if tensor.contains(".weight.") {
        return OF_WEIGHTS.iter().find_map(of_weight);
    }
    if !module.ends_with("experts") {
        return None;
    }
    let stacked = |ending: &&'static str| {
        let module = tensor.strip_suffix(*ending)?;
        let is_experts = module.rsplit('.').nth(1) == Some("experts");
        is_experts.then_some((module, *ending))
    };
    STACKED.iter().find_map(stacked)
}

/// Modules that did not bind, because of what one of the subject's problems says.
pub(crate) fn broken_modules<'a>(subject: &'a Subject<'_>) -> BTreeSet<&'a str> {
    let named = |error: &'a Error| match error {
        Error::Contradiction { module, .. }
        | Error::MissingPart { module, .. }
        | Error::PartDtype { module, .. }
        | Error::PartShape { module, .. }
        | Error::GroupIndexRange { module, .. }
        | Error::CodeRange { module, .. }
        | Error::ProductRange { module, .. }
        | Error::SparseRow { module, .. }
        | Error::TooLarge { module, .. }
        | Error::Unsupported { module, .. } => Some(module.as_str()),
        Error::ClaimedTwice { .. }
        | Error::Container(_)
        | Error::Document { .. }
        | Error::SidecarTooLarge { .. }
        | Error::ConfigValue { .. }
        | Error::ConfigsDisagree { .. }
        | Error::Pattern { .. }
        | Error::UnknownPreset { .. }
        | Error::PresetOption { .. }
        | Error::CannotWrite { .. }
        | Error::CannotDerive { .. }
        | Error::Slice { .. }
        | Error::Unstorable { .. } => None,
    };
    subject.problems.iter().filter_map(named).collect()
}

/// Whether something stood in the way that makes everything said about missing things doubtful: documents that cannot be read,
/// files that do not open.
pub(crate) fn is_partial(subject: &Subject<'_>) -> bool {
    subject.problems.iter().any(|error| {
        let place = problem::place(error);
        place.module.is_none()
    })
}

/// A tensor, and the module that it belongs to as far as its name tells, taken apart.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) info: &'a TensorInfo,
    pub(crate) module: ModuleName<'a>,
}

/// Every tensor, by name. Names are taken apart here, once for all rules.
pub(crate) fn take_apart(headers: Headers<'_>) -> Vec<Stored<'_>> {
    let mut all: Vec<Stored<'_>> = Vec::new();
    for info in headers.tensors() {
        let module = module_of(&info.name);
        let before = all.last().map(|before| before.module);
        let known = before.filter(|before| before.module == module);
        let module = known.unwrap_or_else(|| ModuleName::parse(module));
        all.push(Stored { info, module });
    }
    all
}

/// The tensors that are no part of a quantized weight. `plain`: their names, in order.
pub(crate) fn find_plain<'a>(stored: &[Stored<'a>], plain: &[String]) -> Vec<&'a TensorInfo> {
    let mut names = plain.iter().peekable();
    let is_plain = |info: &&TensorInfo| names.next_if(|name| info.name == **name).is_some();
    stored
        .iter()
        .map(|tensor| tensor.info)
        .filter(is_plain)
        .collect()
}

/// Plain two-dimensional float weights: module and tensor.
pub(crate) fn dense_matrices<'a>(
    subject: &Subject<'a>,
) -> impl Iterator<Item = (&'a str, &'a TensorInfo)> {
    subject.plain.iter().filter_map(|&info| {
        let module = info.name.strip_suffix(".weight")?;
        let is_matrix = info.shape.len() == 2 && float_of(info.dtype).is_some();
        is_matrix.then_some((module, info))
    })
}

/// Last words of the names that layers are numbered under.
const STACK_WORDS: [&str; 12] = [
    "layers",
    "layer",
    "h",
    "blocks",
    "block",
    "blk",
    "resblocks",
    "double_blocks",
    "single_blocks",
    "transformer_blocks",
    "single_transformer_blocks",
    "encoder_layers",
];

/// The layers under one name, and what each holds: names behind the layer's number, in order.
pub(crate) type Layers<'a> = BTreeMap<u32, Vec<&'a str>>;

/// All numbered layers, by what they are numbered under (`model.layers`).
pub(crate) type Stacks<'a> = BTreeMap<&'a str, Layers<'a>>;

/// Those of a checkpoint.
pub(crate) fn find_stacks<'a>(stored: &[Stored<'a>]) -> Stacks<'a> {
    let mut stacks = Stacks::new();
    for tensor in stored {
        let Some((stack, layer, rest)) = around_layer(&tensor.info.name) else {
            continue;
        };
        let word = split_last(stack).map_or(stack, |(_, word)| word);
        if STACK_WORDS.contains(&word) {
            let layers = stacks.entry(stack).or_default();
            layers.entry(layer).or_default().push(rest);
        }
    }
    // A number may be spelled in two ways (`1`, `01`).
    for rests in stacks.values_mut().flat_map(BTreeMap::values_mut) {
        rests.sort_unstable();
        rests.dedup();
    }
    stacks
}

/// The one stack of a language model: embeddings stand beside it, under the same name.
pub(crate) struct Trunk<'a> {
    /// `model.layers`: a key of the stacks.
    pub(crate) name: &'a str,
    /// The module of the embeddings.
    pub(crate) embedding: &'a str,
}

/// `None` where there is no such stack, or several (encoder and decoder, a model beside a second one).
pub(crate) fn find_trunk<'a>(stored: &[Stored<'a>], stacks: &Stacks<'a>) -> Option<Trunk<'a>> {
    let mut embeddings = BTreeMap::new();
    for Stored { module: name, .. } in stored {
        if name.part == Part::Embedding && name.layer.is_none() {
            embeddings.insert(name.parent, name.module);
        }
    }
    let mut pairs = stacks.keys().filter_map(|&name| {
        let embedding = *embeddings.get(ModuleName::parse(name).parent)?;
        Some(Trunk { name, embedding })
    });
    let first = pairs.next()?;
    pairs.next().is_none().then_some(first)
}

/// The module of a tensor, as far as its name tells.
pub(crate) fn module_of(tensor: &str) -> &str {
    match companion(tensor) {
        Some((module, _)) => module,
        None => split_last(tensor).map_or("", |(module, _)| module),
    }
}

/// A number that `config.json` states under one of these keys, where all places that state it agree.
pub(crate) fn agreed_number(subject: &Subject<'_>, keys: &[&str]) -> Option<(String, u64)> {
    let objects = std::iter::once(&subject.config).chain(
        ["text_config", "llm_config", "language_config"]
            .iter()
            .filter_map(|key| subject.config.get(*key)?.as_object()),
    );
    let mut found: Option<(String, u64)> = None;
    for object in objects {
        for key in keys {
            let Some(number) = object.get(*key).and_then(serde_json::Value::as_u64) else {
                continue;
            };
            match &found {
                Some((_, other)) if *other != number => return None,
                Some(_) => {}
                None => found = Some(((*key).to_owned(), number)),
            }
        }
    }
    found
}

/// Keys under which models say how many layers they have.
pub(crate) const LAYER_KEYS: &[&str] = &["num_hidden_layers", "n_layer", "n_layers"];
/// The same for experts.
pub(crate) const EXPERT_KEYS: &[&str] = &[
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
];
/// The same for layers that predict further tokens.
pub(crate) const MTP_KEYS: &[&str] = &[
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "num_mtp_layers",
    "mtp_num_layers",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_in_order() {
        assert!(COMPANIONS.is_sorted());
    }

    #[test]
    fn companions_name_their_module() {
        let cases = [
            ("a.b.weight_scale", Some(("a.b", "weight_scale"))),
            ("a.b.weight.absmax", Some(("a.b", "weight.absmax"))),
            ("a.b._weight_scale", Some(("a.b", "_weight_scale"))),
            (
                "a.experts.gate_up_proj_blocks",
                Some(("a.experts.gate_up_proj", "_blocks")),
            ),
            ("a.experts.gate_up_proj_bias", None),
            ("a.res_blocks", None),
            ("a.b.weight", None),
            ("a.b.bias", None),
            ("scales", None),
        ];
        for (tensor, expected) in cases {
            assert_eq!(companion(tensor), expected, "{tensor}");
        }
    }
}
