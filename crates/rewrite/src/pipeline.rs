//! The heart of a run: tiles go out to workers, and come back in the order in which they went.

mod known;

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use safequant_container::FileWriter;
use safequant_quantize::{Loss, OutputLoss, Statistics};

use self::known::Ready;
use crate::budget::SIDE_BUFFER_BYTES;
use crate::journal::{Book, Record};
use crate::outputs::{Outputs, file_of};
use crate::prepare::Preparations;
use crate::read_ahead::ReadAhead;
use crate::scratch::Scratches;
use crate::steps::{Step, Work};
use crate::subtree::{Digest, Segment};
use crate::tile::{Done, StepContext};
use crate::{CancelToken, Error, Event, Plan};

/// Bytes of an output that are handed to the disk at once: large enough to lie together there, small enough that it is never
/// without work.
const WRITEBACK_BYTES: u64 = 8 << 20;
/// Less than this at the end of an output waits for the sync of the whole file.
const LEAST_WRITEBACK_BYTES: u64 = 256 << 10;

/// A tile that was handed out, and what came back if it did.
struct InFlight<'p> {
    need_bytes: u64,
    answer: Option<Answer<'p>>,
}

/// A tile that came back.
struct Answer<'p> {
    context: Arc<StepContext<'p>>,
    span: Range<u64>,
    is_last: bool,
    done: Result<Done, Error>,
    /// How long it took.
    seconds: Option<f64>,
}

/// An output file while it is written.
struct Shard {
    writer: Option<Arc<FileWriter>>,
    /// Steps that still have to write to it.
    n_steps: usize,
}

/// The step whose tiles are coming back.
struct Current {
    outputs: Vec<Coming>,
    loss: Option<Loss>,
    output_loss: Option<OutputLoss>,
    start_loss: Option<OutputLoss>,
    /// Rows whose codes are chosen anew, and those of them whose outputs were off by more than themselves.
    n_started: u64,
    n_far: u64,
    n_rows: u64,
    n_zero_scales: u64,
    seconds: Option<f64>,
}

/// An output as its tiles come back.
struct Coming {
    digest: Digest,
    /// Bytes that the disk was told to write out.
    flushed: u64,
}

impl Coming {
    fn new(len_bytes: u64) -> Self {
        Self {
            digest: Digest::new(len_bytes),
            flushed: 0,
        }
    }

    /// Takes what a tile wrote; gives the bytes that are to be written out now.
    fn add(&mut self, segment: Segment) -> Option<Range<u64>> {
        let end = segment.span().map(|span| span.end);
        self.digest.add(segment);
        let ready = self.flushed..end?;
        (ready.end >= ready.start + WRITEBACK_BYTES).then(|| {
            self.flushed = ready.end;
            ready
        })
    }
}

/// The state of a run. Lives on the caller's thread.
pub(crate) struct Pipeline<'w, 'p> {
    plan: &'p Plan<'p>,
    outputs: &'w mut Outputs<'p>,
    book: &'w mut dyn Book,
    pool: &'w rayon::ThreadPool,
    cancel: &'w CancelToken,
    /// The next tile to hand out: place of its step in the order, and tile in it.
    cursor: (usize, u64),
    context: Option<Arc<StepContext<'p>>>,
    shards: Vec<Shard>,
    statistics: Vec<Option<Arc<Statistics>>>,
    preparations: Preparations<'p>,
    /// What is known of the matrix whose tiles are handed out: place of its step in the order, its index, and what.
    matrix: Option<(usize, u64, Option<Arc<Statistics>>)>,
    /// How long it took to derive what the next tile is the first to use.
    deriving: Option<f64>,
    read_ahead: ReadAhead<'p>,
    scratches: Arc<Scratches>,
    in_flight: VecDeque<InFlight<'p>>,
    /// Number of the tile at the front of `in_flight`.
    front: u64,
    used_bytes: u64,
    peak_bytes: u64,
    current: Option<Current>,
    sender: Sender<(u64, Answer<'p>)>,
    receiver: Receiver<(u64, Answer<'p>)>,
}

impl<'w, 'p> Pipeline<'w, 'p> {
    pub(crate) fn new(
        outputs: &'w mut Outputs<'p>,
        book: &'w mut dyn Book,
        pool: &'w rayon::ThreadPool,
        cancel: &'w CancelToken,
    ) -> Self {
        let plan = outputs.plan;
        let mut shards: Vec<Shard> = Vec::new();
        shards.resize_with(plan.job.shards.len(), || Shard {
            writer: None,
            n_steps: 0,
        });
        let in_order =
            || (plan.job.order.iter()).filter_map(|&i| Some((i, plan.job.steps.get(i)?)));
        let to_do = || in_order().filter(|(i, step)| outputs.is_to_do(*i, step));
        for file in to_do().filter_map(|(_, step)| file_of(step)) {
            shards[file].n_steps += 1;
        }
        let calibration = plan.job.calibration.as_ref();
        let preparations = Preparations::new(calibration, to_do().map(|(_, step)| step));
        let read_ahead = ReadAhead::new(plan.checkpoint, to_do().map(|(_, step)| step));
        let (sender, receiver) = channel();
        Self {
            plan,
            outputs,
            book,
            pool,
            cancel,
            cursor: (0, 0),
            context: None,
            shards,
            statistics: vec![None; plan.job.statistics.len()],
            preparations,
            matrix: None,
            deriving: None,
            read_ahead,
            scratches: Arc::new(Scratches::new(plan.job.budget.share())),
            in_flight: VecDeque::new(),
            front: 0,
            used_bytes: 0,
            peak_bytes: 0,
            current: None,
            sender,
            receiver,
        }
    }

    /// Runs every step that is not done; gives the largest sum of buffers held at once.
    pub(crate) fn drive<'scope>(&mut self, scope: &rayon::Scope<'scope>) -> Result<u64, Error>
    where
        'p: 'scope,
    {
        // Files that an interrupted job completed, or that hold no tensor, need their durability only.
        for file in self.outputs.files() {
            if self.shards[file].n_steps == 0 && !self.outputs.is_complete(file) {
                self.seal(file)?;
            }
        }
        loop {
            self.check_cancel()?;
            self.fill(scope)?;
            if self.in_flight.is_empty() {
                return Ok(self.peak_bytes + SIDE_BUFFER_BYTES);
            }
            let (number, answer) = self.receiver.recv().map_err(|_| Error::Canceled)?;
            let place = usize::try_from(number - self.front).unwrap_or(usize::MAX);
            if let Some(tile) = self.in_flight.get_mut(place) {
                tile.answer = Some(answer);
            }
            self.take_back()?;
        }
    }

    fn check_cancel(&self) -> Result<(), Error> {
        if self.cancel.is_canceled() {
            Err(Error::Canceled)
        } else {
            Ok(())
        }
    }

    /// Hands out tiles as long as budget and slots allow.
    fn fill<'scope>(&mut self, scope: &rayon::Scope<'scope>) -> Result<(), Error>
    where
        'p: 'scope,
    {
        let budget = self.plan.job.budget;
        while (self.in_flight.len() as u64) < budget.slots {
            let Some(step) = self.next_step() else {
                return Ok(());
            };
            let need = step.tiling.need_bytes;
            let is_idle = self.in_flight.is_empty();
            if !is_idle && self.used_bytes.saturating_add(need) > budget.for_tiles() {
                return Ok(());
            }
            let Ready::Now(statistics) = self.known_of(step)? else {
                return Ok(());
            };
            let context = self.open(step)?;
            self.hand_out(scope, step, context, statistics);
        }
        Ok(())
    }

    /// The step of the cursor, past everything that is done or writes nothing.
    fn next_step(&mut self) -> Option<&'p Step> {
        loop {
            let i = *self.plan.job.order.get(self.cursor.0)?;
            let step = self.plan.job.steps.get(i)?;
            if self.outputs.is_to_do(i, step) {
                return Some(step);
            }
            self.cursor = (self.cursor.0 + 1, 0);
        }
    }

    /// The context of the cursor's step.
    fn open(&mut self, step: &'p Step) -> Result<Arc<StepContext<'p>>, Error> {
        if let Some(context) = &self.context {
            return Ok(Arc::clone(context));
        }
        let i = self.plan.job.order[self.cursor.0];
        let writer = self.writer(step.outputs[0].at.0)?;
        let context = StepContext::new(i, step, self.plan.checkpoint, Some(writer))?;
        self.outputs.event(Event::Module { name: &step.name });
        let context = Arc::new(context);
        self.context = Some(Arc::clone(&context));
        Ok(context)
    }

    fn writer(&mut self, file: usize) -> Result<Arc<FileWriter>, Error> {
        if let Some(writer) = &self.shards[file].writer {
            return Ok(Arc::clone(writer));
        }
        let writer = Arc::new(self.outputs.open_shard(file)?);
        self.shards[file].writer = Some(Arc::clone(&writer));
        Ok(writer)
    }

    fn hand_out<'scope>(
        &mut self,
        scope: &rayon::Scope<'scope>,
        step: &'p Step,
        context: Arc<StepContext<'p>>,
        statistics: Option<Arc<Statistics>>,
    ) where
        'p: 'scope,
    {
        let (i, tile) = self.cursor;
        let is_last = tile + 1 == step.n_tiles();
        if is_last || step.matrix(tile + 1) != step.matrix(tile) {
            self.leave(step, step.matrix(tile));
        }
        let span = step.tile(tile);
        self.read_ahead
            .hand_out(share(step, span.end) - share(step, span.start));
        let number = self.front + self.in_flight.len() as u64;
        self.in_flight.push_back(InFlight {
            need_bytes: step.tiling.need_bytes,
            answer: None,
        });
        self.used_bytes += step.tiling.need_bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
        self.cursor = if is_last { (i + 1, 0) } else { (i, tile + 1) };
        if is_last {
            self.context = None;
        }
        let sender = self.sender.clone();
        let scratches = Arc::clone(&self.scratches);
        let listener = self.outputs.listener();
        let before = self.deriving.take();
        scope.spawn(move |_| {
            let began = listener.seconds();
            // A panic would leave the other side waiting for this tile for ever.
            let run = AssertUnwindSafe(|| {
                let mut scratch = scratches.take();
                let done = context.run(&span, statistics.as_deref(), &mut scratch);
                drop(statistics);
                scratches.give_back(scratch);
                done
            });
            let done = catch_unwind(run).unwrap_or_else(|_| {
                Err(Error::Defect {
                    module: context.step.name.clone(),
                })
            });
            let took = began.zip(listener.seconds()).map(|(a, b)| (b - a).max(0.0));
            // Nobody listens any more once the job has failed. The context goes along, so that the thread which takes
            // tiles back holds the last reference to it.
            let _ = sender.send((
                number,
                Answer {
                    context,
                    span,
                    is_last,
                    done,
                    seconds: took.map(|took| took + before.unwrap_or(0.0)),
                },
            ));
        });
    }

    /// Takes back every tile that is next in order.
    fn take_back(&mut self) -> Result<(), Error> {
        while self
            .in_flight
            .front()
            .is_some_and(|tile| tile.answer.is_some())
        {
            let Some(tile) = self.in_flight.pop_front() else {
                break;
            };
            self.front += 1;
            if let Some(answer) = tile.answer {
                self.accept(answer)?;
            }
            self.used_bytes -= tile.need_bytes;
        }
        Ok(())
    }

    fn accept(&mut self, answer: Answer<'p>) -> Result<(), Error> {
        let done = answer.done?;
        let step = answer.context.step;
        let mut current = match self.current.take() {
            Some(current) => current,
            None => begin(&answer.context)?,
        };
        take_outputs(&mut current.outputs, done.segments, &answer.context);
        for loss in &done.losses {
            current.loss.get_or_insert_default().add(loss);
        }
        for loss in &done.output_losses {
            current.output_loss.get_or_insert_default().add(loss);
        }
        for loss in &done.start_losses {
            current.start_loss.get_or_insert_default().add(loss);
            current.n_started += 1;
            current.n_far += u64::from(loss.noise >= loss.signal && loss.signal > 0.0);
        }
        if let Some(seconds) = answer.seconds {
            *current.seconds.get_or_insert_default() += seconds;
        }
        current.n_zero_scales += done.n_zero_scales;
        let before = current.n_rows;
        current.n_rows += answer.span.end - answer.span.start;
        let read = |rows: u64| share(step, rows);
        let source_bytes = read(current.n_rows) - read(before);
        self.outputs.event(Event::Advance { source_bytes });
        if answer.is_last {
            self.finish(answer.context, current)
        } else {
            self.current = Some(current);
            Ok(())
        }
    }

    /// Completes a step: its digests go to the journal, and its file is sealed if it was the last one in it.
    fn finish(&mut self, context: Arc<StepContext<'p>>, current: Current) -> Result<(), Error> {
        let step = context.step;
        if current.n_far > current.n_started / 2 {
            return Err(Error::AnotherModel {
                name: step.name.clone(),
                reason: format!(
                    "the outputs of {} of its {} rows are off by more than themselves before anything changes",
                    current.n_far, current.n_started
                ),
            });
        }
        let mut digests = Vec::new();
        let mut buffer = Vec::new();
        let outputs = current.outputs.into_iter().zip(&step.outputs);
        for (o, (coming, output)) in outputs.enumerate() {
            if coming.digest.n_bytes() != output.len_bytes {
                return Err(Error::Unfilled {
                    tensor: output.tensor.name.clone(),
                    expected: output.len_bytes,
                    found: coming.digest.n_bytes(),
                });
            }
            if output.len_bytes - coming.flushed >= LEAST_WRITEBACK_BYTES {
                context.start_writeback(o, coming.flushed..output.len_bytes);
            }
            if let Some(digest) = coming.digest.finish() {
                digests.push(digest.to_hex().to_string());
            } else {
                buffer.resize(usize::try_from(SIDE_BUFFER_BYTES).unwrap_or(1 << 16), 0);
                digests.push(context.digest_file(o, &mut buffer)?);
            }
        }
        if current.n_zero_scales > 0 {
            let text = format!(
                "{}: {} scales underflow to zero in the stored dtype, and with them the weights of their groups",
                step.name, current.n_zero_scales
            );
            self.outputs.event(Event::Note { text: &text });
        }
        let record = Record {
            name: step.outputs[0].tensor.name.clone(),
            digests,
            loss: current.loss,
            output_loss: current.output_loss,
            start_loss: current.start_loss,
            seconds: current.seconds,
        };
        let file = step.outputs[0].at.0;
        self.book.record(file, &record, step.output_bytes())?;
        self.outputs.add_record(context.index, record);
        drop(context);
        self.shards[file].n_steps -= 1;
        if self.shards[file].n_steps == 0 {
            self.seal(file)
        } else {
            Ok(())
        }
    }

    /// Makes a complete file durable.
    fn seal(&mut self, file: usize) -> Result<(), Error> {
        let writer = self.writer(file)?;
        self.shards[file].writer = None;
        let writer = Arc::into_inner(writer).expect("every tile of a complete file came back");
        writer.seal()?;
        self.book.complete(file)?;
        let plan = &self.plan.job.shards[file];
        self.outputs.event(Event::Shard {
            name: &plan.name,
            len_bytes: plan.len_bytes,
        });
        Ok(())
    }
}

/// Starts a step on the side of what comes back: the parts that no tile fills come first.
fn begin(context: &StepContext<'_>) -> Result<Current, Error> {
    let outputs = context.step.outputs.iter();
    let mut outputs: Vec<_> = outputs.map(|o| Coming::new(o.len_bytes)).collect();
    take_outputs(&mut outputs, context.constants()?.segments, context);
    Ok(Current {
        outputs,
        loss: None,
        output_loss: None,
        start_loss: None,
        n_started: 0,
        n_far: 0,
        n_rows: 0,
        n_zero_scales: 0,
        seconds: None,
    })
}

/// Adds what a tile wrote, and lets the disk write out what is complete.
fn take_outputs(outputs: &mut [Coming], segments: Vec<Segment>, context: &StepContext<'_>) {
    for (o, (coming, segment)) in outputs.iter_mut().zip(segments).enumerate() {
        if let Some(ready) = coming.add(segment) {
            context.start_writeback(o, ready);
        }
    }
}

/// The part of a step's source that so many rows stand for.
fn share(step: &Step, rows: u64) -> u64 {
    let all = match &step.work {
        Work::Drop | Work::Copy | Work::Content(_) => step.source_bytes,
        Work::Dense(work) => work.shape[0].saturating_mul(work.shape[1]),
        Work::Quantize(work) => work.layout.n_rows(),
        Work::Transcode(work) => work.layout.n_rows(),
    };
    let bytes = u128::from(step.source_bytes) * u128::from(rows) / u128::from(all.max(1));
    u64::try_from(bytes).unwrap_or(step.source_bytes)
}
