//! Running the binary, and small checkpoints to run it on.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value, json};

/// The binary under test, in a directory of its own, without the caller's terminal settings.
pub(crate) fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_safequant"));
    command
        .current_dir(directory)
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    command
}

/// What a run answered.
pub(crate) struct Ran {
    pub(crate) line: String,
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn new(line: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
        let ran = Self {
            line,
            status: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        assert!(
            !ran.stderr.contains("panicked"),
            "{}: {}",
            ran.line,
            ran.stderr
        );
        ran
    }

    /// Asserts the exit status; a failure shows what was said.
    pub(crate) fn expect(self, status: i32) -> Self {
        let Ran {
            line,
            stdout,
            stderr,
            ..
        } = &self;
        assert_eq!(
            self.status,
            Some(status),
            "{line}\nstdout: {stdout}\nstderr: {stderr}"
        );
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: {e}: {}", self.line, self.stdout))
    }
}

/// Runs a line such as `safequant inspect model --filter '*attn*'`; a redirection at its end is left out.
pub(crate) fn run(directory: &Path, line: &str) -> Ran {
    let words = words(line.split(" > ").next().unwrap());
    assert_eq!(words[0], "safequant", "{line}");
    let output = command(directory).args(&words[1..]).output().unwrap();
    Ran::new(line.to_owned(), &output)
}

/// Splits at spaces outside single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.trim().chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A tensor to be written: name, dtype, shape, bytes.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A BF16 tensor of small numbers that differ from each other.
pub(crate) fn bf16(name: &str, shape: &[u64]) -> Tensor {
    let n: u64 = shape.iter().product();
    let value = |i: u64| {
        let x = (i.wrapping_mul(2_654_435_761) >> 7) % 2001;
        let x = f32::from(u16::try_from(x).unwrap()) / 1000.0 - 1.0;
        u16::try_from(x.to_bits() >> 16).unwrap().to_le_bytes()
    };
    let bytes = (0..n).flat_map(value).collect();
    Tensor {
        name: name.to_owned(),
        dtype: "BF16",
        shape: shape.to_vec(),
        bytes,
    }
}

/// A safetensors file, made without the code under test.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()] });
        header.insert(tensor.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A file with this header, right or wrong.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// Two layers in the shape of a Llama.
pub(crate) fn tiny_llama() -> Vec<Tensor> {
    let mut tensors = vec![bf16("model.embed_tokens.weight", &[32, 256])];
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push(bf16(&format!("model.layers.{layer}.{name}.weight"), shape));
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[256, 256]);
        }
        add("mlp.gate_proj", &[384, 256]);
        add("mlp.up_proj", &[384, 256]);
        add("mlp.down_proj", &[256, 384]);
        add("input_layernorm", &[256]);
        add("post_attention_layernorm", &[256]);
    }
    tensors.push(bf16("model.norm.weight", &[256]));
    tensors.push(bf16("lm_head.weight", &[32, 256]));
    tensors
}

/// A directory with `model/` (a tiny Llama) in it.
pub(crate) fn workplace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("model.safetensors"), safetensors(&tiny_llama())).unwrap();
    let config =
        json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256 });
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    fs::write(model.join("tokenizer.json"), "{}").unwrap();
    directory
}

/// Writes statistics of the inputs of the tiny Llama's linear layers, as `safequant.calibrate` does: their whole second moment, of
/// features that are independent and unequally loud.
pub(crate) fn write_calibration(path: &Path) {
    let metadata = json!({
        "format": "safequant-calibration",
        "format_version": "1",
        "hessian": "full",
        "accumulation": "F32",
        "sequential": "false",
    });
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), metadata);
    let mut data: Vec<u8> = Vec::new();
    let linear = tiny_llama()
        .into_iter()
        .filter(|t| t.name.ends_with("proj.weight"));
    for tensor in linear {
        let module = tensor.name.strip_suffix(".weight").unwrap().to_owned();
        let width = usize::try_from(tensor.shape[1]).unwrap();
        let moment = (0..width * width).map(|i| {
            let loud = f32::from(u16::try_from(i / width % 7).unwrap()) + 1.0;
            if i % (width + 1) == 0 { loud } else { 0.0 }
        });
        let moment: Vec<u8> = moment.flat_map(f32::to_le_bytes).collect();
        for (name, dtype, shape, bytes) in [
            ("hessian", "F32", json!([width, width]), moment),
            (
                "token_count",
                "I64",
                json!([]),
                4096_i64.to_le_bytes().to_vec(),
            ),
        ] {
            let begin = data.len();
            data.extend_from_slice(&bytes);
            let entry =
                json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] });
            header.insert(format!("{module}.{name}"), entry);
        }
    }
    fs::write(path, with_header(&Value::Object(header).to_string(), &data)).unwrap();
}

/// Every file below a directory with its bytes, by name.
pub(crate) fn tree(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

/// The names in a directory, hidden ones included.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Characters that must never reach a terminal (reliability.md P9), as a readable list.
pub(crate) fn hostile_characters(text: &str) -> String {
    let mut found = String::new();
    for c in text.chars() {
        let control = c.is_control() && c != '\n';
        let bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if control || bidi {
            write!(found, "{} ", c.escape_unicode()).unwrap();
        }
    }
    found
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
