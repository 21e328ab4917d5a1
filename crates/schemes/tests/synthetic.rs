//! Layouts for which no tool's checkpoint is at hand: stacks, transposed experts, tails, unusual dtypes. Values follow from
//! the formats' pages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use safequant_container::{BytesSource, Checkpoint, Dtype, Limits, ReadAt};
use safequant_kernels::{Backend, Float, Packing};
use safequant_schemes::encode::{constant_regions, encode, row_unit};
use safequant_schemes::scheme::{
    Code, Granularity, IntegerEncoding, ScaleCoding, Scheme, ZeroCoding, ZeroPoint,
};
use safequant_schemes::{
    Axes, Axis, Decoder, Model, Part, QuantizedTensor, Role, RowsOut, Storage,
};
use serde_json::{Map, Value, json};

type Tensor = (&'static str, Dtype, Vec<u64>, Vec<u8>);

fn checkpoint(tensors: &[Tensor], config: Option<Value>) -> Checkpoint {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry =
            json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&data);
    let source: Arc<dyn ReadAt> = Arc::new(BytesSource(file.into()));
    let documents = config.map(|c| ("config.json".to_owned(), c.to_string().into_bytes()));
    let documents: BTreeMap<String, Vec<u8>> = documents.into_iter().collect();
    let shards = vec![("model.safetensors".to_owned(), source)];
    Checkpoint::from_sources("synthetic", shards, documents, &Limits::default()).unwrap()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// All rows in F32, in tiles of one, of two, and all at once: the same every time.
fn decoded(tensor: &QuantizedTensor, checkpoint: &Checkpoint) -> Vec<f32> {
    let decoder = Decoder::new(tensor, checkpoint, Backend::detect()).unwrap();
    let columns = usize::try_from(tensor.in_features()).unwrap();
    let mut results = Vec::new();
    for tile in [1, 2, tensor.n_rows().max(1)] {
        let (mut values, mut at) = (Vec::new(), 0);
        while at < tensor.n_rows() {
            let end = tensor.n_rows().min(at + tile);
            let mut rows = vec![0.0; usize::try_from(end - at).unwrap() * columns];
            decoder.rows(at..end, RowsOut::F32(&mut rows)).unwrap();
            values.append(&mut rows);
            at = end;
        }
        results.push(values);
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]), "tiles differ");
    results.swap_remove(0)
}

/// E4M3: 0x38 is 1, 0x40 is 2, 0x48 is 4.
const ONE: u8 = 0x38;
const TWO: u8 = 0x40;

fn fp8_config(extra: &Value) -> Value {
    let mut config = json!({"quant_method": "fp8", "activation_scheme": "dynamic"});
    for (key, value) in extra.as_object().unwrap() {
        config[key] = value.clone();
    }
    json!({"torch_dtype": "bfloat16", "quantization_config": config})
}

#[test]
fn stacked_experts_have_block_scales_of_their_own() {
    // Two experts of 3 x 4 in blocks of 2 x 2.
    let scales: Vec<f32> = (1_u8..=8).map(f32::from).collect();
    let c = checkpoint(
        &[
            (
                "e.gate_up_proj",
                Dtype::F8E4M3,
                vec![2, 3, 4],
                vec![ONE; 24],
            ),
            (
                "e.gate_up_proj_scale_inv",
                Dtype::F32,
                vec![2, 2, 2],
                floats(&scales),
            ),
        ],
        Some(fp8_config(&json!({"weight_block_size": [2, 2]}))),
    );
    let model = Model::bind(&c).unwrap();
    let tensor = &model.quantized[0];
    assert_eq!(
        (tensor.weight.as_str(), tensor.n_rows()),
        ("e.gate_up_proj", 6)
    );
    let rows: Vec<[f32; 2]> = decoded(tensor, &c)
        .chunks(4)
        .map(|r| {
            assert_eq!((r[0], r[2]), (r[1], r[3]));
            [r[0], r[2]]
        })
        .collect();
    assert_eq!(
        rows,
        [
            [1.0, 2.0],
            [1.0, 2.0],
            [3.0, 4.0],
            [5.0, 6.0],
            [5.0, 6.0],
            [7.0, 8.0]
        ]
    );
    assert_eq!(row_unit(tensor), 2);
}

#[test]
fn stacked_experts_may_have_one_scale_each() {
    let c = checkpoint(
        &[
            (
                "e.down_proj",
                Dtype::F8E4M3,
                vec![2, 2, 2],
                vec![ONE, TWO, ONE, TWO, ONE, TWO, ONE, TWO],
            ),
            (
                "e.down_proj_scale",
                Dtype::F32,
                vec![2],
                floats(&[0.5, 3.0]),
            ),
        ],
        Some(fp8_config(&json!({}))),
    );
    let model = Model::bind(&c).unwrap();
    let tensor = &model.quantized[0];
    assert_eq!(tensor.scheme.granularity, Granularity::Tensor);
    assert_eq!(
        decoded(tensor, &c),
        [0.5, 1.0, 0.5, 1.0, 3.0, 6.0, 3.0, 6.0]
    );
}

#[test]
fn transposed_experts_of_fbgemm_are_turned() {
    // Stored [experts, in, out] = [1, 2, 3], scales [1, 1, 3] per output feature.
    let codes = vec![ONE, ONE, ONE, TWO, TWO, TWO];
    let c = checkpoint(
        &[
            ("e.gate_up_proj", Dtype::F8E4M3, vec![1, 2, 3], codes),
            (
                "e.gate_up_proj_scale",
                Dtype::F32,
                vec![1, 1, 3],
                floats(&[1.0, 10.0, 100.0]),
            ),
        ],
        Some(json!({"quantization_config": {"quant_method": "fbgemm_fp8"}})),
    );
    let model = Model::bind(&c).unwrap();
    let tensor = &model.quantized[0];
    assert_eq!(tensor.shape, [1, 3, 2]);
    assert_eq!(decoded(tensor, &c), [1.0, 2.0, 10.0, 20.0, 100.0, 200.0]);
}

#[test]
fn scales_in_bytes_are_powers_of_two() {
    let c = checkpoint(
        &[
            ("m.weight", Dtype::F8E4M3, vec![2, 2], vec![ONE; 4]),
            ("m.weight_scale_inv", Dtype::U8, vec![1, 2], vec![126, 130]),
        ],
        Some(fp8_config(&json!({"weight_block_size": [2, 1]}))),
    );
    let model = Model::bind(&c).unwrap();
    assert_eq!(decoded(&model.quantized[0], &c), [0.5, 8.0, 0.5, 8.0]);
}

#[test]
fn scales_without_configuration_are_told_apart_by_name() {
    let tensors = |name| {
        [
            ("m.weight", Dtype::F8E4M3, vec![2, 2], vec![ONE; 4]),
            (name, Dtype::F32, vec![2, 1], floats(&[1.0, 2.0])),
        ]
    };
    // Only diffusers and ComfyUI store `weight_scale` without saying anything anywhere (formats: comfyui §7).
    let model = Model::bind(&checkpoint(&tensors("m.weight_scale"), None)).unwrap();
    assert_eq!(model.quantized[0].convention, "comfyui");
    let c = checkpoint(&tensors("m.weight_scale_inv"), None);
    assert_eq!(
        decoded(&Model::bind(&c).unwrap().quantized[0], &c),
        [1.0, 1.0, 2.0, 2.0]
    );
}

#[test]
fn empty_weights_have_no_rows_to_decode() {
    for shape in [vec![0, 4], vec![4, 0]] {
        let c = checkpoint(
            &[
                ("m.weight", Dtype::F8E4M3, shape, vec![]),
                ("m.weight_scale", Dtype::F32, vec![], floats(&[1.0])),
            ],
            Some(fp8_config(&json!({}))),
        );
        let model = Model::bind(&c).unwrap();
        assert!(decoded(&model.quantized[0], &c).is_empty());
    }
}

/// Parts of an integer tensor with zero points, every layout that grid.rs has.
fn integer_layouts() -> Vec<QuantizedTensor> {
    let mut found = Vec::new();
    let packings = |bits| {
        [
            Packing::LsbFirst { bits },
            Packing::LsbFirstNoStraddle { bits },
        ]
    };
    for bits in [2_u32, 3, 4, 5, 8] {
        for packing in packings(bits) {
            for axes in [Axes::OutIn, Axes::InOut] {
                for along in [Axis::Out, Axis::In] {
                    for (stack, granularity) in [
                        (1, Granularity::Group { size: 5 }),
                        (3, Granularity::Channel),
                        (
                            2,
                            Granularity::Block {
                                rows: 4,
                                columns: 3,
                            },
                        ),
                        (2, Granularity::Tensor),
                    ] {
                        found.push(integer_layout(
                            bits,
                            packing,
                            axes,
                            along,
                            stack,
                            granularity,
                        ));
                    }
                }
            }
        }
    }
    found
}

fn integer_layout(
    bits: u32,
    packing: Packing,
    axes: Axes,
    along: Axis,
    stack: u64,
    granularity: Granularity,
) -> QuantizedTensor {
    let (rows, columns) = (37_u64, 13_u64);
    let grid = match granularity {
        Granularity::Tensor => [1, 1],
        Granularity::Channel => [rows, 1],
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            [rows, columns.div_ceil(size)]
        }
        Granularity::Block {
            rows: r,
            columns: c,
        } => [rows.div_ceil(r), columns.div_ceil(c)],
        Granularity::Flat { .. } | Granularity::Strided { .. } => unreachable!("not made here"),
    };
    let packed = |[r, c]: [u64; 2]| {
        let words = |n: u64| {
            u64::try_from(packing.packed_len_bytes(usize::try_from(n).unwrap(), 4) / 4).unwrap()
        };
        let (r, c) = match along {
            Axis::Out => (words(r), c),
            Axis::In => (r, words(c)),
        };
        match axes {
            Axes::OutIn => vec![stack, r, c],
            Axes::InOut => vec![stack, c, r],
        }
    };
    let storage = Storage::Packed {
        axes,
        packing,
        along,
    };
    let scale_shape = match axes {
        Axes::OutIn => vec![stack, grid[0], grid[1]],
        Axes::InOut => vec![stack, grid[1], grid[0]],
    };
    let part = |role, name: &str, dtype, shape, storage| Part {
        role,
        name: name.to_owned(),
        dtype,
        shape,
        storage,
        extent: None,
        content: None,
    };
    QuantizedTensor {
        module: format!("{packing:?} {axes:?} along {along:?} {granularity:?}"),
        weight: "m.weight".to_owned(),
        convention: "test",
        shape: vec![stack, rows, columns],
        scheme: Scheme {
            zero_point: ZeroPoint::Stored(ZeroCoding::Direct),
            ..Scheme::plain(
                Code::Integer {
                    bits,
                    encoding: IntegerEncoding::Unsigned,
                },
                granularity,
                ScaleCoding::Float(Float::F32),
            )
        },
        reference_dtype: Float::F32,
        parts: vec![
            part(
                Role::Codes,
                "c",
                Dtype::I32,
                packed([rows, columns]),
                storage,
            ),
            part(
                Role::Scale,
                "s",
                Dtype::F32,
                scale_shape,
                Storage::Elements { axes },
            ),
            part(Role::ZeroPoint, "z", Dtype::I32, packed(grid), storage),
        ],
    }
}

/// Numbers without pattern, from a seed.
fn numbers(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed >> 11
}

#[test]
fn every_layout_gives_back_what_was_encoded_whatever_the_tiles() {
    let backend = Backend::detect();
    let (mut visited, mut seed) = (0, 88_172_645_463_325_252);
    for tensor in integer_layouts() {
        let top = match tensor.scheme.code {
            Code::Integer { bits, .. } => 1_u64 << bits,
            Code::Minifloat(_) | Code::Codebook(_) | Code::StoredCodebook | Code::Dense(_) => {
                unreachable!("integers only")
            }
        };
        let mut bytes: Vec<Vec<u8>> = tensor
            .parts
            .iter()
            .map(|p| vec![0; usize::try_from(p.shape.iter().product::<u64>() * 4).unwrap()])
            .collect();
        let (rows, columns) = (tensor.out_features(), tensor.in_features());
        let mut codes = Vec::new();
        for matrix in 0..tensor.n_matrices() {
            let step = row_unit(&tensor);
            let mut at = 0;
            while at < rows {
                let end = rows.min(at + step);
                let tile = tile_of(
                    &tensor,
                    matrix * rows + at..matrix * rows + end,
                    top,
                    &mut seed,
                );
                codes.extend_from_slice(&tile.codes);
                for region in encode(&tensor, &tile, backend).unwrap() {
                    let row_len = region.row_len;
                    let width = usize::try_from(region.columns.end - region.columns.start).unwrap();
                    for (row, piece) in region.rows.clone().zip(region.bytes.chunks(width)) {
                        let to = usize::try_from(row * row_len + region.columns.start).unwrap();
                        bytes[region.part][to..to + width].copy_from_slice(piece);
                    }
                }
                at = end;
            }
        }
        assert!(constant_regions(&tensor).is_empty());
        let tensors: Vec<Tensor> = tensor
            .parts
            .iter()
            .zip(bytes)
            .map(|(p, b)| {
                let name = ["c", "s", "z"].into_iter().find(|n| *n == p.name).unwrap();
                (name, p.dtype, p.shape.clone(), b)
            })
            .collect();
        let c = checkpoint(&tensors, None);
        let decoder = Decoder::new(&tensor, &c, backend).unwrap();
        for tile in [1, 7, 40, 200] {
            let (mut back, mut at) = (Vec::new(), 0);
            while at < tensor.n_rows() {
                let end = tensor.n_rows().min(at + tile);
                back.append(&mut decoder.codes(at..end).unwrap().codes);
                at = end;
            }
            assert!(back == codes, "{} in tiles of {tile}", tensor.module);
        }
        let values = decoded(&tensor, &c);
        assert_eq!(
            values.len(),
            usize::try_from(tensor.n_rows() * columns).unwrap()
        );
        visited += 1;
    }
    assert_eq!(visited, 5 * 2 * 2 * 2 * 4);
}

/// A tile with any codes, zeros and scales; the scales of a whole matrix only where its first row is.
fn tile_of(
    tensor: &QuantizedTensor,
    rows: std::ops::Range<u64>,
    top: u64,
    seed: &mut u64,
) -> safequant_schemes::CodeTile {
    let n = rows.end - rows.start;
    let scales = match tensor.scheme.granularity {
        Granularity::Tensor => 1,
        Granularity::Channel => n,
        Granularity::Group { size } | Granularity::IndexedGroup { size } => {
            n * tensor.in_features().div_ceil(size)
        }
        Granularity::Block {
            rows: r,
            columns: c,
        } => n.div_ceil(r) * tensor.in_features().div_ceil(c),
        Granularity::Flat { .. } | Granularity::Strided { .. } => 0,
    };
    let codes = (0..n * tensor.in_features()).map(|_| u8::try_from(numbers(seed) % top).unwrap());
    let codes = codes.collect();
    let zeros: Vec<i32> = (0..scales)
        .map(|_| i32::try_from(numbers(seed) % top).unwrap())
        .collect();
    let scales = (0..scales)
        .map(|_| f32::from(u16::try_from(numbers(seed) % 1000).unwrap()))
        .collect();
    safequant_schemes::CodeTile {
        rows,
        codes,
        scales,
        zeros,
        ..safequant_schemes::CodeTile::default()
    }
}

#[test]
fn decoders_are_shared_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Decoder<'_>>();
    is_shared::<Model>();
}

#[test]
fn dimensions_that_multiply_to_anything_beside_a_zero_are_harmless() {
    let huge = 1_u64 << 40;
    let c = checkpoint(
        &[
            ("e.gate_up_proj", Dtype::F8E4M3, vec![huge, 0, huge], vec![]),
            ("e.gate_up_proj_scale", Dtype::F32, vec![0, 1, 1], vec![]),
        ],
        Some(json!({"quantization_config": {"quant_method": "fbgemm_fp8"}})),
    );
    // Refused or bound, but neither a panic nor a loop over rows that nothing stands behind.
    if let Ok(model) = Model::bind(&c) {
        assert_eq!(model.quantized[0].n_rows(), 0);
    }
}
