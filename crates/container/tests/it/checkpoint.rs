//! Files, directories and indexes on a real file system.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use safequant_container::{
    BytesSource, Checkpoint, CheckpointKind, Error, ErrorGroup, Limits, ReadAt, TensorRef,
};
use tempfile::TempDir;

use crate::peer::file;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A file with U8 tensors of two bytes each.
fn shard(names: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| {
        let json = serde_json::to_string(name).unwrap();
        format!(
            r#"{json}:{{"dtype":"U8","shape":[2],"data_offsets":[{},{}]}}"#,
            2 * i,
            2 * i + 2
        )
    };
    let entries: Vec<_> = names.iter().enumerate().map(entry).collect();
    let mut bytes = file(format!("{{{}}}", entries.join(",")), 0);
    bytes.extend((0..2 * names.len()).map(|i| u8::try_from(i).unwrap()));
    bytes
}

fn index(pairs: &[(&str, &str)]) -> String {
    let map: BTreeMap<_, _> = pairs.iter().copied().collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    root
}

fn open(path: &Path) -> Result<Checkpoint, Error> {
    Checkpoint::open(path, &Limits::default())
}

fn code(path: &Path) -> &'static str {
    open(path).map_or_else(|error| error.code(), |_| "")
}

fn fifo(path: &Path) {
    let status = std::process::Command::new("mkfifo")
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_directory_without_index_is_all_its_files_in_name_order() -> Outcome {
    let root = folder(&[
        ("b.safetensors", &shard(&["y", "x"])),
        ("a.safetensors", &shard(&["z"])),
        ("config.json", b"{}"),
        ("tokenizer.model", b"abc"),
        ("safequant-manifest.json", b"{}"),
        (".hidden", b"x"),
        ("extra/deep/notes.txt", b"hello"),
        ("extra/other.safetensors", b"not opened"),
        ("extra/.git/x", b""),
    ]);
    let checkpoint = open(root.path())?;
    assert_eq!(checkpoint.kind(), CheckpointKind::Directory);
    let names: Vec<_> = checkpoint
        .shards()
        .iter()
        .map(|shard| shard.name.as_str())
        .collect();
    assert_eq!(names, ["a.safetensors", "b.safetensors"]);
    let names: Vec<_> = checkpoint.tensors().map(TensorRef::name).collect();
    assert_eq!(names, ["x", "y", "z"]);
    let x = checkpoint.tensor("x").unwrap();
    assert_eq!(
        (x.read_all(2)?, x.shard.name.as_str()),
        (vec![2, 3], "b.safetensors")
    );
    assert!(checkpoint.tensor("w").is_none());
    assert_eq!(checkpoint.document("config.json"), Some(&b"{}"[..]));
    assert_eq!(checkpoint.document("tokenizer.model"), None);
    let sidecars: Vec<_> = checkpoint
        .sidecars()
        .iter()
        .map(|s| (s.name.as_str(), s.len_bytes))
        .collect();
    assert_eq!(
        sidecars,
        [
            ("config.json", 2),
            ("extra/deep/notes.txt", 5),
            ("tokenizer.model", 3)
        ]
    );
    let notes = checkpoint.sidecar("extra/deep/notes.txt")?;
    let mut out = [0; 5];
    notes.read_exact_at(0, &mut out)?;
    assert_eq!(&out, b"hello");
    for name in ["../x", "a.safetensors", ".hidden", "nothing"] {
        assert_eq!(
            checkpoint.sidecar(name).map(drop).map_err(|e| e.code()),
            Err("no_such_sidecar")
        );
    }
    checkpoint.verify_unchanged()?;
    Ok(())
}

#[test]
fn without_an_index_a_name_may_occur_once() {
    let root = folder(&[
        ("a.safetensors", &shard(&["x"])),
        ("b.safetensors", &shard(&["x"])),
    ]);
    assert_eq!(code(root.path()), "tensor_in_two_shards");
    assert_eq!(code(tempfile::tempdir().unwrap().path()), "no_weights");
    assert_eq!(code(&root.path().join("nothing")), "io");
}

#[test]
fn the_index_decides_which_shards_and_which_tensor() -> Outcome {
    let root = folder(&[
        ("1.safetensors", &shard(&["x", "both", "unlisted"])),
        ("2.safetensors", &shard(&["y", "both"])),
        ("stale.safetensors", b"garbage"),
        (
            "model.safetensors.index.json",
            index(&[
                ("x", "1.safetensors"),
                ("both", "2.safetensors"),
                ("y", "2.safetensors"),
            ])
            .as_bytes(),
        ),
    ]);
    for path in [
        root.path().to_owned(),
        root.path().join("model.safetensors.index.json"),
    ] {
        let checkpoint = open(&path)?;
        let places: Vec<_> = checkpoint
            .tensors()
            .map(|t| (t.name(), t.shard.name.as_str()))
            .collect();
        let expected = [
            ("both", "2.safetensors"),
            ("unlisted", "1.safetensors"),
            ("x", "1.safetensors"),
            ("y", "2.safetensors"),
        ];
        assert_eq!(places, expected);
        assert_eq!(checkpoint.unreferenced(), ["stale.safetensors"]);
        assert_eq!(checkpoint.index().unwrap().total_size, Some(1));
        assert!(
            checkpoint
                .document("model.safetensors.index.json")
                .is_none()
        );
        assert!(checkpoint.sidecars().is_empty());
    }
    Ok(())
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let (one, two) = (shard(&["x"]), shard(&["y"]));
    let with = |pairs: &[(&str, &str)]| {
        let index = index(pairs);
        let root = folder(&[
            ("1.safetensors", &one),
            ("2.safetensors", &two),
            ("model.safetensors.index.json", index.as_bytes()),
        ]);
        code(root.path())
    };
    assert_eq!(with(&[("x", "1.safetensors"), ("y", "2.safetensors")]), "");
    assert_eq!(
        with(&[("x", "1.safetensors"), ("z", "2.safetensors")]),
        "index_missing_tensor"
    );
    assert_eq!(
        with(&[("x", "1.safetensors"), ("a", "2.safetensors")]),
        "index_missing_tensor"
    );
    assert_eq!(
        with(&[("x", "2.safetensors"), ("y", "1.safetensors")]),
        "index_wrong_shard"
    );
    assert_eq!(with(&[("x", "3.safetensors")]), "shard_missing");
    assert_eq!(with(&[("x", "../1.safetensors")]), "shard_name");
    assert_eq!(with(&[("x", "model.safetensors.index.json")]), "shard_name");
    assert_eq!(with(&[]), "index_no_weight_map");
    let limits = Limits {
        max_shards: 1,
        ..Limits::default()
    };
    let root = folder(&[("1.safetensors", &one), ("2.safetensors", &two)]);
    let outcome = Checkpoint::open(root.path(), &limits)
        .map(drop)
        .map_err(|e| (e.code(), e.group()));
    assert_eq!(outcome, Err(("too_many_shards", ErrorGroup::Limit)));
}

#[test]
fn among_several_indexes_the_usual_name_wins() {
    let x = index(&[("x", "1.safetensors")]);
    let file = shard(&["x"]);
    let named = |names: [&str; 2]| {
        let root = folder(&[
            ("1.safetensors", &file),
            (names[0], x.as_bytes()),
            (names[1], x.as_bytes()),
        ]);
        code(root.path())
    };
    assert_eq!(
        named([
            "model.safetensors.index.json",
            "other.safetensors.index.json"
        ]),
        ""
    );
    assert_eq!(
        named(["a.safetensors.index.json", "b.safetensors.index.json"]),
        "index_ambiguous"
    );
    assert_eq!(named(["a.safetensors.index.json", "config.json"]), "");
}

#[test]
fn a_single_file_has_the_documents_that_say_how_it_is_quantized() -> Outcome {
    let root = folder(&[
        ("model.safetensors", &shard(&["x"])),
        ("config.json", b"{\"a\":1}"),
        ("tokenizer.json", b"{}"),
        ("other.safetensors", b"garbage"),
    ]);
    let elsewhere = tempfile::tempdir()?;
    let link = elsewhere.path().join("link.safetensors");
    symlink(root.path().join("model.safetensors"), &link)?;
    let checkpoint = open(&root.path().join("model.safetensors"))?;
    assert_eq!(checkpoint.kind(), CheckpointKind::File);
    assert!(checkpoint.document("config.json").is_some());
    assert!(checkpoint.document("tokenizer.json").is_none());
    assert!(checkpoint.sidecars().is_empty());
    let linked = open(&link)?;
    assert!(linked.document("config.json").is_none());
    Ok(())
}

#[test]
fn no_path_leaves_the_directory_and_nothing_waits() -> Outcome {
    let secret = folder(&[("1.safetensors", &shard(&["x"])), ("config.json", b"{}")]);
    let listed = index(&[("x", "1.safetensors")]);
    let check = |make: &dyn Fn(&Path), expected: &str| {
        let root = folder(&[("model.safetensors.index.json", listed.as_bytes())]);
        make(root.path());
        assert_eq!(code(root.path()), expected);
    };
    let inside = |root: &Path| fs::write(root.join("1.safetensors"), shard(&["x"])).unwrap();
    check(
        &|root| {
            symlink(
                secret.path().join("1.safetensors"),
                root.join("1.safetensors"),
            )
            .unwrap();
        },
        "path_escape",
    );
    check(
        &|root| fs::create_dir(root.join("1.safetensors")).unwrap(),
        "not_a_regular_file",
    );
    check(
        &|root| fifo(&root.join("1.safetensors")),
        "not_a_regular_file",
    );
    check(
        &|root| symlink("1.safetensors", root.join("1.safetensors")).unwrap(),
        "io",
    );
    check(
        &|root| symlink("nothing", root.join("1.safetensors")).unwrap(),
        "shard_missing",
    );
    check(
        &|root| {
            fs::write(root.join("real"), shard(&["x"])).unwrap();
            symlink("real", root.join("1.safetensors")).unwrap();
        },
        "",
    );
    check(
        &|root| {
            inside(root);
            symlink(secret.path().join("config.json"), root.join("config.json")).unwrap();
        },
        "path_escape",
    );
    check(
        &|root| {
            inside(root);
            fifo(&root.join("config.json"));
        },
        "not_a_regular_file",
    );
    // Other files that lead elsewhere stay behind.
    let root = folder(&[("1.safetensors", &shard(&["x"]))]);
    symlink(secret.path().join("config.json"), root.path().join("notes"))?;
    fifo(&root.path().join("pipe"));
    symlink(secret.path(), root.path().join("folder"))?;
    assert!(open(root.path())?.sidecars().is_empty());
    // Given by the user.
    for name in ["pipe", "pipe.json"] {
        let path = secret.path().join(name);
        fifo(&path);
        assert_eq!(code(&path), "not_a_regular_file");
    }
    Ok(())
}

#[test]
fn a_snapshot_of_the_hub_cache_opens() -> Outcome {
    let root = folder(&[
        ("models--a--b/blobs/0a", &shard(&["x"])),
        ("models--a--b/blobs/0b", b"{}"),
    ]);
    let snapshot = root.path().join("models--a--b/snapshots/rev");
    fs::create_dir_all(&snapshot)?;
    symlink("../../blobs/0a", snapshot.join("model.safetensors"))?;
    symlink("../../blobs/0b", snapshot.join("config.json"))?;
    let checkpoint = open(&snapshot)?;
    assert!(checkpoint.tensor("x").is_some() && checkpoint.document("config.json").is_some());
    assert_eq!(checkpoint.sidecars().len(), 1);
    checkpoint.verify_unchanged()?;
    let file = open(&snapshot.join("model.safetensors"))?;
    assert!(file.document("config.json").is_some());
    Ok(())
}

#[test]
fn documents_are_limited_one_by_one_and_in_all() {
    let root = folder(&[
        ("1.safetensors", &shard(&["x"])),
        ("a.json", &[b' '; 9]),
        ("b.json", &[b' '; 9]),
        ("c.json", &[b' '; 9]),
    ]);
    let with = |max_document_bytes| {
        let limits = Limits {
            max_document_bytes,
            ..Limits::default()
        };
        Checkpoint::open(root.path(), &limits)
            .map(drop)
            .map_err(|error| error.code())
    };
    assert_eq!(with(14), Ok(()));
    assert_eq!(with(13), Err("document_too_large"));
    assert_eq!(with(8), Err("document_too_large"));
}

#[test]
fn a_changed_file_is_noticed_and_a_shrunken_one_is_an_error() -> Outcome {
    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let touch = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    let changes: [Change<'_>; 4] = [
        ("truncated", &|path| fs::write(path, b"x").unwrap()),
        ("touched", &touch),
        ("removed", &|path| fs::remove_file(path).unwrap()),
        ("replaced", &|path| {
            let other = path.with_extension("other");
            fs::copy(path, &other).unwrap();
            fs::rename(other, path).unwrap();
        }),
    ];
    for (name, change) in changes {
        let root = folder(&[("1.safetensors", &shard(&["x"]))]);
        let path = root.path().join("1.safetensors");
        for given in [root.path(), &path] {
            fs::write(&path, shard(&["x"]))?;
            let checkpoint = open(given)?;
            let stamp = checkpoint.shards()[0].source.stamp();
            change(&path);
            let error = checkpoint.verify_unchanged().unwrap_err();
            assert_eq!(
                (error.code(), error.group()),
                ("io_changed", ErrorGroup::Io),
                "{name}"
            );
            assert!(stamp.is_some() && stamp == checkpoint.shards()[0].source.stamp());
            if name == "truncated" {
                let error = checkpoint.tensor("x").unwrap().read_all(2).unwrap_err();
                assert_eq!((error.code(), error.group()), ("io_tensor", ErrorGroup::Io));
            }
        }
    }
    Ok(())
}

#[test]
fn rectangles_are_rows_cut_to_columns() -> Outcome {
    let mut bytes = file(
        r#"{"a":{"dtype":"U8","shape":[4,5],"data_offsets":[0,20]},"b":{"dtype":"U8","shape":[1],"data_offsets":[20,21]}}"#,
        0,
    );
    bytes.extend(0..21);
    let source: Arc<dyn ReadAt> = Arc::new(BytesSource(bytes.into()));
    let checkpoint = Checkpoint::from_sources(
        "memory",
        vec![("m.safetensors".to_owned(), source)],
        BTreeMap::from([("config.json".to_owned(), b"{}".to_vec())]),
        &Limits::default(),
    )?;
    assert_eq!(checkpoint.kind(), CheckpointKind::File);
    let a = checkpoint.tensor("a").unwrap();
    let read = |rows, columns, n| {
        let mut out = vec![0; n];
        a.read_rectangle(5, rows, columns, &mut out)
            .map(|()| out)
            .map_err(|error| error.code())
    };
    assert_eq!(read(1..3, 0..5, 10), Ok((5..15).collect()));
    assert_eq!(read(1..3, 1..3, 4), Ok(vec![6, 7, 11, 12]));
    assert_eq!(read(3..4, 4..5, 1), Ok(vec![19]));
    assert_eq!(read(2..2, 0..5, 0), Ok(vec![]));
    assert_eq!(read(3..5, 0..1, 2), Err("outside_tensor"));
    assert_eq!(read(u64::MAX - 1..u64::MAX, 0..1, 1), Err("outside_tensor"));
    let mut out = [0; 2];
    assert_eq!(
        a.read_exact_at(19, &mut out).map_err(|e| e.code()),
        Err("outside_tensor")
    );
    assert_eq!(
        a.read_exact_at(u64::MAX, &mut out).map_err(|e| e.code()),
        Err("outside_tensor")
    );
    assert_eq!(
        a.read_all(19).map_err(|e| (e.code(), e.group())),
        Err(("tensor_too_large", ErrorGroup::Limit))
    );
    let mut out = [0; 2];
    checkpoint
        .sidecar("config.json")?
        .read_exact_at(0, &mut out)?;
    assert_eq!(&out, b"{}");
    Ok(())
}

#[test]
fn sources_with_an_index_are_matched_like_files() {
    let with = |pairs: &[(&str, &str)], names: [&str; 2]| {
        let shards = names.map(|name| {
            let source: Arc<dyn ReadAt> = Arc::new(BytesSource(shard(&[name]).into()));
            (format!("{name}.safetensors"), source)
        });
        let documents = BTreeMap::from([(
            "model.safetensors.index.json".to_owned(),
            index(pairs).into_bytes(),
        )]);
        Checkpoint::from_sources("m", shards.to_vec(), documents, &Limits::default())
            .map(drop)
            .map_err(|e| e.code())
    };
    assert_eq!(
        with(
            &[("x", "x.safetensors"), ("y", "y.safetensors")],
            ["x", "y"]
        ),
        Ok(())
    );
    assert_eq!(
        with(&[("x", "y.safetensors")], ["x", "y"]),
        Err("index_wrong_shard")
    );
    assert_eq!(
        with(
            &[("x", "x.safetensors"), ("z", "z.safetensors")],
            ["x", "y"]
        ),
        Err("shard_missing")
    );
    assert_eq!(
        with(
            &[("x", "x.safetensors"), ("z", "y.safetensors")],
            ["x", "y"]
        ),
        Err("index_missing_tensor")
    );
    assert_eq!(
        with(&[("x", "x.safetensors")], ["x", "x"]),
        Err("shard_name")
    );
}
