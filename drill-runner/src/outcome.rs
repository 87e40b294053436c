//! What a drill has come to: everything a report shows, and nothing that is worked out again when it is shown.
//!
//! Times are RFC 3339 in UTC with nanoseconds; `*_ms` are milliseconds since the drill began unless said otherwise. The
//! JSON form is published: fields are added, never changed or removed without a new [`FORMAT`].

use serde::{Deserialize, Serialize};

/// Version of the JSON form.
pub const FORMAT: u32 = 1;

/// The reason of a drill that is a probe of a bisection: it looks for what is known to fail somewhere, and proves nothing.
pub const BISECT: &str = "bisect";

/// What a drill, a machine in it, or a check has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was asked for was seen to hold.
    Proved,
    /// Something that was asked for does not hold.
    Failed,
    /// The drill could not be held, for a reason that says nothing about the copy.
    Error,
    /// Somebody broke it off.
    Cancelled,
    /// It did not come to it.
    Skipped,
}

impl Verdict {
    /// The stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Failed => "failed",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// A drill from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// Its number: digits of the start time and some by chance, such as `20261127-031500-4f2a91c0`. Safe in a file name.
    pub id: String,
    /// The plan's name.
    pub name: String,
    /// What it has come to.
    pub verdict: Verdict,
    /// Why, in a sentence without a full stop; empty where everything was proved.
    pub why: String,
    /// Why it was held: `by hand`, `after base point`, `every 1h`.
    pub reason: String,
    /// Who asked for it: a user's name or number, or `virtcdpd`.
    pub asked_by: String,
    /// When it began.
    pub started: String,
    /// When it ended, everything removed.
    pub ended: String,
    /// From the start until the last check of the last machine passed, the measured RTO; none if it did not come to that.
    pub rto_ms: Option<u64>,
    /// Age of the oldest machine's data when the drill began, in ms: the measured RPO; none if no point was found.
    pub rpo_ms: Option<u64>,
    /// The host it was held on, and the versions of what is there.
    pub host: Host,
    /// The plan, as TOML.
    pub plan: String,
    /// Its machines, in boot order.
    pub machines: Vec<MachineReport>,
    /// What was removed at the end, and what could not be.
    pub recycling: Recycling,
    /// Earlier drills of the same plan on this host, oldest first, at most 50.
    pub history: Vec<Earlier>,
    /// The report before this one on this host; none for the first.
    pub previous: Option<Link>,
}

/// Where a drill was held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Host {
    /// Its host name.
    pub name: String,
    /// Version of this program.
    pub virt_cdp: String,
    /// Version of QEMU; empty where it is not known.
    pub qemu: String,
    /// Version of libvirt; empty where it is not known.
    pub libvirt: String,
    /// Version of the kernel.
    pub kernel: String,
}

/// A machine in a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReport {
    /// The protected machine's name.
    pub name: String,
    /// Its id, which nothing else ever has: another machine may have the name later; empty in reports from before it was kept.
    #[serde(default)]
    pub machine_id: String,
    /// Name of the domain that was started for the drill; empty if none was.
    pub domain: String,
    /// The recovery point; none if none was found.
    pub point: Option<PointFacts>,
    /// Age of its data when the drill began, in ms.
    pub data_age_ms: Option<u64>,
    /// What it has come to.
    pub verdict: Verdict,
    /// Why, in a sentence without a full stop; empty where everything was proved.
    pub why: String,
    /// vCPUs it had.
    pub vcpus: Option<u32>,
    /// Memory it had, bytes.
    pub memory_bytes: Option<u64>,
    /// Its disks: target and size in bytes.
    pub disks: Vec<DiskFacts>,
    /// Its network cards.
    pub cards: Vec<CardFacts>,
    /// Sentences: what of the original could not come along.
    pub dropped: Vec<String>,
    /// When what was reached.
    pub times: Times,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Its checks, in the order of the plan.
    pub checks: Vec<CheckReport>,
    /// Pictures of its screen, in order of time.
    pub screenshots: Vec<Screenshot>,
    /// What it wrote to its console.
    pub console: Console,
}

/// The recovery point a machine was taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointFacts {
    /// Its number.
    pub id: u64,
    /// Its time.
    pub time: String,
    /// `crash` or `quiesced`.
    pub grade: String,
    /// Its label, or empty.
    pub label: String,
    /// Number of the last record it shows.
    pub seq: u64,
    /// Hash of the journal's chain at the point, hexadecimal; empty where it is not known.
    pub chain_hash: String,
}

/// A disk of a machine in a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Its target.
    pub target: String,
    /// Its size.
    pub size_bytes: u64,
}

/// A network card of a machine in a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardFacts {
    /// Its address.
    pub mac: String,
    /// The network of the original it stands in for, such as `default`.
    pub network: String,
    /// Its IP address with prefix length; empty while it is not known.
    pub address: String,
    /// How that came to be known: `plan`, `libvirt`, `agent`, `neighbour`, `lease`; empty.
    pub learnt_from: String,
}

/// When a machine had reached what; ms since the drill began, none if it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Times {
    /// Its turn came: what it waits for was ready, its delay over.
    pub turn_ms: Option<u64>,
    /// Its CPUs ran.
    pub running_ms: Option<u64>,
    /// It answered a ping for the first time.
    pub ping_ms: Option<u64>,
    /// Its guest agent answered for the first time.
    pub agent_ms: Option<u64>,
    /// Its boot counted as finished.
    pub ready_ms: Option<u64>,
    /// The last of its checks passed.
    pub proved_ms: Option<u64>,
    /// Its domain was removed.
    pub removed_ms: Option<u64>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at_ms: u64,
    /// What, in a sentence without a full stop.
    pub what: String,
}

/// A check and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Its name in the plan, or its short form, such as `tcp:22`.
    pub name: String,
    /// Its type: `ping`, `tcp`, `http`, ...
    pub kind: String,
    /// What is expected, in words for people.
    pub expects: String,
    /// What it has come to.
    pub verdict: Verdict,
    /// Why, in a sentence without a full stop; empty where it passed.
    pub why: String,
    /// When it began; none if it did not come to it.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// How long it could take.
    pub deadline_ms: u64,
    /// All attempts there were.
    pub attempts_total: u64,
    /// Of those the first and the last, at most [`ATTEMPTS_KEPT`] together.
    pub attempts: Vec<Attempt>,
}

/// How many attempts of a check are kept: the first ones and the last ones.
pub const ATTEMPTS_KEPT: usize = 20;
/// How many bytes of output are kept of an attempt.
pub const OUTPUT_KEPT: usize = 16 * 1024;

/// One attempt of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u64,
    /// When it began.
    pub at_ms: u64,
    /// How long it took, ms.
    pub took_ms: u64,
    /// Whether what was expected was seen.
    pub passed: bool,
    /// What was seen, in a sentence without a full stop.
    pub saw: String,
    /// What was printed or answered, at most [`OUTPUT_KEPT`] bytes of it; the guest may have made it.
    pub output: String,
}

/// A picture of a machine's screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Screenshot {
    /// When it was taken.
    pub at_ms: u64,
    /// What it shows: `boot`, `end`, `failure`.
    pub what: String,
    /// SHA-256 of the PNG file, hexadecimal.
    pub sha256: String,
    /// Its width, pixels.
    pub width: u32,
    /// Its height, pixels.
    pub height: u32,
    /// The PNG file, in base64.
    pub png: String,
}

/// What a machine wrote to its console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Console {
    /// How much it wrote, bytes, as far as it was counted.
    pub bytes: u64,
    /// Its beginning; all of it unless `tail` has something.
    pub head: String,
    /// Its end, where something between was left out.
    pub tail: String,
}

/// What became of what a drill had made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Recycling {
    /// True where it was left on purpose, to be looked at.
    pub kept: bool,
    /// How long removing took, ms.
    pub took_ms: u64,
    /// What is left though it should not be, in sentences; the daemon goes on trying.
    pub left: Vec<String>,
}

/// An earlier drill, for the trend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Its number.
    pub id: String,
    /// When it began.
    pub started: String,
    /// What it came to.
    pub verdict: Verdict,
    /// The RTO measured.
    pub rto_ms: Option<u64>,
    /// The RPO measured.
    pub rpo_ms: Option<u64>,
}

/// The report before this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number.
    pub id: String,
    /// SHA-256 of its signed bytes, hexadecimal.
    pub sha256: String,
}
