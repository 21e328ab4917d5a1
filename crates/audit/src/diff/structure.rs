//! What headers tell: conventions, schemes, dtypes, shapes, and the parts of a weight.

use safequant_schemes::{Part, QuantizedTensor, Role};

use super::align::Pair;
use super::figures::Change;
use super::side::{Kind, Side};

/// The properties that differ.
pub(super) fn changes(pair: &Pair<'_>) -> Vec<Change> {
    let (a, b) = (&pair.a, &pair.b);
    let mut found = Changes(Vec::new());
    found.note("name", &a.name, &b.name, |name| (*name).to_owned());
    found.note("shape", &a.shape, &b.shape, |shape| format!("{shape:?}"));
    match (a.kind, b.kind) {
        (Kind::Quantized(of_a), Kind::Quantized(of_b)) => found.quantized(of_a, of_b),
        (Kind::Plain(of_a) | Kind::Companion(of_a), Kind::Plain(of_b) | Kind::Companion(of_b)) => {
            let (a, b) = (of_a.dtype().name(), of_b.dtype().name());
            found.note("dtype", &a, &b, |dtype| (*dtype).to_owned());
        }
        (Kind::Quantized(_), Kind::Plain(_) | Kind::Companion(_))
        | (Kind::Plain(_) | Kind::Companion(_), Kind::Quantized(_)) => {
            let convention = |side: &Side<'_>| side.quantized().map(|t| t.convention);
            let (of_a, of_b) = (convention(a), convention(b));
            let [of_a, of_b] = [of_a, of_b].map(|id| id.unwrap_or("dense"));
            found.note("convention", &of_a, &of_b, |id| (*id).to_owned());
            let (a, b) = (a.weight().form, b.weight().form);
            found.note("scheme", &a, &b, String::clone);
        }
    }
    found.0
}

struct Changes(Vec<Change>);

impl Changes {
    fn note<T: PartialEq>(&mut self, what: &str, a: &T, b: &T, text: impl Fn(&T) -> String) {
        if a != b {
            self.0.push(Change {
                what: what.to_owned(),
                a: text(a),
                b: text(b),
            });
        }
    }

    fn quantized(&mut self, a: &QuantizedTensor, b: &QuantizedTensor) {
        let id = |id: &&str| (*id).to_owned();
        self.note("convention", &a.convention, &b.convention, id);
        let (of_a, of_b) = (a.scheme.to_string(), b.scheme.to_string());
        let is_same_in_words = of_a == of_b;
        self.note("scheme", &of_a, &of_b, String::clone);
        // Conventions differ in how they spell and round; within one, that is a difference.
        if a.convention != b.convention {
            return;
        }
        if is_same_in_words {
            self.spelling(a, b);
        }
        let float = |float: &_| format!("{float:?}");
        self.note(
            "reference dtype",
            &a.reference_dtype,
            &b.reference_dtype,
            float,
        );
        self.parts(a, b);
    }

    /// What the words for a scheme leave out.
    fn spelling(&mut self, a: &QuantizedTensor, b: &QuantizedTensor) {
        let (a, b) = (&a.scheme, &b.scheme);
        self.note("code", &a.code, &b.code, |x| format!("{x:?}"));
        self.note("scale", &a.scale, &b.scale, |x| format!("{x:?}"));
        self.note("direction", &a.direction, &b.direction, |x| {
            format!("{x:?}")
        });
        self.note("zero point", &a.zero_point, &b.zero_point, |x| {
            format!("{x:?}")
        });
        self.note("super-scale", &a.super_scale, &b.super_scale, |x| {
            format!("{x:?}")
        });
        self.note("arithmetic", &a.arithmetic, &b.arithmetic, |x| {
            format!("{x:?}")
        });
        self.note("basis", &a.basis, &b.basis, |x| format!("{x:?}"));
    }

    /// The stored tensors, by role. Companions are compared as tensors of their own.
    fn parts(&mut self, a: &QuantizedTensor, b: &QuantizedTensor) {
        let all = a.parts.iter().chain(&b.parts);
        let mut roles: Vec<Role> = Vec::new();
        for role in all.map(|part| part.role) {
            if role != Role::Auxiliary && !roles.contains(&role) {
                roles.push(role);
            }
        }
        for role in roles {
            let what = format!("part {role:?}");
            let form = |tensor: &QuantizedTensor| tensor.part(role).map(form);
            let none = |form: &Option<String>| form.clone().unwrap_or_else(|| "none".to_owned());
            self.note(&what, &form(a), &form(b), none);
        }
    }
}

/// Dtype, shape and layout in words.
fn form(part: &Part) -> String {
    let extent = part
        .extent
        .map_or_else(String::new, |e| format!(" in {e:?}"));
    format!("{} {:?} {:?}{extent}", part.dtype, part.shape, part.storage)
}
