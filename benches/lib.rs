//! Shared helpers of the benches: sizes, fills, and the streaming copy that every kernel is measured beside.
//!
//! A kernel's throughput counts the bytes it reads plus the bytes it writes. The copy moves the same bytes in and out, so
//! that kernel / copy says how far from the memory limit the kernel is, on any machine.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use safequant_kernels::{Backend, Stores};

/// Where the data lies, and how many elements that takes for 1 to 8 bytes each.
pub const SIZES: &[(&str, usize)] = &[("L2", 64 << 10), ("DRAM", 16 << 20)];

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

/// Measures the streaming copy of `n_in` bytes read and `n_out` bytes written, under `copy/case/place`.
pub fn copy(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (case, place): (&str, &str),
    n_in: usize,
    n_out: usize,
) {
    let input = vec![1u8; n_in];
    let mut output = vec![0u8; n_out];
    group.throughput(Throughput::Bytes((n_in + n_out) as u64));
    group.bench_function(BenchmarkId::new(format!("copy/{case}"), place), |bencher| {
        bencher.iter(|| stream(black_box(&input), black_box(&mut output)));
    });
}

/// Copies what both have, then reads the rest of the input or writes the rest of the output; interleaved in blocks of
/// 4 KiB so that both streams run at once, as in a kernel.
fn stream(input: &[u8], output: &mut [u8]) {
    let blocks = input.len().max(output.len()).div_ceil(4096).max(1);
    let cut = |len: usize, i: usize| len * i / blocks;
    for i in 0..blocks {
        let source = &input[cut(input.len(), i)..cut(input.len(), i + 1)];
        let range = cut(output.len(), i)..cut(output.len(), i + 1);
        let target = &mut output[range];
        let both = source.len().min(target.len());
        target[..both].copy_from_slice(&source[..both]);
        target[both..].fill(1);
        black_box(source[both..].iter().fold(0u8, |sum, &byte| sum ^ byte));
    }
}

/// Measures the copy that a decoder is compared with: as many bytes in and out, the same kind of stores, no arithmetic. A
/// block of the input is copied to the output as often as the output is longer.
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
    let copy = |input: &[u8], output: &mut [u8]| {
        let blocks = n_in.div_ceil(4096).max(1);
        let cut = |len: usize, i: usize| len * i / blocks..len * (i + 1) / blocks;
        for i in 0..blocks {
            let block = &input[cut(n_in, i)];
            for out in output[cut(n_out, i)].chunks_mut(block.len().max(1)) {
                (backend.copy)(&block[..out.len()], out, stores);
            }
        }
    };
    copy(&input, &mut output);
    assert!(
        output.iter().all(|&byte| byte == 1),
        "every byte is written"
    );
    group.throughput(Throughput::Bytes((n_in + n_out) as u64));
    group.bench_function(BenchmarkId::new(format!("copy/{case}"), place), |bencher| {
        bencher.iter(|| copy(black_box(&input), black_box(&mut output)));
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
