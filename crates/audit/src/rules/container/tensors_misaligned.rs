//! ST020: tensors begin at places that are no multiple of their element's size.

use safequant_container::TensorInfo;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "ST020",
    name: "tensors-misaligned",
    severity: Severity::Note,
    since: "0.1.0",
    summary: "tensors begin at places that are no multiple of their element's size",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Every tensor of a safetensors file begins, counted from the start of the file, at a multiple of the size of its elements.

## Why it matters
The format does not ask for it, and the official writer does it (it pads the header to 8 bytes and writes wide dtypes first). MLX does not
pad, and writers that keep the order of a dictionary do not sort. Readers that map the file must copy such tensors first, and those that
cast the bytes in place fail: `ValueError: offset must be a multiple of element size`, `misaligned address` on a GPU, or a panic
`the source slice has an invalid alignment`.

## What to do
Nothing, for the usual runtimes. `safequant reshard SRC -o DST` writes the same tensors aligned.

## References
- safetensors/safetensors#607, safetensors/safetensors#834, ml-explore/mlx#4439
";

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for shard in subject.checkpoint.shards() {
        let tensors = &shard.header.tensors;
        let mut misaligned = tensors.iter().filter(|tensor| is_misaligned(tensor));
        let Some(first) = misaligned.next() else {
            continue;
        };
        let count = misaligned.count() + 1;
        let bytes = first.dtype.bits() / 8;
        findings
            .add(
                Place::file(&*shard.name),
                format!(
                    "{count} of {} tensors are not aligned to their elements, first {:?}",
                    tensors.len(),
                    first.name
                ),
            )
            .instead(
                format!("a multiple of {bytes} bytes"),
                format!("byte {} of the file", first.range.start),
            )
            .help("nothing for most readers; `safequant reshard` writes aligned files");
    }
}

fn is_misaligned(tensor: &TensorInfo) -> bool {
    let bytes = (tensor.dtype.bits() / 8).max(1);
    tensor.len_bytes() > 0 && !tensor.range.start.is_multiple_of(bytes)
}
