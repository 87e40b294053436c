//! The check `script`: a program of the host looks at the machine, and says by its exit code and output how it found it.
//!
//! What it is told stands in its environment: [`environment`].

use std::{path::Path, time::Duration};

use super::{Place, bound::Bound, process::Program, seen::Seen, words};
use crate::plan::Pattern;

/// How long a program is held back for the first address of the machine: a boot that has finished may have none yet.
pub(super) const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// Runs it once.
pub(super) fn attempt(
    path: &Path,
    args: &[String],
    exit_code: i32,
    output: Option<&Pattern>,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Seen {
    let program = Program::new(path, place)
        .owned_by(place.run_as)
        .with(|command| {
            command.args(args).envs(environment(place, bound));
        });
    let ended = match program.run(false, bound) {
        Ok(ended) => ended,
        Err(why) => return Seen::broken(why),
    };
    let Some(how) = ended.how() else {
        return Seen::stopped(bound, "it did not end").with_output(&ended.output);
    };
    judge(ended.code(), &how, &ended.output, exit_code, output)
}

/// What is seen of a program that has ended, here or in the guest.
pub(super) fn judge(
    code: Option<i32>,
    how: &str,
    printed: &str,
    exit_code: i32,
    output: Option<&Pattern>,
) -> Seen {
    let seen = if code != Some(exit_code) {
        Seen::not_yet(format!("{how} where {exit_code} was expected"))
    } else if let Some(pattern) = output.filter(|pattern| !pattern.0.is_match(printed)) {
        let wanted = words::pattern(pattern);
        Seen::not_yet(format!("{how}, but nothing in its output is like {wanted}"))
    } else {
        Seen::passed(how)
    };
    seen.with_output(printed)
}

/// What a program is told: variables and their values.
fn environment(place: &Place<'_>, bound: &Bound<'_>) -> Vec<(String, String)> {
    let facts = place.facts;
    let volumes = place.guest.volumes();
    let addresses = place.addresses_within(bound, ADDRESS_WAIT);
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let targets: Vec<&str> = volumes.iter().map(|one| one.target.as_str()).collect();
    let mut all = vec![
        ("DRILL".to_owned(), facts.drill.clone()),
        ("MACHINE".to_owned(), facts.machine.clone()),
        ("DOMAIN".to_owned(), facts.domain.clone()),
        (
            "ADDRESS".to_owned(),
            addresses.first().cloned().unwrap_or_default(),
        ),
        ("ADDRESSES".to_owned(), addresses.join(" ")),
        ("POINT".to_owned(), facts.point.clone()),
        ("POINT_TIME".to_owned(), facts.point_time.clone()),
        ("VOLUMES".to_owned(), targets.join(" ")),
        (
            "AGE_MS".to_owned(),
            facts.age_ms.map(|ms| ms.to_string()).unwrap_or_default(),
        ),
    ];
    for volume in &volumes {
        let target = volume
            .target
            .replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
        all.push((format!("VIEW_{target}"), volume.uri.clone()));
    }
    // No value can have a zero byte in it.
    all.into_iter()
        .map(|(name, value)| (format!("VIRT_CDP_{name}"), value.replace('\0', "")))
        .collect()
}
