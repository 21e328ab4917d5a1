//! Medians of interleaved rounds: the copy, the backend, the copy, the backend ...

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use safequant::container::ErrorGroup;
use safequant::kernels::samples::{Sample, Work, copy_traffic};
use safequant::kernels::{PORTABLE, Stores};
use safequant::rewrite::{self, CancelToken};
use safequant::{Backend, Float};

use super::{Place, Plan};
use crate::exit::Failure;
use crate::output::{len, real};

/// What results are rounded to.
pub(super) const FLOAT: Float = Float::Bf16;

/// Portable is measured on a part of the rows: from memory it takes a second, and its arithmetic is what limits it anyway.
const PORTABLE_ROWS: usize = 256;

/// A round runs until at least so many bytes have moved, so that the clock is no part of the result.
const BYTES_PER_ROUND: usize = 32 << 20;

/// One format in one place on so many threads.
pub(super) struct Measurement {
    pub(super) sample: &'static str,
    pub(super) place: &'static str,
    pub(super) threads: usize,
    /// Bytes per second, in plus out.
    pub(super) rate: f64,
    /// The same of the copy.
    pub(super) copy: f64,
    /// The same of portable, on one thread.
    pub(super) portable: f64,
}

/// Measures a format in every place with every number of threads.
///
/// # Errors
/// If a result is not portable's, or the user has had enough.
pub(super) fn measure(
    sample: &'static Sample,
    plan: &Plan,
    cancel: &CancelToken,
) -> Result<Vec<Measurement>, Failure> {
    let mut measurements = Vec::new();
    for place in plan.places {
        for &threads in &plan.threads {
            if cancel.is_canceled() {
                return Err(rewrite::Error::Canceled.into());
            }
            measurements.push(one(sample, plan, place, threads)?);
        }
    }
    Ok(measurements)
}

fn one(
    sample: &'static Sample,
    plan: &Plan,
    place: &Place,
    threads: usize,
) -> Result<Measurement, Failure> {
    let n_rows = place.n_rows(threads);
    let work = Work::new(sample, n_rows, place.n_columns);
    let mut out = vec![0; work.out_len(n_rows, FLOAT)];
    let run = Run {
        work: &work,
        stores: Stores::for_len(out.len() / threads),
        rows: n_rows.div_ceil(threads).next_multiple_of(8),
        n_rows,
    };
    let (mut rates, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        copies.push(run.rate(&mut out, |rows, out| {
            let from = work.stored_len(rows.start)..work.stored_len(rows.end);
            copy_traffic(plan.backend, &work.stored()[from], out, run.stores);
        }));
        rates.push(run.rate(&mut out, |rows, out| {
            work.decode(plan.backend, rows, (FLOAT, out), run.stores);
        }));
    }
    Ok(Measurement {
        sample: sample.name,
        place: place.name,
        threads,
        rate: median(rates),
        copy: median(copies),
        portable: portable(sample, &work, &out, n_rows.min(PORTABLE_ROWS), plan.backend)?,
    })
}

/// One matrix and how threads share it.
struct Run<'w> {
    work: &'w Work,
    stores: Stores,
    /// Rows of each thread but the last.
    rows: usize,
    n_rows: usize,
}

impl Run<'_> {
    /// Bytes per second of `kernel`, run by each thread on its own rows, as often as makes a round.
    fn rate(
        &self,
        out: &mut [u8],
        kernel: impl Fn(std::ops::Range<usize>, &mut [u8]) + Sync,
    ) -> f64 {
        let traffic = self.work.stored().len() + out.len();
        let times = (BYTES_PER_ROUND / traffic).max(1);
        let parts = out.chunks_mut(self.work.out_len(self.rows, FLOAT));
        let start = Barrier::new(parts.len());
        // Each thread looks at the clock itself: who waits for it may be woken long after.
        let work = |(at, part): (usize, &mut [u8])| {
            let first = at * self.rows;
            start.wait();
            let begun = Instant::now();
            for _ in 0..times {
                kernel(first..(first + self.rows).min(self.n_rows), part);
            }
            (begun, Instant::now())
        };
        let work = &work;
        let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
            let threads: Vec<_> = parts
                .enumerate()
                .map(|part| scope.spawn(move || work(part)))
                .collect();
            threads.into_iter().filter_map(|t| t.join().ok()).collect()
        });
        let begun = spans.iter().map(|(begun, _)| *begun).min();
        let ended = spans.iter().map(|(_, ended)| *ended).max();
        let span = begun.zip(ended).map(|(begun, ended)| ended - begun);
        let seconds = span.map_or(f64::INFINITY, |span| span.as_secs_f64());
        real(len(traffic * times)) / seconds.max(1e-9)
    }
}

/// The rate of portable on the first rows, whose results those of the backend must be.
fn portable(
    sample: &Sample,
    work: &Work,
    found: &[u8],
    n_rows: usize,
    backend: &Backend,
) -> Result<f64, Failure> {
    let mut expected = vec![0; work.out_len(n_rows, FLOAT)];
    let begun = Instant::now();
    work.decode(
        &PORTABLE,
        0..n_rows,
        (FLOAT, &mut expected),
        Stores::Ordinary,
    );
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    if found.get(..expected.len()) != Some(&expected) {
        return Err(Failure::Library {
            code: "wrong_answer",
            group: ErrorGroup::Unsupported,
            message: format!(
                "{}: {} does not compute what portable computes",
                sample.name, backend.name
            ),
            help: Some("a defect of safequant or of this machine: please report it".to_owned()),
        });
    }
    Ok(real(len(work.stored_len(n_rows) + expected.len())) / seconds)
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
