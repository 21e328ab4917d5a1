//! Plans of small models made up of headers only.

use std::sync::Arc;

use safequant_container::{BytesSource, Checkpoint, Limits, ReadAt};
use serde_json::{Value, json};

use super::*;
use crate::Wanted;

/// A checkpoint of one shard: names, dtypes, shapes and bits of an element.
pub(super) fn checkpoint(config: &Value, tensors: &[(&str, &str, &[u64])]) -> Checkpoint {
    let (mut header, mut end) = (serde_json::Map::new(), 0_u64);
    for (name, dtype, shape) in tensors {
        let size = match *dtype {
            "F8_E4M3" | "U8" | "I8" => 1,
            "BF16" | "F16" => 2,
            _ => 4,
        };
        let start = end;
        end += shape.iter().product::<u64>() * size;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.append(&mut header);
    file.resize(file.len() + usize::try_from(end).unwrap(), 0);
    let source: Arc<dyn ReadAt> = Arc::new(BytesSource(file.into()));
    let documents = [(
        "config.json".to_owned(),
        serde_json::to_vec(config).unwrap(),
    )];
    let shards = vec![("model.safetensors".to_owned(), source)];
    let limits = Limits::default();
    let survey =
        Checkpoint::survey_sources("made up", shards, documents.into_iter().collect(), &limits);
    survey.unwrap().0
}

/// FP8 in blocks of 128 x 128, as `DeepSeek` writes it: gate, up [rows, 256] and down [256, rows].
fn fp8_blocks(rows: u64) -> Checkpoint {
    let config = json!({
        "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 256,
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    });
    let blocks = rows.div_ceil(128);
    checkpoint(
        &config,
        &[
            (
                "model.layers.0.mlp.down_proj.weight",
                "F8_E4M3",
                &[256, rows],
            ),
            (
                "model.layers.0.mlp.down_proj.weight_scale_inv",
                "F32",
                &[2, blocks],
            ),
            (
                "model.layers.0.mlp.gate_proj.weight",
                "F8_E4M3",
                &[rows, 256],
            ),
            (
                "model.layers.0.mlp.gate_proj.weight_scale_inv",
                "F32",
                &[blocks, 2],
            ),
            ("model.layers.0.mlp.up_proj.weight", "F8_E4M3", &[rows, 256]),
            (
                "model.layers.0.mlp.up_proj.weight_scale_inv",
                "F32",
                &[blocks, 2],
            ),
            ("model.layers.0.input_layernorm.weight", "BF16", &[256]),
            (
                "model.layers.0.self_attn.q_proj.weight",
                "BF16",
                &[256, 256],
            ),
            ("model.layers.0.self_attn.k_proj.weight", "BF16", &[64, 256]),
        ],
    )
}

fn subject(checkpoint: &Checkpoint) -> Subject<'_> {
    Subject::new(checkpoint, Vec::new(), Wanted::default())
}

#[test]
fn blocks_that_straddle_ranks_are_named_with_their_numbers() {
    let checkpoint = fp8_blocks(1536);
    let subject = subject(&checkpoint);
    assert_eq!(subject.model.quantized.len(), 3);
    let plan = plan(&subject, &[1, 4, 8]);
    let [one, four, eight] = plan.degrees.as_slice() else {
        panic!("{plan:?}");
    };
    assert!(one.works && four.works, "{plan:?}");
    assert_eq!(one.rank_bytes, plan.total_bytes);
    assert!(!eight.works);
    let obstacles: Vec<_> = eight.obstacles.iter().collect();
    // 1536 / 8 = 192: one obstacle each for gate, up and down, each of one module.
    assert_eq!(obstacles.len(), 3, "{obstacles:?}");
    for obstacle in obstacles {
        assert_eq!(obstacle.kind, ObstacleKind::Block);
        assert_eq!((obstacle.features, obstacle.share), (1536, Some(192)));
        assert_eq!((obstacle.unit, obstacle.count), (128, 1));
        assert!(obstacle.message.contains("192"), "{}", obstacle.message);
        assert!(obstacle.fix.contains("2048"), "{}", obstacle.fix);
        assert!(obstacle.fix.contains("blocks of 64"), "{}", obstacle.fix);
    }
}

#[test]
fn a_rank_holds_its_share_and_copies() {
    let checkpoint = fp8_blocks(1024);
    let subject = subject(&checkpoint);
    let plan = plan(&subject, &[4]);
    // Three matrices in quarters, with 4 scales each; the norm whole; q in quarters; of two heads of keys each rank has one.
    let quantized = 3 * (1024 * 256 / 4 + 4 * 4);
    let plain = 256 * 2 + 256 * 256 * 2 / 4 + 64 * 256 * 2 / 2;
    assert_eq!(plan.degrees[0].rank_bytes, quantized + plain);
    assert!(plan.degrees[0].works);
}

#[test]
fn heads_that_do_not_divide_are_the_models_trouble() {
    let checkpoint = fp8_blocks(128 * 48);
    let subject = subject(&checkpoint);
    let plan = plan(&subject, &[3, 16]);
    for (degree, n) in [(0, 8), (1, 8)] {
        let heads: Vec<_> = plan.degrees[degree].obstacles.iter().collect();
        assert_eq!(heads.len(), 1, "{heads:?}");
        assert_eq!((heads[0].kind, heads[0].features), (ObstacleKind::Heads, n));
        assert_eq!((heads[0].part, heads[0].count), (Part::Other, 0));
    }
    assert!(plan.degrees[0].obstacles[0].fix.contains("2 ranks"));
}

#[test]
fn groups_that_straddle_ranks_and_packed_words() {
    let config = json!({
        "quantization_config": {
            "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true,
            "version": "gemm",
        },
    });
    // Down: 192 input features in groups of 64. Up: 40 output features, eight to a word.
    let checkpoint = checkpoint(
        &config,
        &[
            ("model.layers.0.mlp.down_proj.qweight", "I32", &[192, 8]),
            ("model.layers.0.mlp.down_proj.qzeros", "I32", &[3, 8]),
            ("model.layers.0.mlp.down_proj.scales", "F16", &[3, 64]),
            ("model.layers.0.mlp.up_proj.qweight", "I32", &[64, 5]),
            ("model.layers.0.mlp.up_proj.qzeros", "I32", &[1, 5]),
            ("model.layers.0.mlp.up_proj.scales", "F16", &[1, 40]),
        ],
    );
    let subject = subject(&checkpoint);
    assert_eq!(subject.model.quantized.len(), 2, "{:?}", subject.problems);
    let plan = plan(&subject, &[2, 3, 5]);
    let kinds = |i: usize| -> Vec<_> {
        let obstacles = plan.degrees[i].obstacles.iter();
        obstacles.map(|o| (o.kind, o.part, o.unit)).collect()
    };
    assert_eq!(
        kinds(0),
        [
            (ObstacleKind::Group, Part::Down, 64),
            (ObstacleKind::Word, Part::Up, 8)
        ]
    );
    assert_eq!(kinds(1), [(ObstacleKind::Features, Part::Up, 1)]);
    assert_eq!(kinds(2), [(ObstacleKind::Features, Part::Down, 1)]);
    let fix = &plan.degrees[0].obstacles[0].fix;
    assert!(fix.contains("groups of 32") && fix.contains("256"), "{fix}");
}
