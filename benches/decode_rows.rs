//! Stored codes to rows of floats in one go, beside a copy of the same bytes in and out with the same kind of stores, and
//! beside portable: `4096 x 14336` from memory to memory on one thread and on all, and a piece that stays in L2.
//!
//! `cargo bench -p safequant-benches --bench decode_rows -- 'DRAM/Bf16'` measures a part.

use std::hint::black_box;
use std::ops::Range;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use safequant_benches::{group, kernel, on_all_cores, twin};
use safequant_kernels::samples::{SAMPLES, Work, copy_traffic};
use safequant_kernels::{Backend, Float, PORTABLE, Stores};

/// Name, rows, columns. In L2: codes, scales and F32 results in 400 KiB at most.
const PLACES: &[(&str, usize, usize)] = &[("L2", 16, 4096), ("DRAM", 4096, 14336)];

/// Rows that portable decodes of a matrix in memory: all of it would take a second, and its rate is known from L2.
const CHECKED_ROWS: usize = 256;

fn benches(criterion: &mut Criterion) {
    for &(place, n_rows, n_columns) in PLACES {
        for &float in Float::ALL {
            let mut group = group(criterion, &format!("decode_rows/{place}/{float:?}"));
            for sample in SAMPLES {
                let work = Work::new(sample, n_rows, n_columns);
                let case = (sample.name, place);
                one_thread(&mut group, case, &work, (n_rows, float));
                if place == "DRAM" {
                    all_threads(&mut group, case, &work, (n_rows, float));
                }
            }
        }
    }
}

fn one_thread(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (case, place): (&str, &str),
    work: &Work,
    (n_rows, float): (usize, Float),
) {
    let mut out = vec![0; work.out_len(n_rows, float)];
    let stores = Stores::for_len(out.len());
    twin(
        group,
        (case, place),
        (work.stored().len(), out.len()),
        stores,
    );
    let checked = n_rows.min(CHECKED_ROWS);
    let mut expected = vec![0; work.out_len(checked, float)];
    work.decode(&PORTABLE, 0..checked, (float, &mut expected), stores);
    for backend in Backend::available() {
        if place == "DRAM" && backend.name == PORTABLE.name {
            continue;
        }
        let id = (backend.name, case, place);
        kernel(group, id, work.stored(), &mut out, |_, out| {
            work.decode(backend, 0..n_rows, (float, out), stores);
        });
        let found = &out[..expected.len()];
        assert!(
            found == expected,
            "{} {case} {place} {float:?}",
            backend.name
        );
    }
}

fn all_threads(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (case, place): (&str, &str),
    work: &Work,
    (n_rows, float): (usize, Float),
) {
    let backend = Backend::detect();
    let mut out = vec![0; work.out_len(n_rows, float)];
    let (row, stores) = (work.out_len(1, float), Stores::for_len(out.len()));
    let copy = |rows: Range<usize>, out: &mut [u8]| {
        let from = work.stored_len(rows.start)..work.stored_len(rows.end);
        copy_traffic(backend, &work.stored()[from], out, stores);
    };
    let decode = |rows: Range<usize>, out: &mut [u8]| {
        work.decode(backend, rows, (float, out), stores);
    };
    group.bench_function(BenchmarkId::new(format!("copy x all/{case}"), place), |b| {
        b.iter(|| on_all_cores(n_rows, (black_box(&mut out), row), copy));
    });
    let name = format!("{} x all/{case}", backend.name);
    group.bench_function(BenchmarkId::new(name, place), |b| {
        b.iter(|| on_all_cores(n_rows, (black_box(&mut out), row), decode));
    });
}

criterion_group!(decode_rows, benches);
criterion_main!(decode_rows);
