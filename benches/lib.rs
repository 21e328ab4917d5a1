//! Shared helpers of the benches: sizes, fills, and the streaming copy that every kernel is measured beside.
//!
//! A kernel's throughput counts the bytes it reads plus the bytes it writes. The copy moves the same bytes in and out, so
//! that kernel / copy says how far from the memory limit the kernel is, on any machine.

use std::hint::black_box;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use safequant_kernels::samples::copy_traffic;
use safequant_kernels::{Backend, Stores};

/// Where the data lies, and how many elements that takes for 1 to 8 bytes each.
pub const SIZES: &[(&str, usize)] = &[("L2", 64 << 10), ("DRAM", 32 << 20)];

/// A group with short runs: the numbers are compared within one run, not between machines.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(100));
    group.measurement_time(Duration::from_millis(400));
    group
}

/// Measures `kernel` from `input` to `output`, under `backend/case/place`. Runs it once more, so that `output` holds the
/// answer even if a filter on the command line leaves this measurement out.
pub fn kernel<I, O>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (backend, case, place): (&str, &str, &str),
    input: &[I],
    output: &mut [O],
    kernel: impl Fn(&[I], &mut [O]),
) {
    kernel(input, output);
    group.throughput(Throughput::Bytes(
        (size_of_val(input) + size_of_val(output)) as u64,
    ));
    group.bench_function(
        BenchmarkId::new(format!("{backend}/{case}"), place),
        |bencher| {
            bencher.iter(|| kernel(black_box(input), black_box(output)));
        },
    );
}

/// [`twin`] with the kind of stores that suits the output.
///
/// # Panics
/// As `twin`.
pub fn copy(group: &mut BenchmarkGroup<'_, WallTime>, id: (&str, &str), n_in: usize, n_out: usize) {
    twin(group, id, (n_in, n_out), Stores::for_len(n_out));
}

/// Measures the copy that a kernel is compared with, under `copy/case/place`: as many bytes in and out, the same kind of
/// stores, no arithmetic ([`copy_traffic`]).
///
/// # Panics
/// If the copy leaves a part of the output unwritten.
pub fn twin(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (case, place): (&str, &str),
    (n_in, n_out): (usize, usize),
    stores: Stores,
) {
    let backend = Backend::detect();
    let input = vec![1u8; n_in];
    let mut output = vec![0u8; n_out];
    copy_traffic(backend, &input, &mut output, stores);
    assert!(
        output.iter().all(|&byte| byte == 1),
        "every byte is written"
    );
    group.throughput(Throughput::Bytes((n_in + n_out) as u64));
    group.bench_function(BenchmarkId::new(format!("copy/{case}"), place), |bencher| {
        bencher.iter(|| copy_traffic(backend, black_box(&input), black_box(&mut output), stores));
    });
}

/// One thread per core, each with its own rows; `out_row` is the length of a row of `out`.
///
/// # Panics
/// If there are no rows.
pub fn on_all_cores(
    n_rows: usize,
    (out, out_row): (&mut [u8], usize),
    kernel: impl Fn(Range<usize>, &mut [u8]) + Sync,
) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let rows = n_rows.div_ceil(cores).next_multiple_of(8);
    thread::scope(|scope| {
        for (at, out) in out.chunks_mut(rows * out_row).enumerate() {
            let kernel = &kernel;
            scope.spawn(move || kernel(at * rows..((at + 1) * rows).min(n_rows), out));
        }
    });
}

/// Bytes that repeat after a prime.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).unwrap_or_default())
        .collect()
}

/// Values of the size of weights.
pub fn weights(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| f32::from(u16::try_from((i * 7919) % 2003).unwrap_or_default()) / 1001.0 - 1.0)
        .collect()
}
