//! Conversions between conventions, weight by weight, over what real tools wrote.

use std::collections::BTreeMap;

use safequant::container::Checkpoint;
use safequant::kernels::{Backend, DYNAMIC_8BIT, Float};
use safequant::rewrite::Label;
use safequant::rewrite::convert::{Conversion, conversion};
use safequant::schemes::encode::{is_carried, row_unit};
use safequant::schemes::{
    CONVENTIONS, Code, CodeTile, ConventionWriter, Decoder, Granularity, Model, Part, Preset,
    QuantizedTensor, Role, ScaleCoding, Storage, SuperScale, Transcoder, ZeroPoint,
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
    other_spelling: usize,
    faults: Vec<String>,
}

impl Seen {
    fn expect(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(fault());
        }
    }
}

/// Parts with their bytes, by name.
fn by_name(tensor: &QuantizedTensor, bytes: &[Vec<u8>]) -> BTreeMap<String, (String, Vec<u8>)> {
    let parts = tensor.parts.iter().zip(bytes);
    parts
        .map(|(p, bytes)| {
            // What a layout spells out is its spelling: descriptors, markers.
            let spelled = p.content.as_ref().filter(|_| p.role == Role::Auxiliary);
            let about = format!("{:?} {} {:?} {spelled:?}", p.role, p.dtype, p.shape);
            (p.name.clone(), (about, bytes.clone()))
        })
        .collect()
}

/// The first part in which two sets differ.
fn difference(
    before: &BTreeMap<String, (String, Vec<u8>)>,
    after: &BTreeMap<String, (String, Vec<u8>)>,
) -> Option<String> {
    for (name, (about, bytes)) in before {
        match after.get(name) {
            None => return Some(format!("{name} is lost")),
            Some((other, _)) if other != about => return Some(format!("{name}: {about}, {other}")),
            Some((_, other)) if other != bytes => return Some(format!("{name}: other bytes")),
            Some(_) => {}
        }
    }
    let added = after.keys().find(|name| !before.contains_key(*name));
    added.map(|name| format!("{name} is new"))
}

fn check(name: &str, source: &QuantizedTensor, checkpoint: &Checkpoint, seen: &mut Seen) {
    let values = memory::values(source, checkpoint);
    // transformers' fused experts share one scale tensor; written, each has its own.
    let shares = |p: &Part| matches!(p.storage, Storage::SharedElements { .. });
    let is_shared = source.parts.iter().any(shares);
    let before = by_name(source, &stored(source, checkpoint));
    for target in writers() {
        let name = format!("{name} {} to {}", source.module, target.id());
        let found = match conversion(checkpoint, source, target) {
            Ok(found) => found,
            Err(error) => {
                seen.faults.push(format!("{name}: {error}"));
                continue;
            }
        };
        *seen.labels.entry(found.label.word()).or_default() += 1;
        let says_why = found.reason.is_empty() == (found.label == Label::Exact);
        seen.expect(says_why, || {
            format!("{name}: {:?} {}", found.label, found.reason)
        });
        let is_home = target.id() == source.convention;
        seen.expect(!is_home || found.label == Label::Exact, || {
            format!("{name}: {:?} {}", found.label, found.reason)
        });
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
        let number = |bits: u32| f32::from_bits(bits);
        let differs = |(a, b): (&u32, &u32)| {
            a != b && number(*a) != number(*b) && !(number(*a).is_nan() && number(*b).is_nan())
        };
        let at = values.iter().zip(&now).position(differs);
        seen.expect(at.is_none(), || format!("{name}: value {at:?} differs"));
        if is_shared {
            continue;
        }
        if is_home {
            let fault = difference(&before, &by_name(&there, &bytes));
            seen.expect(fault.is_none(), || format!("{name}: {fault:?}"));
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
            // Companions (activation scales) may have stayed behind.
            let companions: Vec<String> = source
                .parts
                .iter()
                .filter(|p| p.role == Role::Auxiliary && p.content.is_none())
                .map(|p| p.name.clone())
                .collect();
            let (mut before, mut after) = (before.clone(), by_name(&again, &bytes));
            before.retain(|name, _| !companions.contains(name));
            after.retain(|name, _| !companions.contains(name));
            let about = |parts: &BTreeMap<String, (String, Vec<u8>)>| -> Vec<(String, String)> {
                let parts = parts.iter();
                parts
                    .map(|(name, (about, _))| (name.clone(), about.clone()))
                    .collect()
            };
            // Codes of other widths may fill parts of the same shape (planes of a single row).
            let forms = |tensor: &QuantizedTensor| {
                let parts = tensor.parts.iter();
                parts
                    .map(|p| (p.name.clone(), p.storage))
                    .filter(|(name, _)| !companions.contains(name))
                    .collect::<BTreeMap<_, _>>()
            };
            if about(&before) == about(&after) && forms(source) == forms(&again) {
                let fault = difference(&before, &after);
                seen.expect(fault.is_none(), || format!("{name} and back: {fault:?}"));
                seen.there_and_back += 1;
            } else {
                // Another spelling of the same convention: other bytes, the same numbers.
                let home = memory::checkpoint(&again, &bytes);
                let now = memory::values(&again, &home);
                let at = values.iter().zip(&now).position(differs);
                seen.expect(at.is_none(), || format!("{name} and back: value {at:?}"));
                seen.other_spelling += 1;
            }
        }
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
    assert!(seen.faults.is_empty(), "{:#?}", seen.faults);
    assert!(seen.same > 100, "{seen:?}");
    assert!(seen.there_and_back > 50, "{seen:?}");
}

/// Numbers that look random and are the same everywhere.
fn noise(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed >> 31);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 27)
}

fn small(value: u64, below: u64) -> u8 {
    u8::try_from(value % below).unwrap()
}

/// Scales of a matrix: rows and columns of their grid.
fn grid(tensor: &QuantizedTensor) -> (u64, u64) {
    let (out, columns) = (tensor.out_features(), tensor.in_features());
    match tensor.scheme.granularity {
        Granularity::Tensor => (1, 1),
        Granularity::Channel => (out, 1),
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            (out, columns.div_ceil(size))
        }
        Granularity::Block { rows, columns: c } => (out.div_ceil(rows), columns.div_ceil(c)),
        Granularity::Flat { size } => ((out * columns).div_ceil(size), 1),
        Granularity::Strided { count } => (1, count),
    }
}

/// A whole weight made up: every code, scales and offsets that any dtype holds exactly.
fn made_up(tensor: &QuantizedTensor, seed: u64) -> CodeTile {
    let scheme = &tensor.scheme;
    let n = tensor.out_features() * tensor.in_features();
    let (rows, columns) = grid(tensor);
    let at = |i: u64| noise(seed.wrapping_add(i));
    let codes = (0..n).map(|i| match scheme.code {
        Code::Integer { bits, .. } => small(at(i), 1 << bits),
        // No NaN, whose bits nobody promises.
        Code::Minifloat(format) => match small(at(i), 1 << format.bits()) {
            code if format.bits() == 8 && code & 0x7f == 0x7f => 0x38,
            code => code,
        },
        Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => small(at(i), 16),
    });
    let bits = match scheme.code {
        Code::Integer { bits, .. } => bits,
        Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => 4,
    };
    let power = |i: u64| f32::from_bits((120 + (at(i ^ 0xaaaa) % 8) as u32) << 23);
    let zero = |i: u64| 1 + i32::from(small(at(i ^ 0x5555), (1 << bits) - 1));
    let entry = |i: u64| DYNAMIC_8BIT[usize::from(small(at(i ^ 0x3333), 256))];
    let indices = 0..rows * columns;
    let (mut zeros, mut offsets) = (Vec::new(), Vec::new());
    match scheme.zero_point {
        ZeroPoint::Fixed(_) => {}
        ZeroPoint::Stored(_) => zeros = indices.clone().map(zero).collect(),
        ZeroPoint::Offset { .. } => {
            offsets = indices
                .clone()
                .map(|i| -power(i) * f32::from(u8::try_from(zero(i)).unwrap()))
                .collect();
        }
    }
    CodeTile {
        rows: 0..tensor.n_rows(),
        codes: codes.collect(),
        scales: match scheme.scale {
            ScaleCoding::StoredTable => indices.map(entry).collect(),
            ScaleCoding::Float(_)
            | ScaleCoding::E8M0(_)
            | ScaleCoding::Minifloat(_)
            | ScaleCoding::Integer
            | ScaleCoding::One => indices.map(power).collect(),
        },
        zeros,
        offsets,
        supers: match scheme.super_scale {
            SuperScale::Multiply | SuperScale::Divide => vec![0.125],
            SuperScale::Nested { size, offset: _ } => {
                let blocks = 0..(rows * columns).div_ceil(size);
                blocks.map(power).collect()
            }
            SuperScale::None | SuperScale::Grouped { .. } | SuperScale::Channel => Vec::new(),
        },
        ..CodeTile::default()
    }
}

#[test]
fn made_up_weights_of_odd_shapes_come_back_too() {
    let mut seen = Seen::default();
    let mut laid_out = 0;
    for (at, shape) in [
        [8, 128],
        [33, 160],
        [96, 192],
        [40, 96],
        [136, 320],
        [1, 64],
    ]
    .iter()
    .enumerate()
    {
        for writer in writers() {
            for (name, size) in writer
                .presets()
                .iter()
                .flat_map(|name| [None, Some(32), Some(64), Some(-1)].map(|size| (*name, size)))
            {
                let preset = Preset::by_name(name).unwrap();
                let Ok(preset) = preset.with_group_size(size) else {
                    continue;
                };
                let Ok(layout) = writer.lay_out("m", shape, &preset, Float::F16) else {
                    continue;
                };
                let tile = made_up(&layout, at as u64 * 1_000_003);
                let bytes = memory::parts(&layout, None, |_| tile.clone());
                let checkpoint = memory::checkpoint(&layout, &bytes);
                let name = format!("{shape:?} {name} {size:?} {}", writer.id());
                check(&name, &layout, &checkpoint, &mut seen);
                laid_out += 1;
            }
        }
    }
    assert!(seen.faults.is_empty(), "{:#?}", seen.faults);
    assert!(laid_out > 100, "{laid_out} weights");
    assert!(seen.there_and_back > 200, "{seen:?}");
}
