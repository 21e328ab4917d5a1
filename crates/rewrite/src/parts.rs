//! One job, carried out in parts by several processes on machines that reach one storage, and published once.
//!
//! ```text
//! begin ---> run_part 0 --+
//!      \---> run_part 1 --+--> finish
//!       \--> run_part 2 --+
//! ```
//!
//! Everybody opens the same source and plans the same job; planning is deterministic, and the journal of the job has the
//! fingerprint that every part is held against. A part is a run of whole output files, and nobody but the owner of a file's lock
//! writes it, so that any two parts may run at the same time, a part may be asked for twice, and the number of parts may
//! change from one attempt to the next: what is done is known by file. [`finish`] publishes by the code of [`crate::run`], and the
//! result has the same bytes, the manifest's included (specs/journal.md, clauses 16-23; docs/adr/0011-jobs-in-parts.md).
//!
//! The options of a [`Plan`] that say how to go on with an earlier job are those of [`begin`]. Whoever runs a part or finishes plans
//! with [`crate::Destination::Resume`]: the destination may be there already when a lost answer is asked for again.

mod divide;
mod work;

use std::ops::Range;

use safequant_container::Disk;

use crate::journal::{Journal, Record, make_dir};
use crate::outputs::file_of;
use crate::steps::Step;
use crate::stream::{modules, summary};
use crate::workspace::{Workspace, exists, parts_dir};
use crate::{CancelToken, Destination, Error, Events, ModuleSummary, Plan, Summary};

use self::divide::divide;
use self::work::{PartWork, journal_path};

/// A part of a job: some of its output files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 0.
    pub index: usize,
    /// The output files it writes, as indices in [`Plan::files`].
    pub files: Range<usize>,
    /// Modules and plain tensors in them.
    pub n_modules: usize,
    /// Bytes read, but for passes over whole weights that a scheme needs first.
    pub source_bytes: u64,
    /// Bytes of tensors written.
    pub output_bytes: u64,
}

/// What [`begin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Begun {
    /// There are parts to run.
    Open,
    /// An earlier attempt published the result, and only [`finish`] is left, which then removes the partial work.
    Published,
}

/// What a part did.
#[derive(Clone, Debug, PartialEq)]
pub struct PartSummary {
    /// The part.
    pub part: Part,
    /// Its modules, in the plan's order.
    pub modules: Vec<ModuleSummary>,
    /// Largest sum of buffers held at once, in bytes.
    pub peak_buffer_bytes: u64,
    /// Modules taken over from an earlier attempt.
    pub resumed_modules: usize,
}

/// Divides a job into at most `n` parts, so that the bytes which the largest one reads and writes are as few as runs of
/// whole output files allow.
///
/// There are fewer than `n` parts where there are fewer files: a smaller [`crate::JobOptions::max_shard_bytes`] gives more. The
/// division depends on the plan alone.
pub fn parts(plan: &Plan<'_>, n: usize) -> Vec<Part> {
    let mut files = vec![(0, 0, 0); plan.job.shards.len()];
    for step in &plan.job.steps {
        if let Some((n_modules, read, written)) = file_of(step).and_then(|f| files.get_mut(f)) {
            *n_modules += 1;
            *read += step.source_bytes;
            *written += step.output_bytes();
        }
    }
    let weights: Vec<u64> = files
        .iter()
        .map(|(_, read, written)| read + written)
        .collect();
    let part = |(index, range): (usize, Range<usize>)| {
        let mut part = Part {
            index,
            files: range.clone(),
            n_modules: 0,
            source_bytes: 0,
            output_bytes: 0,
        };
        for (n_modules, read, written) in files.get(range).unwrap_or_default() {
            part.n_modules += n_modules;
            part.source_bytes += read;
            part.output_bytes += written;
        }
        part
    };
    divide(&weights, n)
        .into_iter()
        .enumerate()
        .map(part)
        .collect()
}

/// Makes everything ready for the parts: the partial work, its journal with the job's fingerprint, the directory for the output.
///
/// With [`Destination::Resume`] what earlier attempts did stays, be they parts or an ordinary run, and asking again changes
/// nothing, even while parts are running. Otherwise stale partial work is discarded.
///
/// # Errors
/// As at the start of [`crate::run`]; [`Error::Busy`] if the partial work is being finished or run by one process, or is to
/// be discarded while parts are running.
pub fn begin(plan: &Plan<'_>, disk: &dyn Disk, events: &dyn Events) -> Result<Begun, Error> {
    let mut is_open = false;
    let mut workspace = Workspace::open(plan, disk, events, |workspace, earlier| {
        is_open = earlier.in_parts;
        // What parts have done is read without their locks: it only tells how much room is needed.
        let mut records = earlier.records.clone();
        for file in workspace.outputs.files() {
            let path = journal_path(plan, file);
            let known = Journal::peek(disk, &path, &plan.job.fingerprint, &plan.job.steps)?;
            records.extend(known.into_iter().flat_map(|earlier| earlier.records));
        }
        let done = workspace.outputs.listed(&records).into_keys();
        let steps = done.filter_map(|i| plan.job.steps.get(i));
        Ok(steps.map(Step::output_bytes).sum())
    })?;
    if workspace.is_published() {
        return Ok(Begun::Published);
    }
    match open_to_parts(&mut workspace, is_open) {
        Ok(()) => Ok(Begun::Open),
        Err(error) => Err(workspace.abandon(error)),
    }
}

fn open_to_parts(workspace: &mut Workspace<'_>, is_open: bool) -> Result<(), Error> {
    workspace.prepare()?;
    make_dir(workspace.disk, &parts_dir(&workspace.plan.job.place))?;
    if is_open {
        return Ok(());
    }
    workspace.journal.open_to_parts()
}

/// Runs part `index` of the job that [`begin`] made ready, divided as [`parts`] does for `n_parts`.
///
/// When it returns, everything it wrote is durable, and so is the journal that says so. A file that an earlier attempt completed
/// is not done again: its header and length are checked, its data are not read. Of a file that an attempt left half-done, those
/// modules are taken over whose bytes, read back, have the digests that its journal lists.
///
/// A failure leaves a state that can be continued; it is [`discard`] that removes it.
///
/// # Errors
/// [`Error::PartDiffers`] naming the first field in which this plan is not the one that was begun (another source, recipe or
/// engine version), [`Error::NotBegun`], [`Error::NoSuchPart`]; [`Error::Busy`] while another attempt writes one of the files, or
/// while the job is being finished; everything that [`crate::run`] meets while it reads and writes.
pub fn run_part(
    plan: &Plan<'_>,
    index: usize,
    n_parts: usize,
    disk: &dyn Disk,
    events: &dyn Events,
    cancel: &CancelToken,
) -> Result<PartSummary, Error> {
    let mut all = parts(plan, n_parts);
    if index >= all.len() {
        let n_parts = all.len();
        return Err(Error::NoSuchPart { index, n_parts });
    }
    let part = all.swap_remove(index);
    let pool = plan.job.budget.pool()?;
    let mut work = PartWork::open(plan, part.files.clone(), disk, events, &pool)?;
    let resumed_modules = work.n_resumed();
    let peak_buffer_bytes = work.run(&pool, cancel)?;
    Ok(PartSummary {
        part,
        modules: modules(&work.outputs),
        peak_buffer_bytes,
        resumed_modules,
    })
}

/// Publishes a job whose parts are all done, as [`crate::run`] does at its end and by the same code.
///
/// Every output file must have the length and the header of the plan and a journal that lists all of its modules and says that
/// the file is complete and durable. The digests in the manifest are those that the parts took of the bytes as they wrote them;
/// the data are not read again here. In the summary no module is taken over and no buffer counted: [`PartSummary`] has these.
///
/// # Errors
/// [`Error::PartMissing`] if a file is not complete, [`Error::Busy`] while a part is running, [`Error::PartDiffers`] and
/// [`Error::NotBegun`] as [`run_part`]: then nothing has changed. Later ones are those of [`crate::run`]'s end and leave what it
/// leaves; the destination is untouched.
pub fn finish(
    plan: &Plan<'_>,
    disk: &dyn Disk,
    events: &dyn Events,
    cancel: &CancelToken,
) -> Result<Summary, Error> {
    let mut workspace = collect(plan, disk, events)?;
    let committed = if workspace.is_published() {
        Ok(())
    } else if cancel.is_canceled() {
        Err(Error::Canceled)
    } else {
        workspace.commit()
    };
    match committed {
        Ok(()) => {
            workspace.clean_up();
            Ok(summary(&workspace.outputs, 0))
        }
        Err(error) => Err(workspace.abandon(error)),
    }
}

/// Takes the lock of a job in parts, and what its parts say.
fn collect<'p>(
    plan: &'p Plan<'p>,
    disk: &'p dyn Disk,
    events: &'p dyn Events,
) -> Result<Workspace<'p>, Error> {
    let place = &plan.job.place;
    place.check(disk, plan.checkpoint, Destination::Resume)?;
    if !exists(disk, &place.journal)? {
        return Err(not_begun(plan));
    }
    let journal = Journal::open(disk, place)?;
    let mut workspace = Workspace::locked(plan, disk, events, journal);
    let job = &plan.job;
    let earlier = workspace.journal.earlier(&job.fingerprint, &job.steps);
    let earlier = earlier.map_err(differs)?.ok_or_else(|| not_begun(plan))?;
    workspace.recognize(&earlier)?;
    if !workspace.is_published() && !exists(disk, &parts_dir(place))? {
        return Err(not_begun(plan));
    }
    let files = workspace.outputs.files();
    let journals: Vec<_> = files.map(|file| journal_path(plan, file)).collect();
    if workspace.is_published() {
        // What the modules lost is all that is wanted here, and the journals may be gone.
        let records = records(plan, disk, &journals).unwrap_or_default();
        workspace.outputs.take_all(&records);
        return Ok(workspace);
    }
    let before = workspace.shut_out(&journals)?;
    if let Err(error) = take_complete(&mut workspace) {
        workspace.journal.reopen_to_parts(before)?;
        return Err(error);
    }
    Ok(workspace)
}

/// Takes the records of files that are complete, which must be all.
fn take_complete(workspace: &mut Workspace<'_>) -> Result<(), Error> {
    let (plan, disk) = (workspace.plan, workspace.disk);
    let files = workspace.outputs.files();
    let n_files = files.len();
    let mut complete = Vec::new();
    let mut records = Vec::new();
    for file in files.clone() {
        let path = journal_path(plan, file);
        let known = Journal::peek(disk, &path, &plan.job.fingerprint, &plan.job.steps);
        let known = known.map_err(differs)?.filter(|k| k.is_complete);
        complete.push(known.is_some());
        records.extend(known.into_iter().flat_map(|k| k.records));
    }
    let outputs = &mut workspace.outputs;
    let listed = outputs.listed(&records);
    let mut missing = Vec::new();
    for (file, is_complete) in files.zip(complete) {
        if !is_complete || !outputs.take_complete(file, &listed)? {
            missing.push(file);
        }
    }
    match missing.first().and_then(|&file| plan.job.shards.get(file)) {
        None => Ok(()),
        Some(first) => Err(Error::PartMissing {
            file: first.name.clone(),
            n_missing: missing.len(),
            n_files,
        }),
    }
}

/// Removes the partial work of a job in parts that is given up.
///
/// # Errors
/// [`Error::Busy`] while a part is running, or somebody finishes; I/O.
pub fn discard(plan: &Plan<'_>, disk: &dyn Disk, events: &dyn Events) -> Result<(), Error> {
    let place = &plan.job.place;
    if !exists(disk, &place.work)? {
        return Ok(());
    }
    let journal = Journal::open(disk, place)?;
    let mut workspace = Workspace::locked(plan, disk, events, journal);
    workspace.shut_out_all()?;
    let removed = disk.remove_dir_all(&place.work);
    removed.map_err(|e| Error::io(&place.work, "remove the directory", e))
}

/// Makes the work of parts that of one process; gives what they did. The journals of the files go, because one that outlives the
/// file it was about would be believed by [`finish`].
pub(crate) fn take_over(workspace: &mut Workspace<'_>) -> Result<Vec<Record>, Error> {
    let (plan, disk) = (workspace.plan, workspace.disk);
    let parts = parts_dir(&plan.job.place);
    if !exists(disk, &parts)? {
        return Ok(Vec::new());
    }
    let files = workspace.outputs.files();
    let journals: Vec<_> = files.map(|file| journal_path(plan, file)).collect();
    workspace.shut_out(&journals)?;
    let records = records(plan, disk, &journals)?;
    for record in &records {
        workspace.journal.add(record, 0)?;
    }
    workspace.journal.sync()?;
    let removed = disk.remove_dir_all(&parts);
    removed.map_err(|e| Error::io(&parts, "remove the directory", e))?;
    Ok(records)
}

/// What journals of files list.
fn records(
    plan: &Plan<'_>,
    disk: &dyn Disk,
    journals: &[std::path::PathBuf],
) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    for path in journals {
        let known = Journal::peek(disk, path, &plan.job.fingerprint, &plan.job.steps)?;
        records.extend(known.into_iter().flat_map(|known| known.records));
    }
    Ok(records)
}

fn not_begun(plan: &Plan<'_>) -> Error {
    Error::NotBegun {
        path: plan.job.place.work.display().to_string(),
    }
}

/// A job that differs is not one to resume, but one that a part does not belong to.
fn differs(error: Error) -> Error {
    let Error::ResumeDiffers { field, then, now } = error else {
        return error;
    };
    Error::PartDiffers { field, then, now }
}
