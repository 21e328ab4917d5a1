//! What quantized bytes mean, and how each toolchain spells it.
//!
//! In the middle stands a neutral model: [`QuantizedTensor`] says which stored parts hold codes, scales, zero points and
//! group index, how they are laid out, and what arithmetic turns them into weights. A [`Convention`] only binds the names
//! of one toolchain to that model and back; it never computes. [`decode`] and [`encode`] turn the model into kernel calls
//! and know no convention. So N conventions cost N folders, and conversions need no pairs.
#![forbid(unsafe_code)]

pub mod arithmetic;
mod binding;
pub mod config;
pub mod convention;
pub mod conventions;
pub mod decode;
pub mod dense;
pub mod encode;
mod error;
mod foreign;
pub mod headers;
pub mod model;
pub mod pattern;
mod phrase;
pub mod preset;
pub mod quantized;
pub mod respelling;
pub mod scheme;
pub mod slice;
mod storage;
mod tile;
pub mod transcode;

pub use arithmetic::{Dequantizer, Extras};
pub use config::Settings;
pub use convention::{
    Asked, CONVENTIONS, ConfigEdit, Convention, ConventionWriter, Recognized, Written, convention,
};
pub use decode::{Decoder, RowsOut};
pub use dense::{DenseTensor, DenseView, OutputDtype};
pub use encode::EncodedRegion;
pub use error::{Error, ErrorGroup};
pub use headers::Headers;
pub use model::Model;
pub use pattern::Pattern;
pub use preset::{Activations, PRESETS, Preset, PresetGranularity, ScaleRule, WeightCode};
pub use quantized::{Axes, Axis, Kept, Part, QuantizedTensor, Role, Storage};
pub use respelling::{
    ExtraTensor, Respelled, Respelling, RowOrder, Spelling, StackPlace, Values, WrittenDense,
};
pub use scheme::{
    Arithmetic, Basis, Code, ColumnFactor, E8M0Rule, Granularity, IntegerEncoding, OffsetForm,
    Rotation, ScaleCoding, ScaleDirection, Scheme, SuperScale, ZeroCoding, ZeroPoint, dtype_of,
};
pub use slice::{Selection, Slice, SliceBytes, slice};
pub use storage::Scratch;
pub use tile::CodeTile;
pub use transcode::{Changes, Transcoder};
