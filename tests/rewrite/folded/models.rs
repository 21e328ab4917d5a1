//! Small models of several architectures, and what they compute, in F64.

use std::collections::BTreeMap;

pub(super) const HIDDEN: usize = 128;
pub(super) const HEADS: usize = 4;
pub(super) const INNER: usize = 256;
pub(super) const WORDS: usize = 40;
pub(super) const LAYERS: usize = 2;

/// The architectures that are run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Llama,
    /// Fewer heads of keys and values, and biases.
    Qwen,
    /// Biases with as many heads of values.
    Biased,
    Gemma,
    Phi,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] = [
        Kind::Llama,
        Kind::Qwen,
        Kind::Biased,
        Kind::Gemma,
        Kind::Phi,
    ];

    pub(super) fn class(self) -> &'static str {
        match self {
            Kind::Llama => "LlamaForCausalLM",
            Kind::Qwen | Kind::Biased => "Qwen2ForCausalLM",
            Kind::Gemma => "GemmaForCausalLM",
            Kind::Phi => "Phi3ForCausalLM",
        }
    }

    fn values(self) -> usize {
        match self {
            Kind::Qwen => HIDDEN / 2,
            Kind::Llama | Kind::Biased | Kind::Gemma | Kind::Phi => HIDDEN,
        }
    }

    fn is_biased(self) -> bool {
        matches!(self, Kind::Qwen | Kind::Biased)
    }
}

/// Reproducible numbers of BF16 around zero.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = (self.0)
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            sum += f32::from(u16::try_from(self.0 >> 48).unwrap()) / 65536.0 - 0.5;
        }
        bf16(sum)
    }
}

pub(super) fn bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The model as its class stores it.
pub(super) fn model(kind: Kind) -> Tensors {
    let mut numbers = Numbers(77);
    let mut all = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, shift: f32| {
        let n = shape.iter().product();
        let values = (0..n).map(|i: usize| {
            // Some features are loud: their norms are large.
            let is_loud = i % 19 == 3 && shape.len() == 1 && shift != 0.0;
            let loud = if is_loud { 9.0 } else { 1.0 };
            bf16((numbers.next() * scale + shift) * loud)
        });
        let values = values.collect();
        all.insert(name, (shape.to_vec(), values));
    };
    add(
        "model.embed_tokens.weight".to_owned(),
        &[WORDS, HIDDEN],
        1.0,
        0.0,
    );
    add("lm_head.weight".to_owned(), &[WORDS, HIDDEN], 0.2, 0.0);
    // 1 + w of the same size, but for loud ones.
    let shift = if kind == Kind::Gemma { 0.2 } else { 1.0 };
    add("model.norm.weight".to_owned(), &[HIDDEN], 0.1, shift);
    for layer in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(at(&format!("{norm}.weight")), &[HIDDEN], 0.3, shift);
        }
        let v = kind.values();
        let linears: &[(&str, usize, usize)] = match kind {
            Kind::Phi => &[
                ("self_attn.qkv_proj", 3 * HIDDEN, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HIDDEN),
                ("mlp.gate_up_proj", 2 * INNER, HIDDEN),
                ("mlp.down_proj", HIDDEN, INNER),
            ],
            Kind::Llama | Kind::Qwen | Kind::Biased | Kind::Gemma => &[
                ("self_attn.q_proj", HIDDEN, HIDDEN),
                ("self_attn.k_proj", v, HIDDEN),
                ("self_attn.v_proj", v, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HIDDEN),
                ("mlp.gate_proj", INNER, HIDDEN),
                ("mlp.up_proj", INNER, HIDDEN),
                ("mlp.down_proj", HIDDEN, INNER),
            ],
        };
        for (name, rows, columns) in linears {
            add(at(&format!("{name}.weight")), &[*rows, *columns], 0.15, 0.0);
            if kind.is_biased()
                && ["q_proj", "k_proj", "v_proj"]
                    .iter()
                    .any(|n| name.contains(n))
            {
                add(at(&format!("{name}.bias")), &[*rows], 0.4, 0.0);
            }
        }
    }
    all
}

/// The same with some louder values of attention.
pub(super) fn with_loud_values(kind: Kind, factor: f32) -> Tensors {
    let mut all = model(kind);
    let mut n_changed = 0;
    for (name, (shape, values)) in &mut all {
        if !name.contains("v_proj") {
            continue;
        }
        let width = if shape.len() == 2 { shape[1] } else { 1 };
        for (i, value) in values.iter_mut().enumerate() {
            if i / width % 19 == 3 {
                *value = bf16(*value * factor);
            }
        }
        n_changed += 1;
    }
    assert!(kind == Kind::Phi || n_changed >= LAYERS);
    all
}

/// Inputs `[tokens, features]` by module.
pub(super) type Seen = BTreeMap<String, Vec<Vec<f64>>>;

/// A forward pass.
pub(super) struct Run<'m> {
    kind: Kind,
    model: &'m Tensors,
    seen: Seen,
}

impl Run<'_> {
    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (_, weight) = &self.model[&format!("{name}.weight")];
        let one = if self.kind == Kind::Gemma { 1.0 } else { 0.0 };
        let row = |x: &Vec<f64>| {
            let square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let scale = (square + 1e-6).sqrt().recip();
            x.iter()
                .zip(weight)
                .map(|(v, w)| v * scale * (one + f64::from(*w)))
                .collect()
        };
        x.iter().map(row).collect()
    }

    /// Rows of a linear layer, which may stand in one with others.
    fn linear(&mut self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (stored, part, parts) = match (self.kind, name.rsplit_once('.').unwrap()) {
            (Kind::Phi, (of, "q_proj")) => (format!("{of}.qkv_proj"), 0, 3),
            (Kind::Phi, (of, "k_proj")) => (format!("{of}.qkv_proj"), 1, 3),
            (Kind::Phi, (of, "v_proj")) => (format!("{of}.qkv_proj"), 2, 3),
            (Kind::Phi, (of, "gate_proj")) => (format!("{of}.gate_up_proj"), 0, 2),
            (Kind::Phi, (of, "up_proj")) => (format!("{of}.gate_up_proj"), 1, 2),
            _ => (name.to_owned(), 0, 1),
        };
        self.seen.insert(stored.clone(), x.to_vec());
        let (shape, weight) = &self.model[&format!("{stored}.weight")];
        let n = shape[0] / parts;
        let rows: Vec<&[f32]> = weight.chunks(shape[1]).skip(part * n).take(n).collect();
        let bias = self.model.get(&format!("{stored}.bias"));
        let out = |x: &Vec<f64>| {
            let each = rows.iter().enumerate().map(|(i, row)| {
                let dot: f64 = row.iter().zip(x).map(|(w, v)| f64::from(*w) * v).sum();
                dot + bias.map_or(0.0, |(_, b)| f64::from(b[i]))
            });
            each.collect()
        };
        x.iter().map(out).collect()
    }

    fn attention(&mut self, at: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let q = self.linear(&format!("{at}.q_proj"), x);
        let k = self.linear(&format!("{at}.k_proj"), x);
        let v = self.linear(&format!("{at}.v_proj"), x);
        let width = HIDDEN / HEADS;
        let shared = HIDDEN / self.kind.values();
        let mut out = vec![vec![0.0; HIDDEN]; x.len()];
        for head in 0..HEADS {
            let (of, with) = (head * width, head / shared * width);
            for i in 0..x.len() {
                let score = |j: usize| -> f64 {
                    (0..width)
                        .map(|c| q[i][of + c] * k[j][with + c])
                        .sum::<f64>()
                        / 6.0
                };
                let scores: Vec<f64> = (0..=i).map(score).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for (j, score) in scores.iter().enumerate() {
                    let share = (score - most).exp() / sum;
                    for c in 0..width {
                        out[i][of + c] += share * v[j][with + c];
                    }
                }
            }
        }
        self.linear(&format!("{at}.o_proj"), &out)
    }

    fn mlp(&mut self, at: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let gate = self.linear(&format!("{at}.gate_proj"), x);
        let up = self.linear(&format!("{at}.up_proj"), x);
        let both = gate.iter().zip(&up);
        let inner: Vec<Vec<f64>> = both
            .map(|(g, u)| {
                g.iter()
                    .zip(u)
                    .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                    .collect()
            })
            .collect();
        self.linear(&format!("{at}.down_proj"), &inner)
    }
}

pub(super) fn plus(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
    a.iter().zip(b).map(row).collect()
}

/// Logits, and what every linear layer of the layers saw.
pub(super) fn forward(kind: Kind, model: &Tensors) -> (Vec<Vec<f64>>, Seen) {
    let (_, words) = &model["model.embed_tokens.weight"];
    let word = |i: usize| {
        let row = words.chunks(HIDDEN).nth(i * 7 % WORDS).unwrap();
        row.iter().map(|v| f64::from(*v)).collect::<Vec<_>>()
    };
    let mut x: Vec<Vec<f64>> = (0..96).map(|i| word(i + i / WORDS)).collect();
    let mut run = Run {
        kind,
        model,
        seen: Seen::new(),
    };
    for layer in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let inputs = run.norm(&at("input_layernorm"), &x);
        x = plus(&x, &run.attention(&at("self_attn"), &inputs));
        let inputs = run.norm(&at("post_attention_layernorm"), &x);
        x = plus(&x, &run.mlp(&at("mlp"), &inputs));
    }
    let inputs = run.norm("model.norm", &x);
    let logits = run.linear("model.lm_head", &inputs);
    (logits, run.seen)
}
