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

mod volumes;

mod pace;

mod protect;

mod room;

mod policies;

mod slot;

mod watch;

mod machine;

mod lookout;

mod alerts;

mod webhook;

mod mail;

mod supervisor;

mod marking;

mod capture;

mod sink;

mod reading;

mod live;

mod upkeep;

mod quiesce;

mod coverage;

mod messages;

mod moments;

mod keeping;

mod tidy;

mod space;
mod verify;
mod views;

mod export;

mod takeovers;

mod drills;

mod bisect;

mod jobs;

mod calls;

pub use calls::{EngineHandle, open};
pub(crate) use errors::sentence as sentence_of;
pub(crate) use quiesce::watch::run as watch_freeze;
pub use sink::RecorderSink;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use cdp_core::{AckRule, Harbor, MachineSource, Options, Timestamp};
use libvirt_driver::{DomainEventKind, Hypervisor};

use self::{
    drills::Drills,
    errors::{from_harbor, from_libvirt},
    jobs::Jobs,
    lookout::Lookout,
    machine::{Machine, now},
    mail::Mail,
    policies::Policies,
    quiesce::{Made, marker::Markers, watch::Watch},
    room::{Reserve, Room},
    source::{DomainSource, QmpSource, Source},
    supervisor::Setting,
    takeovers::Takeovers,
    tidy::Ticking,
    views::{Access, Views},
    watch::TapWatch,
    webhook::Webhook,
};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    daemon::config::{Ack, Config},
};

/// Locks; a thread that panicked while holding the lock does not take the rest down.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything the daemon looks after.
pub struct Engine {
    config: Config,
    harbors: PathBuf,
    private_dir: PathBuf,
    watch: Arc<TapWatch>,
    room: Arc<Room>,
    policies: Arc<Policies>,
    machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    hypervisors: Mutex<BTreeMap<String, Hypervisor>>,
    views: Arc<Views>,
    takeovers: Arc<Takeovers>,
    drills: Drills,
    markers: Arc<Markers>,
    jobs: Jobs,
    problems: Mutex<Vec<String>>,
    /// Harbors that could not be opened: directory name, and why.
    closed: Mutex<Vec<(String, String)>>,
    /// Connections to libvirt that are lost, and since when.
    lost: Mutex<BTreeMap<String, Timestamp>>,
    lookout: Lookout,
    started: Timestamp,
    /// Held while machines come or go, so that two calls cannot make the same one.
    roster: Mutex<()>,
    /// Goes over what is kept, once everything is open.
    ticking: Mutex<Option<Ticking>>,
}

impl Engine {
    /// Opens everything below the state directory and starts to look after it.
    ///
    /// # Errors
    /// A directory cannot be made. A harbor that cannot be opened is no error: `status` names it.
    pub fn open(config: &Config) -> ApiResult<Arc<Self>> {
        raise_descriptor_limit();
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
        let frozen = config.state_dir.join("frozen");
        make_dir(&frozen, 0o700)?;
        let (markers, owed) =
            Markers::open(frozen.clone(), Watch::start).map_err(|e| dir_error(&frozen, &e))?;
        // Before anything that may take long: guests of an earlier daemon may be waiting.
        let program = crate::guard::program().map_err(|e| guard_error(&e))?;
        let watch = TapWatch::start(&private_dir, &program, config.capture.bypass_deadline)
            .map_err(|e| guard_error(&e))?;
        let reserve = Reserve {
            bytes: config.capture.reserve,
            segment: config.capture.segment_size,
        };
        let room = Room::watch(&harbors, reserve).map_err(|e| thread_error(&e))?;
        let engine = Arc::new(Self {
            config: config.clone(),
            watch,
            room,
            policies: Arc::new(Policies::open(&config.state_dir, config.policy.clone())),
            harbors,
            private_dir,
            machines: Mutex::default(),
            hypervisors: Mutex::default(),
            views: Arc::new(Views::new(views_dir)),
            takeovers: Arc::new(takeovers),
            drills: Drills::open(&config.state_dir, &config.drills.plugins)?,
            markers,
            jobs: Jobs::default(),
            problems: Mutex::new(problems),
            closed: Mutex::default(),
            lost: Mutex::default(),
            lookout: Lookout::new(),
            started: now(),
            roster: Mutex::default(),
            ticking: Mutex::default(),
        });
        // Before anything else: somebody's writes may be waiting for it.
        for (path, owed) in owed {
            let source = engine.source(&owed.source, &[])?;
            engine.markers.at(path, owed, source).settle();
        }
        engine.open_harbors()?;
        engine.recycle_drills();
        bisect::recycle(&engine.config.state_dir);
        engine.watch.refuse_rest();
        let ticking = tidy::start(Arc::downgrade(&engine), config.tidy.clone())
            .map_err(|e| thread_error(&e))?;
        *guard(&engine.ticking) = Some(ticking);
        let webhook = Webhook::start(&config.alerts).map_err(|e| thread_error(&e))?;
        let mail = Mail::start(&config.alerts).map_err(|e| thread_error(&e))?;
        lookout::start(&engine, webhook, mail).map_err(|e| thread_error(&e))?;
        drills::auto::start(&engine).map_err(|e| thread_error(&e))?;
        Ok(engine)
    }

    fn open_harbors(self: &Arc<Self>) -> ApiResult<()> {
        let entries = fs::read_dir(&self.harbors).map_err(|e| dir_error(&self.harbors, &e))?;
        let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let heirs = self.watch.heirs();
        if !heirs.is_empty() {
            // Their guests may be waiting.
            let waits =
                |dir: &PathBuf| Harbor::peek(dir).is_ok_and(|d| heirs.contains(&d.machine_id));
            dirs.sort_by_cached_key(|dir| !waits(dir));
        }
        for dir in dirs {
            if let Err(e) = self.open_harbor(&dir) {
                tracing::error!(harbor = %dir.display(), error = e.what, "a harbor cannot be opened");
                guard(&self.problems).push(format!(
                    "harbor {} cannot be opened: {}",
                    dir.display(),
                    e.what
                ));
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                guard(&self.closed).push((name.into_owned(), e.what));
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
        let machine = self.look_after(harbor, Vec::new())?;
        machine.note_damage(report.damage);
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
        let policies = Arc::clone(&self.policies);
        let (machine, commands) = Machine::new(harbor, left_out, policies);
        let machine = Arc::new(machine);
        let setting = Setting {
            source,
            private_dir: self.private_dir.clone(),
            bitmap_interval: self.config.capture.bitmap_interval,
            watch: Arc::clone(&self.watch),
            room: Arc::clone(&self.room),
            inherited: self.watch.inherited(&description.machine_id),
        };
        supervisor::start(&machine, commands, setting).map_err(|e| thread_error(&e))?;
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
        let uri = uri.to_owned();
        let listener = thread::Builder::new().name("domain-events".into()).spawn(move || {
            while let Ok(event) = events.recv() {
                let Some(engine) = engine.upgrade() else { break };
                match event.kind {
                    DomainEventKind::ConnectionLost => drop(guard(&engine.lost).insert(uri.clone(), now())),
                    DomainEventKind::ConnectionBack => drop(guard(&engine.lost).remove(&uri)),
                    _ => {}
                }
                let tells =
                    matches!(event.kind, DomainEventKind::Started | DomainEventKind::Stopped | DomainEventKind::Crashed);
                if tells && engine.knows(&event.uuid) {
                    tracing::info!(domain = event.name, kind = ?event.kind, detail = event.detail, "libvirt event");
                }
                let ended = matches!(event.kind, DomainEventKind::Stopped | DomainEventKind::Crashed);
                engine.wake(&event.uuid, ended.then_some(&*event.detail));
            }
        });
        if let Err(error) = listener {
            tracing::warn!(%error, "libvirt's events are not heard; machines are asked every few seconds");
        }
        Ok(hypervisor)
    }

    /// Has the machine of a domain that is about to start looked at closely; a domain that was renamed may be any.
    fn expect(&self, domain: &str) {
        let machines: Vec<Arc<Machine>> = guard(&self.machines).values().cloned().collect();
        let of_libvirt = |machine: &&Arc<Machine>| {
            matches!(machine.description().source, MachineSource::Libvirt { .. })
        };
        let all: Vec<&Arc<Machine>> = machines.iter().filter(of_libvirt).collect();
        let named: Vec<&Arc<Machine>> = all.iter().copied().filter(|m| m.name == domain).collect();
        let meant = if named.is_empty() { all } else { named };
        meant.iter().for_each(|machine| machine.expect());
    }

    /// Makes a point with the guest's file systems frozen, if they can be.
    fn quiesced_point(&self, machine: &Machine, label: Option<String>) -> ApiResult<Made> {
        let _turn = machine
            .quiescing()
            .ok_or_else(|| quiesce::busy(&machine.name))?;
        quiesce::point(
            machine,
            &self.markers,
            self.config.capture.freeze_limit,
            label,
        )
    }

    /// True for a domain that is a machine of ours.
    fn knows(&self, domain: &str) -> bool {
        guard(&self.machines).values().any(|machine| {
            matches!(machine.description().source, MachineSource::Libvirt { uuid, .. } if uuid == domain)
        })
    }

    /// Has the machine behind a domain looked at, or all of them; it may have `ended`.
    fn wake(&self, uuid: &str, ended: Option<&str>) {
        for machine in guard(&self.machines).values() {
            let of_domain = match &machine.description().source {
                MachineSource::Libvirt { uuid: own, .. } => own == uuid || uuid.is_empty(),
                MachineSource::Qmp { .. } => false,
            };
            if of_domain {
                if let Some(how) = ended {
                    machine.note_end(how);
                }
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
            kept_free: capture.reserve,
            ..Options::default()
        }
    }

    fn machine(&self, name: &str) -> ApiResult<Arc<Machine>> {
        let machines = guard(&self.machines);
        let renamed = || {
            let called = |m: &&Arc<Machine>| m.status().called.as_deref() == Some(name);
            machines.values().find(called)
        };
        machines.get(name).or_else(renamed).cloned().ok_or_else(|| {
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

/// A view holds a descriptor for every segment it looks through: takes as many as the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn thread_error(error: &std::io::Error) -> ApiError {
    let what = format!("cannot start a thread: {error}");
    ApiError::new(ApiErrorKind::ResourceExhausted, what)
}

fn guard_error(error: &std::io::Error) -> ApiError {
    ApiError::new(
        ApiErrorKind::Internal,
        format!("cannot start the guard process, without which a stopped daemon would hold up guests: {error}"),
    )
    .hint("see whether the program's file is there and may be executed, and whether processes can be made")
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
