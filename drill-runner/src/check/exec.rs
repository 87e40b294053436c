//! The check `exec`: a command in the guest, run by its agent; and the question whether the agent is there.
//!
//! A command that does not end in time goes on in the guest: the agent has no way to end it, and the guest is thrown away.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Place,
    attempt::agent_trouble,
    bound::Bound,
    script::judge,
    seen::{Seen, quote},
};
use crate::{plan::Pattern, stage::StageError};

/// Asks the agent whether it is there.
///
/// # Errors
/// Why it does not answer.
pub(super) fn ping(place: &Place<'_>, time: Duration) -> Result<(), StageError> {
    let answer = place
        .guest
        .agent(&json!({ "execute": "guest-ping" }), time)?;
    match &answer {
        Value::Object(members) if members.is_empty() => Ok(()),
        other => Err(StageError::Refused(format!(
            "it answered a ping with {}",
            quote(&other.to_string())
        ))),
    }
}

/// Runs the command once.
pub(super) fn attempt(
    command: &str,
    exit_code: i32,
    output: Option<&Pattern>,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Seen {
    match run(command, place, bound) {
        Err(seen) => seen,
        Ok(status) => match Finished::read(&status) {
            Err(what) => nonsense("guest-exec-status", what, &status),
            Ok(done) => {
                let how = match (done.code, done.signal) {
                    (Some(code), _) => format!("exit code {code}"),
                    (None, Some(signal)) => format!("killed by signal {signal}"),
                    (None, None) => "an end without an exit code".to_owned(),
                };
                judge(done.code, &how, &done.printed, exit_code, output)
            }
        },
    }
}

/// Starts the command and waits for its end; returns the last answer.
fn run(command: &str, place: &Place<'_>, bound: &Bound<'_>) -> Result<Value, Seen> {
    let (path, flag) = shell(place, bound)?;
    let arguments = json!({ "path": path, "arg": [flag, command], "capture-output": true });
    let started = place
        .guest
        .agent(
            &json!({ "execute": "guest-exec", "arguments": arguments }),
            bound.call(),
        )
        .map_err(|error| refusal(&error))?;
    let Some(pid) = started.get("pid").and_then(Value::as_i64) else {
        return Err(nonsense("guest-exec", "has no pid", &started));
    };
    let question = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
    let mut pause = Duration::from_millis(20);
    while bound.nap(pause) {
        pause = (pause * 2).min(Duration::from_millis(500));
        let status = place
            .guest
            .agent(&question, bound.call())
            .map_err(|error| match bound.stop() {
                Some(_) => Seen::stopped(bound, "it did not end"),
                None => refusal(&error),
            })?;
        match status.get("exited").and_then(Value::as_bool) {
            Some(true) => return Ok(status),
            Some(false) => {}
            None => {
                return Err(nonsense(
                    "guest-exec-status",
                    "does not say whether it exited",
                    &status,
                ));
            }
        }
    }
    Err(Seen::stopped(bound, "it did not end"))
}

/// The guest's shell, and its flag for a command.
fn shell(place: &Place<'_>, bound: &Bound<'_>) -> Result<(&'static str, &'static str), Seen> {
    let question = json!({ "execute": "guest-get-osinfo" });
    match place.guest.agent(&question, bound.call()) {
        Ok(info) if info.get("id").and_then(Value::as_str) == Some("mswindows") => {
            Ok(("cmd.exe", "/c"))
        }
        // An agent that does not say is an old one, and not of Windows.
        Ok(_) | Err(StageError::Refused(_)) => Ok(("/bin/sh", "-c")),
        Err(error) => Err(agent_trouble(&error)),
    }
}

/// An agent may be told to keep from running commands, and then most distributions do tell it so.
fn refusal(error: &StageError) -> Seen {
    let StageError::Refused(why) = error else {
        return agent_trouble(error);
    };
    let low = why.to_lowercase();
    let is_blocked = [
        "disabled",
        "blocked",
        "not allowed",
        "not found",
        "has been",
    ]
    .iter()
    .any(|word| low.contains(word))
        && low.contains("guest-exec");
    match is_blocked {
        true => Seen::never(format!(
            "the guest agent may not run commands there (guest-exec is blocked in its configuration): {why}"
        )),
        false => Seen::not_yet(format!("the guest agent could not run it: {why}")),
    }
}

/// What is seen of an agent that answers with something else than its protocol has.
pub(super) fn nonsense(command: &str, what: &str, answer: &Value) -> Seen {
    let answer = answer.to_string();
    Seen::not_yet(format!(
        "the guest agent's answer to {command} {what}: {}",
        quote(&answer)
    ))
}

/// A command that has ended.
struct Finished {
    code: Option<i32>,
    signal: Option<i64>,
    printed: String,
}

impl Finished {
    fn read(status: &Value) -> Result<Self, &'static str> {
        let mut printed = Vec::new();
        for member in ["out-data", "err-data"] {
            if let Some(data) = status.get(member) {
                let data = data.as_str().ok_or("has output that is no text")?;
                let bytes = STANDARD
                    .decode(data.trim())
                    .map_err(|_| "has output that is no base64")?;
                printed.extend_from_slice(&bytes);
            }
        }
        let is_cut = ["out-truncated", "err-truncated"]
            .iter()
            .any(|member| status.get(member) == Some(&Value::Bool(true)));
        let mut printed = String::from_utf8_lossy(&printed).into_owned();
        if is_cut {
            printed.push_str("\n[... the guest agent left out the rest ...]\n");
        }
        let code = status.get("exitcode").and_then(Value::as_i64);
        Ok(Self {
            // Windows has codes that are no signed 32-bit numbers in JSON; their bits are.
            code: code.map(|code| code as i32),
            signal: status.get("signal").and_then(Value::as_i64),
            printed,
        })
    }
}
