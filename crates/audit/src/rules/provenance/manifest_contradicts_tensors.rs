//! PV001: our manifest and the tensors contradict each other.

use std::collections::BTreeMap;

use safequant_container::{Error, Manifest, ManifestEntry, TensorInfo};

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "PV001",
    name: "manifest-contradicts-tensors",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "`safequant-manifest.json` and the tensors contradict each other",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Where a `safequant-manifest.json` lies beside the weights, it is one that we would write, it lists every tensor and no other, and it gives
each the dtype and shape that its header has. Digests are not compared.

## Why it matters
The manifest says what was written. A tensor that it does not list, or lists in another shape, was changed since: by another tool, by a
download of two versions, or by somebody who did not want it to be seen. A wrong shard that loads cleanly shows only in what the model says,
if at all; nothing in safetensors itself would tell.

## What to do
If the change is meant, remove the manifest. If not, fetch the files again.

## References
- specs/container/manifest.md; vllm-project/vllm#53537, safetensors/safetensors#220
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    let Some(bytes) = subject.checkpoint.document(Manifest::FILE_NAME) else {
        return;
    };
    let manifest = match Manifest::from_json(bytes) {
        Ok(manifest) => manifest,
        Err(error) => return refuse(&error, findings),
    };
    let entries = manifest.tensors.iter();
    let listed: BTreeMap<&str, &ManifestEntry> =
        entries.map(|entry| (entry.name.as_str(), entry)).collect();
    for tensor in subject.headers.tensors() {
        compare(tensor, listed.get(tensor.name.as_str()).copied(), findings);
    }
    for name in listed.keys() {
        if subject.headers.tensor(name).is_none() {
            add(
                name,
                "the manifest lists this tensor, and no shard has it",
                findings,
            );
        }
    }
}

fn refuse(error: &Error, findings: &mut Findings<'_>) {
    findings
        .add(Place::file(Manifest::FILE_NAME), error.to_string())
        .help("remove the manifest, or fetch it again");
}

fn compare(tensor: &TensorInfo, entry: Option<&ManifestEntry>, findings: &mut Findings<'_>) {
    let Some(entry) = entry else {
        add(
            &tensor.name,
            "the manifest does not list this tensor",
            findings,
        );
        return;
    };
    if entry.dtype != tensor.dtype || entry.shape[..] != tensor.shape[..] {
        let message = "the manifest lists this tensor with another dtype or shape";
        add(&tensor.name, message, findings).instead(
            format!("{} {:?}", entry.dtype, entry.shape),
            format!("{} {:?}", tensor.dtype, &*tensor.shape),
        );
    }
}

fn add<'a>(tensor: &str, message: &str, findings: &'a mut Findings<'_>) -> &'a mut crate::Finding {
    findings
        .add(Place::file(Manifest::FILE_NAME).tensor(tensor), message)
        .help("fetch the files again, or remove the manifest if the change is meant")
}
