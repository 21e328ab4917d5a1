//! The command line as typed: what clap parses. Validation that needs a registry's meaning happens in `plan.rs`.
#![expect(
    clippy::doc_markdown,
    reason = "clap shows these comments as they stand"
)]

mod examples;
mod refine;

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use safequant::options;
use safequant::quantize::{Effort, Order};
use safequant::schemes::CONVENTIONS;
use safequant::schemes::convention::offered_presets;

use self::examples::{
    AUDIT_EXAMPLES, BENCH_EXAMPLES, COMPLETIONS_EXAMPLES, CONVERT_EXAMPLES, DEQUANTIZE_EXAMPLES,
    DIFF_EXAMPLES, EXPLAIN_EXAMPLES, INSPECT_EXAMPLES, QUANTIZE_EXAMPLES, REFINE_EXAMPLES,
    REPAIR_EXAMPLES, TOP_EXAMPLES, TOP_LONG, TP_PLAN_EXAMPLES,
};
pub(crate) use self::refine::RefineArgs;
use safequant::size::Size;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "safequant",
    version,
    about = "Inspect, audit, quantize, convert and dequantize safetensors checkpoints",
    long_about = "Inspect, audit, quantize, convert and dequantize safetensors checkpoints: offline, on a CPU, in bounded memory.\n\
                  Data goes to stdout; progress and messages go to stderr.",
    after_help = TOP_EXAMPLES,
    after_long_help = TOP_LONG,
    disable_help_subcommand = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// When to color the output; `auto` means on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", global = true, display_order = 1000, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// When to color.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show what a checkpoint is: dtypes, conventions, schemes, parameters, bits per weight
    ///
    /// Reads headers and configuration only, never the weights, so it takes as long for 1 GB as for 1 TB. Tensors that
    /// differ only in their layer or expert number share a row.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Check a checkpoint: is it whole, does it mean what its config says, will a runtime load it, what was lost
    ///
    /// Every finding has a rule with a stable id; `safequant explain RULE` says what it checks, why it matters and what to do.
    /// --depth says how much is read: headers and documents only, scales as well (0.03 to 11 percent of the bytes), or
    /// everything. Nothing is ever changed. Exit status 1 means findings of the level of --fail-on.
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(AuditArgs),
    /// Say into how many tensor-parallel ranks a checkpoint can be cut, what stands in the way, and what a rank holds
    ///
    /// Column-parallel weights (q, k, v, gate, up) are cut along their outputs, row-parallel ones (o, down) along their inputs;
    /// groups, blocks and packed words must not straddle two ranks. Reads headers only.
    #[command(after_help = TP_PLAN_EXAMPLES)]
    TpPlan(TpPlanArgs),
    /// Say what two checkpoints have in common and what not, whatever conventions they are written in
    ///
    /// Weights are aligned by name and compared in a neutral form: packing, transposition and the order of rows are no
    /// differences. Documents are compared as JSON, however they are formatted. Both checkpoints are streamed. Exit status 1
    /// means that they differ in what was compared.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Say what an audit rule checks, why it matters and what to do; without a rule, list all of them
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),
    /// Write a quantized copy of a checkpoint
    ///
    /// Linear weights are quantized; embeddings, norms and lm_head stay as they are, unless --targets names them. Files
    /// that are no weights travel along, and config.json gets the matching quantization_config. The destination appears
    /// complete or not at all.
    #[command(after_help = QUANTIZE_EXAMPLES)]
    Quantize(QuantizeArgs),
    /// Give a quantized checkpoint better codes, whoever quantized it
    ///
    /// Codes are chosen anew, so that outputs lose less on the calibration inputs; scales, zero points, groups, configuration and
    /// everything else stay as they are, byte for byte. What outputs lost before and what they lose now is reported for each module, and
    /// none loses more. A module without statistics keeps its codes.
    #[command(after_help = REFINE_EXAMPLES)]
    Refine(RefineArgs),
    /// Write a dense copy of a quantized checkpoint
    ///
    /// Every convention that `inspect` recognizes can be read. With --dtype auto the weights are, bit for bit, those of the
    /// convention's own reference implementation.
    #[command(after_help = DEQUANTIZE_EXAMPLES)]
    Dequantize(DequantizeArgs),
    /// Write a quantized checkpoint in another convention
    ///
    /// Codes and scales are carried over, never weights. Each module has a label: `exact` (same codes, same scales; the way
    /// back gives the same bytes), `cast` (a scale is rounded to another dtype, or repeated for smaller groups), `lossy`
    /// (the codes change: refused without --allow-lossy), `impossible`. Nothing is written before every label is known.
    /// docs/conversions.md shows what goes where.
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert(ConvertArgs),
    /// Write a copy of a checkpoint in which findings of an audit are set right
    ///
    /// For what the tensors themselves decide: the index and its total_size, lists of modules that are left dense, GPTQ's
    /// checkpoint_format, tie_word_embeddings, names of FP8 scales, the format in __metadata__. Weights are linked or
    /// copied, never changed. The result is audited before it is written, and appears complete or not at all.
    #[command(after_help = REPAIR_EXAMPLES)]
    Repair(RepairArgs),
    /// Measure the kernels on this machine
    ///
    /// Each format is decoded to BF16, in cache and from memory, on one thread and on all; its rate stands beside that of a
    /// copy of the same traffic and beside the portable code, in one run. Every result is compared with portable's.
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
}

/// `inspect`, as typed.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A .safetensors or .gguf file, a directory in the Hugging Face layout, or an index file
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// Print JSON (specs/cli/inspect.schema.json)
    #[arg(long)]
    pub(crate) json: bool,
    /// List every tensor instead of groups of them
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Only modules and tensors that match: a glob (`*.mlp.*`), or `re:` and a regular expression
    #[arg(long, value_name = "PATTERN")]
    pub(crate) filter: Option<String>,
}

/// `audit`, as typed.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// A .safetensors or .gguf file, a directory in the Hugging Face layout, or an index file
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// How much is read
    #[arg(long, value_enum, value_name = "DEPTH", default_value_t = DepthArg::Scales)]
    pub(crate) depth: DepthArg,
    /// The checkpoint it was made of: what each weight has lost is measured (reads everything)
    #[arg(long, value_name = "BASE")]
    pub(crate) reference: Option<PathBuf>,
    /// A runtime that should load it, with or without a version (`vllm`, `vllm@0.33.1`); may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) runtime: Vec<String>,
    /// Tensor-parallel degrees that it should be cut into (`8`, `2,4,8`)
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) tp: Vec<u64>,
    /// The form of the report
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FormatArg::Text)]
    pub(crate) format: FormatArg,
    /// Write the report to a file instead of stdout
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The gravest findings that are still no failure stand below this
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LevelArg::Error)]
    pub(crate) fail_on: LevelArg,
    /// Only these rules: an id (`SC010`), a name, or a family (`SC`); may be repeated
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub(crate) select: Vec<String>,
    /// All rules but these; wins over --select; may be repeated
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub(crate) ignore: Vec<String>,
    /// Leave out the findings that this file knows
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,
    /// Write all findings to a file that --baseline takes, and end well
    #[arg(long, value_name = "FILE", conflicts_with = "baseline")]
    pub(crate) write_baseline: Option<PathBuf>,
}

/// `tp-plan`, as typed.
#[derive(Debug, Args)]
pub(crate) struct TpPlanArgs {
    /// A .safetensors or .gguf file, a directory in the Hugging Face layout, or an index file
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The degrees
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) tp: Vec<u64>,
    /// Print JSON (specs/cli/tp-plan.schema.json)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `diff`, as typed.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A .safetensors or .gguf file, a directory in the Hugging Face layout, or an index file
    #[arg(value_name = "A")]
    pub(crate) a: PathBuf,
    /// The same, to compare with
    #[arg(value_name = "B")]
    pub(crate) b: PathBuf,
    /// What is compared (`values`, `codes,values`) [default: everything]
    #[arg(long, value_enum, value_name = "LEVEL", value_delimiter = ',')]
    pub(crate) level: Vec<CompareArg>,
    /// Only modules and tensors that match: a glob (`*.mlp.*`), or `re:` and a regular expression
    #[arg(long, value_name = "PATTERN")]
    pub(crate) filter: Option<String>,
    /// Scales, zero points and whole weights (by their relative L2 distance) this far apart count as equal
    #[arg(long, value_name = "REL", default_value_t = 0.0)]
    pub(crate) tolerance: f64,
    /// Print JSON (specs/cli/diff.schema.json)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareArg {
    /// Names, shapes, dtypes, conventions, schemes
    Structure,
    /// JSON documents, and the metadata of the files
    Config,
    /// Codes, scales and zero points
    Codes,
    /// The weights themselves, and all other tensors
    Values,
}

/// `explain`, as typed.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// An id (`SC010`) or a name (`scale-not-finite`)
    #[arg(value_name = "RULE")]
    pub(crate) rule: Option<String>,
}

/// `--depth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DepthArg {
    /// Headers, index and documents
    Headers,
    /// Scales and zero points as well
    Scales,
    /// Everything
    Full,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// For people
    Text,
    /// JSON (specs/cli/audit.schema.json)
    Json,
    /// SARIF 2.1.0, for code scanning services
    Sarif,
    /// Annotations of GitHub's workflows
    Github,
    /// JUnit XML, a test case for each rule
    Junit,
    /// One page to look at
    Html,
}

/// `--fail-on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LevelArg {
    /// Errors fail
    Error,
    /// Errors and warnings fail
    Warning,
    /// Every finding fails
    Note,
    /// Nothing fails
    Never,
}

/// `quantize`, as typed.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) paths: Paths,
    /// The scheme to quantize to
    #[arg(long, value_name = "SCHEME", value_parser = schemes(), ignore_case = true, required_unless_present_any = ["recipe", "schemes"])]
    pub(crate) scheme: Option<String>,
    /// Several schemes, each with its modules and its method: YAML or JSON; llm-compressor's recipes are taken, too
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["scheme", "group_size", "method", "effort", "order", "damping", "bias_correction", "targets"]
    )]
    pub(crate) recipe: Option<PathBuf>,
    /// Bits per weight of the quantized modules, scales and all, that a mixture of --schemes is to keep to
    #[arg(
        long,
        value_name = "BITS",
        requires = "schemes",
        allow_negative_numbers = true
    )]
    pub(crate) target_bpw: Option<f64>,
    /// Schemes to choose among, module by module, by the loss that is measured for each bit
    #[arg(
        long,
        value_name = "SCHEME",
        value_parser = schemes(),
        ignore_case = true,
        value_delimiter = ',',
        requires = "target_bpw",
        conflicts_with_all = ["scheme", "recipe", "group_size"]
    )]
    pub(crate) schemes: Vec<String>,
    /// Write what is done as a recipe, also with --dry-run; --force replaces the file
    #[arg(long, value_name = "FILE")]
    pub(crate) save_recipe: Option<PathBuf>,
    /// The convention to write [default: the scheme's own]
    #[arg(long, value_name = "CONVENTION", value_parser = written_conventions())]
    pub(crate) convention: Option<String>,
    /// How codes and scales are chosen [default: rtn, with --calibration auto]
    #[arg(long, value_name = "METHOD", value_parser = methods())]
    pub(crate) method: Option<String>,
    /// Statistics of the modules' inputs: what `safequant.calibrate` of the Python package writes, or llama.cpp's imatrix
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// How hard a method that searches tries [default: default]
    #[arg(long, value_name = "EFFORT", value_parser = efforts())]
    pub(crate) effort: Option<String>,
    /// The order in which error feedback rounds columns [default: the one that loses least]
    #[arg(long, value_name = "ORDER", value_parser = orders())]
    pub(crate) order: Option<String>,
    /// What is added to the diagonal of the second moment, as a share of its mean [default: by the tokens per column]
    #[arg(long, value_name = "SHARE")]
    pub(crate) damping: Option<f64>,
    /// Let a layer's bias, where it has one, make up for what its mean input loses
    #[arg(long)]
    pub(crate) bias_correction: bool,
    /// Input features that share one scale, for schemes with groups; -1 for one scale per row [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) group_size: Option<i64>,
    /// Modules to quantize instead of all linear ones: a glob, or `re:` and a regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) targets: Vec<String>,
    /// Modules to leave dense; wins over --targets; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) ignore: Vec<String>,
    /// Where a weight divided by its scale is rounded
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = DivisionArg::Source)]
    pub(crate) division: DivisionArg,
    /// What to do with a NaN or an infinity in a weight
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = NonFiniteArg::Refuse)]
    pub(crate) nonfinite: NonFiniteArg,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `dequantize`, as typed.
#[derive(Debug, Args)]
pub(crate) struct DequantizeArgs {
    #[command(flatten)]
    pub(crate) paths: Paths,
    /// The dtype of the dense weights
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `convert`, as typed.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    pub(crate) paths: Paths,
    /// The convention to write
    #[arg(long, value_name = "CONVENTION", value_parser = written_conventions())]
    pub(crate) to: String,
    /// Dequantize and quantize again what cannot be carried over, instead of refusing
    #[arg(long)]
    pub(crate) allow_lossy: bool,
    /// Modules to leave dense (dequantized): a glob, or `re:` and a regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) ignore: Vec<String>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// `repair`, as typed.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one per switch of the command line, as typed"
)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    pub(crate) paths: Paths,
    /// The rules whose findings are set right: an id (`IX005`), a name, or a family (`IX`); may be repeated
    #[arg(
        long = "rule",
        value_name = "RULE",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) rules: Vec<String>,
    /// Show what would change, line by line, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Copy weights that stay as they are; otherwise they are linked where the file system can do that
    #[arg(long)]
    pub(crate) copy: bool,
    /// Replace DST, at the end and atomically, if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print what changes as JSON, with whole documents
    #[arg(long)]
    pub(crate) json: bool,
}

/// `bench`, as typed.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Only formats that match: a glob (`int4*`), or `re:` and a regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) only: Vec<String>,
    /// Fewer rounds, and one thread unless --threads says otherwise
    #[arg(long)]
    pub(crate) quick: bool,
    /// Threads that share the work [default: one, and then one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
    /// Print JSON (specs/cli/bench.schema.json)
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress on stderr
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `completions`, as typed.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Where a writing verb reads and writes.
#[derive(Debug, Args)]
pub(crate) struct Paths {
    /// A .safetensors or .gguf file, a directory in the Hugging Face layout, or an index file; never changed
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The directory to write, or the .safetensors file when SRC is one; must not exist or be empty
    #[arg(short = 'o', long = "output", value_name = "DST")]
    pub(crate) destination: PathBuf,
}

/// Options of every writing verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Job")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one per switch of the command line, as typed"
)]
pub(crate) struct JobArgs {
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Hard budget for buffers (256MiB, 1.5GiB, 5GB or bytes)
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) memory: Size,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// Largest shard (bytes of weights)
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    pub(crate) max_shard_size: Size,
    /// Continue an interrupted job
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace DST, at the end and atomically, if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the plan or the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress on stderr
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `--division`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DivisionArg {
    /// To the weight's dtype, as the reference tools do on a CPU
    Source,
    /// To F32, as compressed-tensors does on a GPU
    F32,
}

/// `--nonfinite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NonFiniteArg {
    /// Refuse, naming the tensor and the place
    Refuse,
    /// NaN becomes 0, an infinity the largest finite value
    Clamp,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// The dtype and bits of the convention's own reference
    Auto,
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// IEEE single precision
    F32,
}

/// The schemes of the registry, with their summaries.
fn schemes() -> PossibleValuesParser {
    offered_presets()
        .map(|preset| PossibleValue::new(preset.name).help(preset.summary))
        .collect::<Vec<_>>()
        .into()
}

/// The conventions that can be written, with their summaries.
fn written_conventions() -> PossibleValuesParser {
    let written = CONVENTIONS
        .iter()
        .filter(|convention| convention.writer().is_some());
    written
        .map(|c| PossibleValue::new(c.id()).help(c.summary()))
        .into()
}

/// The quantizers of the registry, with their summaries.
fn methods() -> PossibleValuesParser {
    options::methods()
        .map(|(id, summary)| PossibleValue::new(id).help(summary))
        .collect::<Vec<_>>()
        .into()
}

/// The words for an effort.
fn efforts() -> PossibleValuesParser {
    Effort::ALL.map(Effort::name).into()
}

/// The words for an order.
fn orders() -> PossibleValuesParser {
    Order::ALL.map(Order::name).into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resume_and_force_exclude_each_other() {
        let line = [
            "safequant",
            "dequantize",
            "a",
            "-o",
            "b",
            "--resume",
            "--force",
        ];
        let error = Cli::try_parse_from(line).expect_err("both were accepted");
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
    }
}
