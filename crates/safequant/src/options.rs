//! Options as people write them, looked up in the registries: the command line and the Python package ask here, so that both
//! take the same words and refuse them with the same sentences.

use safequant_audit::profile::{Profile, profile, profiles};
use safequant_audit::{Rule, all_rules, repair};
use safequant_quantize::quantizer::{Division, NonFinite};
use safequant_quantize::{Biases, Effort, Needs, Order, QUANTIZERS, Settings};
use safequant_rewrite::{AUTO, AWQ, CalibrationFile, QuantizeRecipe, SchemeGroup};
use safequant_schemes::convention::writers_of;
use safequant_schemes::pattern::Pattern;
use safequant_schemes::{CONVENTIONS, ConventionWriter, Preset};

use crate::recipe::Recipe;

/// An option names something that does not exist, or does not go with the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionError {
    /// What is wrong, in one line.
    pub message: String,
    /// What would do.
    pub help: String,
}

impl OptionError {
    /// An error with a hint.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
        }
    }

    fn unknown<'a>(what: &str, asked: &str, there_are: impl Iterator<Item = &'a str>) -> Self {
        let list: Vec<_> = there_are.collect();
        Self::new(
            format!("unknown {what} {asked}"),
            format!("there are {}", list.join(", ")),
        )
    }
}

/// The preset of this name with the group size asked for.
///
/// # Errors
/// No such scheme; a group size that it does not take.
pub fn preset(name: &str, group_size: Option<i64>) -> Result<Preset, OptionError> {
    let refused = |error: safequant_schemes::Error, help| OptionError::new(error.to_string(), help);
    let preset =
        Preset::by_name(name).map_err(|e| refused(e, "see `safequant quantize --help`"))?;
    preset.with_group_size(group_size).map_err(|e| {
        refused(
            e,
            "leave --group-size out, or choose a scheme with groups such as W4A16",
        )
    })
}

/// The convention asked for, which must be able to hold the preset, or the preset's own.
///
/// # Errors
/// No such convention, none that holds the preset; a preset that has no convention of its own.
pub fn convention(preset: &Preset, asked: Option<&str>) -> Result<&'static str, OptionError> {
    let Some(asked) = asked else {
        let holders: Vec<&str> = writers_of(preset).collect();
        if holders.contains(&preset.default_convention) {
            return Ok(preset.default_convention);
        }
        return Err(OptionError::new(
            format!(
                "scheme {} goes with a convention of your choice; {} has it with calibrated scales only",
                preset.name, preset.default_convention
            ),
            format!("--convention {}", holders.join(", or ")),
        ));
    };
    let (id, writer) = writer(asked)?;
    if writer.presets().contains(&preset.name) {
        return Ok(id);
    }
    let able: Vec<_> = writers_of(preset).collect();
    Err(OptionError::new(
        format!("convention {id} cannot hold scheme {}", preset.name),
        format!(
            "{} goes with {}; {id} holds {}",
            preset.name,
            able.join(", "),
            writer.presets().join(", ")
        ),
    ))
}

/// The convention that is to be written.
///
/// # Errors
/// No such convention, or one that is only read.
pub fn written_convention(asked: &str) -> Result<&'static str, OptionError> {
    writer(asked).map(|(id, _)| id)
}

fn writer(asked: &str) -> Result<(&'static str, &'static dyn ConventionWriter), OptionError> {
    let writers = || {
        CONVENTIONS
            .iter()
            .filter_map(|c| c.writer().map(|writer| (c.id(), writer)))
    };
    writers()
        .find(|(id, _)| *id == asked)
        .ok_or_else(|| OptionError::unknown("convention", asked, writers().map(|(id, _)| id)))
}

/// What `quantize` is asked for, as words.
#[derive(Debug)]
pub struct Quantizing<'a> {
    /// `--scheme`; `None` with a recipe, or with schemes to choose among.
    pub scheme: Option<&'a str>,
    /// `--schemes`: what is to be chosen among, module by module ([`safequant_rewrite::mixed`]).
    pub schemes: &'a [String],
    /// `--group-size`.
    pub group_size: Option<i64>,
    /// `--method` and what goes with it.
    pub choosing: Choosing<'a>,
    /// `--targets`.
    pub targets: &'a [String],
    /// `--ignore`.
    pub ignore: &'a [String],
    /// `--convention`.
    pub convention: Option<&'a str>,
    /// `--recipe`: the file's name and its text.
    pub recipe: Option<(&'a str, &'a str)>,
    /// `--calibration`.
    pub calibration: Option<CalibrationFile>,
    /// `--division`.
    pub division: Division,
    /// `--nonfinite`.
    pub nonfinite: NonFinite,
}

impl Quantizing<'_> {
    /// What the engine takes.
    ///
    /// # Errors
    /// What does not exist, or does not go together; a recipe that says what is not covered.
    pub fn resolve(self) -> Result<QuantizeRecipe, OptionError> {
        check_patterns("--targets", self.targets)?;
        check_patterns("--ignore", self.ignore)?;
        let mut read = match (self.recipe, self.scheme) {
            (Some((file, text)), None) => Recipe::parse(file, text, self.calibration.as_ref())?,
            (None, Some(scheme)) if self.schemes.is_empty() => self.plain(&[scheme])?,
            (None, None) if !self.schemes.is_empty() => {
                let schemes: Vec<&str> = self.schemes.iter().map(String::as_str).collect();
                self.plain(&schemes)?
            }
            (Some(_), Some(_)) | (None, None | Some(_)) => {
                return Err(OptionError::new(
                    "expected one of --scheme, --schemes and --recipe",
                    "--scheme W4A16, or --recipe FILE that names schemes and modules",
                ));
            }
        };
        read.ignore.extend_from_slice(self.ignore);
        let convention = common_convention(&read, self.convention)?;
        Ok(QuantizeRecipe {
            groups: read.groups,
            convention,
            calibration: self.calibration,
            ignore: read.ignore,
            division: self.division,
            nonfinite: self.nonfinite,
            notes: read.notes,
        })
    }

    fn plain(&self, schemes: &[&str]) -> Result<Recipe, OptionError> {
        let (method, settings) = self.choosing.resolve(self.calibration.as_ref())?;
        let group = |scheme: &&str| {
            Ok(SchemeGroup {
                preset: preset(scheme, self.group_size)?,
                method,
                settings,
                targets: self.targets.to_vec(),
                ignore: Vec::new(),
            })
        };
        Ok(Recipe {
            groups: schemes
                .iter()
                .map(group)
                .collect::<Result<_, OptionError>>()?,
            ..Recipe::default()
        })
    }
}

/// The bits per weight of `--target-bpw`.
///
/// # Errors
/// A number that no weight takes.
pub fn target_bits(asked: f64) -> Result<f64, OptionError> {
    if asked.is_finite() && asked > 0.0 && asked <= 32.0 {
        return Ok(asked);
    }
    Err(OptionError::new(
        format!("{asked} bits per weight are none"),
        "a number such as 4.25",
    ))
}

/// The convention asked for, the recipe's, or the one that is the own of all its schemes; it must hold all of them.
fn common_convention(recipe: &Recipe, asked: Option<&str>) -> Result<&'static str, OptionError> {
    let own: Vec<&str> = recipe
        .groups
        .iter()
        .map(|g| g.preset.default_convention)
        .collect();
    let common = match own.as_slice() {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => None,
        _ => Some("compressed-tensors"),
    };
    let asked = asked.or(recipe.convention).or(common);
    let mut found = None;
    for group in &recipe.groups {
        found = Some(convention(&group.preset, asked)?);
    }
    found.ok_or_else(|| OptionError::new("the recipe has no group", "name a scheme"))
}

/// The words for a method, each with a line about it: those of all quantizers, and the one that stands for the best of them.
pub fn methods() -> impl Iterator<Item = (&'static str, &'static str)> {
    let quantizers = QUANTIZERS.iter().map(|q| (q.id(), q.summary()));
    [(AUTO, AUTO_SUMMARY), (AWQ, AWQ_SUMMARY)]
        .into_iter()
        .chain(quantizers)
}

const AUTO_SUMMARY: &str =
    "the best for what is known of each module's inputs; the plan says which";

const AWQ_SUMMARY: &str = "mse after scaling input features, the scales folded exactly into the norm or linear layer before, for Llama, Mistral, Mixtral, Qwen, \
     Gemma and Phi; needs --calibration";

/// How codes and scales are chosen, as it was asked for: words of registries, and a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choosing<'a> {
    /// `--method`.
    pub method: Option<&'a str>,
    /// `--effort`.
    pub effort: Option<&'a str>,
    /// `--order`.
    pub order: Option<&'a str>,
    /// `--damping`.
    pub damping: Option<f64>,
    /// `--bias-correction`.
    pub biases: Biases,
}

impl Choosing<'_> {
    /// The method's own id and its settings. Without a word for it, it is rounding to nearest, and with statistics of inputs the
    /// best for each module.
    ///
    /// # Errors
    /// No such method, effort or order; a damping that is no share; settings for a method that has none.
    pub fn resolve(
        &self,
        calibration: Option<&CalibrationFile>,
    ) -> Result<(&'static str, Settings), OptionError> {
        let default = calibration.map_or("rtn", |_| AUTO);
        let method = method(self.method.unwrap_or(default))?;
        let settings = refining(*self)?;
        let quantizer = QUANTIZERS.iter().find(|q| q.id() == method);
        let is_needed =
            method == AWQ || quantizer.is_some_and(|q| q.needs() == Needs::SecondMoment);
        if calibration.is_none() && is_needed {
            return Err(OptionError::new(
                format!("method {method} needs statistics of the modules' inputs"),
                "--calibration FILE: what `safequant.calibrate` of the Python package writes",
            ));
        }
        let has_settings = quantizer.is_none_or(|q| q.needs() != Needs::Nothing);
        if self.biases == Biases::Corrected && (calibration.is_none() || method == AWQ) {
            return Err(OptionError::new(
                "biases are corrected by the mean of inputs as they are",
                "--calibration FILE, and another method than awq, which scales inputs",
            ));
        }
        let is_set = self.effort.is_some()
            || self.order.is_some()
            || self.damping.is_some()
            || self.biases == Biases::Corrected;
        if is_set && !has_settings {
            return Err(OptionError::new(
                format!(
                    "method {method} has no effort, order, damping or bias correction to choose"
                ),
                "leave them out, or choose a method that searches, such as auto",
            ));
        }
        Ok((method, settings))
    }
}

/// The settings of `refine`, whose method is no choice.
///
/// # Errors
/// No such effort or order; a damping that is no share.
pub fn refining(choosing: Choosing<'_>) -> Result<Settings, OptionError> {
    Ok(Settings {
        effort: choosing.effort.map(effort).transpose()?.unwrap_or_default(),
        order: choosing.order.map(order).transpose()?,
        damping: choosing.damping.map(damping).transpose()?,
        biases: choosing.biases,
    })
}

/// The quantizer's own id, or `auto`.
///
/// # Errors
/// No such quantizer.
pub fn method(asked: &str) -> Result<&'static str, OptionError> {
    let ids = || methods().map(|(id, _)| id);
    ids()
        .find(|id| *id == asked)
        .ok_or_else(|| OptionError::unknown("method", asked, ids()))
}

fn effort(asked: &str) -> Result<Effort, OptionError> {
    let found = Effort::ALL.into_iter().find(|e| e.name() == asked);
    let words = Effort::ALL.iter().map(|e| e.name());
    found.ok_or_else(|| OptionError::unknown("effort", asked, words))
}

fn order(asked: &str) -> Result<Order, OptionError> {
    let found = Order::ALL.into_iter().find(|o| o.name() == asked);
    let words = Order::ALL.iter().map(|o| o.name());
    found.ok_or_else(|| OptionError::unknown("order", asked, words))
}

pub(crate) fn damping(asked: f64) -> Result<f64, OptionError> {
    if asked.is_finite() && (0.0..=MOST_DAMPING).contains(&asked) {
        return Ok(asked);
    }
    Err(OptionError::new(
        format!("damping {asked} is no share of the mean diagonal"),
        "a number from 0 to 1, such as 0.01",
    ))
}

/// With as much as the diagonal itself nothing is left of what is off it.
const MOST_DAMPING: f64 = 1.0;

/// The compiled form of an option's pattern.
///
/// # Errors
/// If it does not compile.
pub fn pattern(option: &str, text: &str) -> Result<Pattern, OptionError> {
    Pattern::new(text).map_err(|e| {
        OptionError::new(
            format!("{option}: {e}"),
            "a pattern is a glob such as '*.mlp.*', or `re:` and a regular expression",
        )
    })
}

/// Finds patterns that do not compile before anything is opened.
///
/// # Errors
/// The first pattern that does not compile.
pub fn check_patterns(option: &str, patterns: &[String]) -> Result<(), OptionError> {
    patterns
        .iter()
        .try_for_each(|text| pattern(option, text).map(drop))
}

/// The audit rules chosen: by id, by name, or by the letters of a family. No `select` means all of them.
///
/// # Errors
/// A name that no rule has; a choice that leaves none.
pub fn rules(select: &[String], ignore: &[String]) -> Result<Vec<&'static Rule>, OptionError> {
    let is_one = |rule: &Rule, name: &str| {
        let family = &rule.id[..2];
        [rule.id, family]
            .iter()
            .any(|id| id.eq_ignore_ascii_case(name))
            || rule.name == name
    };
    for name in select.iter().chain(ignore) {
        if !all_rules().any(|rule| is_one(rule, name)) {
            return Err(OptionError::new(
                format!("no audit rule is called {name}"),
                "`safequant explain` lists all rules; a family is chosen by its letters (SC)",
            ));
        }
    }
    let is_in = |rule: &Rule, names: &[String]| names.iter().any(|name| is_one(rule, name));
    let rules: Vec<_> = all_rules()
        .filter(|rule| (select.is_empty() || is_in(rule, select)) && !is_in(rule, ignore))
        .collect();
    if rules.is_empty() {
        return Err(OptionError::new(
            "--ignore leaves no rule to run",
            "ignore less, or select more",
        ));
    }
    Ok(rules)
}

/// The rules whose findings are to be set right: of a family those are meant that can be.
///
/// # Errors
/// A name that no rule has, or a rule that cannot be repaired.
pub fn repairs(names: &[String]) -> Result<Vec<&'static Rule>, OptionError> {
    let mut all = Vec::new();
    for name in names {
        let chosen = rules(std::slice::from_ref(name), &[])?;
        let (can, cannot): (Vec<_>, Vec<&Rule>) = chosen
            .into_iter()
            .partition(|rule| repair::is_repairable(rule));
        if let ([], Some(rule)) = (can.as_slice(), cannot.first()) {
            let ids: Vec<&str> = repair::repairable().collect();
            return Err(OptionError::new(
                format!("{name} cannot be repaired: {}", repair::why_not(rule)),
                format!("what can be repaired is {}", ids.join(", ")),
            ));
        }
        all.extend(can);
    }
    all.sort_by_key(|rule| rule.id);
    all.dedup_by_key(|rule| rule.id);
    Ok(all)
}

/// Finds names of runtimes that have no profile.
///
/// # Errors
/// The first such name.
pub fn check_runtimes(names: &[String]) -> Result<(), OptionError> {
    let Some(name) = names.iter().find(|name| profile(name).is_none()) else {
        return Ok(());
    };
    let known: Vec<String> = profiles().iter().map(Profile::name).collect();
    Err(OptionError::new(
        format!("no runtime is called {name}, or not in this version"),
        format!("there are profiles of {}", known.join(", ")),
    ))
}
