//! Says what will be read soon, so that the disk works while tiles are computed.

use std::collections::VecDeque;

use safequant_container::{Checkpoint, TensorRef};
use safequant_schemes::QuantizedTensor;

use crate::steps::{DenseSource, Step, Work};

/// How far ahead of the tiles that were handed out: some hundredths of a second of a fast disk, some tenths of a slow one.
const WINDOW_BYTES: u64 = 32 << 20;
/// Bytes that are announced at once. Linux heeds no more than a device's largest request (`force_page_cache_ra`), which is
/// 1280 KiB or more.
const STRIDE_BYTES: u64 = 1 << 20;

/// Tensors that are read side by side: the parts of one weight.
struct Unit<'p> {
    parts: Vec<TensorRef<'p>>,
    len_bytes: u64,
    /// Bytes announced so far.
    announced: u64,
}

/// The reader's place, and the end of what was announced, in bytes of all steps.
pub(crate) struct ReadAhead<'p> {
    units: VecDeque<Unit<'p>>,
    handed_out: u64,
    announced: u64,
}

impl<'p> ReadAhead<'p> {
    /// For steps that will be worked off in this order.
    pub(crate) fn new(checkpoint: &'p Checkpoint, steps: impl Iterator<Item = &'p Step>) -> Self {
        // What counts no bytes of the source is read with something that does.
        let reading = steps.filter(|step| step.source_bytes > 0);
        Self {
            units: reading.flat_map(|step| units(checkpoint, step)).collect(),
            handed_out: 0,
            announced: 0,
        }
    }

    /// A tile that reads so many bytes is handed out.
    pub(crate) fn hand_out(&mut self, source_bytes: u64) {
        self.handed_out += source_bytes;
        while self.announced < self.handed_out + WINDOW_BYTES {
            let Some(unit) = self.units.front_mut() else {
                return;
            };
            self.announced += unit.announce();
            if unit.announced >= unit.len_bytes {
                self.units.pop_front();
            }
        }
    }
}

impl Unit<'_> {
    /// Announces the next stride of each part, so that together they are [`STRIDE_BYTES`]; gives how many bytes that are.
    fn announce(&mut self) -> u64 {
        let from = self.announced;
        self.announced = (from + STRIDE_BYTES).min(self.len_bytes);
        for part in &self.parts {
            let share = |at: u64| {
                let bytes = u128::from(part.info.len_bytes()) * u128::from(at);
                u64::try_from(bytes / u128::from(self.len_bytes.max(1))).unwrap_or(u64::MAX)
            };
            let start = share(from);
            part.will_need(start, share(self.announced) - start);
        }
        self.announced - from
    }
}

/// What a step reads, in order.
fn units<'p>(checkpoint: &'p Checkpoint, step: &'p Step) -> Vec<Unit<'p>> {
    let unit = |names: Vec<&str>| {
        let found = names.into_iter().filter_map(|name| checkpoint.tensor(name));
        let parts: Vec<_> = found.collect();
        Unit {
            len_bytes: parts.iter().map(|part| part.info.len_bytes()).sum(),
            parts,
            announced: 0,
        }
    };
    let dense = |source: &'p DenseSource| match source {
        DenseSource::Plain(name, _) => unit(vec![name.as_str()]),
        DenseSource::Quantized(tensor) => unit(part_names(tensor)),
    };
    match &step.work {
        Work::Copy => vec![unit(vec![step.name.as_str()])],
        Work::Drop | Work::Content(_) => Vec::new(),
        Work::Dense(work) => work.sources.iter().map(dense).collect(),
        Work::Quantize(work) => match &work.start {
            None => work.sources.iter().map(dense).collect(),
            Some(_) => vec![unit(part_names(&work.layout))],
        },
        Work::Transcode(work) => {
            let members = work.members.iter();
            members.map(|m| unit(part_names(&m.source))).collect()
        }
    }
}

fn part_names(tensor: &QuantizedTensor) -> Vec<&str> {
    tensor.parts.iter().map(|part| part.name.as_str()).collect()
}
