//! The check that was added: an executable of the folder `checks.d` looks at the machine.
//!
//! It reads a request as JSON, and answers by its exit code: 0 passed, 1 not passed, anything else broken. The last line it
//! prints may be a JSON object with what it saw. `plugins/checks.d/README.md` has the protocol.
//!
//! Invariant: only what root or we ourselves have put there is run, and only from that folder.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Place,
    bound::Bound,
    place::millis,
    process::{Ended, Program},
    script::ADDRESS_WAIT,
    seen::{Come, Seen, quote},
};

/// Version of the protocol.
const PROTOCOL: u32 = 1;

/// The last line of a plugin's output.
#[derive(Debug, Default, Deserialize)]
struct Answer {
    #[serde(default)]
    saw: Option<String>,
    #[serde(default)]
    output: Option<String>,
}

/// Runs it once.
pub(super) fn attempt(
    name: &str,
    settings: &Map<String, Value>,
    number: u64,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Seen {
    let path = match find(place.plugins, name) {
        Ok(path) => path,
        Err(why) => return Seen::broken(why),
    };
    let request = request(settings, number, place, bound).to_string();
    let program = Program::new(path, place).owned_by(place.run_as);
    let ended = match program.reads(request.as_bytes()) {
        Ok(program) => program.run(true, bound),
        Err(error) => Err(format!("the plugin {name} cannot be asked: {error}")),
    };
    match ended {
        Ok(ended) => judge(name, &ended, bound),
        Err(why) => Seen::broken(why),
    }
}

/// What a plugin is asked.
fn request(
    settings: &Map<String, Value>,
    number: u64,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Value {
    let volumes: Vec<Value> = place
        .guest
        .volumes()
        .iter()
        .map(|one| json!({ "target": one.target, "size_bytes": one.size_bytes, "uri": one.uri }))
        .collect();
    let facts = place.facts;
    json!({
        "protocol": PROTOCOL,
        "drill": facts.drill,
        "machine": facts.machine,
        "domain": facts.domain,
        "addresses": place.addresses_within(bound, ADDRESS_WAIT),
        "point": { "id": facts.point, "time": facts.point_time, "age_ms": facts.age_ms },
        "volumes": volumes,
        "settings": settings,
        "deadline_ms": millis(bound.left()),
        "attempt": number,
    })
}

/// The executable of that name, if it may be run.
fn find(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(format!("`{name}` is no name of a plugin"));
    }
    let path = folder.join(name);
    trust(folder, false)?;
    trust(&path, true)?;
    Ok(path)
}

/// Says why something of the folder of plugins is not to be trusted.
fn trust(path: &Path, is_program: bool) -> Result<(), String> {
    let shown = path.display();
    let found = fs::symlink_metadata(path)
        .map_err(|error| format!("there is no {shown}: {}", super::sockets::cause(&error)))?;
    let us = rustix::process::geteuid().as_raw();
    if is_program && !found.is_file() {
        return Err(format!("{shown} is no file"));
    }
    if found.uid() != 0 && found.uid() != us {
        return Err(format!(
            "{shown} belongs to user {}; it must belong to root",
            found.uid()
        ));
    }
    // The folder may be a link that root has made; links let themselves be written by all.
    if !found.is_symlink() && found.mode() & 0o022 != 0 {
        return Err(format!("{shown} can be written by others than its owner"));
    }
    if is_program && found.mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable"));
    }
    Ok(())
}

/// What is seen of a plugin that has ended.
fn judge(name: &str, ended: &Ended, bound: &Bound<'_>) -> Seen {
    let Some(how) = ended.how() else {
        return Seen::stopped(bound, "it did not end").with_output(&ended.output);
    };
    let last = ended.plain.trim_end().lines().next_back();
    let answer: Option<Answer> = last
        .filter(|line| line.trim_start().starts_with('{'))
        .and_then(|line| serde_json::from_str(line).ok());
    let Answer { saw, output } = answer.unwrap_or_default();
    let output = output.unwrap_or_else(|| ended.output.clone());
    let saw = saw.map(|saw| one_line(&saw)).filter(|saw| !saw.is_empty());
    let saw_or = |other: String| saw.clone().unwrap_or(other);
    let seen = match ended.code() {
        Some(0) => Seen::new(Come::Passed, saw_or(how)),
        Some(1) => Seen::new(Come::NotYet, saw_or(last_words(&how, &output))),
        _ => {
            let what = saw_or(last_words(&how, &output));
            Seen::broken(format!("the plugin {name} is broken: {what}"))
        }
    };
    seen.with_output(&output)
}

fn last_words(how: &str, output: &str) -> String {
    match output.trim_end().lines().next_back() {
        Some(line) if !line.trim().is_empty() => format!("{how}; it said {}", quote(line)),
        _ => how.to_owned(),
    }
}

/// A sentence of a plugin as a sentence: one line, not too long, without its full stop.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().take(500).collect();
    line.trim_end_matches('.').to_owned()
}
