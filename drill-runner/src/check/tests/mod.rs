//! Checks against real sockets, real programs and real tools; only the machine is played.

mod agent;
mod boot;
mod disks;
mod plugins;
mod programs;
mod series;
mod sockets;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Clock, Facts, Place, run};
use crate::{
    outcome::CheckReport,
    plan::{CheckKind, CheckPlan, Pattern},
    stage::{Guest, Life, StageError, Volume},
};

type Answer = Result<Value, StageError>;
type Agent = Box<dyn Fn(&Value, Duration) -> Answer + Send + Sync>;

/// A machine that is played.
struct Machine {
    life: Mutex<Life>,
    addresses: Mutex<Vec<IpAddr>>,
    volumes: Vec<Volume>,
    console: Option<PathBuf>,
    screen_text: Option<String>,
    disk_reads: Option<u64>,
    screen: Box<dyn Fn() -> Result<Vec<u8>, StageError> + Send + Sync>,
    agent: Agent,
}

impl Guest for Machine {
    fn life(&self) -> Life {
        self.life.lock().unwrap().clone()
    }

    fn agent(&self, command: &Value, timeout: Duration) -> Answer {
        (self.agent)(command, timeout)
    }

    fn screenshot(&self) -> Result<Vec<u8>, StageError> {
        (self.screen)()
    }

    fn screen_text(&self) -> Option<String> {
        self.screen_text.clone()
    }

    fn disk_reads(&self) -> Option<u64> {
        self.disk_reads
    }

    fn console(&self) -> Option<PathBuf> {
        self.console.clone()
    }

    fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.lock().unwrap().clone()
    }
}

/// A machine and all that a place has beside it.
struct Scene {
    machine: Machine,
    facts: Facts,
    plugins: PathBuf,
    dir: tempfile::TempDir,
    run_as: Option<(u32, u32)>,
    cancelled: AtomicBool,
    marker: (String, String),
}

impl Scene {
    fn new() -> Self {
        let silent = |_: &Value, _: Duration| Err(StageError::AgentSilent("not connected".into()));
        Self {
            machine: Machine {
                life: Mutex::new(Life::Running),
                addresses: Mutex::new(vec!["127.0.0.1".parse().unwrap()]),
                volumes: Vec::new(),
                console: None,
                screen_text: None,
                disk_reads: None,
                screen: Box::new(|| Err(StageError::Refused("it has no screen".into()))),
                agent: Box::new(silent),
            },
            facts: Facts {
                drill: "20261127-031500-4f2a".into(),
                machine: "db".into(),
                domain: "db-drill".into(),
                point: "17".into(),
                point_time: "2026-11-27T03:10:00Z".into(),
                age_ms: Some(1500),
                has_agent_channel: true,
                agent_is_expected: false,
                has_network: true,
            },
            plugins: PathBuf::from("/nowhere"),
            dir: tempfile::tempdir().unwrap(),
            run_as: None,
            cancelled: AtomicBool::new(false),
            marker: ("VIRT_CDP_TEST_MARK".into(), "mark".into()),
        }
    }

    fn with_agent(agent: impl Fn(&Value, Duration) -> Answer + Send + Sync + 'static) -> Self {
        let mut scene = Self::new();
        scene.machine.agent = Box::new(agent);
        scene
    }

    /// Does something in the place; `is_cancelled` is asked as the caller would.
    fn at<T>(&self, work: impl FnOnce(&Place<'_>) -> T) -> T {
        let is_cancelled = || self.cancelled.load(Ordering::SeqCst);
        work(&Place {
            guest: &self.machine,
            facts: &self.facts,
            run_as: self.run_as,
            plugins: &self.plugins,
            dir: self.dir.path(),
            clock: Clock {
                began: Instant::now(),
            },
            is_cancelled: &is_cancelled,
            marker: &self.marker,
        })
    }

    fn run(&self, plan: &CheckPlan) -> CheckReport {
        let began = Instant::now();
        let report = self.at(|place| run(plan, place, &mut |_| {}));
        let most = plan.deadline + Duration::from_secs(1);
        assert!(began.elapsed() < most, "took {:?}", began.elapsed());
        report
    }
}

/// A check with one attempt of that time.
fn once(kind: CheckKind, time_ms: u64) -> CheckPlan {
    let mut plan = CheckPlan::of(kind);
    plan.timeout = Duration::from_millis(time_ms);
    plan.deadline = plan.timeout * 10;
    plan.attempts = Some(1);
    plan
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
