//! YAML as the values that JSON has: what recipes need of it.
//!
//! Plain scalars are read by the core schema of YAML 1.2 ("true" is a boolean, "yes" a text). Aliases are refused: a few of them stand
//! for more values than any memory holds.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Depth of nesting that a recipe may have.
const MAX_DEPTH: usize = 32;

/// The one document of a text. JSON is YAML, but for what YAML forbids in it (tabs before a key); both are tried.
///
/// # Errors
/// One line with the place: what is wrong, or not taken.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
    };
    reader.document()
}

struct Reader<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
}

/// What comes next, and where.
type Next<'t> = (Event<'t>, (usize, usize));

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Next<'t>, String> {
        loop {
            let place = |at: &Marker| (at.line(), at.col() + 1);
            match self.parser.next_event() {
                Some(Ok((Event::Nothing | Event::StreamStart, _))) => {}
                Some(Ok((event, span))) => return Ok((event, place(&span.start))),
                Some(Err(error)) => return Err(wrong(place(error.marker()), error.info())),
                None => return Ok((Event::StreamEnd, (0, 0))),
            }
        }
    }

    fn document(&mut self) -> Result<Value, String> {
        let (event, at) = self.next()?;
        if !matches!(event, Event::DocumentStart(_)) {
            return Err(wrong(at, "there is no document"));
        }
        let first = self.next()?;
        let value = self.value(first, MAX_DEPTH)?;
        let (event, at) = self.next()?;
        if event != Event::DocumentEnd {
            return Err(wrong(at, "something follows the document"));
        }
        match self.next()? {
            (Event::StreamEnd, _) => Ok(value),
            (_, at) => Err(wrong(at, "there is a second document")),
        }
    }

    fn value(&mut self, (event, at): Next<'t>, depth: usize) -> Result<Value, String> {
        let depth = depth.checked_sub(1);
        let depth = depth.ok_or_else(|| wrong(at, "it is nested too deeply"))?;
        match event {
            Event::Scalar(text, style, _, tag) => {
                if tag.is_some() {
                    return Err(wrong(at, "tags are not taken"));
                }
                Ok(scalar(&text, style))
            }
            Event::SequenceStart(_, None) => self.sequence(depth),
            Event::MappingStart(_, None) => self.mapping(depth),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                Err(wrong(at, "tags are not taken"))
            }
            Event::Alias(_) => Err(wrong(at, "aliases are not taken")),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => Err(wrong(at, "a value is missing")),
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        loop {
            let next = self.next()?;
            if next.0 == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            items.push(self.value(next, depth)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, String> {
        let mut members = Map::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Object(members));
            }
            let Event::Scalar(text, _, _, None) = event else {
                return Err(wrong(at, "a key is no plain text"));
            };
            let key = text.into_owned();
            let next = self.next()?;
            let value = self.value(next, depth)?;
            if members.insert(key.clone(), value).is_some() {
                return Err(wrong(at, &format!("{key} occurs twice")));
            }
        }
    }
}

fn wrong((line, column): (usize, usize), what: &str) -> String {
    format!("line {line}, column {column}: {what}")
}

/// A scalar by the core schema.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    if !is_number {
        return None;
    }
    let whole = text.strip_prefix('+').unwrap_or(text);
    match whole.parse::<i64>() {
        Ok(number) => Some(number.into()),
        Err(_) => whole.parse().ok().and_then(Number::from_f64),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_is_read_as_the_json_that_says_the_same() {
        let text = "a:\n  - 're:.*\\.x$'\n  - 1\n  - 0.01\n  - true\n  - null\n  - yes\nb: {c: [], d: \"1\"}\n# done\n";
        let expected = json!({
            "a": ["re:.*\\.x$", 1, 0.01, true, null, "yes"],
            "b": {"c": [], "d": "1"},
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse(&expected.to_string()).unwrap(), expected);
        assert_eq!(parse("-1e-2").unwrap(), json!(-0.01));
        assert_eq!(parse("1.2.3").unwrap(), json!("1.2.3"));
    }

    #[test]
    fn what_a_recipe_does_not_need_is_refused_with_its_place() {
        for (text, expected) in [
            ("a: &x [1]\nb: *x\n", "line 2, column 4: aliases"),
            ("a: !!python/object x\n", "line 1"),
            ("a: 1\na: 2\n", "line 2, column 1: a occurs twice"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("a: [1\n", "line"),
            ("", "no document"),
            ("? [1]\n: 2\n", "no plain text"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert!(parse(&deep).unwrap_err().contains("deeply"));
        for cut in 0..60 {
            let text = "q:\n  M:\n    scheme: \"W4\n    ignore: [a, 'b']\n    c: |\n      x\n";
            let _ = parse(text.get(..cut).unwrap_or_default());
        }
    }
}
