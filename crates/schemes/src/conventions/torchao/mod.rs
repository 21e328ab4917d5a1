//! torchao: tensor subclasses taken apart into plain tensors, their classes and attributes in `__metadata__`
//! (specs/conventions/torchao.md).

mod classes;
mod describe;
mod metadata;
mod write;

use std::collections::BTreeMap;

use safequant_container::{Dtype, TensorInfo};

use self::classes::Pieces;
use self::metadata::{Entry, Metadata};
use crate::binding::{required, unsupported};
use crate::{Convention, ConventionWriter, Error, Headers, QuantizedTensor, Recognized};

/// See the module.
pub struct Torchao;

/// The id.
const ID: &str = "torchao";

impl Convention for Torchao {
    fn id(&self) -> &'static str {
        ID
    }

    fn summary(&self) -> &'static str {
        "torchao and transformers: Int8, Float8, Intx, Int4, MX and NVFP4 tensors, described in __metadata__"
    }

    fn recognize<'a>(
        &self,
        headers: Headers<'a>,
    ) -> Result<Option<Box<dyn Recognized + 'a>>, Error> {
        let Some(metadata) = Metadata::find(headers)? else {
            return match headers.tensors().find(|i| is_lost(headers, i)) {
                Some(info) => Err(lost(headers, info)),
                None => Ok(None),
            };
        };
        let mut modules = BTreeMap::new();
        let mut classes: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in metadata.entries.values() {
            *classes.entry(entry.class.as_str()).or_default() += 1;
            modules.insert(entry.module().to_owned(), entry.clone());
        }
        check_pieces(headers, &metadata)?;
        let mut evidence = vec![format!(
            "tensor_names in __metadata__ of {} shards",
            metadata.n_shards
        )];
        evidence.extend(
            classes
                .iter()
                .map(|(class, n)| format!("{n} parameters are of {class}")),
        );
        Ok(Some(Box::new(Found {
            headers,
            names: modules.keys().cloned().collect(),
            modules,
            evidence,
        })))
    }

    fn writer(&self) -> Option<&'static dyn ConventionWriter> {
        Some(&write::Writer)
    }
}

/// A tensor that only torchao writes.
fn is_lost(headers: Headers<'_>, info: &TensorInfo) -> bool {
    let Some(prefix) = info.name.strip_suffix("_qdata") else {
        return false;
    };
    let companions = ["scale", "scale_and_zero"];
    companions
        .iter()
        .any(|c| headers.tensor(&format!("{prefix}_{c}")).is_some())
}

/// Without metadata neither block sizes nor the dtype nor the order of scales are known: refused, with a guess.
fn lost(headers: Headers<'_>, codes: &TensorInfo) -> Error {
    let prefix = codes.name.trim_end_matches("_qdata");
    let scale = headers.tensor(&format!("{prefix}_scale")).map(|i| i.dtype);
    let class = match (codes.dtype, scale) {
        (Dtype::I8, Some(Dtype::F32)) => "an Int8Tensor",
        (Dtype::I8, Some(Dtype::BF16 | Dtype::F16)) => "an IntxUnpackedToInt8Tensor or Int4Tensor",
        (Dtype::F8E4M3 | Dtype::F8E5M2, Some(Dtype::F32)) => "a Float8Tensor",
        (_, Some(Dtype::F8E8M0)) => "an MXTensor, its scales swizzled or not",
        (Dtype::U8, Some(Dtype::F8E4M3)) => "an NVFP4Tensor, its scales swizzled or not",
        _ => "a tensor subclass of torchao",
    };
    unsupported(
        &codes.name,
        "torchao data with lost metadata",
        &format!(
            "it looks like {class}; somebody saved the file again without its __metadata__, the original has it"
        ),
    )
}

/// Nothing else may share the prefix of a parameter's tensors: readers count them.
fn check_pieces(headers: Headers<'_>, metadata: &Metadata) -> Result<(), Error> {
    let mut owned = BTreeMap::new();
    for entry in metadata.entries.values() {
        let prefix = entry.prefix()?;
        for part in &entry.parts {
            owned.insert(format!("{prefix}{part}"), entry);
        }
    }
    for info in headers.tensors() {
        let name = info.name.as_str();
        if owned.contains_key(name) {
            continue;
        }
        let Some((module, rest)) = name.rsplit_once("._") else {
            continue;
        };
        // `_weight_scale` belongs to `weight`; parameters with underscores are tried at every one.
        let mut ends = rest.match_indices('_').map(|(at, _)| &rest[..at]);
        let owner = ends.find_map(|p| metadata.entries.get(&format!("{module}.{p}")));
        if let Some(entry) = owner {
            return Err(Error::Contradiction {
                module: entry.module().to_owned(),
                config: format!("its parts are {:?}", entry.parts),
                tensors: format!("there is {name} too"),
            });
        }
    }
    Ok(())
}

/// What was found.
struct Found<'a> {
    headers: Headers<'a>,
    names: Vec<String>,
    modules: BTreeMap<String, Entry>,
    evidence: Vec<String>,
}

impl Recognized for Found<'_> {
    fn modules(&self) -> &[String] {
        &self.names
    }

    fn orphans(&self) -> &[String] {
        &[]
    }

    fn evidence(&self) -> &[String] {
        &self.evidence
    }

    fn bind(&self, module: &str) -> Result<QuantizedTensor, Error> {
        let entry = self.modules.get(module).ok_or_else(|| Error::MissingPart {
            module: module.to_owned(),
            part: "its entry in __metadata__".to_owned(),
        })?;
        let prefix = entry.prefix()?;
        let mut tensors = BTreeMap::new();
        for part in &entry.parts {
            let info = required(self.headers, module, &format!("{prefix}{part}"))?;
            tensors.insert(part.as_str(), info);
        }
        Pieces { entry, tensors }.bind()
    }
}
