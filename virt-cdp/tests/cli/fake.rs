//! An engine that keeps nothing: it answers from a script and fails on purpose.
//!
//! A machine called `fail-KIND` (`fail-not-found`) fails with that kind of error and a hint, `panic`
//! panics, `odd` has control characters in its state; every other machine exists. What was asked last is
//! kept for the tests to look at.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use virt_cdp::{
    api::{ApiError, ApiErrorKind, ApiResult, Engine, v1},
    daemon::peer::Peer,
};

use crate::{fake_drill, fake_space};

/// 2026-01-02 03:04:05.123456789 UTC.
pub(crate) const POINT_NS: i64 = 1_767_323_045_123_456_789;

#[derive(Default)]
pub(crate) struct Fake {
    /// What was asked last, as its `Debug` text.
    pub(crate) last: Mutex<String>,
    /// How often a machine or job was polled.
    polls: AtomicU32,
    /// The job's state after a cancel.
    cancelled: Mutex<bool>,
}

impl Fake {
    fn note(&self, request: &impl std::fmt::Debug) {
        *self.last.lock().unwrap() = format!("{request:?}");
    }
}

/// The kind that `fail-KIND` names.
pub(crate) fn kind_named(name: &str) -> Option<ApiErrorKind> {
    let name = name.strip_prefix("fail-")?;
    ApiErrorKind::ALL
        .into_iter()
        .find(|kind| kind_name(*kind) == name)
}

/// `NotFound` as `not-found`.
pub(crate) fn kind_name(kind: ApiErrorKind) -> String {
    let mut name = String::new();
    for c in format!("{kind:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.extend(c.to_lowercase());
    }
    name
}

fn check(name: &str) -> ApiResult<()> {
    if name == "panic" {
        panic!("asked to");
    }
    match kind_named(name) {
        Some(kind) => Err(
            ApiError::new(kind, format!("no luck with `{name}` – on purpose"))
                .hint("ask for another one – naïve"),
        ),
        None => Ok(()),
    }
}

pub(crate) fn point() -> v1::Point {
    v1::Point {
        id: 123,
        time_ns: POINT_NS,
        grade: "crash".into(),
        label: "before".into(),
        seq: 4567,
        locked: true,
        damaged: false,
    }
}

fn machine(name: &str, state: &str) -> v1::Machine {
    v1::Machine {
        name: name.into(),
        id: "0b7a".into(),
        source: "libvirt:///system, 0b7a".into(),
        state: state.into(),
        state_detail: if name == "odd" {
            "\u{1b}[31mred\u{7}".into()
        } else {
            String::new()
        },
        state_since_ns: POINT_NS,
        volumes: vec![v1::Volume {
            id: 0,
            target: "vda".into(),
            size_bytes: 10 << 30,
            node: "libvirt-1-format".into(),
            image: "/images/web1.qcow2".into(),
            attached: true,
        }],
        left_out: vec!["sda: CD-ROM drive".into()],
        points: 7,
        first_point: Some(point()),
        newest_point: Some(point()),
        progress: (state == "seeding").then(|| progress("seed")),
        journal_bytes: 3 << 20,
        base_bytes: 5 << 30,
        buffer_bytes: 4096,
        buffer_limit_bytes: 64 << 20,
        writes: 99,
        written_bytes: 99 * 4096,
        point_interval_ms: 1000,
        harbor: "/var/lib/virt-cdp/web1".into(),
        gaps: vec![v1::Gap {
            start_ns: POINT_NS,
            end_ns: 0,
            reason: "guest-off".into(),
        }],
        created_ns: POINT_NS,
        last_resync: Some(v1::Resync {
            start_ns: POINT_NS,
            end_ns: POINT_NS + 1_500_000_000,
            read_bytes: 3 << 20,
            differing_bytes: 2 << 20,
            volumes: vec![v1::ResyncVolume {
                target: "vda".into(),
                how: "whole".into(),
                reason: "its bitmap is inconsistent".into(),
                read_bytes: 3 << 20,
                differing_bytes: 2 << 20,
            }],
        }),
        coverage: coverage(),
        ack: "durable".into(),
        ack_own: true,
        flush_interval_ms: 200,
        flush_interval_own: false,
        policy: "long".into(),
        policy_problem: if name == "odd" {
            "its policy 'long' is not known".into()
        } else {
            String::new()
        },
        size_limit_bytes: 6 << 30,
        size_state: "critical".into(),
        activity: Some(activity()),
        damage: match name {
            "odd" => vec![
                "xml/000001.xml: it is cut off".into(),
                "journal: gone".into(),
            ],
            _ => Vec::new(),
        },
        points_damaged: u64::from(name == "odd"),
        files_verified: 6,
        files: 8,
        verified_since_ns: POINT_NS,
        drills: Some(fake_drill::drills(name == "odd")),
    }
}

fn live(target: &str, differing: u64) -> v1::LiveVolume {
    v1::LiveVolume {
        target: target.into(),
        read_bytes: 1 << 30,
        differing_bytes: differing,
        put_back_bytes: differing / 2,
        journaled_bytes: differing / 2,
    }
}

fn policy(name: &str) -> v1::Policy {
    const DAY_MS: u64 = 86_400_000;
    v1::Policy {
        name: name.into(),
        all_ms: DAY_MS,
        hourly_ms: 7 * DAY_MS,
        daily_ms: 30 * DAY_MS,
        weekly_ms: 0,
        monthly_ms: 365 * DAY_MS,
        size_limit_bytes: 6 << 30,
        origin: "policy-set".into(),
        drill: "every 1h".into(),
        machines: vec!["web1".into(), "db 2".into()],
    }
}

fn changes() -> v1::PointChanges {
    v1::PointChanges {
        points: vec![point()],
    }
}

/// What is written, and how the harbor grows.
fn activity() -> v1::Activity {
    v1::Activity {
        window_ms: 300_000,
        bytes_per_second: 1_572_864.0,
        writes_per_second: 384.5,
        latency_p50_us: Some(12),
        latency_p99_us: Some(1_500),
        growth: Some(v1::Growth {
            window_ms: 1_500_000,
            bytes_per_day: 12 << 30,
            limit_bytes: 200 << 30,
            limit_in_ms: Some(864_000_000),
            file_system_in_ms: None,
        }),
    }
}

fn protection() -> v1::MachineStatus {
    v1::MachineStatus {
        name: "web1".into(),
        state: "protected".into(),
        state_detail: String::new(),
        state_since_ns: POINT_NS,
        points: 7,
        newest_point_ns: POINT_NS,
        newest_point_age_ms: Some(1_250),
        unsynced_age_ms: Some(100),
        gaps: 2,
        gap_ms: 4_500,
        open_gap: None,
        journal_bytes: 3 << 20,
        base_bytes: 5 << 30,
        base_point_ns: POINT_NS,
        base_point_age_ms: Some(5_400_000),
        buffer_bytes: 4096,
        buffer_limit_bytes: 64 << 20,
        activity: Some(activity()),
    }
}

/// A machine that is lost, of which little is known.
fn lost() -> v1::MachineStatus {
    v1::MachineStatus {
        name: "db 2".into(),
        state: "retrying".into(),
        gaps: 1,
        open_gap: Some(v1::Gap {
            start_ns: POINT_NS,
            end_ns: 0,
            reason: "tap-lost".into(),
        }),
        ..Default::default()
    }
}

fn alert() -> v1::Alert {
    v1::Alert {
        key: "tap-lost".into(),
        machine: "db 2".into(),
        severity: "critical".into(),
        since_ns: POINT_NS,
        text: "QEMU has let go of the tap".into(),
    }
}

/// An hour with points, a minute of a gap.
fn coverage() -> Vec<v1::Span> {
    const MINUTE_NS: i64 = 60_000_000_000;
    let gap_ns = POINT_NS + 60 * MINUTE_NS;
    let points = v1::Span {
        start_ns: POINT_NS,
        end_ns: gap_ns,
        kind: "points".into(),
        reason: String::new(),
        points: 7,
    };
    let gap = v1::Span {
        start_ns: gap_ns,
        end_ns: gap_ns + MINUTE_NS,
        kind: "gap".into(),
        reason: "guest-off".into(),
        points: 0,
    };
    vec![points, gap]
}

fn progress(what: &str) -> v1::Progress {
    v1::Progress {
        what: what.into(),
        done_bytes: 1 << 30,
        total_bytes: 10 << 30,
    }
}

fn view() -> v1::View {
    v1::View {
        id: "v1".into(),
        machine: "web1".into(),
        point: Some(point()),
        opened_ns: POINT_NS,
        volumes: vec![v1::ViewVolume {
            target: "vda".into(),
            size_bytes: 10 << 30,
            uri: "nbd+unix:///vda?socket=/run/virt-cdp/v1.sock".into(),
        }],
        connections: 1,
        holder: "user".into(),
    }
}

fn takeover(state: &str) -> v1::Takeover {
    v1::Takeover {
        name: "web1-takeover-123".into(),
        machine: "web1".into(),
        point: Some(point()),
        state: state.into(),
        created_ns: POINT_NS,
        uuid: "77aa".into(),
        overlay_bytes: 1 << 20,
        detail: String::new(),
    }
}

fn taken_over() -> v1::TakeoverReply {
    v1::TakeoverReply {
        takeover: Some(takeover("running")),
        dropped: vec!["host device 0000:01:00.0".into()],
        ready_ms: 1840,
    }
}

fn job(kind: &str, state: &str) -> v1::Job {
    v1::Job {
        id: format!("{kind}-1"),
        kind: kind.into(),
        machine: "web1".into(),
        state: state.into(),
        error: if state == "failed" {
            "the disk is full".into()
        } else {
            String::new()
        },
        progress: Some(progress(kind)),
        point: Some(point()),
        files: vec!["/out/web1-vda.qcow2".into()],
        hint: if state == "failed" {
            "make room".into()
        } else {
            String::new()
        },
        ..Default::default()
    }
}

fn report() -> v1::VerifyReport {
    v1::VerifyReport {
        files: 12,
        bytes: 1 << 30,
        left: 1,
        findings: vec![v1::Finding {
            file: "journal/000000000007.seg".into(),
            what: "the payload of record 5 is not what was written".into(),
            offset: 8192,
            length: 4096,
            costs: vec![v1::DamageCost {
                first: 3,
                last: 9,
                volume: "vda".into(),
                areas: vec![v1::DamagedArea {
                    offset: 65536,
                    length: 4096,
                }],
            }],
        }],
        unchecked: vec![v1::Unchecked {
            file: "base/vol-00000/full-00000000000000000003.qcow2".into(),
            clusters: 4,
        }],
        live: Vec::new(),
        not_healed: "'web1' is off".into(),
    }
}

impl Engine for Fake {
    fn format_version(&self) -> u32 {
        1
    }

    fn status(&self) -> ApiResult<v1::StatusReply> {
        Ok(v1::StatusReply {
            state_dir: "/var/lib/virt-cdp".into(),
            machines: 2,
            machines_protected: 1,
            free_bytes: 1 << 40,
            problems: vec!["the disk is slow".into()],
            alerts: vec![alert()],
            protection: vec![protection(), lost()],
            ..Default::default()
        })
    }

    fn metrics(&self) -> String {
        "# HELP fake Of a fake.\n# TYPE fake gauge\nfake 1\n".into()
    }

    fn protect(&self, request: v1::ProtectRequest) -> ApiResult<v1::Machine> {
        self.note(&request);
        check(&request.name)?;
        self.polls.store(0, Ordering::SeqCst);
        let state = match request.name.as_str() {
            "asleep" => "suspended",
            _ => "seeding",
        };
        Ok(machine(&request.name, state))
    }

    fn unprotect(&self, request: v1::UnprotectRequest) -> ApiResult<()> {
        self.note(&request);
        check(&request.name)
    }

    fn suspend(&self, request: v1::MachineRequest) -> ApiResult<v1::Machine> {
        check(&request.name)?;
        Ok(machine(&request.name, "suspended"))
    }

    fn resume(&self, request: v1::MachineRequest) -> ApiResult<v1::Machine> {
        check(&request.name)?;
        Ok(machine(&request.name, "resyncing"))
    }

    fn list_machines(&self) -> ApiResult<v1::MachineList> {
        Ok(v1::MachineList {
            machines: vec![machine("web1", "protected"), machine("db 2", "seeding")],
        })
    }

    fn get_machine(&self, request: v1::MachineRequest) -> ApiResult<v1::Machine> {
        check(&request.name)?;
        let polls = self.polls.fetch_add(1, Ordering::SeqCst);
        Ok(match request.name.as_str() {
            "bad-seed" => v1::Machine {
                state_detail: "vda went away".into(),
                ..machine("bad-seed", "failed")
            },
            "slow" => machine("slow", "seeding"),
            name if polls == 0 => machine(name, "seeding"),
            name => machine(name, "protected"),
        })
    }

    fn list_points(&self, request: v1::ListPointsRequest) -> ApiResult<v1::PointList> {
        self.note(&request);
        check(&request.name)?;
        Ok(v1::PointList {
            points: vec![point()],
            truncated: true,
            gaps: machine("web1", "off").gaps,
            coverage: coverage(),
        })
    }

    fn create_point(&self, request: v1::CreatePointRequest) -> ApiResult<v1::CreatePointReply> {
        self.note(&request);
        check(&request.name)?;
        let (grade, note, frozen_ms) = match (request.quiesce, request.name.as_str()) {
            (true, "no-agent") => ("crash", "it has no guest agent", 0),
            (true, _) => ("quiesced", "", 41),
            (false, _) => ("crash", "", 0),
        };
        let point = v1::Point {
            label: request.label,
            grade: grade.into(),
            ..point()
        };
        Ok(v1::CreatePointReply {
            point: Some(point),
            note: note.into(),
            frozen_ms,
        })
    }

    fn lock_points(&self, request: v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        self.note(&request);
        check(&request.name)?;
        Ok(changes())
    }

    fn unlock_points(&self, request: v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        self.note(&request);
        check(&request.name)?;
        Ok(changes())
    }

    fn label_point(&self, request: v1::LabelPointRequest) -> ApiResult<v1::PointChanges> {
        self.note(&request);
        check(&request.name)?;
        Ok(changes())
    }

    fn delete_points(&self, request: v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        self.note(&request);
        check(&request.name)?;
        Ok(changes())
    }

    fn list_policies(&self) -> ApiResult<v1::PolicyList> {
        let unused = v1::Policy {
            name: "default".into(),
            all_ms: 5_400_000,
            origin: "built-in".into(),
            ..Default::default()
        };
        Ok(v1::PolicyList {
            policies: vec![unused, policy("long")],
        })
    }

    fn get_policy(&self, request: v1::PolicyRequest) -> ApiResult<v1::Policy> {
        check(&request.name)?;
        Ok(policy(&request.name))
    }

    fn set_policy(&self, request: v1::SetPolicyRequest) -> ApiResult<v1::Policy> {
        self.note(&request);
        check(&request.name)?;
        Ok(policy(&request.name))
    }

    fn assign_policy(&self, request: v1::AssignPolicyRequest) -> ApiResult<v1::Machine> {
        self.note(&request);
        check(&request.name)?;
        Ok(machine(&request.name, "protected"))
    }

    fn preview_policy(&self, request: v1::PreviewPolicyRequest) -> ApiResult<v1::PolicyPreview> {
        self.note(&request);
        check(&request.name)?;
        let points = match request.name.as_str() {
            "many" => vec![point(); 25],
            _ => vec![point()],
        };
        Ok(v1::PolicyPreview {
            policy: Some(policy("long")),
            points,
            kept: 6,
            freed_bytes: 3 << 20,
        })
    }

    fn open_view(&self, request: v1::OpenViewRequest) -> ApiResult<v1::View> {
        self.note(&request);
        check(&request.name)?;
        Ok(view())
    }

    fn list_views(&self) -> ApiResult<v1::ViewList> {
        Ok(v1::ViewList {
            views: vec![view()],
        })
    }

    fn close_view(&self, request: v1::CloseViewRequest) -> ApiResult<()> {
        self.note(&request);
        Ok(())
    }

    fn export(&self, request: v1::ExportRequest) -> ApiResult<v1::Job> {
        self.note(&request);
        check(&request.name)?;
        self.polls.store(0, Ordering::SeqCst);
        *self.cancelled.lock().unwrap() = false;
        let id = format!("export-{}", request.name);
        Ok(v1::Job {
            id,
            ..job("export", "running")
        })
    }

    fn verify(&self, request: v1::VerifyRequest) -> ApiResult<v1::Job> {
        self.note(&request);
        check(&request.name)?;
        self.polls.store(0, Ordering::SeqCst);
        *self.cancelled.lock().unwrap() = false;
        Ok(v1::Job {
            id: match request.live {
                true => "verify-live".into(),
                false => format!("verify-{}", request.name),
            },
            point: None,
            files: Vec::new(),
            ..job("verify", "running")
        })
    }

    fn get_space(&self, request: v1::SpaceRequest) -> ApiResult<v1::Space> {
        self.note(&request);
        check(&request.name)?;
        Ok(fake_space::space(&request))
    }

    fn get_job(&self, request: v1::JobRequest) -> ApiResult<v1::Job> {
        let kind = request.id.split('-').next().unwrap_or_default();
        let state = match request.id.as_str() {
            _ if *self.cancelled.lock().unwrap() => "cancelled",
            "export-full" => "failed",
            "export-slow" | "takeover-slow" => "running",
            _ if self.polls.fetch_add(1, Ordering::SeqCst) == 0 => "running",
            _ => "done",
        };
        let mut found = job(kind, state);
        found.id.clone_from(&request.id);
        match kind {
            "drill" => found.drill_report = fake_drill::live(&request.id),
            "bisect" => found.bisect = Some(fake_drill::bisected()),
            "takeover" => found.takeovers = vec![taken_over()],
            _ => {}
        }
        if kind == "verify" {
            (found.point, found.files) = (None, Vec::new());
            let whole = v1::VerifyReport {
                files: 3,
                ..Default::default()
            };
            found.report = Some(match request.id.as_str() {
                "verify-rotten" => report(),
                "verify-live" => v1::VerifyReport {
                    live: vec![live("vda", 0), live("vdb", 8192)],
                    ..whole
                },
                _ => whole,
            });
        }
        Ok(v1::Job {
            id: request.id,
            ..found
        })
    }

    fn cancel_job(&self, request: v1::JobRequest) -> ApiResult<v1::Job> {
        self.note(&request);
        *self.cancelled.lock().unwrap() = true;
        Ok(v1::Job {
            id: request.id,
            ..job("export", "running")
        })
    }

    fn takeover(&self, request: v1::TakeoverRequest) -> ApiResult<v1::TakeoverReply> {
        self.note(&request);
        check(&request.name)?;
        Ok(taken_over())
    }

    fn list_takeovers(&self) -> ApiResult<v1::TakeoverList> {
        Ok(v1::TakeoverList {
            takeovers: vec![takeover("running")],
        })
    }

    fn discard_takeover(&self, request: v1::TakeoverNameRequest) -> ApiResult<()> {
        check(&request.name)
    }

    fn commit_takeover(&self, request: v1::TakeoverNameRequest) -> ApiResult<v1::Job> {
        check(&request.name)?;
        self.polls.store(0, Ordering::SeqCst);
        *self.cancelled.lock().unwrap() = false;
        Ok(job("commit", "running"))
    }

    fn run_drill(&self, request: v1::DrillRequest, peer: Peer) -> ApiResult<v1::Job> {
        self.note(&request);
        assert!(peer.pid.is_some());
        self.polls.store(0, Ordering::SeqCst);
        if request.plan.contains("point = \"10\"") {
            let what = "there is no point 10";
            return Err(ApiError::new(ApiErrorKind::NotFound, what).hint("see point-list"));
        }
        let mut begun = job("drill", "running");
        if request.plan.contains("name = \"bad\"") {
            begun.id = "drill-bad".into();
        }
        begun.drill_report = fake_drill::live(&begun.id);
        Ok(begun)
    }

    fn list_drills(&self, request: v1::ListDrillsRequest) -> ApiResult<v1::DrillList> {
        self.note(&request);
        Ok(fake_drill::list())
    }

    fn get_drill_document(
        &self,
        request: v1::DrillDocumentRequest,
    ) -> ApiResult<v1::DrillDocument> {
        self.note(&request);
        Ok(fake_drill::document(&request))
    }

    fn discard_drill(&self, request: v1::DrillIdRequest) -> ApiResult<()> {
        self.note(&request);
        Ok(())
    }

    fn bisect(&self, request: v1::BisectRequest, _: Peer) -> ApiResult<v1::Job> {
        self.note(&request);
        Ok(v1::Job {
            bisect: Some(fake_drill::bisected()),
            ..job("bisect", "running")
        })
    }

    fn takeover_group(&self, request: v1::TakeoverGroupRequest) -> ApiResult<v1::Job> {
        self.note(&request);
        *self.cancelled.lock().unwrap() = false;
        let mut begun = job("takeover", "running");
        // One that is slow goes on until it is cancelled.
        match request.plan.contains("slow") {
            true => begun.id = "takeover-slow".into(),
            false => self.polls.store(0, Ordering::SeqCst),
        }
        Ok(begun)
    }

    fn hint_domain(&self, request: v1::DomainHint) {
        self.note(&request);
    }

    fn hand_over(&self) {}

    fn shutdown(&self) {}
}
