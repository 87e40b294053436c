//! Names of machines and takeovers: what is accepted, and how they become file names.
//!
//! libvirt allows nearly everything in a domain's name, so a name is kept as it is and only encoded
//! where it becomes a path. The encoding is one to one: two names never share a directory.

use crate::api::{ApiError, ApiErrorKind, ApiResult};

/// The longest name, in bytes; encoded it still fits a file name of 255 bytes.
const NAME_MAX: usize = 80;

/// Checks a machine's or takeover's name.
pub(crate) fn check(what: &str, name: &str) -> ApiResult<()> {
    let wrong = |reason: String| {
        Err(ApiError::new(ApiErrorKind::InvalidArgument, format!("{what} name {name:?} {reason}"))
            .hint("use letters, digits, '.', '-' and '_'; spaces and other printable characters are allowed too"))
    };
    if name.is_empty() {
        return wrong("is empty".into());
    }
    if name.len() > NAME_MAX {
        return wrong(format!("is longer than {NAME_MAX} bytes"));
    }
    if name.trim() != name {
        return wrong("begins or ends with a space".into());
    }
    if let Some(bad) = name.chars().find(|c| c.is_control() || *c == '/') {
        return wrong(format!("has the character {bad:?} in it"));
    }
    Ok(())
}

/// Encodes a name as one path component: ASCII letters, digits, `-`, `_` and inner `.` stay, every other
/// byte becomes `%XX`.
pub(crate) fn component(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => encoded.push(char::from(byte)),
            b'.' if at > 0 => encoded.push('.'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_distinct_path_components() {
        for (name, want) in [
            ("web-1", "web-1"),
            ("..", "%2E."),
            ("a b", "a%20b"),
            ("a%20b", "a%2520b"),
            ("ä", "%C3%A4"),
            ("v1.2", "v1.2"),
        ] {
            assert_eq!(component(name), want);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        for (name, reason) in [
            ("", "is empty"),
            ("a/b", "'/'"),
            ("a\nb", "'\\n'"),
            (" a", "space"),
            (&"x".repeat(81), "longer than 80"),
        ] {
            let error = check("machine", name).unwrap_err();
            assert!(error.what.contains(reason), "{name:?}: {}", error.what);
        }
        for name in ["web-1", "naïve vm", "a:b", "$(rm)", "%s"] {
            check("machine", name).unwrap();
        }
    }
}
