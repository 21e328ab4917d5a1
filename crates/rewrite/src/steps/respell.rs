//! Steps for a convention that names tensors, orders rows and stacks experts in its own way (`safequant_schemes::respelling`).

use std::collections::BTreeMap;

use safequant_container::Checkpoint;
use safequant_kernels::Float;
use safequant_schemes::scheme::{dtype_of, float_of};
use safequant_schemes::{
    CodeTile, ConventionWriter, Headers, QuantizedTensor, Respelled, RowOrder, Spelling,
    StackPlace, Values, WrittenDense,
};

use super::{DenseSource, DenseWork, Output, Step, Steps, Work, layout_of, share_statistics};
use crate::{Action, Error};

/// Gives every step its new names and orders; a convention that keeps them changes nothing.
///
/// # Errors
/// A tensor that the convention has no name for; a stack that is not complete; rows that cannot be put in order; metadata that
/// the documents do not determine.
pub(crate) fn respell(
    checkpoint: &Checkpoint,
    writer: &dyn ConventionWriter,
    mut steps: Steps,
) -> Result<Steps, Error> {
    let Some(respelling) = writer.respelling(Headers::new(checkpoint))? else {
        return Ok(steps);
    };
    let layouts: Vec<QuantizedTensor> = steps.list.iter().filter_map(layout_of).cloned().collect();
    let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
    let mut stacks = Stacks::default();
    let (mut list, mut dense) = (Vec::new(), Vec::new());
    for mut step in std::mem::take(&mut steps.list) {
        let Some((name, shape)) = subject(&step) else {
            list.push(step);
            continue;
        };
        match respelling.tensor(&name, &shape)? {
            Respelled::LeftOut(reason) => {
                *left_out.entry(reason).or_default() += 1;
                step.work = Work::Drop;
                step.action = Action::Drop;
                step.outputs.clear();
                list.push(step);
            }
            Respelled::As(spelling) => {
                let stack = spelling.stack;
                spell(&mut step, &spelling, writer.id())?;
                if let Some(float) = dense_float(&step) {
                    dense.push((name, shape, float));
                }
                match stack {
                    None => list.push(step),
                    Some(place) => stacks.add(&spelling.name, place, step, &mut list)?,
                }
            }
        }
    }
    let has_stacks = !stacks.members.is_empty();
    stacks.finish(&mut list)?;
    for extra in respelling.extra()? {
        list.push(Step::content(&extra));
    }
    for (reason, n) in left_out {
        steps
            .notes
            .push(format!("{n} tensors are left out: {reason}"));
    }
    if has_stacks {
        steps.statistics = share_statistics(&mut list);
    }
    let written = dense.iter().map(|(name, shape, float)| WrittenDense {
        name,
        shape,
        float: *float,
    });
    let written: Vec<_> = written.collect();
    steps.gguf = Some(respelling.metadata(&layouts, &written)?);
    steps.list = list;
    Ok(steps)
}

/// The tensor that a step stands for, with its logical shape; `None` where nothing is written.
fn subject(step: &Step) -> Option<(String, Vec<u64>)> {
    if let Some(layout) = layout_of(step) {
        return Some((layout.weight.clone(), layout.shape.clone()));
    }
    let output = step.outputs.first()?;
    Some((output.tensor.name.clone(), step.shape.clone()))
}

/// Names and order of one step.
fn spell(step: &mut Step, spelling: &Spelling, convention: &'static str) -> Result<(), Error> {
    check_order(step, spelling.rows, convention)?;
    step.rows = spelling.rows;
    match &mut step.work {
        Work::Drop | Work::Content(_) => {}
        Work::Copy => spell_plain(step, spelling)?,
        Work::Dense(work) => {
            work.values = spelling.values;
            work.float = spelling.float.unwrap_or(work.float);
            let (float, shape) = (work.float, step.shape.clone());
            step.outputs = vec![Output::new(&spelling.name, dtype_of(float), &shape, None)];
        }
        Work::Quantize(work) => rename(&mut work.layout, &mut step.outputs, &spelling.name),
        Work::Transcode(work) => rename(&mut work.layout, &mut step.outputs, &spelling.name),
    }
    Ok(())
}

/// A tensor that is copied, or has to be taken apart into values.
fn spell_plain(step: &mut Step, spelling: &Spelling) -> Result<(), Error> {
    let Some(output) = step.outputs.first_mut() else {
        return Ok(());
    };
    let (source, dtype) = (output.tensor.name.clone(), output.tensor.dtype);
    output.tensor.name.clone_from(&spelling.name);
    let stays = spelling.rows == RowOrder::Same
        && spelling.values == Values::Same
        && spelling.stack.is_none()
        && spelling.float.is_none_or(|float| dtype_of(float) == dtype);
    if stays {
        return Ok(());
    }
    let from = float_of(dtype).ok_or_else(|| Error::SourceDtype {
        module: source.clone(),
        found: dtype.name(),
    })?;
    let float = spelling.float.unwrap_or(from);
    *output = Output::new(&spelling.name, dtype_of(float), &step.shape, None);
    step.work = Work::Dense(Box::new(DenseWork {
        sources: vec![DenseSource::Plain(source, from)],
        shape: as_matrices(&step.shape),
        float,
        values: spelling.values,
    }));
    step.action = Action::Respell;
    Ok(())
}

/// Matrices, rows and columns; the elements of a vector are rows.
fn as_matrices(shape: &[u64]) -> [u64; 3] {
    match *shape {
        [] => [1, 1, 1],
        [n] => [1, n, 1],
        [ref stack @ .., rows, columns] => [stack.iter().product(), rows, columns],
    }
}

/// The new names of all parts: those of the module's own begin with its name.
fn rename(layout: &mut QuantizedTensor, outputs: &mut [Output], name: &str) {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    for (part, output) in layout.parts.iter_mut().zip(outputs) {
        let new = match part.name.strip_prefix(&layout.module) {
            _ if part.name == layout.weight => name.to_owned(),
            Some(ending) => format!("{module}{ending}"),
            None => part.name.clone(),
        };
        output.tensor.name.clone_from(&new);
        part.name = new;
    }
    name.clone_into(&mut layout.weight);
    module.clone_into(&mut layout.module);
}

/// Whether the rows of a step can be put in an order.
fn check_order(step: &Step, order: RowOrder, convention: &'static str) -> Result<(), Error> {
    let refuse = |problem: String| {
        Err(Error::RowOrder {
            module: step.name.clone(),
            convention,
            problem,
        })
    };
    let n_rows = match as_matrices(&step.shape) {
        _ if order == RowOrder::Same => return Ok(()),
        [1, rows, _] => rows,
        [n, _, _] => return refuse(format!("it is a stack of {n} matrices")),
    };
    if order.unit(n_rows).is_none() {
        return refuse(format!("{n_rows} rows are no whole number of even heads"));
    }
    match layout_of(step) {
        Some(layout) if !CodeTile::has_rows_of_its_own(&layout.scheme) => {
            refuse("its rows share scales".to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

/// Steps whose results are stacked, by the name of the stack.
#[derive(Default)]
struct Stacks {
    members: BTreeMap<String, Stack>,
}

struct Stack {
    /// Where the stack's step will stand in the list.
    at: usize,
    /// How many there must be.
    count: u64,
    steps: Vec<Option<Step>>,
}

impl Stacks {
    fn add(
        &mut self,
        name: &str,
        place: StackPlace,
        step: Step,
        list: &mut Vec<Step>,
    ) -> Result<(), Error> {
        let wrong = |problem: String| Error::Stack {
            name: name.to_owned(),
            problem,
        };
        let count = usize::try_from(place.count).unwrap_or(usize::MAX);
        let stack = self.members.entry(name.to_owned()).or_insert_with(|| {
            // A place holder, which `finish` replaces.
            list.push(Step::new(name, Action::Drop, &[], 0, Work::Drop));
            Stack {
                at: list.len() - 1,
                count: place.count,
                steps: Vec::new(),
            }
        });
        let index = usize::try_from(place.index).unwrap_or(usize::MAX);
        if index >= count || index > MAX_STACK {
            return Err(wrong(format!("there is a number {index}, of {count}")));
        }
        if stack.steps.len() <= index {
            stack.steps.resize_with(index + 1, || None);
        }
        if stack.steps[index].replace(step).is_some() {
            return Err(wrong(format!("number {index} occurs twice")));
        }
        if stack.steps.len() > count {
            return Err(wrong(format!("there are more than {count}")));
        }
        Ok(())
    }

    fn finish(self, list: &mut [Step]) -> Result<(), Error> {
        for (name, stack) in self.members {
            let found = stack.steps.len();
            let missing = stack.steps.iter().position(Option::is_none);
            let missing = missing.or_else(|| (found as u64 != stack.count).then_some(found));
            if let Some(missing) = missing {
                return Err(Error::Stack {
                    name,
                    problem: format!("number {missing} of {} is missing", stack.count),
                });
            }
            let members: Vec<Step> = stack.steps.into_iter().flatten().collect();
            list[stack.at] = stacked(&name, members)?;
        }
        Ok(())
    }
}

/// Most members of a stack.
const MAX_STACK: usize = 1 << 16;

/// One step for all members.
fn stacked(name: &str, members: Vec<Step>) -> Result<Step, Error> {
    let differ = |what: &str| Error::Stack {
        name: name.to_owned(),
        problem: format!("its members differ in {what}"),
    };
    let count = members.len() as u64;
    let mut members = members.into_iter();
    let Some(mut first) = members.next() else {
        return Err(differ("number"));
    };
    let module = name.strip_suffix(".weight").unwrap_or(name);
    for member in members {
        if member.shape != first.shape {
            return Err(differ("shape"));
        }
        first.source_bytes += member.source_bytes;
        if member.action != first.action {
            return Err(differ("what becomes of them"));
        }
        match (&mut first.work, member.work) {
            (Work::Dense(all), Work::Dense(one)) if all.float == one.float => {
                all.sources.extend(one.sources);
            }
            (Work::Quantize(all), Work::Quantize(one)) if is_alike(&all.layout, &one.layout) => {
                all.sources.extend(one.sources);
                all.matrices.extend(one.matrices);
            }
            (Work::Transcode(all), Work::Transcode(one)) if is_alike(&all.layout, &one.layout) => {
                all.members.extend(one.members);
            }
            (
                Work::Copy
                | Work::Drop
                | Work::Dense(_)
                | Work::Quantize(_)
                | Work::Transcode(_)
                | Work::Content(_),
                _,
            ) => return Err(differ("their schemes")),
        }
    }
    module.clone_into(&mut first.name);
    first.shape.insert(0, count);
    for output in &mut first.outputs {
        let mut shape = output.tensor.shape.clone();
        stack_shape(&mut shape, count);
        *output = Output::new(
            &output.tensor.name,
            output.tensor.dtype,
            &shape,
            output.tensor.block,
        );
    }
    match &mut first.work {
        Work::Dense(work) => work.shape[0] = count,
        Work::Quantize(work) => stack_layout(&mut work.layout, count),
        Work::Transcode(work) => stack_layout(&mut work.layout, count),
        Work::Copy | Work::Drop | Work::Content(_) => {}
    }
    Ok(first)
}

fn is_alike(a: &QuantizedTensor, b: &QuantizedTensor) -> bool {
    let parts = |t: &QuantizedTensor| -> Vec<_> {
        let parts = t.parts.iter();
        parts
            .map(|p| (p.role, p.dtype, p.shape.clone(), p.storage))
            .collect()
    };
    a.scheme == b.scheme && a.shape == b.shape && parts(a) == parts(b)
}

fn stack_layout(layout: &mut QuantizedTensor, count: u64) {
    layout.shape.insert(0, count);
    for part in &mut layout.parts {
        stack_shape(&mut part.shape, count);
    }
}

/// One number for each member is a list, not a column.
fn stack_shape(shape: &mut Vec<u64>, count: u64) {
    if *shape == [1] {
        shape[0] = count;
    } else {
        shape.insert(0, count);
    }
}

/// The dtype of what is written, where it is dense.
fn dense_float(step: &Step) -> Option<Float> {
    match &step.work {
        Work::Copy => {
            let tensor = &step.outputs.first()?.tensor;
            float_of(tensor.dtype).filter(|_| tensor.block.is_none())
        }
        Work::Dense(work) => Some(work.float),
        Work::Drop | Work::Quantize(_) | Work::Transcode(_) | Work::Content(_) => None,
    }
}
