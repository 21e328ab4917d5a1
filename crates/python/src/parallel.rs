//! What of a checkpoint one rank of a tensor-parallel group holds.

use std::ops::Range;
use std::path::PathBuf;

use pyo3::prelude::*;
use safequant::audit::parallel::{self, Cut, RankShare};
use safequant::audit::{Subject, Wanted};
use safequant::container::{Checkpoint, Limits};

use crate::errors::Failure;

/// A name of the dense checkpoint; the dimension that it is cut along and the ranges that are the rank's, none if it has all.
type Share = (String, Option<(usize, Vec<(u64, u64)>)>);

/// What rank `rank` of `world` holds of every tensor of the dense checkpoint that `source` stands for.
#[pyfunction]
pub(crate) fn shares(
    py: Python<'_>,
    source: PathBuf,
    rank: u64,
    world: u64,
) -> PyResult<Vec<Share>> {
    let shared = || -> Result<Vec<RankShare>, Failure> {
        let checkpoint = Checkpoint::open(&source, &Limits::default())?;
        let subject = Subject::new(&checkpoint, Vec::new(), Wanted::default());
        let shares = parallel::shares(&subject, rank, world);
        shares.map_err(|error| Failure::usage(error.to_string()))
    };
    Ok(py.detach(shared)?.into_iter().map(plain).collect())
}

fn plain(share: RankShare) -> Share {
    let ends = |range: Range<u64>| (range.start, range.end);
    let cut = |cut: Cut| (cut.dimension, cut.ranges.into_iter().map(ends).collect());
    (share.name, share.cut.map(cut))
}
