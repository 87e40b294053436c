//! Reports: what a drill has come to, as people, programs and auditors read it, signed and chained.
//!
//! A [`Report`] is written in three forms: one HTML page, one JSON document, and JUnit XML. Each is signed with the host's
//! [`Key`] and can be checked by itself with [`verify`]. A [`Store`] keeps the reports of a host in one directory and
//! chains them: each names the one before it and its hash.
//!
//! Invariant: what a guest or a plan wrote is only ever text. It goes through [`shown`] into every page, and nothing in a
//! report says more than the [`Report`] it was made from.
//!
//! [`Report`]: crate::outcome::Report

mod hex;
mod id;
mod sign;
mod whole;

mod form;
mod shown;
mod words;

mod json;
mod junit;

mod checks;
mod html;
mod machine;
mod paper;
mod style;
mod timeline;
mod trend;

mod verify;

mod chain;
mod directory;
mod entry;
mod index;
mod store;

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

pub use chain::{Break, Chain, Fault};
pub use directory::{Directory, verify_directory};
pub use entry::{MachineSummary, Summary};
pub use form::Form;
pub use html::html;
pub use id::is_id;
pub use json::{JsonError, json};
pub use junit::junit;
pub use sign::{Key, KeyError, PublicKey};
pub use store::{HISTORY_MAX, Store, StoreError};
pub use verify::{BYTES_MAX, Verified, VerifyError, verify};
