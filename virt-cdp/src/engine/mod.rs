//! The engine: what the daemon does, behind the API.
//!
//! It joins the crates: `qemu-hook` brings a machine's writes, `cdp-core` keeps them, `libvirt-driver`
//! knows domains. One supervisor thread per machine does the work; API calls read snapshots, send
//! commands, or start jobs.
//!
//! Modules in the order in which a machine meets them.

mod names;

mod errors;

mod source;

mod protect;

mod machine;

mod supervisor;

mod capture;

mod sink;

mod reading;

mod upkeep;

mod messages;

mod moments;

mod views;

mod export;

mod takeovers;

mod jobs;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use cdp_core::{AckRule, Harbor, MachineSource, Mode, Options, machine::FORMAT_VERSION};
use libvirt_driver::{DomainEventKind, Hypervisor, apparmor};

use self::{
    errors::{from_harbor, from_libvirt},
    jobs::Jobs,
    machine::{Machine, State},
    source::{DomainSource, QmpSource, Source},
    supervisor::Setting,
    takeovers::Takeovers,
    views::{Access, Holder, Views},
};
use crate::{
    api::{self, ApiError, ApiErrorKind, ApiResult, v1},
    daemon::config::{Ack, Config},
};

/// Said where AppArmor runs without our rules.
const APPARMOR_PROBLEM: &str = "AppArmor keeps QEMU from the sockets of views, so takeovers will not start: append \
    plugins/host/apparmor/libvirt-qemu to /etc/apparmor.d/local/abstractions/libvirt-qemu ('make install' does)";

/// Locks; a thread that panicked while holding the lock does not take the rest down.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything the daemon looks after.
pub struct Engine {
    config: Config,
    harbors: PathBuf,
    private_dir: PathBuf,
    machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    hypervisors: Mutex<BTreeMap<String, Hypervisor>>,
    views: Arc<Views>,
    takeovers: Arc<Takeovers>,
    jobs: Jobs,
    problems: Mutex<Vec<String>>,
    /// Held while machines come or go, so that two calls cannot make the same one.
    roster: Mutex<()>,
}

impl Engine {
    /// Opens everything below the state directory and starts to look after it.
    ///
    /// # Errors
    /// A directory cannot be made. A harbor that cannot be opened is no error: `status` names it.
    pub fn open(config: &Config) -> ApiResult<Arc<Self>> {
        let run_dir = config.run_dir();
        let views_dir = run_dir.join("views");
        let private_dir = run_dir.join("private");
        let harbors = config.state_dir.join("harbors");
        make_dir(&views_dir, 0o711)?;
        make_dir(&private_dir, 0o700)?;
        make_dir(&harbors, 0o700)?;
        let records = config.state_dir.join("takeovers");
        let (takeovers, problems) =
            Takeovers::open(records.clone(), config.takeover.overlay_dir.clone())
                .map_err(|e| dir_error(&records, &e))?;
        let engine = Arc::new(Self {
            config: config.clone(),
            harbors,
            private_dir,
            machines: Mutex::default(),
            hypervisors: Mutex::default(),
            views: Arc::new(Views::new(views_dir)),
            takeovers: Arc::new(takeovers),
            jobs: Jobs::default(),
            problems: Mutex::new(problems),
            roster: Mutex::default(),
        });
        engine.open_harbors()?;
        Ok(engine)
    }

    fn open_harbors(self: &Arc<Self>) -> ApiResult<()> {
        let entries = fs::read_dir(&self.harbors).map_err(|e| dir_error(&self.harbors, &e))?;
        for entry in entries.flatten() {
            let dir = entry.path();
            if let Err(e) = self.open_harbor(&dir) {
                tracing::error!(harbor = %dir.display(), error = e.what, "a harbor cannot be opened");
                guard(&self.problems).push(format!(
                    "harbor {} cannot be opened: {}",
                    dir.display(),
                    e.what
                ));
            }
        }
        Ok(())
    }

    fn open_harbor(self: &Arc<Self>, dir: &Path) -> ApiResult<()> {
        let (harbor, report) = Harbor::open(dir, self.options()).map_err(from_harbor)?;
        if report.is_clean() {
            tracing::info!(harbor = %dir.display(), points = report.points, "harbor opened");
        } else {
            tracing::warn!(harbor = %dir.display(), ?report, "harbor opened after recovery");
            let damage = report
                .damage
                .iter()
                .map(|d| format!("harbor {}: {d}", dir.display()));
            guard(&self.problems).extend(damage);
        }
        let served = self.takeovers.serve_again(&harbor, &self.views);
        guard(&self.problems).extend(served);
        self.look_after(harbor, Vec::new())?;
        Ok(())
    }

    /// Starts the supervisor of a harbor's machine.
    fn look_after(
        self: &Arc<Self>,
        harbor: Harbor,
        left_out: Vec<String>,
    ) -> ApiResult<Arc<Machine>> {
        let description = harbor.description();
        let source = self.source(&description.source, &description.volumes)?;
        let (machine, commands) = Machine::new(harbor, left_out);
        let machine = Arc::new(machine);
        let setting = Setting {
            source,
            private_dir: self.private_dir.clone(),
            bitmap_interval: self.config.capture.bitmap_interval,
        };
        supervisor::start(&machine, commands, setting).map_err(|e| {
            ApiError::new(
                ApiErrorKind::ResourceExhausted,
                format!("cannot start a thread: {e}"),
            )
        })?;
        guard(&self.machines).insert(machine.name.clone(), Arc::clone(&machine));
        Ok(machine)
    }

    fn source(
        self: &Arc<Self>,
        source: &MachineSource,
        volumes: &[cdp_core::VolumeDescription],
    ) -> ApiResult<Arc<dyn Source>> {
        Ok(match source {
            MachineSource::Libvirt { uri, uuid } => {
                let engine = Arc::downgrade(self);
                let uri = uri.clone();
                let connect = move || {
                    let gone =
                        || ApiError::new(ApiErrorKind::Unavailable, "the daemon is being put down");
                    engine.upgrade().ok_or_else(gone)?.hypervisor(&uri)
                };
                Arc::new(DomainSource::new(Box::new(connect), uuid.clone()))
            }
            MachineSource::Qmp { socket } => {
                let nodes = volumes.iter().filter_map(|v| v.node.clone()).collect();
                Arc::new(QmpSource::new(socket.clone(), nodes))
            }
        })
    }

    /// The connection to a libvirt; the first call makes it and listens to its events.
    fn hypervisor(self: &Arc<Self>, uri: &str) -> ApiResult<Hypervisor> {
        let mut hypervisors = guard(&self.hypervisors);
        if let Some(known) = hypervisors.get(uri) {
            return Ok(known.clone());
        }
        let hypervisor = Hypervisor::connect(uri).map_err(from_libvirt)?;
        hypervisors.insert(uri.to_owned(), hypervisor.clone());
        drop(hypervisors);
        let (events, engine) = (hypervisor.subscribe(), Arc::downgrade(self));
        let listener = thread::Builder::new().name("libvirt-events".into()).spawn(move || {
            while let Ok(event) = events.recv() {
                let Some(engine) = engine.upgrade() else { break };
                let tells =
                    matches!(event.kind, DomainEventKind::Started | DomainEventKind::Stopped | DomainEventKind::Crashed);
                if tells && engine.knows(&event.uuid) {
                    tracing::info!(domain = event.name, kind = ?event.kind, detail = event.detail, "libvirt event");
                }
                engine.wake(&event.uuid);
            }
        });
        if let Err(error) = listener {
            tracing::warn!(%error, "libvirt's events are not heard; machines are asked every few seconds");
        }
        Ok(hypervisor)
    }

    /// True for a domain that is a machine of ours.
    fn knows(&self, domain: &str) -> bool {
        guard(&self.machines).values().any(|machine| {
            matches!(machine.description().source, MachineSource::Libvirt { uuid, .. } if uuid == domain)
        })
    }

    /// Has the machine behind a domain looked at, or all of them.
    fn wake(&self, uuid: &str) {
        for machine in guard(&self.machines).values() {
            let of_domain = match &machine.description().source {
                MachineSource::Libvirt { uuid: own, .. } => own == uuid || uuid.is_empty(),
                MachineSource::Qmp { .. } => false,
            };
            if of_domain {
                machine.wake();
            }
        }
    }

    fn options(&self) -> Options {
        let capture = &self.config.capture;
        Options {
            ack_rule: match capture.ack {
                Ack::Buffered => AckRule::Buffered,
                Ack::Durable => AckRule::Durable,
            },
            flush_interval: capture.flush_interval,
            buffer_bytes: usize::try_from(capture.io_buffer).unwrap_or(usize::MAX),
            segment_bytes: capture.segment_size,
            ..Options::default()
        }
    }

    fn machine(&self, name: &str) -> ApiResult<Arc<Machine>> {
        guard(&self.machines).get(name).cloned().ok_or_else(|| {
            ApiError::new(ApiErrorKind::NotFound, format!("'{name}' is not protected")).hint(
                "see 'virt-cdp list' for the machines there are, 'virt-cdp protect' to add one",
            )
        })
    }

    fn user_access(&self) -> Access {
        Access {
            mode: 0o660,
            owner: self.socket_owner(),
        }
    }

    /// Owner of the API's socket: who may use the API may read views.
    fn socket_owner(&self) -> Option<(u32, u32)> {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&self.config.socket)
            .ok()
            .map(|m| (m.uid(), m.gid()))
    }
}

/// Engine calls need the shared pointer; the API's trait is implemented on this handle.
pub struct EngineHandle(Arc<Engine>);

/// Opens an engine as the daemon wants it.
///
/// # Errors
/// As [`Engine::open`].
pub fn open(config: &Config) -> ApiResult<Arc<dyn api::Engine>> {
    Ok(Arc::new(EngineHandle(Engine::open(config)?)))
}

impl api::Engine for EngineHandle {
    fn format_version(&self) -> u32 {
        FORMAT_VERSION
    }

    fn status(&self) -> ApiResult<v1::StatusReply> {
        let engine = &self.0;
        let machines: Vec<Arc<Machine>> = guard(&engine.machines).values().cloned().collect();
        let mut problems = guard(&engine.problems).clone();
        for machine in &machines {
            let status = machine.status();
            if status.state == State::Failed {
                problems.push(format!(
                    "machine '{}' is not captured: {}",
                    machine.name, status.detail
                ));
            }
        }
        if apparmor::apparmor_active() && !apparmor::apparmor_rules_installed() {
            problems.push(APPARMOR_PROBLEM.into());
        }
        let protected = machines
            .iter()
            .filter(|m| m.status().state == State::Protected)
            .count();
        let space = rustix::fs::statvfs(&engine.config.state_dir)
            .map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
        Ok(v1::StatusReply {
            state_dir: engine.config.state_dir.display().to_string(),
            machines: count(machines.len()),
            machines_protected: count(protected),
            views: count(engine.views.list().len()),
            takeovers: count(engine.takeovers.count()),
            jobs_running: count(engine.jobs.running()),
            free_bytes: space,
            problems,
            ..Default::default()
        })
    }

    fn protect(&self, request: v1::ProtectRequest) -> ApiResult<v1::Machine> {
        self.0.protect(&request)
    }

    fn unprotect(&self, request: v1::UnprotectRequest) -> ApiResult<()> {
        self.0.unprotect(&request)
    }

    fn suspend(&self, request: v1::MachineRequest) -> ApiResult<v1::Machine> {
        self.0.set_mode(&request.name, Mode::Suspended)
    }

    fn resume(&self, request: v1::MachineRequest) -> ApiResult<v1::Machine> {
        self.0.set_mode(&request.name, Mode::Active)
    }

    fn list_machines(&self) -> ApiResult<v1::MachineList> {
        let machines: Vec<Arc<Machine>> = guard(&self.0.machines).values().cloned().collect();
        Ok(v1::MachineList {
            machines: machines.iter().map(|m| messages::machine(m)).collect(),
        })
    }

    fn get_machine(&self, request: v1::MachineRequest) -> ApiResult<v1::Machine> {
        Ok(messages::machine(&*self.0.machine(&request.name)?))
    }

    fn list_points(&self, request: v1::ListPointsRequest) -> ApiResult<v1::PointList> {
        let harbor = self.0.machine(&request.name)?.harbor();
        let from = moments::bound(&harbor, request.from.as_ref())?;
        let to = moments::bound(&harbor, request.to.as_ref())?;
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit as usize
        };
        let mut points = harbor.points_between(from, to, limit.saturating_add(1));
        let truncated = points.len() > limit;
        if truncated {
            points.remove(0);
        }
        Ok(v1::PointList {
            points: points.iter().map(messages::point).collect(),
            truncated,
        })
    }

    fn create_point(&self, request: v1::CreatePointRequest) -> ApiResult<v1::Point> {
        let label = (!request.label.is_empty()).then_some(request.label);
        let machine = self.0.machine(&request.name)?;
        let point = machine.ask(|answer| machine::Command::Point(label, answer))?;
        Ok(messages::point(&point))
    }

    fn open_view(&self, request: v1::OpenViewRequest) -> ApiResult<v1::View> {
        let harbor = self.0.machine(&request.name)?.harbor();
        let point = moments::resolve(&request.name, &harbor, request.at.as_ref())?;
        let view = harbor.view(point.id).map_err(from_harbor)?;
        self.0.views.open(
            &harbor.description(),
            view,
            Holder::User,
            None,
            self.0.user_access(),
        )
    }

    fn list_views(&self) -> ApiResult<v1::ViewList> {
        Ok(v1::ViewList {
            views: self.0.views.list(),
        })
    }

    fn close_view(&self, request: v1::CloseViewRequest) -> ApiResult<()> {
        self.0.views.close(&request.id)
    }

    fn export(&self, request: v1::ExportRequest) -> ApiResult<v1::Job> {
        let harbor = self.0.machine(&request.name)?.harbor();
        export::start(&self.0.jobs, &harbor, &request)
    }

    fn get_job(&self, request: v1::JobRequest) -> ApiResult<v1::Job> {
        Ok(self.0.jobs.get(&request.id)?.record())
    }

    fn cancel_job(&self, request: v1::JobRequest) -> ApiResult<v1::Job> {
        let job = self.0.jobs.get(&request.id)?;
        job.cancel();
        Ok(job.record())
    }

    fn takeover(&self, request: v1::TakeoverRequest) -> ApiResult<v1::TakeoverReply> {
        let began = std::time::Instant::now();
        let harbor = self.0.machine(&request.name)?.harbor();
        let point = moments::resolve(&request.name, &harbor, request.at.as_ref())?;
        let uri = match harbor.description().source {
            MachineSource::Libvirt { uri, .. } => uri,
            MachineSource::Qmp { .. } => self.0.config.libvirt.uri.clone(),
        };
        let hypervisor = self.0.hypervisor(&uri)?;
        let (takeover, dropped) =
            self.0
                .takeovers
                .start(&harbor, &hypervisor, &self.0.views, point.id, &request)?;
        let ready_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            name = takeover.name,
            machine = request.name,
            point = point.id.0,
            ready_ms,
            "takeover"
        );
        Ok(v1::TakeoverReply {
            takeover: Some(takeover),
            dropped,
            ready_ms,
        })
    }

    fn list_takeovers(&self) -> ApiResult<v1::TakeoverList> {
        Ok(v1::TakeoverList {
            takeovers: self.0.takeovers.list(|uri| self.0.hypervisor(uri)),
        })
    }

    fn discard_takeover(&self, request: v1::TakeoverNameRequest) -> ApiResult<()> {
        let hypervisor = self
            .0
            .hypervisor(&self.0.takeovers.uri_of(&request.name)?)?;
        self.0
            .takeovers
            .discard(&request.name, &hypervisor, &self.0.views)
    }

    fn commit_takeover(&self, request: v1::TakeoverNameRequest) -> ApiResult<v1::Job> {
        let hypervisor = self
            .0
            .hypervisor(&self.0.takeovers.uri_of(&request.name)?)?;
        let point = self.0.takeovers.begin_commit(&request.name)?;
        let (takeovers, views) = (Arc::clone(&self.0.takeovers), Arc::clone(&self.0.views));
        let name = request.name.clone();
        self.0.jobs.start(
            "commit",
            &request.name,
            Some(messages::point(&point)),
            move |job| takeovers.commit(&name, &hypervisor, &views, job),
        )
    }

    fn shutdown(&self) {
        self.0.jobs.cancel_all();
        let machines: Vec<Arc<Machine>> = guard(&self.0.machines).values().cloned().collect();
        machines.iter().for_each(|m| m.begin_shutdown());
        machines.iter().for_each(|m| m.join());
        self.0.views.close_all();
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn make_dir(dir: &Path, mode: u32) -> ApiResult<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
        .map_err(|e| dir_error(dir, &e))
}

fn dir_error(dir: &Path, error: &std::io::Error) -> ApiError {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ApiErrorKind::PermissionDenied,
        std::io::ErrorKind::StorageFull => ApiErrorKind::ResourceExhausted,
        _ => ApiErrorKind::Internal,
    };
    ApiError::new(
        kind,
        format!("cannot use the directory {}: {error}", dir.display()),
    )
    .hint("make it writable for virtcdpd, or choose another in the configuration")
}
