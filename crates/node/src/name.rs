//! Names of nodes and networks.

/// Returns whether a text is a valid node name (RFC 1123, section 2.1, as Kubernetes applies it).
pub(crate) fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !text.contains("..")
}
