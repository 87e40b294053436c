//! Drills: machines are started from their points in isolation, checked, reported, and removed.
//!
//! `drill-runner` holds the drill; this gives it machines ([`stage`], [`vm`]), keeps its reports, and knows what runs. In
//! order: a [`record`] is written before anything is made, the drill is held by a job, its report is kept, the record goes.
//! What a crash of ours leaves is named by records, and removed at the next start ([`recycle`]).
//!
//! Invariant: whatever exists of a drill belongs to one that runs, was kept, or has a record.

pub(crate) mod auto;
mod group;
mod memory;
mod proofs;
mod record;
mod recycle;
mod shown;
mod stage;
mod takeover;
mod vm;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use drill_runner::{
    mounts,
    outcome::{Host, Report},
    plan::Plan,
    report::Store,
    run::{self, Kept, Order},
};

use self::{proofs::Proofs, record::Record, stage::DrillStage};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    daemon::peer::{Accounts, Peer},
    engine::{
        Engine, guard,
        jobs::JobHandle,
        machine::{Machine, now},
        messages,
    },
};

pub(crate) use group::{Moment, Taken};
pub(crate) use proofs::Proof;

/// How long the daemon's stop waits for drills to be removed.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// All drills of the daemon.
pub(crate) struct Drills {
    dir: PathBuf,
    plugins: PathBuf,
    store: Store,
    running: Mutex<BTreeMap<String, Arc<Running>>>,
    proofs: Proofs,
    /// Machines whose drills are due and put off: why, and since when.
    put_off: Mutex<BTreeMap<String, (String, Instant)>>,
}

/// A drill that runs, or that was kept.
pub(crate) struct Running {
    is_cancelled: AtomicBool,
    /// What its machines may take, bytes.
    memory: u64,
    live: Mutex<Option<Report>>,
    kept: Mutex<Option<Kept>>,
}

/// A drill as it is wanted.
pub(crate) struct Wish {
    pub(crate) plan: Plan,
    pub(crate) moment: Moment,
    pub(crate) reason: String,
    /// Who asked for it; none: the daemon.
    pub(crate) asker: Option<Peer>,
}

impl Drills {
    /// Opens what is kept below the state directory.
    ///
    /// # Errors
    /// A directory cannot be made, or the reports or their key cannot be read.
    pub(crate) fn open(state_dir: &Path, plugins: &Path) -> ApiResult<Self> {
        let dir = state_dir.join("drills");
        for part in [dir.clone(), dir.join("running"), dir.join("work")] {
            super::make_dir(&part, 0o700)?;
        }
        let store = Store::open(&dir.join("reports"), &dir.join("key")).map_err(|e| failed(&e))?;
        let proofs = Proofs::of(&store);
        Ok(Self {
            dir,
            plugins: plugins.to_owned(),
            store,
            running: Mutex::default(),
            proofs,
            put_off: Mutex::default(),
        })
    }

    /// The reports.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What is proved of a machine.
    pub(crate) fn proof(&self, machine: &Machine) -> Option<Proof> {
        self.proofs.of_machine(machine)
    }

    /// Why a drill of a machine that is due does not begin, and for how long it has been put off.
    pub(crate) fn put_off(&self, machine: &str) -> Option<(String, Duration)> {
        let all = guard(&self.put_off);
        all.get(machine)
            .map(|(why, since)| (why.clone(), since.elapsed()))
    }

    /// How many drills run, those that were kept left out.
    pub(crate) fn count(&self) -> usize {
        let running = guard(&self.running);
        running
            .values()
            .filter(|one| guard(&one.kept).is_none())
            .count()
    }

    /// The drills that run or were kept, by number.
    fn known(&self) -> Vec<(String, Arc<Running>)> {
        let running = guard(&self.running);
        running
            .iter()
            .map(|(id, one)| (id.clone(), Arc::clone(one)))
            .collect()
    }

    /// Has all of them end, and waits for it.
    pub(crate) fn stop(&self) {
        for (id, one) in self.known() {
            one.is_cancelled.store(true, Ordering::Relaxed);
            if guard(&one.kept).is_none() {
                continue;
            }
            match self.discard(&id) {
                Ok(left) if left.is_empty() => {}
                Ok(left) => {
                    tracing::warn!(drill = id, ?left, "a drill that was kept stays in part")
                }
                Err(error) => tracing::warn!(drill = id, %error, "a drill that was kept stays"),
            }
        }
        let give_up = Instant::now() + STOP_DEADLINE;
        while self.count() > 0 && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes a drill that was kept.
    fn discard(&self, id: &str) -> ApiResult<Vec<String>> {
        let found = guard(&self.running).get(id).cloned();
        let kept = found.as_ref().and_then(|one| guard(&one.kept).take());
        let Some(kept) = kept else {
            let (kind, what) = match found {
                Some(_) => (
                    ApiErrorKind::FailedPrecondition,
                    format!("drill {id} still runs"),
                ),
                None => (
                    ApiErrorKind::NotFound,
                    format!("there is no drill {id} that was kept"),
                ),
            };
            return Err(ApiError::new(kind, what)
                .hint("see drill-list; all others are removed by themselves"));
        };
        let left = kept.remove();
        self.forget(id)?;
        Ok(left)
    }

    fn forget(&self, id: &str) -> ApiResult<()> {
        let work = self.work(id);
        if let Err(error) = mounts::detach_below(&work) {
            tracing::warn!(%error, dir = %work.display(), "what is mounted in a drill's directory stays");
        }
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, dir = %work.display(), "a drill's directory stays");
            }
            _ => {}
        }
        record::remove(&self.dir, id)?;
        guard(&self.running).remove(id);
        Ok(())
    }

    fn work(&self, id: &str) -> PathBuf {
        self.dir.join("work").join(id)
    }
}

impl Engine {
    /// Starts a drill; what can be refused is refused before anything is made.
    pub(crate) fn drill(self: &Arc<Self>, wish: Wish) -> ApiResult<v1::Job> {
        let taken = group::take(self, &wish.plan, &wish.moment)?;
        for check in wish
            .plan
            .machines
            .iter()
            .flat_map(|machine| &machine.checks)
        {
            self.require_plugin(check)?;
        }
        let first = taken.first().map(|one| messages::point(&one.point));
        let (name, engine) = (wish.plan.name.clone(), Arc::clone(self));
        self.jobs.start("drill", &name, first, move |job| {
            let report = engine.hold(wish, taken, job)?;
            tracing::info!(
                drill = report.id,
                verdict = report.verdict.name(),
                why = report.why,
                "drill"
            );
            Ok(())
        })
    }

    /// Checks that the type of a check is there.
    pub(crate) fn require_plugin(&self, check: &drill_runner::plan::CheckPlan) -> ApiResult<()> {
        let drill_runner::plan::CheckKind::Plugin { name, .. } = &check.kind else {
            return Ok(());
        };
        let path = self.drills.plugins.join(name);
        match path.is_file() {
            true => Ok(()),
            false => Err(ApiError::new(
                ApiErrorKind::NotFound,
                format!("there is no plugin '{name}': {} is no file", path.display()),
            )
            .hint("put an executable of that name there; see its README.md")),
        }
    }

    /// Holds a drill, and keeps its report.
    pub(crate) fn hold(
        self: &Arc<Self>,
        wish: Wish,
        taken: Vec<Taken>,
        job: &JobHandle,
    ) -> ApiResult<Report> {
        let drills = &self.drills;
        let id = new_id()?;
        let asked_by = match wish.asker {
            None => "virtcdpd".to_owned(),
            Some(peer) => Accounts::read().user(peer.uid),
        };
        let record = Record {
            id: id.clone(),
            name: wish.plan.name.clone(),
            reason: wish.reason.clone(),
            asked_by: asked_by.clone(),
            started: now(),
            machines: wish.plan.machines.iter().map(|m| m.name.clone()).collect(),
            plan: wish.plan.to_toml(),
        };
        record.save(&drills.dir)?;
        let running = Arc::new(Running {
            is_cancelled: AtomicBool::new(false),
            memory: memory::wanted(self, &wish.plan),
            live: Mutex::default(),
            kept: Mutex::default(),
        });
        guard(&drills.running).insert(id.clone(), Arc::clone(&running));
        let mut underway = Underway {
            engine: self,
            id: &id,
            is_over: false,
        };
        job.of_drill(&id);
        let work = drills.work(&id);
        super::make_dir(&work, 0o700)?;
        let run_as = wish.asker.filter(|peer| peer.uid != 0);
        let run_as = run_as.map(|peer| (peer.uid, peer.gid));
        let ids: BTreeMap<String, String> = wish
            .plan
            .machines
            .iter()
            .zip(&taken)
            .map(|(planned, taken)| (planned.name.clone(), taken.machine.id.clone()))
            .collect();
        let stage = DrillStage::new(self, &id, &wish.plan, taken, run_as)?;
        let is_cancelled = || job.is_cancelled() || running.is_cancelled.load(Ordering::Relaxed);
        let told = |report: &Report| {
            job.live(shown::live(report));
            *guard(&running.live) = Some(report.clone());
        };
        let order = Order {
            id: &id,
            plan: &wish.plan,
            reason: &wish.reason,
            asked_by: &asked_by,
            host: self.host(),
            dir: &work,
            plugins: &drills.plugins,
            run_as,
            is_cancelled: &is_cancelled,
            told: &told,
        };
        let mut held = run::run(&order, &stage);
        for machine in &mut held.report.machines {
            machine.machine_id = ids.get(&machine.name).cloned().unwrap_or_default();
        }
        let report = drills.store.add(held.report).map_err(|e| failed(&e))?;
        drills.proofs.note(&report);
        told(&report);
        self.prune_reports();
        match held.kept {
            Some(kept) => {
                *guard(&running.kept) = Some(kept);
                underway.is_over = true;
            }
            None if report.recycling.left.is_empty() => {
                drills.forget(&id)?;
                underway.is_over = true;
            }
            // It is tried again, as after a crash.
            None => {}
        }
        Ok(report)
    }

    /// What drills are held on.
    fn host(self: &Arc<Self>) -> Host {
        let uname = rustix::system::uname();
        let (libvirt, qemu) = match self.hypervisor(&self.config.libvirt.uri) {
            Ok(hypervisor) => hypervisor.versions(),
            Err(_) => Default::default(),
        };
        Host {
            name: uname.nodename().to_string_lossy().into_owned(),
            virt_cdp: env!("CARGO_PKG_VERSION").to_owned(),
            qemu,
            libvirt,
            kernel: uname.release().to_string_lossy().into_owned(),
        }
    }

    fn prune_reports(&self) {
        if let Err(error) = self.drills.store.prune(self.config.drills.keep_reports) {
            tracing::warn!(%error, "old reports of drills stay");
        }
    }

    /// Lists drills: those that run or were kept, and those that have ended; the newest last.
    pub(crate) fn list_drills(&self, request: &v1::ListDrillsRequest) -> ApiResult<v1::DrillList> {
        shown::list(&self.drills, request)
    }

    /// A report in one of its forms.
    pub(crate) fn drill_document(
        &self,
        request: &v1::DrillDocumentRequest,
    ) -> ApiResult<v1::DrillDocument> {
        shown::document(&self.drills, request)
    }

    /// Removes a drill that was kept.
    pub(crate) fn discard_drill(&self, id: &str) -> ApiResult<()> {
        let left = self.drills.discard(id)?;
        match left.first() {
            None => Ok(()),
            Some(first) => Err(ApiError::new(
                ApiErrorKind::Internal,
                format!("not all of it could be removed: {first}"),
            )
            .hint("it is tried again when virtcdpd starts")),
        }
    }

    /// Removes what earlier daemons left of drills, and keeps a report of each.
    pub(crate) fn recycle_drills(self: &Arc<Self>) {
        recycle::all(self);
    }
}

/// A drill that was begun: where it does not come to its end, whatever there is of it is removed.
struct Underway<'a> {
    engine: &'a Arc<Engine>,
    id: &'a str,
    is_over: bool,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            guard(&self.engine.drills.running).remove(self.id);
            recycle::begin(self.engine, self.id);
        }
    }
}

/// Reads a plan as clients send it.
pub(crate) fn plan(text: &str) -> ApiResult<Plan> {
    Plan::parse(text, &|_| Ok(())).map_err(|error| {
        ApiError::new(ApiErrorKind::InvalidArgument, format!("the plan, {error}")).hint(error.hint)
    })
}

/// A number for a drill.
fn new_id() -> ApiResult<String> {
    let by_chance = libvirt_driver::takeover::new_uuid().map_err(super::errors::from_libvirt)?;
    let by_chance = by_chance.get(..8).unwrap_or("00000000");
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    Ok(format!("{time}-{by_chance}"))
}

/// An error of the reports.
fn failed(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::new(ApiErrorKind::Internal, super::errors::sentence(error))
}
