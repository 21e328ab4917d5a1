//! A quantization-aware storage engine over safetensors.
//!
//! Three questions, three crates: *where are the bytes* ([`container`]), *what do they mean* ([`schemes`]), *how is it
//! computed* ([`kernels`]). On top of them stand [`quantize`] (algorithms that choose codes and scales) and [`rewrite`]
//! (every verb that writes a checkpoint). This crate re-exports all of them; what most programs need lies at its root.
//!
//! # A guided tour
//!
//! Each step below runs as a test. `model` is a checkpoint that llm-compressor wrote (4-bit MLPs, FP8
//! attention); it comes with the repository.
//!
//! ## Open a checkpoint
//!
//! A file, a directory in the Hugging Face layout, or an index file. Headers are validated once and completely, nothing of
//! the data is read, and nothing is allocated because a file merely declares it.
//!
//! ```
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-mixed");
//! use std::path::Path;
//! use safequant::{Checkpoint, Dtype, Limits};
//!
//! let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
//! let packed = checkpoint.tensors().filter(|tensor| tensor.dtype() == Dtype::I32).count();
//! assert!(packed > 0, "the 4-bit codes ride in I32 tensors");
//! assert!(checkpoint.document("config.json").is_some());
//! # Ok::<(), safequant::Error>(())
//! ```
//!
//! ## See weights instead of tensors
//!
//! [`Model::bind`] recognizes the conventions by evidence and binds names to the neutral model: for each quantized weight
//! its logical shape, its [`Scheme`], and the stored parts by [`Role`].
//!
//! ```
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-mixed");
//! # use std::path::Path;
//! # use safequant::{Checkpoint, Limits};
//! use safequant::schemes::{Code, Granularity, Role};
//! use safequant::Model;
//!
//! # let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
//! let model = Model::bind(&checkpoint)?;
//! assert_eq!(model.conventions[0].0, "compressed-tensors");
//! let weight = &model.quantized[0];
//! assert!(matches!(weight.scheme.code, Code::Integer { bits: 4, .. }));
//! assert_eq!(weight.scheme.granularity, Granularity::Group { size: 64 });
//! assert!(weight.part(Role::Codes).is_some() && weight.part(Role::Scale).is_some());
//! # Ok::<(), safequant::Error>(())
//! ```
//!
//! ## Read weights
//!
//! A [`Decoder`] gives rows of one weight, as F32 or in the dtype and with the very bits of the convention's own reference.
//! Any range of rows can be read, so memory is bounded by rows and not by tensors. Results do not depend on the
//! [`Backend`].
//!
//! ```
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-mixed");
//! # use std::path::Path;
//! # use safequant::{Checkpoint, Limits, Model};
//! use safequant::{Backend, Decoder, RowsOut};
//!
//! # let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
//! # let model = Model::bind(&checkpoint)?;
//! let weight = &model.quantized[0];
//! let decoder = Decoder::new(weight, &checkpoint, Backend::detect())?;
//! let n_columns = usize::try_from(weight.in_features()).expect("a small fixture");
//! let mut rows = vec![0.0; 2 * n_columns];
//! decoder.rows(0..2, RowsOut::F32(&mut rows))?;
//! assert!(rows.iter().any(|&value| value != 0.0) && rows.iter().all(|value| value.is_finite()));
//! # Ok::<(), safequant::Error>(())
//! ```
//!
//! ## Open it as dense, or a rank's share of it
//!
//! A [`DenseView`] is the checkpoint that `dequantize` would write, read by rows, with nothing written; [`parallel::rows`]
//! reads a whole tensor of it on all cores, into an [`AlignedBuffer`]. A [`slice()`] of a weight is what one tensor-parallel rank holds: still packed, in logical coordinates, borrowed where the bytes lie
//! together.
//!
//! ```
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-mixed");
//! # use std::path::Path;
//! # use safequant::{Backend, Checkpoint, Limits, Model};
//! use safequant::schemes::{Axis, OutputDtype, Selection, slice};
//! use safequant::{DenseView, Dtype, Float};
//!
//! # let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
//! # let model = Model::bind(&checkpoint)?;
//! let dtype = OutputDtype::Float(Float::F16);
//! let view = DenseView::new(&checkpoint, &model, dtype, Backend::detect());
//! let weight = &model.quantized[0];
//! let dense = view.tensor(&weight.weight)?.expect("it is in the view");
//! assert_eq!((dense.dtype, dense.shape), (Dtype::F16, weight.shape.as_slice()));
//! let mut row = vec![0; usize::try_from(dense.row_bytes()).expect("a small fixture")];
//! dense.rows(3..4, &mut row)?;
//!
//! let share = slice(weight, &Selection::of_rank(weight, Axis::Out, 1, 2)?)?;
//! assert_eq!(share.tensor.out_features(), weight.out_features() / 2);
//! let bytes = share.read(weight, &checkpoint, Backend::detect())?;
//! assert_eq!(bytes.len(), weight.parts.len());
//! # Ok::<(), safequant::Error>(())
//! ```
//!
//! ## Write a checkpoint
//!
//! [`plan()`] says exactly what will be written, [`run`] does it: in bounded memory, on all cores, with the same bytes on
//! every machine. The destination appears complete or not at all. What happens meanwhile is told to [`Events`].
//!
//! ```
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/llm-compressor/ct-mixed");
//! # use std::path::Path;
//! use safequant::rewrite::{Destination, DequantizeRecipe, Event, Events, JobOptions, OutputDtype, Verb};
//! use safequant::{CancelToken, Checkpoint, Limits, OsDisk};
//!
//! struct Silent;
//! impl Events for Silent {
//!     fn event(&self, _: Event<'_>) {}
//! }
//!
//! # let directory = tempfile::tempdir().expect("a temporary directory");
//! # let destination = directory.path().join("dense");
//! let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
//! let verb = Verb::Dequantize(DequantizeRecipe { dtype: OutputDtype::Auto });
//! let options = JobOptions {
//!     memory_bytes: 64 << 20,
//!     threads: 0, // one per core
//!     max_shard_bytes: 5_000_000_000,
//!     destination: Destination::New,
//! };
//! let plan = safequant::plan(&checkpoint, &verb, &destination, &options)?;
//! let summary = safequant::run(&plan, &OsDisk, &Silent, &CancelToken::default())?;
//! assert_eq!(summary.files, plan.files);
//! assert!(destination.join("config.json").exists());
//! # Ok::<(), safequant::Error>(())
//! ```
//!
//! # Errors
//!
//! Every error names file, tensor or module, what was expected and what was found, and belongs to an [`ErrorGroup`] that
//! says whose fault it is. No input file causes a panic. [`Error`] holds the errors of all crates.
#![forbid(unsafe_code)]

pub mod options;
pub mod parallel;
pub mod recipe;
pub mod repair;
pub mod size;
pub mod views;

pub use safequant_audit as audit;
pub use safequant_container as container;
pub use safequant_kernels as kernels;
pub use safequant_quantize as quantize;
pub use safequant_rewrite as rewrite;
pub use safequant_schemes as schemes;

pub use safequant_container::{
    AlignedBuffer, Checkpoint, Dtype, ErrorGroup, Limits, OsDisk, ReadAt, TensorInfo, TensorRef,
};
pub use safequant_kernels::{Backend, Float};
pub use safequant_quantize::QUANTIZERS;
pub use safequant_rewrite::{CancelToken, Error, Event, Events, Plan, Summary, plan, run};
pub use safequant_schemes::{
    CONVENTIONS, Decoder, DenseView, Model, PRESETS, Preset, QuantizedTensor, Role, RowsOut,
    Scheme, slice,
};

/// The example of the README, compiled with the examples above.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
