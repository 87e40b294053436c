//! Checks that a report is what was signed, byte for byte.
//!
//! The form is told by how the file begins. HTML and JUnit must end with the comment of the signature and nothing after it;
//! JSON must be written in the one way there is. What is then told of the report is read from signed bytes only.
//!
//! Invariant: no byte of a file that passes can be changed, added or taken away so that it passes again. Any bytes may be
//! given; none make it panic, and at most [`BYTES_MAX`] are looked at.

use serde::Deserialize;

use super::{
    form::Form,
    hex::{sha256, unhex},
    json::{self, Document},
    sign::{COMMENT_END, COMMENT_START, PublicKey},
};
use crate::outcome::Link;

/// How large a report may be.
pub const BYTES_MAX: usize = 64 << 20;

const PUBLIC_DIGITS: usize = 64;
const SIGNATURE_DIGITS: usize = 128;
const COMMENT_LEN: usize =
    COMMENT_START.len() + PUBLIC_DIGITS + 1 + SIGNATURE_DIGITS + COMMENT_END.len();

/// How a page tells its report's number.
pub(super) const ID_NAME: &str = "virt-cdp-report";
/// How a page tells the report before it: its number, a blank, its hash.
pub(super) const PREVIOUS_NAME: &str = "virt-cdp-previous";

/// A report that is what was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its form.
    pub form: Form,
    /// Its number; none where it does not say.
    pub id: Option<String>,
    /// The key it was signed with.
    pub public_key: PublicKey,
    /// SHA-256 of the signed bytes, hexadecimal; of JSON, the hash that the next report names.
    pub sha256: String,
    /// The report before it; none for the first.
    pub previous: Option<Link>,
}

/// Says why a report is not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is larger than any report.
    #[error("it has {bytes} bytes; no report has more than {BYTES_MAX}")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// It does not begin like a report.
    #[error("it is no report: it begins neither like HTML nor like JSON nor like JUnit XML")]
    NoReport,
    /// Nobody signed it.
    #[error("it is not signed")]
    NoSignature {
        /// The form it claims.
        form: Form,
    },
    /// It was changed after it was signed.
    #[error("its signature is broken: {why}")]
    Broken {
        /// The form it claims.
        form: Form,
        /// What does not fit.
        why: &'static str,
    },
    /// It is what was signed, but somebody else signed it.
    #[error(
        "it was signed by the key {}, not by {}", signed_by.fingerprint(), expected.fingerprint()
    )]
    OtherKey {
        /// The form it has.
        form: Form,
        /// Who signed it.
        signed_by: PublicKey,
        /// Who should have.
        expected: PublicKey,
    },
}

/// Checks a report in any form; with a key that is expected, also who signed it.
///
/// # Errors
/// Why it is not to be trusted: no report, no signature, a broken one, or one by another key.
pub fn verify(bytes: &[u8], expected_key: Option<&PublicKey>) -> Result<Verified, VerifyError> {
    if bytes.len() > BYTES_MAX {
        return Err(VerifyError::TooLarge { bytes: bytes.len() });
    }
    let form = Form::of(bytes).ok_or(VerifyError::NoReport)?;
    let verified = match form {
        Form::Json => document(bytes)?,
        Form::Html | Form::JUnit => page(form, bytes)?,
    };
    match expected_key {
        Some(expected) if *expected != verified.public_key => Err(VerifyError::OtherKey {
            form,
            signed_by: verified.public_key,
            expected: *expected,
        }),
        _ => Ok(verified),
    }
}

/// The bytes of a JSON document that its signature covers; only of one that was checked.
pub(super) fn signed_json(bytes: &[u8]) -> Option<&str> {
    let document: Document<'_> = serde_json::from_slice(bytes).ok()?;
    Some(document.report.get())
}

fn document(bytes: &[u8]) -> Result<Verified, VerifyError> {
    let form = Form::Json;
    let broken = |why| VerifyError::Broken { form, why };
    let document: Document<'_> = serde_json::from_slice(bytes)
        .map_err(|_| broken("it is no JSON document with a report and a signature"))?;
    let signature = document
        .signature
        .ok_or(VerifyError::NoSignature { form })?;
    let raw = document.report.get();
    if json::write(raw, &signature.public_key, &signature.signature).as_bytes() != bytes {
        return Err(broken("it is not written as reports are"));
    }
    let public_key = check(
        form,
        raw.as_bytes(),
        &signature.public_key,
        &signature.signature,
    )?;
    let told: Told = serde_json::from_str(raw).unwrap_or_default();
    Ok(Verified {
        form,
        id: told.id,
        public_key,
        sha256: sha256(raw.as_bytes()),
        previous: told.previous,
    })
}

/// What a report's JSON says of itself.
#[derive(Default, Deserialize)]
struct Told {
    id: Option<String>,
    previous: Option<Link>,
}

fn page(form: Form, bytes: &[u8]) -> Result<Verified, VerifyError> {
    let broken = |why| VerifyError::Broken { form, why };
    let misplaced = || match find(bytes, COMMENT_START.trim_end().as_bytes()) {
        Some(_) => broken("the signature is not the last thing in it, or not whole"),
        None => VerifyError::NoSignature { form },
    };
    let signed_len = bytes.len().checked_sub(COMMENT_LEN).ok_or_else(misplaced)?;
    let (signed, comment) = bytes.split_at(signed_len);
    let digits = std::str::from_utf8(comment)
        .ok()
        .and_then(|comment| comment.strip_prefix(COMMENT_START))
        .and_then(|comment| comment.strip_suffix(COMMENT_END))
        .ok_or_else(misplaced)?;
    let (public_key, signature) = digits
        .split_once(' ')
        .ok_or_else(|| broken("the signature is not written as signatures are"))?;
    let public_key = check(form, signed, public_key, signature)?;
    let previous = told(form, signed, PREVIOUS_NAME).and_then(|text| {
        let (id, sha256) = text.split_once(' ')?;
        Some(Link {
            id: id.to_owned(),
            sha256: sha256.to_owned(),
        })
    });
    Ok(Verified {
        form,
        id: told(form, signed, ID_NAME),
        public_key,
        sha256: sha256(signed),
        previous,
    })
}

fn check(
    form: Form,
    signed: &[u8],
    public_key: &str,
    signature: &str,
) -> Result<PublicKey, VerifyError> {
    let broken = |why| VerifyError::Broken { form, why };
    let public_key =
        PublicKey::parse(public_key).ok_or_else(|| broken("its public key is no key"))?;
    let signature =
        unhex::<64>(signature).ok_or_else(|| broken("its signature is no signature"))?;
    if public_key.has_signed(form, signed, &signature) {
        Ok(public_key)
    } else {
        Err(broken("it was changed after it was signed"))
    }
}

/// What a page says of itself under a name; the first time, which no foreign text comes before.
fn told(form: Form, signed: &[u8], name: &str) -> Option<String> {
    let start = match form {
        Form::Html => format!("<meta name=\"{name}\" content=\""),
        Form::Json | Form::JUnit => format!("<property name=\"{name}\" value=\""),
    };
    let rest = signed.get(find(signed, start.as_bytes())? + start.len()..)?;
    let value = rest.get(..find(rest, b"\"")?)?;
    String::from_utf8(value.to_vec()).ok()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
