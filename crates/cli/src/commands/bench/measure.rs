//! Medians of interleaved rounds: the copy, the backend, the copy, the backend ...

use std::ops::Range;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use safequant::Backend;
use safequant::container::{AlignedBuffer, ErrorGroup};
use safequant::kernels::samples::copy_traffic;
use safequant::kernels::{PORTABLE, Stores};
use safequant::rewrite::{self, CancelToken};

use super::subject::{Matrix, Subject};
use super::{Outputs, Place, Plan};
use crate::exit::Failure;
use crate::output::{len, real};

/// Portable is measured on a part of the rows: from memory it takes a second, and its arithmetic is what limits it anyway.
const PORTABLE_ROWS: usize = 256;

/// A round runs until at least so many bytes have moved, so that the clock is no part of the result.
const BYTES_PER_ROUND: usize = 32 << 20;

/// One format in one place on so many threads.
pub(super) struct Measurement {
    pub(super) format: &'static str,
    pub(super) place: &'static str,
    pub(super) threads: usize,
    /// Bytes per second, in plus out, into memory that is there.
    pub(super) rate: f64,
    /// The same into a fresh buffer, where that is measured.
    pub(super) fresh: Option<f64>,
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
    subject: Subject,
    plan: &Plan,
    cancel: &CancelToken,
) -> Result<Vec<Measurement>, Failure> {
    let mut measurements = Vec::new();
    for place in plan.places {
        for &threads in &plan.threads {
            if cancel.is_canceled() {
                return Err(rewrite::Error::Canceled.into());
            }
            measurements.push(one(subject, plan, place, threads)?);
        }
    }
    Ok(measurements)
}

fn one(
    subject: Subject,
    plan: &Plan,
    place: &Place,
    threads: usize,
) -> Result<Measurement, Failure> {
    let n_rows = place.n_rows(threads);
    let matrix = subject.matrix(n_rows, place.n_columns);
    let buffer = || AlignedBuffer::zeroed(len(matrix.out_len(n_rows)), subject.name());
    let mut out = buffer()?;
    let run = Run {
        matrix: &matrix,
        stores: Stores::for_len(out.len() / threads),
        rows: n_rows.div_ceil(threads).next_multiple_of(8),
        n_rows,
    };
    let decode = |rows: Range<usize>, out: &mut [u8]| {
        matrix.decode(plan.backend, rows, out, run.stores);
    };
    let copy = |rows: Range<usize>, out: &mut [u8]| {
        let from = matrix.stored_len(rows.start)..matrix.stored_len(rows.end);
        copy_traffic(plan.backend, &matrix.stored()[from], out, run.stores);
    };
    let (mut rates, mut copies, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        copies.push(run.rate(&mut out, copy));
        match place.outputs {
            Outputs::Given => {}
            Outputs::GivenAndFresh => fresh.push(run.rate(&mut buffer()?, decode)),
        }
        rates.push(run.rate(&mut out, decode));
    }
    Ok(Measurement {
        format: subject.name(),
        place: place.name,
        threads,
        rate: median(rates).unwrap_or_default(),
        fresh: median(fresh),
        copy: median(copies).unwrap_or_default(),
        portable: portable(
            subject,
            &matrix,
            &out,
            n_rows.min(PORTABLE_ROWS),
            plan.backend,
        )?,
    })
}

/// One matrix and how threads share it.
struct Run<'m> {
    matrix: &'m Matrix,
    stores: Stores,
    /// Rows of each thread but the last.
    rows: usize,
    n_rows: usize,
}

impl Run<'_> {
    /// Bytes per second of `kernel`, run by each thread on its own rows, as often as makes a round.
    fn rate(&self, out: &mut [u8], kernel: impl Fn(Range<usize>, &mut [u8]) + Sync) -> f64 {
        let traffic = self.matrix.stored().len() + out.len();
        let times = (BYTES_PER_ROUND / traffic).max(1);
        let parts = out.chunks_mut(self.matrix.out_len(self.rows));
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
    subject: Subject,
    matrix: &Matrix,
    found: &[u8],
    n_rows: usize,
    backend: &Backend,
) -> Result<f64, Failure> {
    let mut expected = vec![0; matrix.out_len(n_rows)];
    let begun = Instant::now();
    matrix.decode(&PORTABLE, 0..n_rows, &mut expected, Stores::Ordinary);
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    if found.get(..expected.len()) != Some(&expected) {
        return Err(Failure::Library {
            code: "wrong_answer",
            group: ErrorGroup::Unsupported,
            message: format!(
                "{}: {} does not compute what portable computes",
                subject.name(),
                backend.name
            ),
            help: Some("a defect of safequant or of this machine: please report it".to_owned()),
        });
    }
    Ok(real(len(matrix.stored_len(n_rows) + expected.len())) / seconds)
}

/// The middle one.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
