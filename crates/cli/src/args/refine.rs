//! `refine`, as typed.

use std::path::PathBuf;

use clap::Args;

use super::{JobArgs, Paths, efforts, orders};

/// `refine`, as typed.
#[derive(Debug, Args)]
pub(crate) struct RefineArgs {
    #[command(flatten)]
    pub(crate) paths: Paths,
    /// The dense checkpoint it was made of
    #[arg(long, value_name = "BASE")]
    pub(crate) reference: PathBuf,
    /// Statistics of the modules' inputs, with the whole second moment: what `safequant.calibrate` of the Python package writes
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: PathBuf,
    /// How hard it tries [default: default]
    #[arg(long, value_name = "EFFORT", value_parser = efforts())]
    pub(crate) effort: Option<String>,
    /// The order in which error feedback rounds columns [default: the one that loses least]
    #[arg(long, value_name = "ORDER", value_parser = orders())]
    pub(crate) order: Option<String>,
    /// What is added to the diagonal of the second moment, as a share of its mean [default: by the tokens per column]
    #[arg(long, value_name = "SHARE")]
    pub(crate) damping: Option<f64>,
    /// Modules that keep their codes: a glob, or `re:` and a regular expression; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) ignore: Vec<String>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}
