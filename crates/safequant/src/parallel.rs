//! Whole tensors on all cores: into memory that the caller has, or into a fresh buffer.
//!
//! Tiles of rows are decoded on the threads of the `rayon` pool in which a function is called: `pool.install(|| ..)` says
//! which one, and without it that is rayon's own, with a thread for each core. Tiles and results do not depend on how
//! many threads there are.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use safequant_container::AlignedBuffer;
use safequant_kernels::Stores;
use safequant_rewrite::{CancelToken, Error};
use safequant_schemes::{DenseTensor, Scratch};

/// Reads rows `rows` of a tensor into a fresh buffer, as [`rows_into`] does. Who reads many tensors and is done with one
/// before the next should keep a buffer and call that instead: memory that was never touched costs time.
///
/// ```
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-mixed");
/// # use std::path::Path;
/// use safequant::schemes::OutputDtype;
/// use safequant::{Backend, CancelToken, Checkpoint, DenseView, Float, Limits, Model, parallel};
///
/// let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
/// let model = Model::bind(&checkpoint)?;
/// let dtype = OutputDtype::Float(Float::F32);
/// let view = DenseView::new(&checkpoint, &model, dtype, Backend::detect());
/// let weight = view.tensor(&model.quantized[0].weight)?.expect("it is in the view");
///
/// let whole = parallel::rows(&weight, 0..weight.n_rows(), &CancelToken::default())?;
/// let values: &[f32] = whole.elements();
/// assert_eq!(values.len() as u64, weight.shape.iter().product::<u64>());
/// # Ok::<(), safequant::Error>(())
/// ```
///
/// # Errors
/// As [`rows_into`]; no memory.
pub fn rows(
    tensor: &DenseTensor<'_>,
    rows: Range<u64>,
    cancel: &CancelToken,
) -> Result<AlignedBuffer, Error> {
    let n_rows = rows.end.saturating_sub(rows.start);
    let len_bytes = n_rows.saturating_mul(tensor.row_bytes());
    let mut out = AlignedBuffer::zeroed(len_bytes, tensor.name)?;
    rows_into(tensor, rows, &mut out, cancel)?;
    Ok(out)
}

/// Reads rows `rows` of a tensor into `out`, row-major and little-endian, in the tensor's dtype.
///
/// # Errors
/// I/O, or stored values that no reader accepts: what the first tile that has one meets, whatever other threads meet.
/// [`Error::Canceled`] if somebody asked for that before all tiles were begun. What `out` holds then is not specified.
///
/// # Panics
/// If `out` is not as long as the rows: the caller's bug.
pub fn rows_into(
    tensor: &DenseTensor<'_>,
    rows: Range<u64>,
    out: &mut [u8],
    cancel: &CancelToken,
) -> Result<(), Error> {
    // The whole output counts, not the tile: past the caches if all of it would not stay there.
    let stores = Stores::for_len(out.len());
    let tiles = cut(tensor, rows, out);
    let first_failed = AtomicUsize::new(usize::MAX);
    let read = |scratch: &mut Scratch, (at, (rows, out)): (usize, (Range<u64>, &mut [u8]))| {
        if cancel.is_canceled() {
            return Some((at, Error::Canceled));
        }
        // Nobody will hear of what follows a failure; what comes before it may still fail itself.
        if first_failed.load(Ordering::Relaxed) < at {
            return None;
        }
        let error = tensor.rows_with(rows, (out, stores), scratch).err()?;
        first_failed.fetch_min(at, Ordering::Relaxed);
        Some((at, error.into()))
    };
    let tiles = tiles.into_par_iter().enumerate();
    let failures = tiles.map_init(Scratch::default, read);
    let first = failures.flatten().min_by_key(|(at, _)| *at);
    first.map_or(Ok(()), |(_, error)| Err(error))
}

/// Tiles and their places in the output.
fn cut<'o>(
    tensor: &DenseTensor<'_>,
    rows: Range<u64>,
    out: &'o mut [u8],
) -> Vec<(Range<u64>, &'o mut [u8])> {
    let mut rest = out;
    let mut place = |tile: Range<u64>| {
        let len = (tile.end - tile.start).checked_mul(tensor.row_bytes());
        let len = len.and_then(|len| usize::try_from(len).ok());
        let placed = len.and_then(|len| std::mem::take(&mut rest).split_at_mut_checked(len));
        let (now, later) = placed.expect("the output is not as long as the rows");
        rest = later;
        (tile, now)
    };
    let tiles = tensor.tiles(rows).map(&mut place).collect();
    assert!(rest.is_empty(), "the output is not as long as the rows");
    tiles
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use safequant_container::{BytesSource, Checkpoint, Limits, ReadAt};
    use safequant_kernels::Backend;
    use safequant_schemes::{DenseView, Model, OutputDtype};

    use super::*;

    const ROWS: usize = 1500;
    const COLUMNS: usize = 1000;

    /// 4-bit integers in bytes, one scale per channel, and a weight that is dense: both are several tiles.
    fn checkpoint(codes: &[u8]) -> Checkpoint {
        let (n, scales) = (codes.len(), 2 * ROWS);
        let header = format!(
            r#"{{"m.weight":{{"dtype":"I8","shape":[{ROWS},{COLUMNS}],"data_offsets":[0,{n}]}},
                "m.weight_scale":{{"dtype":"BF16","shape":[{ROWS},1],"data_offsets":[{n},{}]}},
                "plain.weight":{{"dtype":"BF16","shape":[{ROWS},{}],"data_offsets":[{},{}]}}}}"#,
            n + scales,
            COLUMNS / 2,
            n + scales,
            2 * n + scales,
        );
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(codes);
        file.extend([0x23, 0x3c].repeat(ROWS));
        file.extend_from_slice(codes);
        let config = br#"{"quantization_config":{"quant_method":"compressed-tensors","format":"int-quantized",
            "config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","strategy":"channel"}}},
            "ignore":[]}}"#;
        let documents = [("config.json".to_owned(), config.to_vec())].into();
        let source: Arc<dyn ReadAt> = Arc::new(BytesSource(file.into()));
        Checkpoint::from_sources(
            "made for the test",
            vec![("model.safetensors".to_owned(), source)],
            documents,
            &Limits::default(),
        )
        .unwrap()
    }

    /// Codes from -8 to 7.
    fn codes() -> Vec<u8> {
        let code = |i: usize| (u8::try_from(i % 251 % 16).unwrap()).wrapping_sub(8);
        (0..ROWS * COLUMNS).map(code).collect()
    }

    /// Calls `f` with both tensors, on pools of one to three threads.
    fn each(checkpoint: &Checkpoint, f: impl Fn(&DenseTensor<'_>) + Sync) -> usize {
        let model = Model::bind(checkpoint).unwrap();
        let view = DenseView::new(checkpoint, &model, OutputDtype::Auto, Backend::detect());
        let mut n_called = 0;
        for name in view.names() {
            let tensor = view.tensor(name).unwrap().unwrap();
            assert!(tensor.tiles(0..tensor.n_rows()).count() > 2, "{name}");
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                pool.build().unwrap().install(|| f(&tensor));
                n_called += 1;
            }
        }
        n_called
    }

    #[test]
    fn whole_tensors_are_their_rows_on_any_number_of_threads() {
        let checkpoint = checkpoint(&codes());
        let n = each(&checkpoint, |tensor| {
            for range in [0..tensor.n_rows(), 7..1400, 3..3] {
                let len = (range.end - range.start) * tensor.row_bytes();
                let mut expected = vec![0; usize::try_from(len).unwrap()];
                tensor.rows(range.clone(), &mut expected).unwrap();
                let cancel = CancelToken::default();
                let fresh = rows(tensor, range.clone(), &cancel).unwrap();
                assert!(*fresh == *expected, "{} {range:?}", tensor.name);
                let mut given = vec![0xa5; expected.len()];
                rows_into(tensor, range.clone(), &mut given, &cancel).unwrap();
                assert!(given == expected, "{} {range:?}", tensor.name);
            }
        });
        assert_eq!(n, 6);
    }

    #[test]
    fn the_error_is_that_of_the_first_row_that_has_one() {
        let mut codes = codes();
        for row in [1499, 901, 700] {
            codes[row * COLUMNS + 5] = 100;
        }
        let n = each(&checkpoint(&codes), |tensor| {
            let read = rows(tensor, 0..tensor.n_rows(), &CancelToken::default());
            if tensor.name == "m.weight" {
                let error = read.expect_err("100 is no 4-bit code");
                assert!(error.to_string().contains("row 700"), "{error}");
            } else {
                assert_eq!(read.unwrap().len(), ROWS * COLUMNS);
            }
        });
        assert_eq!(n, 6);
    }

    #[test]
    fn who_cancels_gets_an_error() {
        let cancel = CancelToken::default();
        cancel.cancel();
        let n = each(&checkpoint(&codes()), |tensor| {
            let read = rows(tensor, 0..tensor.n_rows(), &cancel);
            assert!(matches!(read, Err(Error::Canceled)), "{}", tensor.name);
        });
        assert_eq!(n, 6);
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error_that_names_the_tensor() {
        let checkpoint = checkpoint(&codes());
        each(&checkpoint, |tensor| {
            let error = rows(tensor, 0..1 << 50, &CancelToken::default()).expect_err("too much");
            assert_eq!(error.code(), "out_of_memory");
            assert!(error.to_string().contains(tensor.name), "{error}");
        });
    }

    #[test]
    #[should_panic(expected = "the output is not as long as the rows")]
    fn an_output_of_another_length_is_the_callers_bug() {
        let checkpoint = checkpoint(&codes());
        let model = Model::bind(&checkpoint).unwrap();
        let view = DenseView::new(&checkpoint, &model, OutputDtype::Auto, Backend::detect());
        let tensor = view.tensor("plain.weight").unwrap().unwrap();
        let _ = rows_into(
            &tensor,
            0..2,
            &mut [0; 2 * COLUMNS + 1],
            &CancelToken::default(),
        );
    }
}
