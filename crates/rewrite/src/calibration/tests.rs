//! Files of both formats: written by hand, by llama.cpp, and broken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safequant_container::{BytesSource, Dtype, FilePlan, Limits, OsDisk, PlannedTensor};

use super::imatrix::{ImatrixForm, ImatrixModule, ImatrixOptions, write};
use super::*;

/// Tensors and metadata of a small file.
#[derive(Clone)]
struct Tiny {
    tensors: BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Tiny {
    /// `a.b`: four tokens of two features; `a.idle`: none; `a.c` shares with `a.b`.
    fn new() -> Self {
        let mut tiny = Self {
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for (key, value) in [
            ("format", "safequant-calibration"),
            ("format_version", "1"),
            ("hessian", "full"),
            ("accumulation", "F32"),
            ("sequential", "false"),
            ("shares", r#"{"a.c": "a.b"}"#),
        ] {
            tiny.metadata.insert(key.to_owned(), value.to_owned());
        }
        for (module, n, h, abs, mean) in [
            ("a.b", 4, [2.0, 0.5, 0.5, 1.0], [1.25, 1.0], [-0.5, 1.0]),
            ("a.idle", 0, [0.0; 4], [0.0; 2], [0.0; 2]),
        ] {
            tiny.float(&format!("{module}.hessian"), &[2, 2], &h);
            tiny.float(&format!("{module}.mean_abs_input"), &[2], &abs);
            tiny.float(&format!("{module}.mean_input"), &[2], &mean);
            tiny.count(module, n);
        }
        tiny
    }

    fn float(&mut self, name: &str, shape: &[u64], values: &[f32]) {
        let tensor = (Dtype::F32, shape.to_vec(), floats(values));
        self.tensors.insert(name.to_owned(), tensor);
    }

    fn count(&mut self, module: &str, n: i64) {
        let tensor = (Dtype::I64, Vec::new(), n.to_le_bytes().to_vec());
        self.tensors.insert(format!("{module}.token_count"), tensor);
    }

    fn bytes(&self) -> Vec<u8> {
        let planned = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, _))| PlannedTensor {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                block: None,
            });
        let metadata: Vec<_> = self.metadata.clone().into_iter().collect();
        let plan = FilePlan::new("tiny", planned.collect(), &metadata).unwrap();
        let mut bytes = plan.prefix.clone();
        for tensor in &plan.tensors {
            bytes.extend_from_slice(&self.tensors[tensor.name.as_str()].2);
        }
        bytes
    }
}

fn open(bytes: &[u8]) -> Result<Calibration, Error> {
    let source = Arc::new(BytesSource(bytes.into()));
    Calibration::from_source("tiny", source, &Limits::default())
}

/// Opens a file and reads everything in it, as nothing else than a quantizer would.
fn read_all(bytes: &[u8]) -> Result<usize, Error> {
    let calibration = open(bytes)?;
    let mut n_read = 0;
    for module in calibration.modules() {
        let found = calibration.statistics(&module.name, module.n_values)?;
        let found = found.unwrap_or_else(|| panic!("{} is listed", module.name));
        assert!(
            found
                .second_moment
                .diagonal()
                .iter()
                .all(|v| v.is_finite() && *v >= 0.0)
        );
        n_read += 1;
    }
    let _ = calibration.expert_statistics("blk.0.ffn_up_exps", 1, 8)?;
    Ok(n_read)
}

#[test]
fn what_the_file_says_is_what_is_read() {
    let calibration = open(&Tiny::new().bytes()).unwrap();
    let names: Vec<String> = calibration.modules().map(|m| m.name).collect();
    assert_eq!(names, ["a.b", "a.c", "a.idle"]);
    let owners: Vec<String> = calibration.modules().map(|m| m.owner).collect();
    assert_eq!(owners, ["a.b", "a.b", "a.idle"]);
    for name in ["a.b", "a.c"] {
        let found = calibration.statistics(name, 2).unwrap().unwrap();
        let h = vec![2.0, 0.5, 0.5, 1.0];
        assert_eq!(found.second_moment, SecondMoment::Full(h));
        assert_eq!(found.second_moment.diagonal(), [2.0, 1.0]);
        assert_eq!(found.token_count, Some(4));
        assert_eq!(found.mean_abs, Some(vec![1.25, 1.0]));
        assert_eq!(found.mean, Some(vec![-0.5, 1.0]));
    }
    let idle = calibration.statistics("a.idle", 2).unwrap().unwrap();
    assert_eq!(idle.token_count, Some(0));
    assert_eq!(idle.second_moment, SecondMoment::Diagonal(vec![0.0; 2]));
    assert!(calibration.statistics("a", 2).unwrap().is_none());
    let error = calibration.statistics("a.b", 3).unwrap_err().to_string();
    assert_eq!(
        error,
        "tiny: a.b: expected statistics of 3 input features, found 2"
    );
    assert!(
        calibration
            .provenance()
            .iter()
            .any(|(key, _)| key == "accumulation")
    );
}

#[test]
fn a_diagonal_is_read_too_and_experts_are_found_by_their_stack() {
    let mut tiny = Tiny::new();
    tiny.tensors.clear();
    tiny.metadata.remove("shares");
    tiny.metadata
        .insert("hessian".to_owned(), "diagonal".to_owned());
    tiny.float("m.experts.1.gate_proj.hessian_diagonal", &[2], &[2.0, 1.0]);
    tiny.count("m.experts.1.gate_proj", 7);
    let calibration = open(&tiny.bytes()).unwrap();
    for stack in ["m.experts.gate_proj", "m.experts.gate_up_proj"] {
        let found = calibration.expert_statistics(stack, 1, 2).unwrap().unwrap();
        assert_eq!(found.second_moment, SecondMoment::Diagonal(vec![2.0, 1.0]));
        assert_eq!((found.mean, found.token_count), (None, Some(7)));
        assert!(
            calibration
                .expert_statistics(stack, 0, 2)
                .unwrap()
                .is_none()
        );
    }
}

/// A change to a file that makes it wrong, and what the error says.
type Break = (&'static str, fn(&mut Tiny), &'static str);

const BREAKS: &[Break] = &[
    (
        "calibration_kind",
        |t| {
            t.metadata.remove("format");
        },
        "without `format`",
    ),
    (
        "calibration_metadata",
        |t| {
            t.metadata.insert("format_version".into(), "2".into());
        },
        "format_version: expected 1, found \"2\"",
    ),
    (
        "calibration_metadata",
        |t| {
            t.metadata.remove("accumulation");
        },
        "accumulation: expected F32 or F64, found nothing",
    ),
    (
        "calibration_metadata",
        |t| {
            t.metadata
                .insert("shares".into(), r#"{"a.c": "a.d"}"#.into());
        },
        "shares: expected a JSON object",
    ),
    (
        "calibration_metadata",
        |t| {
            t.metadata.insert("shares".into(), "[[".into());
        },
        "shares: expected a JSON object",
    ),
    (
        "calibration_layout",
        |t| t.float("a.b.weight", &[1], &[0.0]),
        "a.b.weight: expected a module",
    ),
    (
        "calibration_layout",
        |t| t.float("a.b.mean_input", &[3], &[0.0; 3]),
        "expected [2], found [3]",
    ),
    (
        "calibration_layout",
        |t| t.float("a.b.hessian", &[2, 3], &[0.0; 6]),
        "expected [2, 2], found [2, 3]",
    ),
    (
        "calibration_layout",
        |t| t.float("a.b.hessian", &[0, 0], &[]),
        "at least one input feature",
    ),
    (
        "calibration_layout",
        |t| t.float("a.b.token_count", &[], &[0.0]),
        "expected I64, found F32",
    ),
    (
        "calibration_layout",
        |t| t.float("a.b.hessian_diagonal", &[2], &[0.0; 2]),
        "only hessian",
    ),
    (
        "calibration_layout",
        |t| {
            t.tensors.remove("a.b.hessian");
        },
        "a.b.hessian: expected a tensor",
    ),
    (
        "calibration_layout",
        |t| {
            t.tensors.remove("a.b.token_count");
        },
        "a.b.token_count: expected a tensor",
    ),
    (
        "calibration_value",
        |t| t.count("a.b", -1),
        "token_count: expected no negative number, found -1",
    ),
    (
        "calibration_value",
        |t| t.float("a.b.hessian", &[2, 2], &[2.0, 0.5, 0.6, 1.0]),
        "a.b: hessian: expected a symmetric matrix",
    ),
    (
        "calibration_value",
        |t| t.float("a.b.mean_abs_input", &[2], &[f32::NAN, 0.0]),
        "a.b: mean_abs_input: expected finite numbers",
    ),
];

#[test]
fn each_rule_is_refused_by_name() {
    for (code, change, text) in BREAKS {
        let mut tiny = Tiny::new();
        change(&mut tiny);
        let error = read_all(&tiny.bytes()).expect_err(text);
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert!(error.to_string().starts_with("tiny: "), "{error}");
        assert_eq!(error.code(), *code, "{error}");
    }
    assert_eq!(read_all(&Tiny::new().bytes()).unwrap(), 3);
}

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama.cpp-imatrix");
    root.join(name)
}

const FIXTURES: [&str; 4] = ["mixtral.gguf", "mixtral.dat", "idle.gguf", "idle.dat"];

/// Every prefix of a file and every flipped bit: an answer or an error, never a panic.
#[test]
fn broken_files_are_errors() {
    let mut files = vec![("ours", Tiny::new().bytes())];
    for name in FIXTURES {
        files.push((name, std::fs::read(fixture(name)).unwrap()));
    }
    let mut n_refused = 0;
    for (name, bytes) in files {
        assert!(read_all(&bytes).unwrap() >= 3, "{name}");
        for len in 0..bytes.len() {
            n_refused += usize::from(read_all(&bytes[..len]).is_err());
        }
        for at in 0..bytes.len() {
            for bit in [0, 3, 7] {
                let mut broken = bytes.clone();
                broken[at] ^= 1 << bit;
                n_refused += usize::from(read_all(&broken).is_err());
            }
        }
    }
    assert!(n_refused > 10_000, "{n_refused} refused");
}

/// What `llama-imatrix` wrote in both of its forms is the same diagonal (specs/imatrix.md, clauses 4 and 6).
#[test]
fn both_forms_of_llama_cpp_agree() {
    for name in ["mixtral", "idle"] {
        let limits = Limits::default();
        let gguf = Calibration::open(&fixture(&format!("{name}.gguf")), &limits).unwrap();
        let binary = Calibration::open(&fixture(&format!("{name}.dat")), &limits).unwrap();
        let mut n_compared = 0;
        for module in gguf.modules() {
            let read = |c: &Calibration| c.statistics(&module.name, 8).unwrap().unwrap();
            let (a, b) = (read(&gguf), read(&binary));
            assert_eq!(b.token_count, None);
            if a.token_count == Some(0) {
                // The old form cannot tell them from statistics.
                assert_eq!(b.second_moment.diagonal(), [1.0; 8], "{}", module.name);
                continue;
            }
            for (x, y) in a
                .second_moment
                .diagonal()
                .iter()
                .zip(b.second_moment.diagonal())
            {
                assert!((x - y).abs() <= 1e-6 * x.abs(), "{}: {x} {y}", module.name);
            }
            n_compared += 1;
        }
        assert_eq!(n_compared, if name == "idle" { 11 } else { 14 });
    }
}

/// The figures that `llama-imatrix` stored, and names of several models for them.
#[test]
fn the_importance_matrix_of_a_mixture() {
    let path = fixture("mixtral.gguf");
    let calibration = Calibration::open(&path, &Limits::default()).unwrap();
    let names = [
        "model.layers.0.block_sparse_moe.experts.1.w3",
        "model.layers.0.mlp.experts.1.up_proj",
        "blk.0.ffn_up_exps.1",
    ];
    for name in names {
        let found = calibration.statistics(name, 8).unwrap().unwrap();
        assert_eq!(found.token_count, Some(322), "{name}");
    }
    let of_stack = calibration.expert_statistics("blk.0.ffn_up_exps.weight", 1, 8);
    assert_eq!(of_stack.unwrap().unwrap().token_count, Some(322));
    let query = calibration.statistics("model.layers.0.self_attn.q_proj", 8);
    let query = query.unwrap().unwrap();
    // 228.42752 / 384, as gguf-py reads them.
    let first = query.second_moment.diagonal()[0];
    assert!((first - 228.427_52 / 384.0).abs() < 1e-6, "{first}");
    let wrong = calibration.statistics("blk.0.attn_q", 4).unwrap_err();
    assert_eq!(wrong.code(), "calibration_width");
    assert!(
        calibration
            .statistics("blk.0.ffn_up_exps.3", 8)
            .unwrap()
            .is_none()
    );
    let listed: Vec<Module> = calibration.modules().collect();
    assert_eq!(listed.len(), 14);
    assert!(listed.iter().all(|m| m.in_features == Some(8)));
    let provenance = calibration.provenance();
    assert_eq!(
        provenance[0],
        ("imatrix.datasets".into(), "text.txt".into())
    );
    assert_eq!(provenance[1], ("imatrix.chunk_count".into(), "12".into()));
}

/// A folder of its own for each test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("safequant-calibration-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn modules_of(calibration: &Calibration) -> Vec<ImatrixModule> {
    let listed = calibration.modules();
    let module = |module: Module| {
        let found = calibration.statistics(&module.name, module.in_features.unwrap());
        let found = found.unwrap().unwrap();
        ImatrixModule {
            name: module.name,
            token_count: found.token_count.unwrap(),
            mean_squares: found.second_moment.diagonal(),
        }
    };
    listed.map(module).collect()
}

/// The binary form written from what the GGUF form holds has the very bytes that llama.cpp writes; the GGUF form has its header, and
/// its sums to the rounding of a division and a product.
#[test]
fn what_llama_cpp_wrote_is_written_again() {
    let folder = Folder::new("again");
    for name in ["mixtral", "idle"] {
        let source = fixture(&format!("{name}.gguf"));
        let calibration = Calibration::open(&source, &Limits::default()).unwrap();
        let modules = modules_of(&calibration);
        let dataset = if name == "idle" {
            "idle.txt"
        } else {
            "text.txt"
        };
        for (form, suffix) in [(ImatrixForm::Gguf, "gguf"), (ImatrixForm::Binary, "dat")] {
            let options = ImatrixOptions {
                form,
                datasets: vec![dataset.to_owned()],
                chunk_tokens: 32,
            };
            let path = folder.0.join(format!("{name}.{suffix}"));
            write(&OsDisk, &path, &modules, &options).unwrap();
            let ours = std::fs::read(&path).unwrap();
            let theirs = std::fs::read(fixture(&format!("{name}.{suffix}"))).unwrap();
            match form {
                ImatrixForm::Binary => assert!(ours == theirs, "{name}"),
                ImatrixForm::Gguf => compare_gguf(&ours, &theirs),
            }
        }
    }
    let left = std::fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(left, 4, "no temporary file stays");
}

fn compare_gguf(ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len());
    let data = ours.len() - 1024.min(ours.len());
    let n_header = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    assert!(n_header >= data / 2, "{n_header} bytes of the header agree");
    let words = |bytes: &[u8]| -> Vec<f32> {
        let tail = bytes[data..].chunks_exact(4);
        tail.map(|w| f32::from_le_bytes(w.try_into().unwrap()))
            .collect()
    };
    for (a, b) in words(ours).into_iter().zip(words(theirs)) {
        assert!(a.to_bits() == b.to_bits() || (a - b).abs() <= 2.0 * f32::EPSILON * b.abs());
    }
}

#[test]
fn what_cannot_be_written_is_refused_by_name() {
    let module = |name: &str, mean_squares: &[f32]| ImatrixModule {
        name: name.to_owned(),
        token_count: 5,
        mean_squares: mean_squares.to_vec(),
    };
    let expert =
        |e: u8, values: &[f32]| module(&format!("layers.0.mlp.experts.{e}.up_proj"), values);
    let folder = Folder::new("refused");
    let path = folder.0.join("x.gguf");
    let options = ImatrixOptions {
        form: ImatrixForm::Gguf,
        datasets: Vec::new(),
        chunk_tokens: 512,
    };
    for (modules, expected) in [
        (vec![], "llama.cpp reads none"),
        (
            vec![module("a", &[1.0, f32::NAN])],
            "a cannot be written: its mean squares",
        ),
        (vec![module("a", &[-1.0])], "its mean squares"),
        (
            vec![module("a", &[1.0]), module("a.weight", &[1.0])],
            "the same name in GGUF",
        ),
        (
            vec![expert(0, &[1.0]), expert(1, &[1.0, 2.0])],
            "one number of input features",
        ),
        (vec![module(&"x".repeat(60), &[1.0])], "at most 63 bytes"),
    ] {
        let error = write(&OsDisk, &path, &modules, &options).expect_err(expected);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
    // An expert that is missing is one without tokens.
    write(&OsDisk, &path, &[expert(2, &[1.0, 0.25])], &options).unwrap();
    let found = Calibration::open(&path, &Limits::default()).unwrap();
    let counts: Vec<_> = found.modules().map(|m| m.token_count).collect();
    assert_eq!(counts, [Some(0), Some(0), Some(5)]);
}
