//! What `--json` prints: one document a command, with these field names for ever.
//!
//! Times are RFC 3339 in UTC with nanoseconds, sizes are bytes, a thing that is not there is `null`, a
//! text that is not there is `""`. Lists come as an object with one array, so that fields can be added.
//! Invariant: a field is never renamed or taken away; `tests/cli/json.rs` holds the list of them.

use jiff::Timestamp;
use serde::Serialize;

use super::json_drill::MachineDrills;
use super::json_watch::{Activity, Alert, Protection};
use crate::{
    api::v1,
    host::{Done, Step},
};

/// Prints a moment as RFC 3339 with nanoseconds; none for 0.
pub(super) fn time(ns: i64) -> Option<String> {
    let time = Timestamp::from_nanosecond(i128::from(ns))
        .ok()
        .filter(|_| ns != 0)?;
    Some(format!("{time:.9}"))
}

/// Declares a document: its fields, each with how it comes from the message of the API.
macro_rules! document {
    ($(#[$doc:meta])* $name:ident($from:ident: $message:ty) { $($field:ident: $type:ty = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Serialize)]
        pub(super) struct $name {
            $($field: $type,)*
        }

        impl From<&$message> for $name {
            fn from($from: &$message) -> Self {
                Self { $($field: $value,)* }
            }
        }
    };
}
pub(super) use document;

document! {
    /// A protected machine: `protect`, `info`, `suspend`, `resume`; in `list` as `machines`.
    Machine(m: v1::Machine) {
        name: String = m.name.clone(),
        id: String = m.id.clone(),
        source: String = m.source.clone(),
        state: String = m.state.clone(),
        state_detail: String = m.state_detail.clone(),
        state_since: Option<String> = time(m.state_since_ns),
        volumes: Vec<Volume> = all(&m.volumes),
        left_out: Vec<String> = m.left_out.clone(),
        points: u64 = m.points,
        first_point: Option<Point> = m.first_point.as_ref().map(Into::into),
        newest_point: Option<Point> = m.newest_point.as_ref().map(Into::into),
        progress: Option<Progress> = m.progress.as_ref().map(Into::into),
        journal_bytes: u64 = m.journal_bytes,
        base_bytes: u64 = m.base_bytes,
        buffer_bytes: u64 = m.buffer_bytes,
        buffer_limit_bytes: u64 = m.buffer_limit_bytes,
        writes: u64 = m.writes,
        written_bytes: u64 = m.written_bytes,
        point_interval_ms: u64 = m.point_interval_ms,
        ack: String = m.ack.clone(),
        ack_own: bool = m.ack_own,
        flush_interval_ms: u64 = m.flush_interval_ms,
        flush_interval_own: bool = m.flush_interval_own,
        harbor: String = m.harbor.clone(),
        gaps: Vec<Gap> = all(&m.gaps),
        last_resync: Option<Resync> = m.last_resync.as_ref().map(Into::into),
        coverage: Vec<Span> = all(&m.coverage),
        policy: String = m.policy.clone(),
        policy_problem: String = m.policy_problem.clone(),
        size_limit_bytes: u64 = m.size_limit_bytes,
        size_state: String = m.size_state.clone(),
        created: Option<String> = time(m.created_ns),
        activity: Option<Activity> = m.activity.as_ref().map(Into::into),
        damage: Vec<String> = m.damage.clone(),
        points_damaged: u64 = m.points_damaged,
        files_verified: u64 = m.files_verified,
        files: u64 = m.files,
        verified_since: Option<String> = time(m.verified_since_ns),
        drills: Option<MachineDrills> = m.drills.as_ref().map(Into::into),
    }
}

document! {
    /// One protected disk of a machine.
    Volume(v: v1::Volume) {
        id: u32 = v.id,
        target: String = v.target.clone(),
        size_bytes: u64 = v.size_bytes,
        node: String = v.node.clone(),
        image: String = v.image.clone(),
        attached: bool = v.attached,
    }
}

document! {
    /// How far a seed, resync, export or commit is.
    Progress(p: v1::Progress) {
        what: String = p.what.clone(),
        done_bytes: u64 = p.done_bytes,
        total_bytes: u64 = p.total_bytes,
    }
}

document! {
    /// A span without valid recovery points; `end` is null while it lasts.
    Gap(g: v1::Gap) {
        start: Option<String> = time(g.start_ns),
        end: Option<String> = time(g.end_ns),
        reason: String = g.reason.clone(),
    }
}

document! {
    /// What a resync read and found; `how` of a volume is `bitmap`, `whole` or `nothing`.
    Resync(r: v1::Resync) {
        start: Option<String> = time(r.start_ns),
        end: Option<String> = time(r.end_ns),
        read_bytes: u64 = r.read_bytes,
        differing_bytes: u64 = r.differing_bytes,
        volumes: Vec<ResyncVolume> = all(&r.volumes),
    }
}

document! {
    /// Part of a coverage: `kind` is `points` or `gap`; a span starts where the one before ends.
    Span(s: v1::Span) {
        start: Option<String> = time(s.start_ns),
        end: Option<String> = time(s.end_ns),
        kind: String = s.kind.clone(),
        reason: String = s.reason.clone(),
        points: u64 = s.points,
    }
}

document! {
    /// What a resync read of one volume; `reason` says why it was not read from the bitmap.
    ResyncVolume(v: v1::ResyncVolume) {
        target: String = v.target.clone(),
        how: String = v.how.clone(),
        reason: String = v.reason.clone(),
        read_bytes: u64 = v.read_bytes,
        differing_bytes: u64 = v.differing_bytes,
    }
}

document! {
    /// A recovery point; in `point-list` as `points`.
    Point(p: v1::Point) {
        id: u64 = p.id,
        time: Option<String> = time(p.time_ns),
        grade: String = p.grade.clone(),
        label: String = p.label.clone(),
        seq: u64 = p.seq,
        locked: bool = p.locked,
        damaged: bool = p.damaged,
    }
}

document! {
    /// An open view: `view-open`; in `view-list` as `views`.
    View(v: v1::View) {
        id: String = v.id.clone(),
        machine: String = v.machine.clone(),
        point: Option<Point> = v.point.as_ref().map(Into::into),
        opened: Option<String> = time(v.opened_ns),
        volumes: Vec<ViewVolume> = all(&v.volumes),
        connections: u32 = v.connections,
        holder: String = v.holder.clone(),
    }
}

document! {
    /// One volume of a view and the NBD URI it is read at.
    ViewVolume(v: v1::ViewVolume) {
        target: String = v.target.clone(),
        size_bytes: u64 = v.size_bytes,
        uri: String = v.uri.clone(),
    }
}

document! {
    /// Long work, as it ended: `export`, `takeover-commit`, `verify`.
    Job(j: v1::Job) {
        id: String = j.id.clone(),
        kind: String = j.kind.clone(),
        machine: String = j.machine.clone(),
        state: String = j.state.clone(),
        error: String = j.error.clone(),
        hint: String = j.hint.clone(),
        progress: Option<Progress> = j.progress.as_ref().map(Into::into),
        point: Option<Point> = j.point.as_ref().map(Into::into),
        files: Vec<String> = j.files.clone(),
        report: Option<VerifyReport> = j.report.as_ref().map(Into::into),
    }
}

document! {
    /// What a verification found.
    VerifyReport(r: v1::VerifyReport) {
        files: u64 = r.files,
        bytes: u64 = r.bytes,
        left: u64 = r.left,
        findings: Vec<Finding> = all(&r.findings),
        unchecked: Vec<Unchecked> = all(&r.unchecked),
        live: Vec<LiveVolume> = all(&r.live),
        not_healed: String = r.not_healed.clone(),
    }
}

document! {
    /// What came of comparing a live disk with what is kept last of it, or with what is damaged.
    LiveVolume(v: v1::LiveVolume) {
        target: String = v.target.clone(),
        read_bytes: u64 = v.read_bytes,
        differing_bytes: u64 = v.differing_bytes,
        put_back_bytes: u64 = v.put_back_bytes,
        journaled_bytes: u64 = v.journaled_bytes,
    }
}

document! {
    /// Something that is not as it was written; `length` 0: it is not known where in the file.
    Finding(f: v1::Finding) {
        file: String = f.file.clone(),
        what: String = f.what.clone(),
        offset: u64 = f.offset,
        length: u64 = f.length,
        costs: Vec<DamageCost> = all(&f.costs),
    }
}

document! {
    /// The points, from the first to the last, and the bytes of a volume that cannot be had there.
    DamageCost(c: v1::DamageCost) {
        first: u64 = c.first,
        last: u64 = c.last,
        volume: String = c.volume.clone(),
        areas: Vec<DamagedArea> = all(&c.areas),
    }
}

document! {
    /// A range of a volume.
    DamagedArea(a: v1::DamagedArea) {
        offset: u64 = a.offset,
        length: u64 = a.length,
    }
}

document! {
    /// A layer that has clusters without a hash.
    Unchecked(u: v1::Unchecked) {
        file: String = u.file.clone(),
        clusters: u64 = u.clusters,
    }
}

document! {
    /// A taken-over machine; in `takeover-list` as `takeovers`.
    Takeover(t: v1::Takeover) {
        name: String = t.name.clone(),
        machine: String = t.machine.clone(),
        point: Option<Point> = t.point.as_ref().map(Into::into),
        state: String = t.state.clone(),
        created: Option<String> = time(t.created_ns),
        uuid: String = t.uuid.clone(),
        overlay_bytes: u64 = t.overlay_bytes,
        detail: String = t.detail.clone(),
    }
}

document! {
    /// `takeover` of a plan.
    TakenOverGroup(r: v1::Job) { takeovers: Vec<TakenOver> = all(&r.takeovers), }
}

document! {
    /// What `takeover` did.
    TakenOver(r: v1::TakeoverReply) {
        takeover: Option<Takeover> = r.takeover.as_ref().map(Into::into),
        dropped: Vec<String> = r.dropped.clone(),
        ready_ms: u64 = r.ready_ms,
    }
}

document! {
    /// The daemon's state: `status`.
    Status(s: v1::StatusReply) {
        version: String = s.version.clone(),
        pid: u32 = s.pid,
        started: Option<String> = time(s.started_ns),
        state_dir: String = s.state_dir.clone(),
        machines: u32 = s.machines,
        machines_protected: u32 = s.machines_protected,
        views: u32 = s.views,
        takeovers: u32 = s.takeovers,
        jobs_running: u32 = s.jobs_running,
        drills_running: u32 = s.drills_running,
        report_key: String = s.report_key.clone(),
        free_bytes: u64 = s.free_bytes,
        problems: Vec<String> = s.problems.clone(),
        alerts: Vec<Alert> = all(&s.alerts),
        protection: Vec<Protection> = all(&s.protection),
    }
}

document! {
    /// `list`.
    Machines(l: v1::MachineList) { machines: Vec<Machine> = all(&l.machines), }
}

document! {
    /// `point-list`; `truncated` tells that there are older ones than `--limit` allowed.
    ///
    /// `gaps` are those that reach into the listed span, whole; `coverage` divides the span itself.
    Points(l: v1::PointList) {
        points: Vec<Point> = all(&l.points),
        truncated: bool = l.truncated,
        gaps: Vec<Gap> = all(&l.gaps),
        coverage: Vec<Span> = all(&l.coverage),
    }
}

document! {
    /// `point-lock`, `point-unlock`, `point-label`: the points as they are then; `point-delete`: as they were.
    PointChanges(c: v1::PointChanges) { points: Vec<Point> = all(&c.points), }
}

document! {
    /// `policy-show`, `policy-set`; in `policy-list` as `policies`. A class that is not used has 0.
    Policy(p: v1::Policy) {
        name: String = p.name.clone(),
        all_ms: u64 = p.all_ms,
        hourly_ms: u64 = p.hourly_ms,
        daily_ms: u64 = p.daily_ms,
        weekly_ms: u64 = p.weekly_ms,
        monthly_ms: u64 = p.monthly_ms,
        size_limit_bytes: u64 = p.size_limit_bytes,
        origin: String = p.origin.clone(),
        drill: Option<String> = (!p.drill.is_empty()).then(|| p.drill.clone()),
        machines: Vec<String> = p.machines.clone(),
    }
}

document! {
    /// `policy-list`.
    Policies(l: v1::PolicyList) { policies: Vec<Policy> = all(&l.policies), }
}

document! {
    /// `policy-preview`: `points` are those that would go, `kept` is how many would stay.
    PolicyPreview(p: v1::PolicyPreview) {
        policy: Option<Policy> = p.policy.as_ref().map(Into::into),
        points: Vec<Point> = all(&p.points),
        kept: u64 = p.kept,
        freed_bytes: u64 = p.freed_bytes,
    }
}

/// What `point-create` made: the point's own fields, and how it came about.
#[derive(Debug, Serialize)]
pub(super) struct NewPoint {
    #[serde(flatten)]
    point: Point,
    /// Why it is not quiesced though it was to be, or what else there is to say; may be empty.
    note: String,
    /// For how long the guest's file systems were frozen.
    frozen_ms: u64,
}

impl From<&v1::CreatePointReply> for NewPoint {
    fn from(reply: &v1::CreatePointReply) -> Self {
        Self {
            point: Point::from(&reply.point.clone().unwrap_or_default()),
            note: reply.note.clone(),
            frozen_ms: reply.frozen_ms,
        }
    }
}

document! {
    /// `view-list`.
    Views(l: v1::ViewList) { views: Vec<View> = all(&l.views), }
}

document! {
    /// `takeover-list`.
    Takeovers(l: v1::TakeoverList) { takeovers: Vec<Takeover> = all(&l.takeovers), }
}

/// One path of `host-install` or `host-uninstall`: `done` is made, updated, kept, removed or left.
#[derive(Debug, Serialize)]
pub(super) struct HostStep {
    path: String,
    done: &'static str,
    reason: &'static str,
}

impl From<&Step> for HostStep {
    fn from(step: &Step) -> Self {
        let (done, reason) = match step.done {
            Done::Made => ("made", ""),
            Done::Updated => ("updated", ""),
            Done::Kept => ("kept", ""),
            Done::Removed => ("removed", ""),
            Done::Left(reason) => ("left", reason),
        };
        Self {
            path: step.path.display().to_string(),
            done,
            reason,
        }
    }
}

pub(super) fn all<'a, M, D: From<&'a M>>(messages: &'a [M]) -> Vec<D> {
    messages.iter().map(Into::into).collect()
}
