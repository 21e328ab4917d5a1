//! `bench`: what the kernels of this machine reach, each beside a copy of the same traffic and beside portable, in one run.

use safequant::Backend;
use safequant::options;
use safequant::rewrite::CancelToken;
use safequant::schemes::Pattern;

use crate::args::BenchArgs;
use crate::exit::Failure;
use crate::output::{self, Output};
use crate::signals::Listener;

mod measure;
mod report;
mod subject;

use self::subject::Subject;

/// Measures and prints.
///
/// # Errors
/// A pattern that matches no format, an answer that is not portable's, or Ctrl-C.
pub(crate) fn run(args: &BenchArgs, output: Output) -> Result<(), Failure> {
    let subjects = chosen(args)?;
    let plan = Plan::new(args);
    let cancel = CancelToken::default();
    let listener = Listener::install(
        cancel.clone(),
        "stopping after this format; once more to stop at once",
    )?;
    let mut measurements = Vec::new();
    for (at, &subject) in subjects.iter().enumerate() {
        if !args.quiet {
            let done = format!("{}/{} {}", at + 1, subjects.len(), subject.name());
            output::note(&done);
        }
        measurements.extend(measure::measure(subject, &plan, &cancel)?);
    }
    drop(listener);
    if args.json {
        Ok(output::json(&report::record(&plan, &measurements))?)
    } else {
        Ok(report::print(&plan, &measurements, output)?)
    }
}

/// What is measured of every format.
struct Plan {
    backend: &'static Backend,
    places: &'static [Place],
    threads: Vec<usize>,
    rounds: usize,
}

/// Where the data lies.
#[derive(Debug)]
struct Place {
    name: &'static str,
    /// Rows of each thread's matrix, or of all threads' matrix.
    rows: Rows,
    n_columns: usize,
    outputs: Outputs,
}

/// What results are written to.
#[derive(Clone, Copy, Debug)]
enum Outputs {
    /// Memory that is there.
    Given,
    /// The same, and memory that was never touched.
    GivenAndFresh,
}

/// How many rows there are, for how many threads.
#[derive(Clone, Copy, Debug)]
enum Rows {
    /// Each thread has its own cache.
    PerThread(usize),
    /// All share the memory.
    InAll(usize),
}

impl Place {
    fn n_rows(&self, threads: usize) -> usize {
        match self.rows {
            Rows::PerThread(n) => n * threads,
            Rows::InAll(n) => n,
        }
    }
}

/// In L2: codes, scales and BF16 results take 260 KiB at most. From memory: a matrix of Llama 3's 8B.
static PLACES: &[Place] = &[
    Place {
        name: "L2",
        rows: Rows::PerThread(16),
        n_columns: 4096,
        outputs: Outputs::Given,
    },
    Place {
        name: "DRAM",
        rows: Rows::InAll(4096),
        n_columns: 14336,
        outputs: Outputs::GivenAndFresh,
    },
];

impl Plan {
    fn new(args: &BenchArgs) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut threads = match args.threads {
            Some(n) => vec![usize::from(n)],
            None if args.quick => vec![1],
            None => vec![1, cores],
        };
        threads.dedup();
        Self {
            backend: Backend::detect(),
            places: PLACES,
            threads,
            rounds: if args.quick { 3 } else { 9 },
        }
    }
}

/// The formats that `--only` asks for.
fn chosen(args: &BenchArgs) -> Result<Vec<Subject>, Failure> {
    let compiled = args
        .only
        .iter()
        .map(|text| options::pattern("--only", text));
    let patterns = compiled.collect::<Result<Vec<Pattern>, _>>()?;
    let mut subjects = Vec::new();
    for subject in Subject::all() {
        let mut is_asked_for = patterns.is_empty();
        for pattern in &patterns {
            is_asked_for |= pattern.is_match(subject.name())?;
        }
        if is_asked_for {
            subjects.push(subject);
        }
    }
    if subjects.is_empty() {
        let names: Vec<&str> = Subject::all().map(Subject::name).collect();
        return Err(Failure::usage(
            "--only matches no format",
            format!("there are {}", names.join(", ")),
        ));
    }
    Ok(subjects)
}
