//! A comparison as data: what `diff --json` prints (specs/cli/diff.schema.json).

use serde_json::{Value, json};

use crate::Loss;
use crate::diff::{
    Codes, Compared, Diff, DocumentDiff, Level, Scales, Sums, Values, Weight, WeightDiff,
    ZeroPoints,
};

/// The version of the record.
const SCHEMA_VERSION: u32 = 1;

/// The comparison as data. Of weights in both, only those that differ are listed. `sources`: A and B as the user gave them;
/// `filter`: the pattern that chose the weights.
pub fn json(found: &Diff, sources: [&str; 2], filter: Option<&str>) -> Value {
    let levels = found.levels.iter().map(|level| level.name());
    let differs = Level::ALL.map(|level| {
        let is_asked = found.levels.contains(&level);
        let answer = is_asked.then(|| found.differs(level));
        (level.name().to_owned(), answer.into())
    });
    let different = found.weights.iter().filter(|weight| {
        let differs = |level| weight.differs(level, 0.0);
        Level::ALL.into_iter().any(differs)
    });
    let [only_a, only_b] = &found.only;
    let weights = |list: &[Weight]| -> Value { list.iter().map(of_weight).collect() };
    let [a, b] =
        [0, 1].map(|at| json!({ "source": sources[at], "conventions": found.conventions[at] }));
    json!({
        "schema_version": SCHEMA_VERSION,
        "command": "diff",
        "a": a,
        "b": b,
        "levels": levels.collect::<Vec<_>>(),
        "filter": filter,
        "tolerance": found.tolerance,
        "equal": found.is_equal(),
        "differs": Value::Object(differs.into_iter().collect()),
        "totals": totals(&found.sums()),
        "only_a": weights(only_a),
        "only_b": weights(only_b),
        "weights": different.map(|weight| pair(weight, found.tolerance)).collect::<Value>(),
        "documents": found.documents.iter().map(document).collect::<Value>(),
        "notes": found.notes,
    })
}

fn of_weight(weight: &Weight) -> Value {
    json!({
        "name": weight.name,
        "shape": weight.shape,
        "convention": weight.convention,
        "form": weight.form,
    })
}

fn totals(sums: &Sums) -> Value {
    json!({
        "weights": sums.n_weights,
        "changed": sums.n_changed,
        "coded": sums.n_coded,
        "codes_not_compared": sums.n_codes_not_compared,
        "codes": sums.codes.n,
        "codes_flipped": sums.codes.n_flipped,
        "scales": sums.scales.n,
        "scales_differ": sums.scales.n_differ,
        "zero_points": sums.zeros.n,
        "zero_points_differ": sums.zeros.n_differ,
        "valued": sums.n_valued,
        "values_not_equal": sums.n_not_equal,
        "values_differ": sums.n_values_differ,
        "values_not_compared": sums.n_values_not_compared,
    })
}

fn pair(weight: &WeightDiff, tolerance: f64) -> Value {
    let changes = weight.changes.iter();
    let differs = Level::ALL.into_iter();
    let differs = differs.filter(|level| weight.differs(*level, tolerance));
    json!({
        "a": of_weight(&weight.a),
        "b": of_weight(&weight.b),
        "differs": differs.map(Level::name).collect::<Vec<_>>(),
        "changes": changes
            .map(|change| json!({ "what": change.what, "a": change.a, "b": change.b }))
            .collect::<Value>(),
        "codes": compared(&weight.codes, codes),
        "scales": compared(&weight.scales, scales),
        "zero_points": compared(&weight.zeros, zeros),
        "values": compared(&weight.values, values),
    })
}

/// An outcome, with the members of what was found beside it.
fn compared<T>(compared: &Compared<T>, members: impl Fn(&T) -> Value) -> Value {
    match compared {
        Compared::Nothing => Value::Null,
        Compared::SameBytes => json!({ "outcome": "same_bytes" }),
        Compared::Not(why) => json!({ "outcome": "not_compared", "why": why }),
        Compared::Found(found) => {
            let mut record = members(found);
            record["outcome"] = "compared".into();
            record
        }
    }
}

fn codes(codes: &Codes) -> Value {
    json!({ "n": codes.n, "flipped": codes.n_flipped, "first": codes.first })
}

fn scales(scales: &Scales) -> Value {
    json!({
        "n": scales.n,
        "differ": scales.n_differ,
        "first": scales.first,
        "min_ratio": scales.min_ratio,
        "max_ratio": scales.max_ratio,
        "per": if scales.is_per_weight { "weight" } else { "scale" },
    })
}

fn zeros(zeros: &ZeroPoints) -> Value {
    json!({
        "n": zeros.n,
        "differ": zeros.n_differ,
        "first": zeros.first,
        "max_distance": zeros.max_distance,
    })
}

fn values(values: &Values) -> Value {
    let figure = |of: fn(&Loss) -> f64| values.loss.as_ref().map(of);
    json!({
        "n": values.n,
        "differ": values.n_differ,
        "not_finite": values.n_not_finite,
        "first": values.first,
        "relative_l2": figure(Loss::relative_l2),
        // JSON has no infinity: null stands for it.
        "sqnr_db": figure(Loss::sqnr_db),
        "cosine": figure(Loss::cosine),
        "max_error": figure(|loss| f64::from(loss.max_error)),
    })
}

fn document(document: &DocumentDiff) -> Value {
    let changes = document.changes.iter();
    json!({
        "name": document.name,
        "in_a": document.found[0],
        "in_b": document.found[1],
        "changes": document.n_changes,
        "left_out": document.n_changes.saturating_sub(document.changes.len() as u64),
        "values": changes
            .map(|change| {
                let mut record = json!({ "path": change.path });
                for (key, value) in [("a", &change.a), ("b", &change.b)] {
                    if let Some(value) = value {
                        record[key] = value.clone();
                    }
                }
                record
            })
            .collect::<Value>(),
    })
}
