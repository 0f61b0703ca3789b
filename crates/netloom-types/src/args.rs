//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE` (SPEC, "Parameters"; CONVENTIONS.md, "CNI_ARGS").

/// The pairs of `CNI_ARGS` in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    pairs: Vec<(String, String)>,
    error: Option<ArgsError>,
}

/// An error in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// An item that is not `KEY=VALUE`.
    #[error("ARGS: invalid pair `{0}`; write CNI_ARGS as KEY=VALUE;KEY=VALUE")]
    InvalidPair(String),
    /// Keys that the plugin does not know.
    #[error("ARGS: unknown args {0:?}; add IgnoreUnknown=1 to CNI_ARGS to ignore them")]
    Unknown(Vec<String>),
    /// A value of `IgnoreUnknown` that is not a boolean.
    #[error("ARGS: error parsing value of pair `IgnoreUnknown={0}`: boolean unmarshal error")]
    NotABool(String),
}

impl CniArgs {
    /// Parses the value of the variable. The empty string has no pairs.
    ///
    /// # Errors
    /// If an item does not contain exactly one `=`. A trailing `;` leaves an empty item, which is refused too.
    pub fn parse(text: &str) -> Result<Self, ArgsError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let pair = |item: &str| match item.split_once('=') {
            Some((key, value)) if !value.contains('=') => Ok((key.to_owned(), value.to_owned())),
            _ => Err(ArgsError::InvalidPair(item.to_owned())),
        };
        text.split(';').map(pair).collect::<Result<_, _>>().map(Self::from_pairs)
    }

    /// Parses the variable for a plugin that may not use it: an error is kept until [`Self::require_known`].
    pub fn parse_lazily(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|error| Self { pairs: Vec::new(), error: Some(error) })
    }

    /// Creates the arguments from pairs.
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self { pairs, error: None }
    }

    /// Returns the pairs in order.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Returns the value of a key with this exact spelling. The last of several wins.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Refuses keys other than `known` and `IgnoreUnknown`, unless the last `IgnoreUnknown` is true.
    ///
    /// # Errors
    /// If there are unknown keys, or `IgnoreUnknown` is not a boolean (`1`, `true`, `0`, `false`, any case).
    pub fn require_known(&self, known: &[&str]) -> Result<(), ArgsError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let ignore = match self.value("IgnoreUnknown").map(str::to_ascii_lowercase).as_deref() {
            None | Some("0" | "false") => false,
            Some("1" | "true") => true,
            Some(other) => return Err(ArgsError::NotABool(other.to_owned())),
        };
        let unknown: Vec<String> = self
            .pairs
            .iter()
            .filter(|(key, _)| key != "IgnoreUnknown" && !known.contains(&key.as_str()))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if ignore || unknown.is_empty() { Ok(()) } else { Err(ArgsError::Unknown(unknown)) }
    }

    /// Renders the value of the variable.
    pub fn render(&self) -> String {
        let pairs: Vec<String> = self.pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }
}
