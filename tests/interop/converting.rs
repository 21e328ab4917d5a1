//! Conversions between conventions, weight by weight, over what real tools wrote.

use std::collections::BTreeMap;

use safequant::container::Checkpoint;
use safequant::kernels::Backend;
use safequant::rewrite::Label;
use safequant::rewrite::convert::{Conversion, conversion};
use safequant::schemes::encode::{is_carried, row_unit};
use safequant::schemes::{
    CONVENTIONS, ConventionWriter, Decoder, Model, Part, QuantizedTensor, Role, Storage, Transcoder,
};

use super::{fixture, memory};

/// The parts that a weight becomes, by the conversion that was decided.
fn converted(
    source: &QuantizedTensor,
    checkpoint: &Checkpoint,
    found: &Conversion,
) -> (QuantizedTensor, Vec<Vec<u8>>) {
    let (plain, layout) = found.layouts().unwrap();
    let decoder = Decoder::new(source, checkpoint, Backend::detect()).unwrap();
    let transcoder = Transcoder::new(source, plain, layout).unwrap();
    // Tiles must be whole units of both sides.
    let unit = row_unit(source) * row_unit(layout);
    let whole = decoder.codes(0..source.n_rows()).unwrap();
    let is_small = unit >= source.n_rows();
    let mut bytes = memory::parts(layout, decoder.group_index(), |rows| {
        let tile = if rows == whole.rows || is_small {
            whole.clone()
        } else {
            decoder.codes(rows).unwrap()
        };
        transcoder.tile(&tile).unwrap().0
    });
    let counterpart = |part: &Part| {
        let found = source
            .parts
            .iter()
            .find(|p| p.role == part.role && (p.role != Role::Auxiliary || p.name == part.name));
        checkpoint.tensor(&found.unwrap().name).unwrap()
    };
    for (i, part) in layout.parts.iter().enumerate() {
        if is_carried(layout, part) {
            bytes[i] = counterpart(part).read_all(1 << 30).unwrap();
        }
    }
    (layout.clone(), bytes)
}

fn stored(tensor: &QuantizedTensor, checkpoint: &Checkpoint) -> Vec<Vec<u8>> {
    let read = |part: &Part| {
        checkpoint
            .tensor(&part.name)
            .unwrap()
            .read_all(1 << 30)
            .unwrap()
    };
    tensor.parts.iter().map(read).collect()
}

fn writers() -> impl Iterator<Item = &'static dyn ConventionWriter> {
    CONVENTIONS.iter().filter_map(|c| c.writer())
}

/// What happened, for the floor at the end of the test.
#[derive(Debug, Default)]
struct Seen {
    labels: BTreeMap<&'static str, usize>,
    same: usize,
    there_and_back: usize,
}

fn check(name: &str, source: &QuantizedTensor, checkpoint: &Checkpoint, seen: &mut Seen) {
    let values = memory::values(source, checkpoint);
    for target in writers() {
        let name = format!("{name} {} to {}", source.module, target.id());
        let found = conversion(checkpoint, source, target).unwrap();
        *seen.labels.entry(found.label.word()).or_default() += 1;
        assert_eq!(
            found.reason.is_empty(),
            found.label == Label::Exact,
            "{name}"
        );
        if found.layouts().is_none() {
            continue;
        }
        let (there, bytes) = converted(source, checkpoint, &found);
        let made = memory::checkpoint(&there, &bytes);
        if found.label != Label::Exact {
            continue;
        }
        // Equal as numbers: a code book may spell a zero with another sign.
        let now = memory::values(&there, &made);
        let is_zero = |bits: u32| bits & 0x7fff_ffff == 0;
        let differs = |(a, b): (&u32, &u32)| a != b && !(is_zero(*a) && is_zero(*b));
        let at = values.iter().zip(&now).position(differs);
        assert_eq!(at, None, "{name}: a value differs");
        // transformers' fused experts share one scale tensor; written, each has its own.
        let shares = |p: &Part| matches!(p.storage, Storage::SharedElements { .. });
        if source.parts.iter().any(shares) {
            continue;
        }
        if target.id() == source.convention {
            assert_eq!(there.parts, source.parts, "{name}");
            assert!(bytes == stored(source, checkpoint), "{name}: other bytes");
            seen.same += 1;
            continue;
        }
        let home = CONVENTIONS.iter().find(|c| c.id() == source.convention);
        let Some(home) = home.and_then(|c| c.writer()) else {
            continue;
        };
        let back = conversion(&made, &there, home).unwrap();
        if back.label == Label::Exact {
            let (again, bytes) = converted(&there, &made, &back);
            assert_same(&name, source, checkpoint, &again, &bytes);
            seen.there_and_back += 1;
        }
    }
}

/// Every part of the weight itself has come back; companions (activation scales) may have stayed behind.
fn assert_same(
    name: &str,
    source: &QuantizedTensor,
    checkpoint: &Checkpoint,
    again: &QuantizedTensor,
    bytes: &[Vec<u8>],
) {
    let before = stored(source, checkpoint);
    for (part, before) in source.parts.iter().zip(&before) {
        if part.role == Role::Auxiliary && part.content.is_none() {
            continue;
        }
        let at = again.parts.iter().position(|p| p.name == part.name);
        let at = at.unwrap_or_else(|| panic!("{name} and back: {} is lost", part.name));
        assert!(
            bytes[at] == *before,
            "{name} and back: {} differs",
            part.name
        );
    }
}

#[test]
fn exact_conversions_keep_every_value_and_come_back_to_the_same_bytes() {
    let mut seen = Seen::default();
    for fixture in fixture::all() {
        let checkpoint = fixture.open();
        let model = Model::bind(&checkpoint).unwrap();
        let mut kinds = BTreeMap::new();
        for tensor in &model.quantized {
            let n: &mut usize = kinds.entry(tensor.scheme.to_string()).or_default();
            *n += 1;
            if *n <= 2 {
                check(&fixture.name, tensor, &checkpoint, &mut seen);
            }
        }
    }
    println!("{seen:?}");
    assert!(seen.same > 100, "{seen:?}");
    assert!(seen.there_and_back > 50, "{seen:?}");
}
