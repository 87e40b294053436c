//! What of all that was seen somebody should look at: a pure function, with a table of its outcomes.
//!
//! The README's table of alerts has the same keys, which a test holds it to.

use std::time::Duration;

use cdp_core::GapReason;

use super::{Outlook, Sight};
use crate::{
    engine::{
        alerts::{Condition, Severity},
        machine::State,
    },
    units::{format_duration, format_size},
};

/// A point is missing once so many intervals have passed in which there was something to make it of.
const POINT_INTERVALS: u32 = 10;
/// But not before so much time has passed.
const POINT_LEAST: Duration = Duration::from_secs(30);
/// A write is late once it has waited so many flush intervals for stable storage.
const FLUSH_INTERVALS: u32 = 10;
/// But not before so much time has passed.
const FLUSH_LEAST: Duration = Duration::from_secs(5);
/// A harbor is told of once so much of its limit is used, in hundredths, and how bad that is.
const LIMIT_STEPS: [(u64, &str, Severity); 2] = [
    (75, "harbor-75", Severity::Warning),
    (85, "harbor-85", Severity::Critical),
];

/// How long a drill may be put off before that is told.
const PUT_OFF_MAX: Duration = Duration::from_secs(3600);

/// What is configured of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How long a gap may last that is not meant.
    pub(super) gap: Duration,
}

/// Returns everything that somebody should look at.
pub(super) fn conditions(seen: &Outlook, limits: Limits) -> Vec<Condition> {
    let mut found = Vec::new();
    for machine in &seen.machines {
        let of = |(key, severity, text): (&'static str, Severity, String)| Condition {
            key,
            machine: machine.name.clone(),
            severity,
            text,
        };
        let all = [
            lost(machine),
            gap(machine, limits),
            no_point(machine),
            write_late(machine),
            damaged(machine),
            unproved(machine),
            put_off(machine),
        ];
        found.extend(all.into_iter().flatten().map(of));
        found.extend(filled(machine).into_iter().map(of));
    }
    daemon(seen, &mut found);
    found
}

type Found = Option<(&'static str, Severity, String)>;

/// The machine is to be captured, and is not.
fn lost(machine: &Sight) -> Found {
    let tries = matches!(
        machine.state,
        State::Starting | State::Retrying | State::Failed
    );
    if !tries {
        return None;
    }
    let (key, what) = match machine.missing {
        Some(GapReason::TapLost) => ("tap-lost", "QEMU has let go of the tap"),
        Some(GapReason::Overload) => ("overload", "the guest's writes were not taken in time"),
        Some(GapReason::JournalFailed) => ("journal-failed", "the journal has failed"),
        Some(GapReason::DiskFull) => ("disk-full", "the harbors' file system is short of space"),
        // It has not been captured since the daemon's start, or never; how it goes is in its state.
        _ if machine.state == State::Failed => ("not-captured", "it cannot be captured"),
        _ => return None,
    };
    let text = match machine.detail.as_str() {
        "" => what.to_owned(),
        detail => format!("{what}: {detail}"),
    };
    Some((key, Severity::Critical, text))
}

/// Points are missing for longer than they may, though the machine is to be captured.
fn gap(machine: &Sight, limits: Limits) -> Found {
    (machine.astray > limits.gap).then(|| {
        let lasts = format_duration(Duration::from_secs(machine.astray.as_secs()));
        let open = machine.open_gap.as_ref();
        let reason = open.map_or("unknown", |gap| gap.reason.as_str());
        let state = machine.state.name();
        let text = format!(
            "no recovery point could be made for {lasts}: a gap ({reason}), and the machine is {state}"
        );
        ("gap", Severity::Critical, text)
    })
}

/// It is written to, and no point is made.
fn no_point(machine: &Sight) -> Found {
    let most = (machine.interval * POINT_INTERVALS).max(POINT_LEAST);
    (machine.pending > most).then(|| {
        let waited = format_duration(Duration::from_secs(machine.pending.as_secs()));
        let interval = format_duration(machine.interval);
        let text = format!(
            "it is written to, and no recovery point was made for {waited}; one is due every {interval}"
        );
        ("no-point", Severity::Critical, text)
    })
}

/// What the guest was told is written does not reach stable storage.
fn write_late(machine: &Sight) -> Found {
    let age = machine.recording?.unsynced_age;
    let most = (machine.flush * FLUSH_INTERVALS).max(FLUSH_LEAST);
    (age > most).then(|| {
        let age = format_duration(Duration::from_secs(age.as_secs()));
        let text = format!("the oldest write that is not on stable storage is {age} old");
        ("write-late", Severity::Warning, text)
    })
}

/// Its harbor was found damaged, when it was opened or when it was verified.
fn damaged(machine: &Sight) -> Found {
    let first = machine.damage.first()?;
    let more = match machine.damage.len() {
        1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    };
    let text = format!("its harbor is damaged: {first}{more}");
    Some(("damaged", Severity::Critical, text))
}

/// The last drill of it that said something did not prove it.
fn unproved(machine: &Sight) -> Found {
    let (drill, is_proved, why) = machine.proof.as_ref()?.last.as_ref()?;
    (!is_proved).then(|| {
        let text =
            format!("the last drill did not prove that its copy starts: {why} (drill {drill})");
        ("drill-failed", Severity::Critical, text)
    })
}

/// A drill that its policy asks for has not begun for long.
fn put_off(machine: &Sight) -> Found {
    let (why, waits) = machine.put_off.as_ref()?;
    (*waits > PUT_OFF_MAX).then(|| {
        let waits = format_duration(Duration::from_secs(waits.as_secs()));
        let text = format!("a drill that is due has been put off for {waits}: {why}");
        ("drill-put-off", Severity::Warning, text)
    })
}

/// Its harbor has used up much of what it may take.
fn filled(machine: &Sight) -> Vec<(&'static str, Severity, String)> {
    let (Some(sizes), Some(limit)) = (machine.sizes, machine.limit) else {
        return Vec::new();
    };
    let kept = sizes.kept();
    let reached =
        |hundredths: u64| u128::from(kept) * 100 >= u128::from(limit) * u128::from(hundredths);
    let steps = LIMIT_STEPS.into_iter().filter(|(of, ..)| reached(*of));
    let told = steps.map(|(of, key, severity)| {
        let [kept, limit] = [kept, limit].map(format_size);
        let text = format!("its harbor has {kept}, more than {of} % of its limit, {limit}");
        (key, severity, text)
    });
    told.collect()
}

/// What is about the daemon as a whole.
fn daemon(seen: &Outlook, found: &mut Vec<Condition>) {
    let mut add = |key, machine: &str, severity, text: String| {
        found.push(Condition {
            key,
            machine: machine.to_owned(),
            severity,
            text,
        });
    };
    for (harbor, why) in &seen.closed_harbors {
        let text = format!("the harbor cannot be opened: {why}");
        add("harbor-closed", harbor, Severity::Critical, text);
    }
    if let Some(room) = seen.room {
        let [free, reserve] = [room.space.free, room.reserve].map(format_size);
        if room.is_low {
            let text = format!(
                "the harbors' file system has {free} free, less than its reserve ({reserve}): nothing is captured"
            );
            add("file-system-full", "", Severity::Critical, text);
        } else if room.reserve > 0 && room.space.free < room.reserve.saturating_mul(2) {
            let text = format!(
                "the harbors' file system has {free} free; with less than {reserve} protection ends"
            );
            add("file-system-low", "", Severity::Warning, text);
        }
    }
    for (uri, _) in &seen.libvirt_lost {
        let text = format!("the connection to libvirt at {uri} is lost; what is captured goes on");
        add("libvirt-lost", "", Severity::Warning, text);
    }
    if !seen.guarded {
        let text = "there is no guard process: guests would wait for a daemon that is stopped";
        add("guard-missing", "", Severity::Critical, text.into());
    }
    if let Some((machine, waited)) = &seen.disk_silent {
        let waited = format_duration(Duration::from_secs(waited.as_secs()));
        let text = format!("the harbor's disk has not answered for {waited}");
        add("disk-silent", machine, Severity::Critical, text);
    }
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
