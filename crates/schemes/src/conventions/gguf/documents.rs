//! The documents beside the weights, read for what GGUF keeps of them: a value is right, or it is an error that names it.

use safequant_container::{GgufMetadata, GgufValue};
use serde_json::{Map, Value};

use super::ID;
use crate::config::{self, Settings};
use crate::{Error, Headers};

/// A JSON object.
pub(super) struct Document {
    settings: Settings,
}

impl Document {
    /// The document with this name, if it is there.
    pub(super) fn find(headers: Headers<'_>, name: &str) -> Result<Option<Self>, Error> {
        let Some(bytes) = headers.document(name) else {
            return Ok(None);
        };
        let value = config::parse(name, bytes)?;
        let Value::Object(map) = value else {
            return Err(wrong(name, "", "an object", &value));
        };
        Ok(Some(Self::of(name, map)))
    }

    /// `config.json`, which must be there.
    pub(super) fn config(headers: Headers<'_>) -> Result<Self, Error> {
        let found = Self::find(headers, "config.json")?;
        found.ok_or_else(|| cannot_derive("general.architecture", "there is no config.json"))
    }

    pub(super) fn of(place: &str, map: Map<String, Value>) -> Self {
        let place = place.to_owned();
        Self {
            settings: Settings { place, map },
        }
    }

    /// Where it stands.
    pub(super) fn place(&self) -> &str {
        &self.settings.place
    }

    /// All of it.
    pub(super) fn map(&self) -> &Map<String, Value> {
        &self.settings.map
    }

    /// A value that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.settings.get(key)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, Error> {
        let object = self.settings.object(key)?;
        Ok(object.map(|settings| Self { settings }))
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        self.settings.boolean(key)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.settings.text(key)
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        self.settings.texts(key)
    }

    /// An integer from 0 on.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u32>, Error> {
        let found = self.settings.integer(key, 0..=i64::from(u32::MAX))?;
        Ok(found.and_then(|value| u32::try_from(value).ok()))
    }

    /// An integer from 1 on that must be there; `field` is what becomes of it.
    pub(super) fn count(&self, key: &str, field: &str) -> Result<u32, Error> {
        let found = self.settings.integer(key, 1..=i64::from(u32::MAX))?;
        let found = found.and_then(|value| u32::try_from(value).ok());
        found.ok_or_else(|| self.missing(key, field))
    }

    /// A number, integer or not.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.settings.wrong(key, "a number", value)),
        }
    }

    /// The error for a value that is not there.
    pub(super) fn missing(&self, key: &str, field: &str) -> Error {
        cannot_derive(field, format!("{} has no `{key}`", self.place()))
    }

    /// The error for a value that GGUF has no word for.
    pub(super) fn unknown(&self, key: &str, field: &str, known: &str) -> Error {
        let found = self.get(key).map(Value::to_string).unwrap_or_default();
        let found = config::shorten(&found);
        let problem = format!("{}: {key} is {found}, known is {known}", self.place());
        cannot_derive(field, problem)
    }

    /// The error for a value of the wrong kind.
    pub(super) fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        wrong(self.place(), key, expected, found)
    }
}

/// The error for a field that the documents do not determine.
pub(super) fn cannot_derive(field: &str, problem: impl Into<String>) -> Error {
    Error::CannotDerive {
        convention: ID,
        field: field.to_owned(),
        problem: problem.into(),
    }
}

fn wrong(document: &str, key: &str, expected: &str, found: &Value) -> Error {
    Error::ConfigValue {
        document: document.to_owned(),
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: config::shorten(&found.to_string()),
    }
}

/// A number of a document as GGUF keeps it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the field is F32: rounded once, as struct.pack does"
)]
pub(super) fn narrow(number: f64) -> f32 {
    number as f32
}

/// Metadata with the three kinds of value that nearly all keys have.
pub(super) trait Push {
    fn count(&mut self, key: &str, value: u32);
    fn number(&mut self, key: &str, value: f64);
    /// Text; none where it is empty, as the converter's writer has it.
    fn text(&mut self, key: &str, value: &str);
    fn boolean(&mut self, key: &str, value: bool);
}

impl Push for GgufMetadata {
    fn count(&mut self, key: &str, value: u32) {
        self.push(key, GgufValue::U32(value));
    }

    fn number(&mut self, key: &str, value: f64) {
        self.push(key, GgufValue::F32(narrow(value)));
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.push(key, GgufValue::String(value.as_bytes()));
        }
    }

    fn boolean(&mut self, key: &str, value: bool) {
        self.push(key, GgufValue::Bool(value));
    }
}
