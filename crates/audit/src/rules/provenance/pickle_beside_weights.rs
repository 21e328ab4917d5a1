//! PV002: a pickle lies beside the weights.

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "PV002",
    name: "pickle-beside-weights",
    severity: Severity::Warning,
    since: "0.1.0",
    summary: "a pickle lies beside the weights",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
No file beside the weights is a pickle or a PyTorch archive: names that end in `.bin`, `.pt`, `.pth`, `.ckpt`, `.pkl` or `.pickle` whose
first bytes say so. Nothing of it is unpickled.

## Why it matters
Loading a pickle runs whatever program it holds, and several tools load what they find (`pytorch_model.bin`, `*.pth`) when they do not find
what they look for. `torch.load` of version 2.6 and later answers `Weights only load failed. This file can still be loaded, to do so you
have two options`, and scanners reject the whole repository. Besides, such weights are most often those from before quantization: twice the
download, and the wrong ones where they are taken.

## What to do
Remove the file; optimizer states and training arguments are no part of a model. If it holds weights that are needed, convert it to
safetensors where it can do no harm.

## References
- huggingface/hub-docs, `security-pickle.md`
";

const SUFFIXES: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for sidecar in subject.checkpoint.sidecars() {
        let name = sidecar.name.as_str();
        let lower = name.to_ascii_lowercase();
        if !SUFFIXES.iter().any(|suffix| lower.ends_with(suffix)) {
            continue;
        }
        if let Some(found) = first_bytes(subject, name).and_then(pickle) {
            findings
                .add(Place::file(name), format!("this file is {found}"))
                .instead("weights in safetensors, and no programs", found)
                .help("remove it: loading it runs whatever program it holds");
        }
    }
}

/// The first four bytes of a file beside the weights.
fn first_bytes(subject: &Subject<'_>, name: &str) -> Option<[u8; 4]> {
    let source = subject.checkpoint.sidecar(name).ok()?;
    let mut head = [0; 4];
    source.read_exact_at(0, &mut head).ok()?;
    Some(head)
}

/// What the first bytes say: a pickle of protocols 2 to 5, or the zip archive that `torch.save` has written since 1.6.
fn pickle(head: [u8; 4]) -> Option<&'static str> {
    match head {
        [b'P', b'K', 3, 4] => Some("a PyTorch archive, which holds a pickle"),
        [0x80, 2..=5, next, _] if next != 0 => Some("a pickle"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_are_known_by_their_first_bytes() {
        assert!(pickle(*b"PK\x03\x04").is_some());
        assert!(pickle(*b"\x80\x02}q").is_some());
        assert!(pickle(*b"\x80\x04\x95\x10").is_some());
        // A length of 640 in eight bytes, ggml, text.
        for other in [*b"\x80\x02\0\0", *b"lmgg", *b"vers"] {
            assert!(pickle(other).is_none(), "{other:?}");
        }
    }
}
