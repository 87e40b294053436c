//! The forms of a report, and what a signature of each covers.

/// A form a report is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// One HTML page, for people.
    Html,
    /// A JSON document, for programs and for the chain.
    Json,
    /// JUnit XML, for what runs tests.
    JUnit,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Html, Self::Json, Self::JUnit];

    /// Its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Json => "json",
            Self::JUnit => "junit",
        }
    }

    /// How its files' names end, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Json => "json",
            Self::JUnit => "xml",
        }
    }

    /// What stands before the signed bytes when they are signed, so that a signature is good for one form only.
    pub(super) fn domain(self) -> &'static [u8] {
        match self {
            Self::Html => b"virt-cdp report v1 html\0",
            Self::Json => b"virt-cdp report v1 json\0",
            Self::JUnit => b"virt-cdp report v1 junit\0",
        }
    }

    /// The form that bytes claim to have by how they begin.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            _ if bytes.starts_with(b"<!DOCTYPE html>") => Self::Html,
            _ if bytes.starts_with(b"<?xml ") => Self::JUnit,
            _ if bytes.starts_with(b"{") => Self::Json,
            _ => return None,
        })
    }
}
