//! A quantized Llama in candle, whatever convention it is stored in.
//!
//! ```sh
//! safequant-candle MODEL N_TOKENS TOKEN...
//! ```
//!
//! opens the checkpoint `MODEL`, continues the prompt `TOKEN...` greedily by `N_TOKENS` tokens, and prints each with its
//! logit.
//!
//! candle's models ask for their weights by name, through a [`VarBuilder`] and the [`SimpleBackend`] behind it. So one
//! backend, [`Dense`], is all that stands between a model of candle and every convention that safequant reads: GPTQ, AWQ, FP8,
//! compressed-tensors, MLX, bitsandbytes and so on. It decodes a weight at the moment it is asked for. Nothing is written, and
//! in memory are the model as candle keeps it and, while it loads, one weight more.

use std::path::Path;
use std::process::ExitCode;

use candle_core::{DType, Device, Error, IndexOp, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use safequant::schemes::{DenseTensor, OutputDtype};
use safequant::{Backend, CancelToken, Checkpoint, DenseView, Float, Limits, Model, parallel};
use serde_json::{Map, Value};

/// What candle computes in. [`DenseView`] gives the weights as exact in F32 as their convention defines them.
const DTYPE: DType = DType::F32;

/// What safequant, candle and others have to say.
type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [model, n_tokens, prompt @ ..] if !prompt.is_empty() => run(model, n_tokens, prompt),
        _ => Err("usage: safequant-candle MODEL N_TOKENS TOKEN...".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(model: &str, n_tokens: &str, prompt: &[String]) -> Outcome<()> {
    let n_tokens: usize = n_tokens.parse()?;
    let prompt = prompt.iter().map(|token| token.parse());
    let prompt: Vec<u32> = prompt.collect::<std::result::Result<_, _>>()?;

    // Headers and settings are read here: where the bytes are, and what they mean.
    let checkpoint = Checkpoint::open(Path::new(model), &Limits::default())?;
    let config = config(&checkpoint)?;
    let model = Model::bind(&checkpoint)?;
    let dtype = OutputDtype::Float(Float::F32);
    let view = DenseView::new(&checkpoint, &model, dtype, Backend::detect());

    let device = Device::Cpu;
    let weights = VarBuilder::from_backend(Box::new(Dense(view)), DTYPE, device.clone());
    let llama = Llama::load(weights, &config)?;
    for (token, logit) in generate(&llama, &config, &prompt, n_tokens, &device)? {
        println!("{token} {logit}");
    }
    Ok(())
}

/// The model's configuration, for candle, which looks for the rotation where transformers 4 had it; transformers 5 keeps all of it
/// in a map of its own.
fn config(checkpoint: &Checkpoint) -> Outcome<Config> {
    let document = checkpoint.document("config.json");
    let document = document.ok_or("there is no config.json beside the weights")?;
    let mut config: Map<String, Value> = serde_json::from_slice(document)?;
    if let Some(rotation) = config.remove("rope_parameters") {
        config.insert("rope_theta".to_owned(), rotation["rope_theta"].clone());
        if rotation["rope_type"] != "default" {
            config.insert("rope_scaling".to_owned(), rotation);
        }
    }
    let config: LlamaConfig = serde_json::from_value(Value::Object(config))?;
    Ok(config.into_config(false))
}

/// Continues a prompt by the likeliest token, again and again: each of them, with its logit.
fn generate(
    llama: &Llama,
    config: &Config,
    prompt: &[u32],
    n_tokens: usize,
    device: &Device,
) -> Result<Vec<(u32, f32)>> {
    let mut cache = Cache::new(true, DTYPE, config, device)?;
    let mut generated = Vec::new();
    let (mut position, mut unseen) = (0, prompt.to_vec());
    for _ in 0..n_tokens {
        let input = Tensor::new(unseen.as_slice(), device)?.unsqueeze(0)?;
        let logits = llama.forward(&input, position, &mut cache)?.squeeze(0)?;
        let token = logits.argmax(0)?.to_scalar::<u32>()?;
        let index = usize::try_from(token).map_err(Error::wrap)?;
        generated.push((token, logits.i(index)?.to_scalar::<f32>()?));
        position += unseen.len();
        unseen = vec![token];
    }
    Ok(generated)
}

/// A checkpoint in any convention, as the dense one that candle's models ask for.
struct Dense<'a>(DenseView<'a>);

impl<'a> Dense<'a> {
    /// A weight by name. Nothing of its data is read yet.
    fn find(&self, name: &str) -> Result<DenseTensor<'a>> {
        // Some weights expect inputs that are multiplied by a factor per feature, which candle's layers do not do. The view has
        // them once more, with the factors applied.
        for name in [&format!("{name}_effective"), name] {
            if let Some(weight) = self.0.tensor(name).map_err(Error::wrap)? {
                return Ok(weight);
            }
        }
        let path = name.to_owned();
        Err(Error::CannotFindTensor { path }.bt())
    }
}

/// Reads a weight on all cores, and hands it to candle.
fn read(weight: &DenseTensor<'_>, dtype: DType, device: &Device) -> Result<Tensor> {
    let bytes = parallel::rows(weight, 0..weight.n_rows(), &CancelToken::default());
    let bytes = bytes.map_err(Error::wrap)?;
    // What was never quantized comes in the dtype that it is stored in. Both spell floats alike, but for capitals.
    let stored = weight.dtype.name().to_ascii_lowercase().parse();
    let stored: DType = stored.map_err(Error::wrap)?;
    Tensor::from_raw_buffer(&bytes, stored, &dims(weight)?, device)?.to_dtype(dtype)
}

/// The shape of a weight, on this machine.
fn dims(weight: &DenseTensor<'_>) -> Result<Vec<usize>> {
    let dims = weight.shape.iter().map(|&n| usize::try_from(n));
    let dims: std::result::Result<_, _> = dims.collect();
    dims.map_err(Error::wrap)
}

impl SimpleBackend for Dense<'_> {
    fn get(
        &self,
        expected: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let weight = self.find(name)?;
        // Before anything is read: how much memory a weight takes is for the model to say, not for the file.
        let got = Shape::from(dims(&weight)?);
        if got != expected {
            let msg = format!("{name} has another shape than the model");
            return Err(Error::UnexpectedShape { msg, expected, got }.bt());
        }
        read(&weight, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        read(&self.find(name)?, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }
}
