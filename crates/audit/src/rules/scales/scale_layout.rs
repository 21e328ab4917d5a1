//! SC041: block scales lie in the order of another runtime.

use safequant_container::Dtype;
use safequant_schemes::Error;

use crate::{Check, Findings, Place, Rule, Severity, Subject};

pub(crate) static RULE: Rule = Rule {
    id: "SC041",
    name: "scale-layout",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "block scales are swizzled for tensor cores where rows are wanted, or the reverse",
    doc: DOC,
    check: Check::Headers(check),
};

const DOC: &str = "\
## What it checks
Tensor cores read the scales of NVFP4 and MXFP8 in tiles of 128 by 4, padded to whole tiles. ComfyUI and torchao store them so; all
others store rows. The rule looks at scales whose shape does not fit their weight, and says so if it is just the padded, or the
unpadded, one. Where rows are a multiple of 128 and columns of 4, both have the same shape, and the file cannot tell: values would be a
guess.

## Why it matters
Read in the wrong order nearly every block has the scale of another: noise that looks like a model with a fever, or a shape error that
names neither layout.

## What to do
Store scales in the order of the format: `safequant convert` does.

## References
- NVIDIA/Model-Optimizer#1195
- formats: nvfp4-mxfp4, section 10; comfyui, sections 3 and 9
";

/// Rows and columns of a tile.
const TILE: [u64; 2] = [128, 4];

fn check(subject: &Subject<'_>, findings: &mut Findings<'_>) {
    for error in &subject.problems {
        let Error::PartShape {
            module,
            part,
            found,
            expected: _,
        } = error
        else {
            continue;
        };
        let Some((grid, layout)) = other_layout(subject, module, part, found) else {
            continue;
        };
        findings
            .add(
                Place::module(&**module).tensor(&**part),
                format!("the scales have the shape of {layout}"),
            )
            .instead(format!("{grid:?}"), format!("{found:?}"))
            .help("store the scales in the order that the format wants");
    }
}

/// The grid that was wanted, and what the found one is, if it is the same grid in another layout.
fn other_layout(
    subject: &Subject<'_>,
    module: &str,
    part: &str,
    found: &[u64],
) -> Option<([u64; 2], &'static str)> {
    let scale = subject.headers.tensor(part)?;
    let is_byte = matches!(scale.dtype, Dtype::F8E4M3 | Dtype::F8E8M0 | Dtype::U8);
    if !is_byte || !part.contains("scale") {
        return None;
    }
    let weight = [
        format!("{module}.weight_packed"),
        format!("{module}.weight"),
    ];
    let weight = weight
        .iter()
        .find_map(|name| subject.headers.tensor(name))?;
    let [rows, stored] = *weight.shape.as_slice() else {
        return None;
    };
    // Two codes to a byte, or one.
    let width = if matches!(weight.dtype, Dtype::U8 | Dtype::I8) {
        stored.checked_mul(2)?
    } else {
        stored
    };
    [16, 32].into_iter().find_map(|group| {
        let grid = [rows, width.div_ceil(group)];
        let [Some(padded_rows), Some(padded_columns)] =
            [0, 1].map(|axis: usize| grid.get(axis)?.checked_next_multiple_of(*TILE.get(axis)?))
        else {
            return None;
        };
        let padded = [padded_rows, padded_columns];
        let flat = padded_rows.checked_mul(padded_columns)?;
        let is_swizzled = (found == padded && grid != padded) || found == [flat];
        let is_plain = found == grid && grid != padded;
        match (is_swizzled, is_plain) {
            (true, _) => Some((grid, "tiles of 128 by 4, as tensor cores read them")),
            (false, true) => Some((padded, "rows, not of tiles of 128 by 4")),
            (false, false) => None,
        }
    })
}
