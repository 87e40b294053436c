//! The JSON document of a report: `{"report": ..., "signature": ...}` in one line.
//!
//! The signature covers the bytes of the `report` member as they stand in the file. The document has exactly one way of
//! being written, so that a byte changed anywhere in it is found. Its schema is published: `report.schema.json`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{form::Form, sign::Key};
use crate::outcome::Report;

/// Says that a report could not be written as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the report {id} cannot be written as JSON")]
pub struct JsonError {
    /// The report's number.
    pub id: String,
    /// Why.
    pub source: serde_json::Error,
}

/// The document as it is read.
#[derive(Debug, Deserialize)]
pub(super) struct Document<'a> {
    #[serde(borrow)]
    pub(super) report: &'a RawValue,
    pub(super) signature: Option<Signature>,
}

/// Its signature.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Signature {
    pub(super) algorithm: String,
    pub(super) public_key: String,
    pub(super) signature: String,
}

/// The name of the signature's kind.
pub(super) const ALGORITHM: &str = "ed25519";

/// Writes a report as a signed JSON document.
///
/// # Errors
/// None is known; what the writer of JSON says.
pub fn json(report: &Report, key: &Key) -> Result<Vec<u8>, JsonError> {
    let raw = serde_json::to_string(report).map_err(|source| JsonError {
        id: report.id.clone(),
        source,
    })?;
    let public_key = key.public().to_string();
    let signature = key.sign(Form::Json, raw.as_bytes());
    Ok(write(&raw, &public_key, &signature).into_bytes())
}

/// The one way in which a document is written; the keys are digits only.
pub(super) fn write(report: &str, public_key: &str, signature: &str) -> String {
    format!(
        "{{\"report\":{report},\"signature\":{{\"algorithm\":\"{ALGORITHM}\",\"public_key\":\"{public_key}\",\
         \"signature\":\"{signature}\"}}}}\n"
    )
}
