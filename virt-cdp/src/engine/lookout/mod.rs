//! The lookout: once a second it looks at every machine and at the daemon, and keeps what it saw.
//!
//! `status`, the metrics and the alerts are all made of the same look, the newest [`Outlook`]; who asks for it waits for
//! nothing. What only a disk can tell is measured by a thread of its own ([`sizes`]).
//!
//! Invariant: nothing the lookout asks may wait for a disk, for QEMU or for libvirt. A crash leaves nothing: counters
//! begin anew with the daemon, and what stands of alerts is raised again.

mod rates;
mod sight;
mod sizes;
mod tally;

mod conditions;

mod exposition;

mod told;

#[cfg(test)]
mod fixture;

pub(crate) use rates::Growth;
pub(crate) use sight::Sight;
pub(crate) use sizes::Sizes;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, Weak},
    thread,
    time::{Duration, Instant},
};

use cdp_core::{Timestamp, storage::Space};

use self::{sight::Watched, sizes::Measuring};
use super::{
    Engine,
    alerts::{Alert, Alerts, Change},
    guard,
    machine::{Machine, now},
    mail::Mail,
    webhook::{Webhook, WebhookCounts},
};
use crate::api::v1;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the harbor of a machine may keep a measurement waiting before that is said.
const DISK_PATIENCE: Duration = Duration::from_secs(15);

/// What was seen at one look.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    /// When that was.
    pub(crate) at: Timestamp,
    /// The machines, by name.
    pub(crate) machines: Vec<Arc<Sight>>,
    /// The harbors' file system, and what of it is kept free; none if that is not known.
    pub(crate) room: Option<Free>,
    /// Harbors that could not be opened: directory name, and why.
    pub(crate) closed_harbors: Vec<(String, String)>,
    /// Connections to libvirt that are lost: URI, and since when.
    pub(crate) libvirt_lost: Vec<(String, Timestamp)>,
    /// There is a guard process.
    pub(crate) guarded: bool,
    /// Taps the guard has closed.
    pub(crate) guard_closings: u64,
    /// Whose harbor keeps a measurement waiting, and for how long.
    pub(crate) disk_silent: Option<(String, Duration)>,
    /// Views, takeovers, running jobs and running drills.
    pub(crate) in_use: [u64; 4],
    /// What became of the webhook's messages; none without a webhook.
    pub(crate) webhook: Option<WebhookCounts>,
    /// What became of the mail; none without any.
    pub(crate) mail: Option<WebhookCounts>,
    /// What stands.
    pub(crate) alerts: Vec<Alert>,
}

/// Room on the harbors' file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Free {
    /// What is free, and all there is.
    pub(crate) space: Space,
    /// What is kept free.
    pub(crate) reserve: u64,
    /// Captures have ended for want of it.
    pub(crate) is_low: bool,
}

impl Free {
    /// Returns what may still be written.
    pub(crate) fn spare(&self) -> u64 {
        self.space.free.saturating_sub(self.reserve)
    }
}

impl Outlook {
    fn nothing() -> Self {
        Self {
            at: now(),
            machines: Vec::new(),
            room: None,
            closed_harbors: Vec::new(),
            libvirt_lost: Vec::new(),
            guarded: true,
            guard_closings: 0,
            disk_silent: None,
            in_use: [0; 4],
            webhook: None,
            mail: None,
            alerts: Vec::new(),
        }
    }

    /// Returns how long the room lasts at the rate of all machines; none if that is not known, or it does not shrink.
    pub(crate) fn room_lasts(&self) -> Option<Duration> {
        let growths = self.machines.iter().filter_map(|machine| machine.growth);
        let all = growths.reduce(|one, other| Growth {
            // Of all the shortest: no figure is better than its worst part.
            window: one.window.min(other.window),
            bytes_per_day: one.bytes_per_day.saturating_add(other.bytes_per_day),
        });
        all?.lasts(self.room?.spare())
    }
}

/// Looks at everything, for as long as the engine is there.
pub(crate) struct Lookout {
    latest: Mutex<Arc<Outlook>>,
}

impl Lookout {
    pub(crate) fn new() -> Self {
        Self {
            latest: Mutex::new(Arc::new(Outlook::nothing())),
        }
    }

    /// Returns what was seen last; does not wait.
    pub(crate) fn latest(&self) -> Arc<Outlook> {
        Arc::clone(&guard(&self.latest))
    }
}

/// Starts the lookout of an engine, which ends with it.
///
/// # Errors
/// There is no thread for it.
pub(super) fn start(
    engine: &Arc<Engine>,
    webhook: Option<Webhook>,
    mail: Option<Mail>,
) -> io::Result<()> {
    let theirs = Arc::downgrade(engine);
    let measuring = Measuring::start(move || Some(theirs.upgrade()?.machine_list()))?;
    let theirs = Arc::downgrade(engine);
    thread::Builder::new()
        .name("lookout".into())
        .spawn(move || {
            let mut looking = Looking {
                measuring,
                webhook,
                mail,
                watched: BTreeMap::new(),
                alerts: Alerts::default(),
            };
            while looking.look(&theirs) {
                thread::sleep(LOOK_INTERVAL);
            }
        })?;
    Ok(())
}

/// What the lookout remembers from one look to the next.
struct Looking {
    measuring: Arc<Measuring>,
    webhook: Option<Webhook>,
    mail: Option<Mail>,
    /// By machine id: a name may come again.
    watched: BTreeMap<String, Watched>,
    alerts: Alerts,
}

impl Looking {
    /// Looks once; false when there is nothing left to look at.
    fn look(&mut self, engine: &Weak<Engine>) -> bool {
        let Some(engine) = engine.upgrade() else {
            return false;
        };
        let (instant, at) = (Instant::now(), now());
        let machines = engine.machine_list();
        let ids: Vec<String> = machines.iter().map(|m| m.id.clone()).collect();
        self.watched.retain(|id, _| ids.contains(id));
        let sights = machines.iter().map(|machine| {
            let watched = self.watched.entry(machine.id.clone()).or_default();
            let counts = engine.watch.taken(&machine.id);
            let mut sight = watched.look(machine, &counts, instant, at);
            sight.proof = engine.drills.proof(machine);
            sight.put_off = engine.drills.put_off(&machine.name);
            Arc::new(sight)
        });
        let mut seen = Outlook {
            at,
            machines: sights.collect(),
            room: engine.room.known(),
            closed_harbors: engine.closed_harbors(),
            libvirt_lost: engine.libvirt_lost(),
            guarded: engine.watch.guard_stands(),
            guard_closings: engine.watch.guard_closings(),
            disk_silent: self.measuring.waits(instant, DISK_PATIENCE),
            in_use: engine.in_use(),
            webhook: self.webhook.as_ref().map(Webhook::counts),
            mail: self.mail.as_ref().map(Mail::counts),
            alerts: Vec::new(),
        };
        let lasts = seen.room_lasts();
        for (machine, sight) in machines.iter().zip(&seen.machines) {
            machine.note_sight(Arc::clone(sight), lasts);
        }
        let limits = conditions::Limits {
            gap: engine.config.alerts.gap_limit,
        };
        let found = conditions::conditions(&seen, limits);
        for change in self.alerts.look(instant, at, found) {
            tell(&change);
            if let Some(webhook) = &self.webhook {
                webhook.send(&change, at);
            }
            if let Some(mail) = &self.mail {
                mail.send(&change, at);
            }
        }
        seen.alerts = self.alerts.standing();
        *guard(&engine.lookout.latest) = Arc::new(seen);
        true
    }
}

/// Says once in the log that an alert has come or gone.
fn tell(change: &Change) {
    let (Change::Raised(alert) | Change::Cleared(alert)) = change;
    let Alert {
        key,
        machine,
        severity,
        text,
        ..
    } = alert;
    let severity = severity.name();
    match change {
        Change::Raised(_) => tracing::warn!(key, machine, severity, text, "alert"),
        Change::Cleared(_) => tracing::info!(key, machine, severity, "the alert is over"),
    }
}

impl Engine {
    /// Every machine, by name.
    pub(super) fn machine_list(&self) -> Vec<Arc<Machine>> {
        guard(&self.machines).values().cloned().collect()
    }

    fn closed_harbors(&self) -> Vec<(String, String)> {
        guard(&self.closed).clone()
    }

    fn libvirt_lost(&self) -> Vec<(String, Timestamp)> {
        let lost = guard(&self.lost);
        lost.iter()
            .map(|(uri, since)| (uri.clone(), *since))
            .collect()
    }

    fn in_use(&self) -> [u64; 4] {
        let counts = [
            self.views.list().len(),
            self.takeovers.count(),
            self.jobs.running(),
            self.drills.count(),
        ];
        counts.map(|count| count as u64)
    }

    /// What Prometheus reads.
    pub(super) fn exposition(&self) -> String {
        exposition::text(&self.lookout.latest(), now(), self.started)
    }
}

impl Machine {
    /// Keeps what was seen of it last.
    fn note_sight(&self, sight: Arc<Sight>, room_lasts: Option<Duration>) {
        *guard(&self.seen.sight) = Some((sight, room_lasts));
    }

    /// Keeps what its harbor takes.
    fn note_sizes(&self, sizes: Sizes) {
        *guard(&self.seen.sizes) = Some(sizes);
    }

    /// Returns how fast it was written to lately, and how its harbor grows; none in its first second.
    pub(crate) fn activity(&self) -> Option<v1::Activity> {
        let (sight, room_lasts) = guard(&self.seen.sight).clone()?;
        Some(sight.activity_message(room_lasts))
    }

    /// Returns what drills have proved of it; none in its first second.
    pub(crate) fn drill_message(&self) -> Option<v1::MachineDrills> {
        let (sight, _) = guard(&self.seen.sight).clone()?;
        let rule = self.policy().1.and_then(|in_force| in_force.policy.drill);
        let proof = sight.proof.clone().unwrap_or_default();
        let (last, last_proved, last_why) = proof.last.unwrap_or_default();
        Some(v1::MachineDrills {
            rule: rule.map(|rule| rule.words()).unwrap_or_default(),
            proven_point: proof.proved.map(|(id, _)| id),
            proven_point_ns: proof.proved.map_or(0, |(_, time)| time),
            last,
            last_proved,
            last_why,
            last_ns: proof.last_ns,
            rto_ms: proof.rto_ms,
            put_off: sight
                .put_off
                .clone()
                .map(|(why, _)| why)
                .unwrap_or_default(),
        })
    }

    /// Returns what its harbor took when it was last measured.
    pub(crate) fn sizes(&self) -> Option<Sizes> {
        *guard(&self.seen.sizes)
    }
}

/// What was seen of a machine, kept with it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// With how long the room of all machines lasts.
    sight: Mutex<Option<(Arc<Sight>, Option<Duration>)>>,
    sizes: Mutex<Option<Sizes>>,
}
