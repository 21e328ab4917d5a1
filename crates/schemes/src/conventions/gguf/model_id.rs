//! What the name of a model tells: `some-org/Tiny-Llama-2-7b-chat` (gguf-py `metadata.py`, `get_model_id_components`).

/// What was told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ModelId {
    pub name: Option<String>,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

/// What a part of a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Basename,
    SizeLabel,
    Finetune,
    Version,
    Quantization,
}

/// A part of a name, and all that it is.
#[derive(Clone, Debug)]
struct Part {
    text: String,
    kinds: Vec<Kind>,
}

impl Part {
    fn is(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    fn is_no_longer(&mut self, kind: Kind) {
        self.kinds.retain(|known| *known != kind);
    }
}

impl ModelId {
    /// The parts of `_name_or_path`; nothing of a path on somebody's disk. `n_parameters` tells sizes from lengths of
    /// contexts.
    pub(super) fn parse(path: &str, n_parameters: u64) -> Self {
        if path.matches('/').count() > 1 {
            return Self::default();
        }
        if path.contains(' ') {
            let name = Some(title(path));
            return Self {
                name,
                ..Self::default()
            };
        }
        let (organization, name) = match path.split_once('/') {
            Some((organization, name)) => (Some(organization), name),
            None => (None, path),
        };
        let organization = organization.filter(|o| !o.starts_with('.'));
        let mut parts: Vec<Part> = name
            .split('-')
            .filter(|part| !part.is_empty())
            .enumerate()
            .map(|(i, part)| annotate(part, i, n_parameters))
            .collect();
        drop_words_beside_numbers(&mut parts);
        mark_basename(&mut parts);
        let size_label = join(&parts, |p| p.is(Kind::SizeLabel), Repeats::Once);
        let finetune = join(&parts, |p| p.is(Kind::Finetune), Repeats::Kept);
        let is_version = |p: &Part| p.is(Kind::Version) && !p.is(Kind::Basename);
        let version = join(&parts, is_version, Repeats::Kept);
        let is_told = size_label.is_some() || finetune.is_some() || version.is_some();
        let basename = join(&parts, |p| p.is(Kind::Basename), Repeats::Kept);
        let basename = basename.filter(|_| is_told);
        Self {
            name: Some(title(name)),
            organization: organization.map(title),
            basename,
            finetune,
            version,
            size_label,
        }
    }
}

/// A part as it is kept, and what it is.
fn annotate(part: &str, i: usize, n_parameters: u64) -> Part {
    let lower = part.to_ascii_lowercase();
    let is_tuned = ["chat", "instruct", "vision", "lora"].contains(&lower.as_str());
    let (text, kinds) = if is_version(&lower) {
        (part.to_owned(), vec![Kind::Version])
    } else if is_quantization(&lower) {
        (part.to_uppercase(), vec![Kind::Quantization])
    } else if i > 0 && is_size(&lower) {
        return size(part, n_parameters);
    } else if i > 0 && is_tuned {
        (part.to_owned(), vec![Kind::Finetune])
    } else {
        (part.to_owned(), Vec::new())
    };
    Part { text, kinds }
}

/// `(v|iter)?\d+([.]\d+)*`
fn is_version(lower: &str) -> bool {
    let digits = lower.strip_prefix("iter").or(lower.strip_prefix('v'));
    digits.unwrap_or(lower).split('.').all(is_digits)
}

/// `i?q\d(_\w)*|b?fp?(16|32)`
fn is_quantization(lower: &str) -> bool {
    let float = lower.strip_prefix('b').unwrap_or(lower);
    let float = float.strip_prefix('f');
    let float = float.map(|rest| rest.strip_prefix('p').unwrap_or(rest));
    if matches!(float, Some("16" | "32")) {
        return true;
    }
    let quant = lower.strip_prefix('i').unwrap_or(lower);
    let mut chars = quant.strip_prefix('q').unwrap_or_default().chars();
    if !chars.next().is_some_and(|c| c.is_ascii_digit()) {
        return false;
    }
    let rest: Vec<char> = chars.collect();
    let is_step = |step: &[char]| matches!(step, [first, second] if *first == '_' && (second.is_alphanumeric() || *second == '_'));
    rest.chunks(2).all(is_step)
}

/// `([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl`
fn is_size(lower: &str) -> bool {
    if ["small", "mini", "medium", "large", "xl", "xxl"].contains(&lower) {
        return true;
    }
    let number = match lower.split_once('x') {
        Some((experts, rest)) if is_digits(experts) => rest,
        Some(_) | None => lower.strip_prefix('a').unwrap_or(lower),
    };
    let number = number
        .strip_suffix(|c: char| c.is_ascii_digit())
        .filter(|n| n.ends_with(['k', 'm', 'b', 't']))
        .unwrap_or(number);
    let Some(number) = number.strip_suffix(['k', 'm', 'b', 't']) else {
        return false;
    };
    match number.split_once(['.', '_']) {
        Some((whole, fraction)) => is_digits(whole) && is_digits(fraction),
        None => is_digits(number),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A size in its usual spelling; far from the true one it is a length of contexts, and that is a fine-tune.
fn size(part: &str, n_parameters: u64) -> Part {
    let mut part: Vec<char> = part.replace('_', ".").chars().collect();
    if let [.., suffix, digit] = part[..]
        && digit.is_ascii_digit()
    {
        // `7b1` is 7.1 billions.
        part.truncate(part.len() - 2);
        part.extend(['.', digit, suffix]);
    }
    if let [.., before, suffix] = &mut part[..]
        && before.is_ascii_digit()
    {
        *suffix = suffix.to_ascii_uppercase();
    }
    let mut kind = Kind::SizeLabel;
    if let Some((suffix, number)) = part.split_last()
        && let Ok(number) = number.iter().collect::<String>().parse::<f64>()
        && is_far(number, *suffix, n_parameters)
        && let Some(suffix) = part.last_mut()
    {
        kind = Kind::Finetune;
        *suffix = suffix.to_ascii_lowercase();
    }
    Part {
        text: part.into_iter().collect(),
        kinds: vec![kind],
    }
}

/// Whether a size in thousands, millions ... is none of this model.
#[expect(
    clippy::cast_precision_loss,
    reason = "Python compares the same doubles"
)]
fn is_far(number: f64, suffix: char, n_parameters: u64) -> bool {
    let power = "KMBT".find(suffix).map_or(0, |i| i + 1);
    let size = (0..power).fold(number, |size, _| size * 1000.0);
    let distance = (size - n_parameters as f64).abs();
    let allowed = u128::from(n_parameters) * 7 / 8;
    n_parameters != 0 && distance > allowed as f64
}

/// `mini` beside `4B` is no size.
fn drop_words_beside_numbers(parts: &mut [Part]) {
    let has_digit = |part: &Part| part.text.chars().any(|c| c.is_ascii_digit());
    let is_number = |part: &Part| part.is(Kind::SizeLabel) && has_digit(part);
    if parts.iter().any(is_number) {
        for part in parts {
            if part.text.chars().all(char::is_alphabetic) {
                part.is_no_longer(Kind::SizeLabel);
            }
        }
    }
}

/// The base name stands first, with the versions that follow; a version at its end is none of it.
fn mark_basename(parts: &mut [Part]) {
    let mut at_start = true;
    for part in &mut *parts {
        let is_word = part.kinds.is_empty() && part.text.starts_with(char::is_alphabetic);
        at_start &= is_word || part.is(Kind::Version);
        if at_start {
            part.kinds.push(Kind::Basename);
        } else if part.kinds.is_empty() {
            part.kinds.push(Kind::Finetune);
        }
    }
    for part in parts.iter_mut().rev() {
        if !part.is(Kind::Basename) || part.kinds.len() < 2 {
            break;
        }
        part.is_no_longer(Kind::Basename);
    }
}

/// Whether a word may stand twice.
#[derive(Clone, Copy)]
enum Repeats {
    Kept,
    Once,
}

fn join(parts: &[Part], wanted: impl Fn(&Part) -> bool, repeats: Repeats) -> Option<String> {
    let mut words: Vec<&str> = Vec::new();
    for part in parts {
        let is_repeated = matches!(repeats, Repeats::Once) && words.contains(&part.text.as_str());
        if wanted(part) && !is_repeated {
            words.push(&part.text);
        }
    }
    (!words.is_empty()).then(|| words.join("-"))
}

/// A name as a title: lower-case words begin with a capital, but for versions and numbers.
fn title(name: &str) -> String {
    let name = name.replace('-', " ");
    let words = name.split_whitespace().map(|word| {
        let is_lower =
            word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        let version = word.strip_prefix('v').map(is_version);
        if !is_lower || word.starts_with(|c: char| c.is_ascii_digit()) || version == Some(true) {
            return word.to_owned();
        }
        capitals(word)
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Python's `str.title`: a letter after what is no letter is a capital.
fn capitals(word: &str) -> String {
    let mut after_letter = false;
    let mut out = String::new();
    for c in word.chars() {
        if after_letter {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        after_letter = c.is_alphabetic();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Answers of gguf-py 0.19 `Metadata.get_model_id_components` and `id_to_title`.
    #[test]
    fn names_are_taken_apart_as_gguf_py_does() {
        let billion = 1_000_000_000;
        #[rustfmt::skip]
        let cases = [
            ("meta-llama/Llama-2-7b-hf", 7 * billion, ["Llama 2 7b Hf", "Meta Llama", "Llama-2", "hf", "", "7B"]),
            ("mistralai/Mixtral-8x7B-Instruct-v0.1", 47 * billion, ["Mixtral 8x7B Instruct v0.1", "Mistralai", "Mixtral", "Instruct", "v0.1", "8x7B"]),
            ("Qwen/Qwen3-30B-A3B", 30 * billion, ["Qwen3 30B A3B", "Qwen", "Qwen3", "", "", "30B-A3B"]),
            ("Phi-3-mini-4k-instruct", 4 * billion, ["Phi 3 Mini 4k Instruct", "", "Phi-3", "4k-instruct", "", "mini"]),
            ("bloom-7b1", 7 * billion, ["Bloom 7b1", "", "bloom", "", "", "7.1B"]),
            ("tiny_random", 1000, ["Tiny_Random", "", "", "", "", ""]),
            ("A model of mine", 1000, ["A Model Of Mine", "", "", "", "", ""]),
            ("./here", 1000, ["Here", "", "", "", "", ""]),
            ("/models/mine/model", 1000, ["", "", "", "", "", ""]),
            ("", 1000, ["", "", "", "", "", ""]),
            ("x/Model-bf16-iq4_x_s-q4", 1000, ["Model Bf16 Iq4_X_S Q4", "X", "", "", "", ""]),
        ];
        for (path, n, [name, organization, basename, finetune, version, size_label]) in cases {
            let mut expected = ModelId {
                name: some(name),
                organization: some(organization),
                basename: some(basename),
                finetune: some(finetune),
                version: some(version),
                size_label: some(size_label),
            };
            let found = ModelId::parse(path, n);
            if path.is_empty() {
                expected.name = Some(String::new());
            }
            assert_eq!(found, expected, "{path}");
        }
    }
}
