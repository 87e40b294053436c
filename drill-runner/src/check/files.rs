//! The check `files`: files in the guest have the SHA-256 they should have, read through its agent in pieces.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::time::Duration;

use super::{
    Place,
    attempt::agent_trouble,
    bound::Bound,
    exec::nonsense,
    seen::{Come, Seen},
};
use crate::plan::FileSum;

/// How much is read at once: in base64 it must fit into what libvirt takes from an agent.
const PIECE: usize = 1 << 20;
/// How often in a row the agent may answer with nothing before the end of a file.
const EMPTY_MAX: u32 = 20;

/// Reads all of the files once.
pub(super) fn attempt(sums: &[FileSum], place: &Place<'_>, bound: &Bound<'_>) -> Seen {
    let mut output = String::new();
    let mut bad: Option<Seen> = None;
    for file in sums {
        let word = match sum(&file.path, place, bound) {
            Ok((sum, size)) if sum == file.sha256 => format!("as it should be, {size} bytes"),
            Ok((sum, size)) => {
                let why = format!(
                    "{} has the SHA-256 {sum} where {} was expected ({size} bytes)",
                    file.path, file.sha256
                );
                bad.get_or_insert_with(|| Seen::not_yet(&why));
                format!("{sum} where {} was expected, {size} bytes", file.sha256)
            }
            Err(seen) => {
                let word = seen.saw.clone();
                let told = Seen::new(seen.come, format!("{}: {}", file.path, seen.saw));
                bad.get_or_insert(told);
                word
            }
        };
        let _ = writeln!(output, "{}: {word}", file.path);
        if bound.stop().is_some() || bad.as_ref().is_some_and(|one| one.come == Come::Never) {
            break;
        }
    }
    let seen = bad.unwrap_or_else(|| match sums {
        [one] => Seen::passed(format!("{} is as it should be", one.path)),
        all => Seen::passed(format!("{} files are as they should be", all.len())),
    });
    seen.with_output(&output)
}

/// The SHA-256 of a file, and its size.
fn sum(path: &str, place: &Place<'_>, bound: &Bound<'_>) -> Result<(String, u64), Seen> {
    let ask = |command: &str, arguments: Value| {
        if bound.stop().is_some() {
            return Err(Seen::stopped(bound, "it was not read to its end"));
        }
        let question = json!({ "execute": command, "arguments": arguments });
        place
            .guest
            .agent(&question, bound.call())
            .map_err(|error| match bound.stop() {
                Some(_) => Seen::stopped(bound, "it was not read to its end"),
                None => agent_trouble(&error),
            })
    };
    let opened = ask("guest-file-open", json!({ "path": path, "mode": "r" }))?;
    let Some(handle) = opened.as_i64() else {
        return Err(nonsense("guest-file-open", "is no number", &opened));
    };
    let read = read_all(handle, &ask);
    // The guest is thrown away; that a file stays open in it is no matter.
    let close = json!({ "execute": "guest-file-close", "arguments": { "handle": handle } });
    let _ = place
        .guest
        .agent(&close, bound.call().min(Duration::from_secs(1)));
    read
}

fn read_all(
    handle: i64,
    ask: &dyn Fn(&str, Value) -> Result<Value, Seen>,
) -> Result<(String, u64), Seen> {
    let (mut hash, mut size, mut empty) = (Sha256::new(), 0_u64, 0);
    loop {
        let piece = ask(
            "guest-file-read",
            json!({ "handle": handle, "count": PIECE }),
        )?;
        let data = piece.get("buf-b64").and_then(Value::as_str);
        let Some(Ok(bytes)) = data.map(|data| STANDARD.decode(data.trim())) else {
            return Err(nonsense("guest-file-read", "has no base64 in it", &piece));
        };
        hash.update(&bytes);
        size += bytes.len() as u64;
        if piece.get("eof").and_then(Value::as_bool) == Some(true) {
            break;
        }
        empty = if bytes.is_empty() { empty + 1 } else { 0 };
        if empty >= EMPTY_MAX {
            return Err(Seen::not_yet(
                "the guest agent gives neither more of it nor its end",
            ));
        }
    }
    let mut digits = String::new();
    for byte in hash.finalize() {
        let _ = write!(digits, "{byte:02x}");
    }
    Ok((digits, size))
}
