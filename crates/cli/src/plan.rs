//! The command line as meant: what was typed becomes the libraries' options, or an error that says what would do.

use std::path::PathBuf;

use safequant::audit::diff::Level;
use safequant::audit::profile::{Profile, profile, profiles};
use safequant::audit::{self, Depth, Rule, Severity, Wanted};
use safequant::kernels::Float;
use safequant::quantize::Division;
use safequant::quantize::quantizer::NonFinite;
use safequant::rewrite::repair::{RepairOptions, Weights};
use safequant::rewrite::{
    ConvertRecipe, DequantizeRecipe, Destination, JobOptions, LossPolicy, OutputDtype,
    QuantizeRecipe, Verb,
};
use safequant::schemes::convention::writers_of;
use safequant::schemes::pattern::Pattern;
use safequant::schemes::{CONVENTIONS, Preset};

use crate::args::{
    AuditArgs, CompareArg, ConvertArgs, DepthArg, DequantizeArgs, DiffArgs, DivisionArg, DtypeArg,
    FormatArg, JobArgs, LevelArg, NonFiniteArg, Paths, QuantizeArgs, RepairArgs,
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
            options: options(args),
            mode: Mode::of_switch(args.dry_run),
            record: Record::of_switch(args.json),
            quiet: args.quiet,
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
    Ok(Audit {
        source: args.source,
        reference: args.reference,
        depth: match args.depth {
            DepthArg::Headers => Depth::Headers,
            DepthArg::Scales => Depth::Scales,
            DepthArg::Full => Depth::Full,
        },
        rules: rules(&args.select, &args.ignore)?,
        wanted: Wanted {
            tensor_parallel: args.tp,
            runtimes: runtimes(args.runtime)?,
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

/// The runtimes, all of which have a profile.
fn runtimes(names: Vec<String>) -> Result<Vec<String>, Failure> {
    if let Some(name) = names.iter().find(|name| profile(name).is_none()) {
        let known: Vec<String> = profiles().iter().map(Profile::name).collect();
        return Err(Failure::usage(
            format!("no runtime is called {name}, or not in this version"),
            format!("there are profiles of {}", known.join(", ")),
        ));
    }
    Ok(names)
}

/// The rules chosen: by id, by name, or by the letters of a family.
fn rules(select: &[String], ignore: &[String]) -> Result<Vec<&'static Rule>, Failure> {
    let is_one = |rule: &Rule, name: &str| {
        let family = &rule.id[..2];
        [rule.id, family]
            .iter()
            .any(|id| id.eq_ignore_ascii_case(name))
            || rule.name == name
    };
    for name in select.iter().chain(ignore) {
        if !audit::all_rules().any(|rule| is_one(rule, name)) {
            return Err(Failure::usage(
                format!("no audit rule is called {name}"),
                "`safequant explain` lists all rules; a family is chosen by its letters (SC)",
            ));
        }
    }
    let is_in = |rule: &Rule, names: &[String]| names.iter().any(|name| is_one(rule, name));
    let rules: Vec<_> = audit::all_rules()
        .filter(|rule| (select.is_empty() || is_in(rule, select)) && !is_in(rule, ignore))
        .collect();
    if rules.is_empty() {
        return Err(Failure::usage(
            "--ignore leaves no rule to run",
            "ignore less, or select more",
        ));
    }
    Ok(rules)
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
    let mut all = Vec::new();
    for name in args.rules {
        let chosen = rules(std::slice::from_ref(&name), &[])?;
        let (can, cannot): (Vec<_>, Vec<&Rule>) = chosen
            .into_iter()
            .partition(|rule| audit::repair::is_repairable(rule));
        // Of a family those are meant that can be.
        if let ([], Some(rule)) = (can.as_slice(), cannot.first()) {
            let ids: Vec<&str> = audit::repair::repairable().collect();
            return Err(Failure::usage(
                format!(
                    "{name} cannot be repaired: {}",
                    audit::repair::why_not(rule)
                ),
                format!("what can be repaired is {}", ids.join(", ")),
            ));
        }
        all.extend(can);
    }
    all.sort_by_key(|rule| rule.id);
    all.dedup_by_key(|rule| rule.id);
    Ok(Repair {
        source: args.paths.source,
        rules: all,
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
/// Options that do not go together.
pub(crate) fn quantize(args: QuantizeArgs) -> Result<Job, Failure> {
    let preset = preset(&args.scheme, args.group_size)?;
    check_patterns("--targets", &args.targets)?;
    check_patterns("--ignore", &args.ignore)?;
    let recipe = QuantizeRecipe {
        convention: convention(&preset, args.convention.as_deref())?,
        preset,
        method: method(&args.method)?,
        targets: args.targets,
        ignore: args.ignore,
        division: match args.division {
            DivisionArg::Source => Division::SourceDtype,
            DivisionArg::F32 => Division::F32,
        },
        nonfinite: match args.nonfinite {
            NonFiniteArg::Refuse => NonFinite::Refuse,
            NonFiniteArg::Clamp => NonFinite::Clamp,
        },
    };
    Ok(Job::new(
        "quantize",
        args.paths,
        Verb::Quantize(recipe),
        &args.job,
    ))
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
    check_patterns("--ignore", &args.ignore)?;
    let known = CONVENTIONS.iter().map(|c| c.id()).find(|id| *id == args.to);
    let recipe = ConvertRecipe {
        // clap has let through nothing else.
        convention: known.unwrap_or_default(),
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

fn options(args: &JobArgs) -> JobOptions {
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

/// The preset of this name with the group size asked for.
fn preset(name: &str, group_size: Option<i64>) -> Result<Preset, Failure> {
    let preset =
        Preset::by_name(name).map_err(|e| refused(&e, "see `safequant quantize --help`"))?;
    preset.with_group_size(group_size).map_err(|e| {
        refused(
            &e,
            "leave --group-size out, or choose a scheme with groups such as W4A16",
        )
    })
}

/// Patterns that do not compile are found before anything is opened.
fn check_patterns(option: &str, patterns: &[String]) -> Result<(), Failure> {
    patterns
        .iter()
        .try_for_each(|text| pattern(option, text).map(drop))
}

/// The compiled form of an option's pattern.
///
/// # Errors
/// If it does not compile.
pub(crate) fn pattern(option: &str, text: &str) -> Result<Pattern, Failure> {
    Pattern::new(text).map_err(|e| refused(&format!("{option}: {e}"), PATTERN_HELP))
}

/// The compiled form of `--filter`.
///
/// # Errors
/// If it does not compile.
pub(crate) fn filter(pattern: Option<&str>) -> Result<Option<Pattern>, Failure> {
    pattern
        .map(|text| self::pattern("--filter", text))
        .transpose()
}

const PATTERN_HELP: &str =
    "a pattern is a glob such as '*.mlp.*', or `re:` and a regular expression";

fn refused(problem: &dyn std::fmt::Display, help: &str) -> Failure {
    Failure::usage(problem.to_string(), help)
}

/// The convention asked for, or the preset's own.
fn convention(preset: &Preset, asked: Option<&str>) -> Result<&'static str, Failure> {
    let Some(asked) = asked else {
        let holders: Vec<&str> = writers_of(preset).collect();
        if holders.contains(&preset.default_convention) {
            return Ok(preset.default_convention);
        }
        return Err(Failure::usage(
            format!(
                "scheme {} goes with a convention of your choice; {} has it with calibrated scales only",
                preset.name, preset.default_convention
            ),
            format!("--convention {}", holders.join(", or ")),
        ));
    };
    let writers = || {
        CONVENTIONS
            .iter()
            .filter_map(|c| c.writer().map(|writer| (c.id(), writer)))
    };
    let found = writers().find(|(id, _)| *id == asked);
    let (id, writer) =
        found.ok_or_else(|| unknown("convention", asked, writers().map(|(id, _)| id)))?;
    if writer.presets().contains(&preset.name) {
        return Ok(id);
    }
    let able: Vec<_> = writers_of(preset).collect();
    Err(Failure::usage(
        format!("convention {id} cannot hold scheme {}", preset.name),
        format!(
            "{} goes with {}; {id} holds {}",
            preset.name,
            able.join(", "),
            writer.presets().join(", ")
        ),
    ))
}

/// The quantizer's own id.
fn method(asked: &str) -> Result<&'static str, Failure> {
    let ids = || {
        safequant::quantize::QUANTIZERS
            .iter()
            .map(|quantizer| quantizer.id())
    };
    ids()
        .find(|id| *id == asked)
        .ok_or_else(|| unknown("method", asked, ids()))
}

/// clap has checked the value against the same registry, so this says no more than it must.
fn unknown<'a>(what: &str, asked: &str, there_are: impl Iterator<Item = &'a str>) -> Failure {
    let list: Vec<_> = there_are.collect();
    Failure::usage(
        format!("unknown {what} {asked}"),
        format!("there are {}", list.join(", ")),
    )
}
