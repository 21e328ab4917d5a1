//! The command line as meant: what was typed becomes the libraries' options, or an error that says what would do.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safequant::audit::diff::Level;
use safequant::audit::{self, Depth, Rule, Severity, Wanted};
use safequant::container::Limits;
use safequant::kernels::Float;
use safequant::options::{self, Choosing, Quantizing};
use safequant::quantize::quantizer::NonFinite;
use safequant::quantize::{Biases, Division};
use safequant::recipe::MAX_BYTES;
use safequant::rewrite::repair::{RepairOptions, Weights};
use safequant::rewrite::{
    CalibrationFile, ConvertRecipe, DequantizeRecipe, Destination, JobOptions, LossPolicy,
    OutputDtype, Reference, RefineRecipe, Verb,
};
use safequant::schemes::pattern::Pattern;

use crate::args::{
    AuditArgs, CompareArg, ConvertArgs, DepthArg, DequantizeArgs, DiffArgs, DivisionArg, DtypeArg,
    FormatArg, JobArgs, LevelArg, NonFiniteArg, Paths, QuantizeArgs, RefineArgs, RepairArgs,
};
use crate::exit::Failure;
use crate::output::Record;

/// A writing verb, ready to be planned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Job {
    /// The verb's name.
    pub(crate) command: &'static str,
    /// What is read.
    pub(crate) source: PathBuf,
    /// Where the result appears.
    pub(crate) destination: PathBuf,
    /// The verb with its recipe.
    pub(crate) verb: Verb,
    /// What does not change the content.
    pub(crate) options: JobOptions,
    /// Whether anything is written.
    pub(crate) mode: Mode,
    /// How the answer is given.
    pub(crate) record: Record,
    /// No progress.
    pub(crate) quiet: bool,
    /// Bits per weight that the recipe's schemes are to be mixed to.
    pub(crate) target_bits: Option<f64>,
    /// Where the recipe is written to.
    pub(crate) save_recipe: Option<PathBuf>,
}

/// Whether anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The plan is printed, nothing is touched.
    DryRun,
    /// The plan is carried out.
    Run,
}

impl Mode {
    /// As `--dry-run` says.
    const fn of_switch(dry_run: bool) -> Self {
        if dry_run { Mode::DryRun } else { Mode::Run }
    }
}

impl Job {
    fn new(command: &'static str, paths: Paths, verb: Verb, args: &JobArgs) -> Self {
        Self {
            command,
            source: paths.source,
            destination: paths.destination,
            verb,
            options: job_options(args),
            mode: Mode::of_switch(args.dry_run),
            record: Record::of_switch(args.json),
            quiet: args.quiet,
            target_bits: None,
            save_recipe: None,
        }
    }
}

/// An audit, ready to run.
pub(crate) struct Audit {
    /// What is read.
    pub(crate) source: PathBuf,
    /// What it was made of.
    pub(crate) reference: Option<PathBuf>,
    /// How much is read.
    pub(crate) depth: Depth,
    /// The rules that run, at least one.
    pub(crate) rules: Vec<&'static Rule>,
    /// What it should be able to do.
    pub(crate) wanted: Wanted,
    /// The form of the report.
    pub(crate) format: FormatArg,
    /// Where it goes, if not to standard output.
    pub(crate) output: Option<PathBuf>,
    /// The mildest severity that is a failure.
    pub(crate) fail_on: Option<Severity>,
    /// What is done with what is known already.
    pub(crate) baseline: Baseline,
}

/// What is done with findings that are known already.
pub(crate) enum Baseline {
    /// There are none.
    None,
    /// Those of this file are left out.
    Read(PathBuf),
    /// All are written to this file, and the audit ends well.
    Write(PathBuf),
}

/// What `audit` means.
///
/// # Errors
/// Rules or runtimes that do not exist.
pub(crate) fn audit(args: AuditArgs) -> Result<Audit, Failure> {
    options::check_runtimes(&args.runtime)?;
    Ok(Audit {
        source: args.source,
        reference: args.reference,
        depth: match args.depth {
            DepthArg::Headers => Depth::Headers,
            DepthArg::Scales => Depth::Scales,
            DepthArg::Full => Depth::Full,
        },
        rules: options::rules(&args.select, &args.ignore)?,
        wanted: Wanted {
            tensor_parallel: args.tp,
            runtimes: args.runtime,
        },
        format: args.format,
        output: args.output,
        fail_on: match args.fail_on {
            LevelArg::Error => Some(Severity::Error),
            LevelArg::Warning => Some(Severity::Warning),
            LevelArg::Note => Some(Severity::Note),
            LevelArg::Never => None,
        },
        baseline: match (args.baseline, args.write_baseline) {
            (Some(path), _) => Baseline::Read(path),
            (None, Some(path)) => Baseline::Write(path),
            (None, None) => Baseline::None,
        },
    })
}

/// A repair, ready to be planned.
pub(crate) struct Repair {
    /// What is read.
    pub(crate) source: PathBuf,
    /// The rules whose findings are set right, at least one.
    pub(crate) rules: Vec<&'static Rule>,
    /// Where the result goes, and how.
    pub(crate) options: RepairOptions,
    /// Whether anything is written.
    pub(crate) mode: Mode,
    /// How the answer is given.
    pub(crate) record: Record,
}

/// What `repair` means.
///
/// # Errors
/// Rules that do not exist, or cannot be repaired.
pub(crate) fn repair(args: RepairArgs) -> Result<Repair, Failure> {
    Ok(Repair {
        source: args.paths.source,
        rules: options::repairs(&args.rules)?,
        options: RepairOptions {
            destination: args.paths.destination,
            mode: if args.force {
                Destination::Replace
            } else {
                Destination::New
            },
            weights: if args.copy {
                Weights::Copy
            } else {
                Weights::Link
            },
        },
        mode: Mode::of_switch(args.dry_run),
        record: Record::of_switch(args.json),
    })
}

/// A comparison, ready to run.
pub(crate) struct Diffing {
    /// A and B.
    pub(crate) sources: [PathBuf; 2],
    /// What is compared.
    pub(crate) options: audit::diff::Options,
    /// How the answer is given.
    pub(crate) record: Record,
}

/// What `diff` means.
///
/// # Errors
/// A pattern that cannot be compiled, a tolerance that is none.
pub(crate) fn diff(args: DiffArgs) -> Result<Diffing, Failure> {
    if !args.tolerance.is_finite() || args.tolerance < 0.0 {
        return Err(Failure::usage(
            format!("--tolerance {} is no distance", args.tolerance),
            "a relative distance such as 0.001; 0 asks for the same numbers",
        ));
    }
    let levels = args.level.into_iter().map(|level| match level {
        CompareArg::Structure => Level::Structure,
        CompareArg::Config => Level::Config,
        CompareArg::Codes => Level::Codes,
        CompareArg::Values => Level::Values,
    });
    let levels: Vec<Level> = levels.collect();
    Ok(Diffing {
        sources: [args.a, args.b],
        options: audit::diff::Options {
            levels: if levels.is_empty() {
                Level::ALL.to_vec()
            } else {
                levels
            },
            select: filter(args.filter.as_deref())?,
            tolerance: args.tolerance,
        },
        record: Record::of_switch(args.json),
    })
}

/// What `quantize` means.
///
/// # Errors
/// Options that do not go together; a calibration file that cannot be read.
pub(crate) fn quantize(args: QuantizeArgs) -> Result<Job, Failure> {
    // clap lets go of what an option requires where that excludes another one that is there.
    if args.target_bpw.is_some() && args.schemes.is_empty() {
        return Err(Failure::usage(
            "--target-bpw chooses among several schemes",
            "--schemes W3A16,W4A16,W8A16 instead of --scheme",
        ));
    }
    let opened = |path: &PathBuf| CalibrationFile::open(path, &Limits::default());
    let calibration = args.calibration.as_ref().map(opened).transpose();
    let calibration = calibration.map_err(safequant::rewrite::Error::from)?;
    let recipe = args.recipe.as_deref().map(text).transpose()?;
    let quantizing = Quantizing {
        scheme: args.scheme.as_deref(),
        schemes: &args.schemes,
        group_size: args.group_size,
        choosing: Choosing {
            method: args.method.as_deref(),
            effort: args.effort.as_deref(),
            order: args.order.as_deref(),
            damping: args.damping,
            biases: if args.bias_correction {
                Biases::Corrected
            } else {
                Biases::Kept
            },
        },
        targets: &args.targets,
        ignore: &args.ignore,
        convention: args.convention.as_deref(),
        recipe: recipe
            .as_ref()
            .map(|(name, text)| (name.as_str(), text.as_str())),
        calibration,
        division: match args.division {
            DivisionArg::Source => Division::SourceDtype,
            DivisionArg::F32 => Division::F32,
        },
        nonfinite: match args.nonfinite {
            NonFiniteArg::Refuse => NonFinite::Refuse,
            NonFiniteArg::Clamp => NonFinite::Clamp,
        },
    };
    let recipe = quantizing.resolve()?;
    let verb = Verb::Quantize(recipe);
    Ok(Job {
        target_bits: args.target_bpw.map(options::target_bits).transpose()?,
        save_recipe: args.save_recipe,
        ..Job::new("quantize", args.paths, verb, &args.job)
    })
}

/// What `refine` means.
///
/// # Errors
/// Words that do not exist; a reference or a calibration file that cannot be opened.
pub(crate) fn refine(args: RefineArgs) -> Result<Job, Failure> {
    options::check_patterns("--ignore", &args.ignore)?;
    let settings = options::refining(Choosing {
        method: None,
        effort: args.effort.as_deref(),
        order: args.order.as_deref(),
        damping: args.damping,
        biases: Biases::Kept,
    })?;
    let calibration = CalibrationFile::open(&args.calibration, &Limits::default());
    let recipe = RefineRecipe {
        reference: Reference::open(&args.reference, &Limits::default())?,
        calibration: calibration.map_err(safequant::rewrite::Error::from)?,
        settings,
        ignore: args.ignore,
    };
    let verb = Verb::Refine(recipe);
    Ok(Job::new("refine", args.paths, verb, &args.job))
}

/// A file's name and its text.
///
/// # Errors
/// If it cannot be read, or is longer than any recipe.
#[expect(
    clippy::disallowed_methods,
    reason = "a recipe is text that the user wrote, in no format of the container's"
)]
fn text(path: &Path) -> Result<(String, String), Failure> {
    let name = path.display().to_string();
    let failed = |source| Failure::File {
        path: name.clone(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let mut file = file.take(MAX_BYTES as u64 + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    Ok((name, text))
}

/// What `dequantize` means.
pub(crate) fn dequantize(args: DequantizeArgs) -> Job {
    let dtype = match args.dtype {
        DtypeArg::Auto => OutputDtype::Auto,
        DtypeArg::Bf16 => OutputDtype::Float(Float::Bf16),
        DtypeArg::F16 => OutputDtype::Float(Float::F16),
        DtypeArg::F32 => OutputDtype::Float(Float::F32),
    };
    let verb = Verb::Dequantize(DequantizeRecipe { dtype });
    Job::new("dequantize", args.paths, verb, &args.job)
}

/// What `convert` means.
///
/// # Errors
/// A pattern that cannot be compiled.
pub(crate) fn convert(args: ConvertArgs) -> Result<Job, Failure> {
    options::check_patterns("--ignore", &args.ignore)?;
    let recipe = ConvertRecipe {
        convention: options::written_convention(&args.to)?,
        loss: if args.allow_lossy {
            LossPolicy::Allow
        } else {
            LossPolicy::Refuse
        },
        ignore: args.ignore,
    };
    let verb = Verb::Convert(recipe);
    Ok(Job::new("convert", args.paths, verb, &args.job))
}

fn job_options(args: &JobArgs) -> JobOptions {
    JobOptions {
        memory_bytes: args.memory.0,
        threads: usize::from(args.threads.unwrap_or(0)),
        max_shard_bytes: args.max_shard_size.0,
        destination: match (args.resume, args.force) {
            (true, _) => Destination::Resume,
            (false, true) => Destination::Replace,
            (false, false) => Destination::New,
        },
    }
}

/// The compiled form of `--filter`.
///
/// # Errors
/// If it does not compile.
pub(crate) fn filter(pattern: Option<&str>) -> Result<Option<Pattern>, Failure> {
    let pattern = pattern.map(|text| options::pattern("--filter", text));
    Ok(pattern.transpose()?)
}
