//! JSON with the rules of Go's decoder, which the other CNI implementations use.
//!
//! Go matches keys without regard to case, uses the last of two equal keys, and treats `null` as absent. Existing configurations
//! rely on all three, so [`from_value`] applies them to any `serde` type. Numbers keep every digit, and objects keep the order of
//! their keys.

use std::fmt;

use serde::{
    Serialize,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
    ser::Error as _,
};
use serde_json::{Map, Value};

/// A JSON object that keeps the order of its keys.
pub type Object = Map<String, Value>;

/// An error in a JSON text, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    /// The keys and indices of the place, innermost first.
    path: Vec<String>,
    message: String,
}

impl JsonError {
    /// Creates an error about the whole text.
    pub fn new(message: impl Into<String>) -> Self {
        Self { path: Vec::new(), message: message.into() }
    }

    /// Prepends one step to the path: `key` or `[index]`.
    #[must_use]
    pub fn within(mut self, step: impl Into<String>) -> Self {
        self.path.push(step.into());
        self
    }

    /// Renders the path, such as `ipam.ranges[0][1].subnet`. It is empty for the whole text.
    pub fn path(&self) -> String {
        let mut text = String::new();
        for step in self.path.iter().rev() {
            if !text.is_empty() && !step.starts_with('[') {
                text.push('.');
            }
            text.push_str(step);
        }
        text
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return out.write_str(&self.message);
        }
        write!(out, "`{}`: {}", self.path(), self.message)
    }
}

impl std::error::Error for JsonError {}

impl de::Error for JsonError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }
}

/// Parses a text that must be exactly one JSON object.
///
/// # Errors
/// If the text is empty, is not JSON, continues after the object, or is another kind of value.
pub fn parse_object(bytes: &[u8]) -> Result<Object, JsonError> {
    match parse_value(bytes)? {
        Value::Object(object) => Ok(object),
        other => Err(JsonError::new(format!("expected a JSON object, found {}", kind_of(&other)))),
    }
}

/// Parses any JSON value.
///
/// # Errors
/// If the text is empty, is not JSON, or continues after the value.
pub fn parse_value(bytes: &[u8]) -> Result<Value, JsonError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(JsonError::new("unexpected end of JSON input: the text is empty"));
    }
    serde_json::from_slice(bytes).map_err(|error| JsonError::new(error.to_string()))
}

/// Looks up a key without regard to case. The last of several wins, and `null` counts as absent.
pub fn lookup<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    entries_of(object, key).next().map(|(_, value)| value)
}

/// Returns the entries of a key in any spelling, the last one first, without `null`.
fn entries_of<'a>(object: &'a Object, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let entries = object.iter().rev().map(|(name, value)| (name.as_str(), value));
    entries.filter(move |(name, value)| name.eq_ignore_ascii_case(key) && !value.is_null())
}

/// Removes every spelling of a key. Returns whether there was one.
pub fn remove(object: &mut Object, key: &str) -> bool {
    let before = object.len();
    object.retain(|name, _| !name.eq_ignore_ascii_case(key));
    object.len() != before
}

/// Replaces every spelling of a key with one entry.
pub fn replace(object: &mut Object, key: &str, value: Value) {
    if !object.contains_key(key) || object.keys().filter(|name| name.eq_ignore_ascii_case(key)).count() > 1 {
        remove(object, key);
    }
    object.insert(key.to_owned(), value);
}

/// Deserializes a value with Go's rules (see the module).
///
/// # Errors
/// If a value has the wrong type or its type refuses it. The error contains the path to the value.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, JsonError> {
    T::deserialize(Lenient(value))
}

/// Deserializes an object with Go's rules (see the module).
///
/// # Errors
/// The errors of [`from_value`].
pub fn from_object<T: DeserializeOwned>(object: &Object) -> Result<T, JsonError> {
    T::deserialize(LenientObject(object))
}

/// Renders with an indent of four spaces and no newline at the end, like the reference plugins.
pub fn render<T: Serialize>(value: &T) -> String {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, format);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        // Only a map with keys that are not strings can fail, and none of the types in this crate contains one.
        Err(error) => serde_json::Error::custom(error).to_string(),
    }
}

/// Returns the kind of a value for an error message.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

struct Lenient<'a>(&'a Value);

struct LenientObject<'a>(&'a Object);

impl<'de> de::Deserializer<'de> for LenientObject<'_> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        visitor.visit_map(AllKeys { entries: self.0.iter(), next: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        visitor.visit_map(KnownKeys { object: self.0, known: fields, fields: fields.iter(), next: None })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> de::Deserializer<'de> for Lenient<'_> {
    type Error = JsonError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => {
                if let Some(value) = number.as_u64() {
                    visitor.visit_u64(value)
                } else if let Some(value) = number.as_i64() {
                    visitor.visit_i64(value)
                } else {
                    match number.as_f64() {
                        Some(value) => visitor.visit_f64(value),
                        None => Err(JsonError::new(format!("number {number} is out of range"))),
                    }
                }
            }
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), index: 0 }),
            Value::Object(object) => LenientObject(object).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, JsonError> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        match self.0 {
            Value::Object(object) => LenientObject(object).deserialize_struct(name, fields, visitor),
            other => Err(JsonError::new(format!("expected an object, found {}", kind_of(other)))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, JsonError> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => Err(JsonError::new(format!("expected a string, found {}", kind_of(other)))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = JsonError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, JsonError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        seed.deserialize(Lenient(item)).map(Some).map_err(|error| error.within(format!("[{index}]")))
    }
}

struct AllKeys<'a> {
    entries: serde_json::map::Iter<'a>,
    next: Option<(&'a str, &'a Value)>,
}

impl<'de> MapAccess<'de> for AllKeys<'_> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        self.next = self.entries.next().map(|(key, value)| (key.as_str(), value));
        self.next.map(|(key, _)| seed.deserialize(key.into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, JsonError> {
        read_next(self.next.take(), seed)
    }
}

/// The fields of a struct that the object contains, matched without regard to case. A key that is spelled like one field is
/// never another.
struct KnownKeys<'a> {
    object: &'a Object,
    known: &'static [&'static str],
    fields: std::slice::Iter<'static, &'static str>,
    next: Option<(&'a str, &'a Value)>,
}

impl<'de> MapAccess<'de> for KnownKeys<'_> {
    type Error = JsonError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, JsonError> {
        for field in self.fields.by_ref() {
            let is_other = |name: &str| name != *field && self.known.contains(&name);
            if let Some(entry) = entries_of(self.object, field).find(|(name, _)| !is_other(name)) {
                self.next = Some(entry);
                return seed.deserialize((*field).into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, JsonError> {
        read_next(self.next.take(), seed)
    }
}

fn read_next<'de, V: DeserializeSeed<'de>>(
    next: Option<(&str, &Value)>,
    seed: V,
) -> Result<V::Value, JsonError> {
    let Some((key, value)) = next else { return Err(JsonError::new("a value was requested before its key")) };
    seed.deserialize(Lenient(value)).map_err(|error| error.within(key))
}
