//! The examples that stand under the help texts.
//!
//! Examples are commands: `crates/cli/tests/cli` runs each line that begins with `safequant`.

pub(super) const TOP_EXAMPLES: &str = "\
Examples:
  safequant inspect model
  safequant audit model
  safequant quantize model -o model-w4a16 --scheme W4A16
  safequant dequantize model-w4a16 -o model-dense
  safequant convert model-w4a16 -o model-v2 --to gptq_v2

`safequant VERB --help` explains a verb.";

pub(super) const TOP_LONG: &str = "\
Examples:
  safequant inspect model
  safequant audit model
  safequant quantize model -o model-w4a16 --scheme W4A16
  safequant dequantize model-w4a16 -o model-dense
  safequant convert model-w4a16 -o model-v2 --to gptq_v2

Exit status:
  0  clean or done
  1  findings of the level asked for, or differences
  2  the input is malformed, not supported or beyond a limit
  3  the environment failed: I/O error, disk full, permission
  4  usage error, or a refusal: would overwrite or lose something, or was canceled

`safequant VERB --help` explains a verb.";

pub(super) const INSPECT_EXAMPLES: &str = "\
Examples:
  safequant inspect model
  safequant inspect model/model.safetensors --tensors
  safequant inspect model --filter '*attn*' --tensors
  safequant inspect model --json";

pub(super) const AUDIT_EXAMPLES: &str = "\
Examples:
  safequant audit model
  safequant audit model-w4a16 --depth full --fail-on warning
  safequant audit model-w4a16 --reference model --format html > audit.html
  safequant audit model-w4a16 --runtime vllm --tp 2,4 --fail-on never
  safequant audit model-w4a16 --select SC,QT --ignore SC013 --format json";

pub(super) const TP_PLAN_EXAMPLES: &str = "\
Examples:
  safequant tp-plan model-w4a16
  safequant tp-plan model-w4a16 --tp 2,3,8
  safequant tp-plan model-w4a16 --json";

pub(super) const DIFF_EXAMPLES: &str = "\
Examples:
  safequant diff model model
  safequant diff model-w4a16 model-v2 --level codes,values
  safequant diff model-w4a16 model-dense --level values --tolerance 0.01
  safequant diff model-w4a16 model-w4a16 --filter '*mlp*' --json";

pub(super) const EXPLAIN_EXAMPLES: &str = "\
Examples:
  safequant explain SC010
  safequant explain scale-not-finite
  safequant explain";

pub(super) const QUANTIZE_EXAMPLES: &str = "\
Examples:
  safequant quantize model -o model-w4a16 --scheme W4A16 --dry-run
  safequant quantize model -o model-w4a16 --scheme W4A16
  safequant quantize model -o model-gptq --scheme W4A16 --convention gptq --group-size 64
  safequant quantize model -o refined --scheme W4A16 --calibration inputs.safetensors --effort high
  safequant quantize model -o mixed --target-bpw 6 --schemes W4A16,W8A16 --save-recipe r.json";

pub(super) const REFINE_EXAMPLES: &str = "\
Examples:
  safequant refine model-w4a16 -o new --reference model --calibration inputs.safetensors --dry-run
  safequant refine model-w4a16 -o new --reference model --calibration inputs.safetensors
  safequant refine model-gptq -o best --reference model --calibration inputs.safetensors --json";

pub(super) const DEQUANTIZE_EXAMPLES: &str = "\
Examples:
  safequant dequantize model-w4a16 -o model-dense
  safequant dequantize model-w4a16 -o model-f32 --dtype f32 --max-shard-size 2GB
  safequant dequantize model-w4a16 -o model-dense --force --json --quiet";

pub(super) const CONVERT_EXAMPLES: &str = "\
Examples:
  safequant convert model-w4a16 -o model-v2 --to gptq_v2 --dry-run
  safequant convert model-w4a16 -o model-v2 --to gptq_v2
  safequant convert model-w4a16 -o model-e4m3 --to fp8 --allow-lossy
  safequant convert model-w4a16 -o model-v2 --to gptq_v2 --force --json --quiet";

pub(super) const REPAIR_EXAMPLES: &str = "\
Examples:
  safequant repair model -o model-repaired --rule IX --dry-run
  safequant repair model -o model-repaired --rule IX001,IX005
  safequant repair model-w4a16 -o model-listed --rule QC010 --rule QC011 --copy
  safequant repair model-gptq -o model-repaired --rule gptq-zero-convention --force --json";

pub(super) const BENCH_EXAMPLES: &str = "\
Examples:
  safequant bench --quick
  safequant bench --only 'int4*' --only 'gptq*'
  safequant bench --only fp8_block --threads 2 --json --quiet";

pub(super) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  safequant completions bash > safequant.bash
  safequant completions zsh > _safequant
  safequant completions fish > safequant.fish";
