//! Takeovers: a VM started from a view, and what is known of it.
//!
//! In order: the record of the takeover is written, the view is served at the record's socket, an overlay
//! is made per volume, the domain XML of that time is edited, the domain is started. Commit pulls the rest
//! of the view into the overlays and lets the view go; discard removes all traces.
//!
//! Invariant: whatever exists of a takeover is named in its record, written before. A crash of ours leaves a
//! record; the next start serves its view again, so that a running takeover's QEMU finds it, and discard works.

mod record;

mod shape;

use std::{
    collections::BTreeMap,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use cdp_core::{Harbor, MachineDescription, Pin, Point, VolumeDescription};
use libvirt_driver::{
    Domain, DomainState, ErrorKind, Hypervisor, LibvirtError, TakeoverSpec,
    nvram::nvram_of,
    overlay::create_overlay,
    qemu_user::qemu_identity,
    takeover::{StartMode, Traces, new_uuid},
    takeover_xml,
};

use self::record::{Disk, host};
pub(in crate::engine) use self::{
    record::Record,
    shape::{Shape, asked},
};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        errors::{from_harbor, from_libvirt, sentence},
        guard,
        jobs::JobHandle,
        machine::now,
        messages, names,
        views::{Access, Holder, Views},
    },
};

/// All takeovers.
pub(crate) struct Takeovers {
    records: PathBuf,
    overlay_dir: PathBuf,
    known: Mutex<BTreeMap<String, Entry>>,
}

/// A VM that was started from a point.
pub(crate) struct Started {
    pub(crate) record: Record,
    pub(crate) domain: Domain,
    /// Sentences: what could not come along.
    pub(crate) dropped: Vec<String>,
}

#[derive(Clone)]
struct Entry {
    record: Record,
    committing: bool,
    /// Keeps its point, whether its view is served or not; none if the point is not there.
    _pin: Option<Arc<Pin>>,
}

impl Takeovers {
    /// Reads the records in `records`; a record that cannot be read is named in the result.
    pub(crate) fn open(records: PathBuf, overlay_dir: PathBuf) -> io::Result<(Self, Vec<String>)> {
        let (found, problems) = record::read_all(&records)?;
        let entry = |record: Record| {
            (
                record.name.clone(),
                Entry {
                    record,
                    committing: false,
                    _pin: None,
                },
            )
        };
        let takeovers = Self {
            records,
            overlay_dir,
            known: Mutex::new(found.into_iter().map(entry).collect()),
        };
        Ok((takeovers, problems))
    }

    /// Serves the views of all takeovers of a machine again, after a restart.
    pub(crate) fn serve_again(&self, harbor: &Harbor, views: &Views) -> Vec<String> {
        let description = harbor.description();
        let mut known = guard(&self.known);
        let of_machine: Vec<Record> = known
            .values_mut()
            .filter(|e| e.record.machine_id == description.machine_id)
            // What is left of a drill is removed, not served.
            .filter(|e| e.record.drill.is_none())
            .map(|e| {
                // Where there is no such point, serving its view says so.
                e._pin = harbor.pin(e.record.point.id).ok().map(Arc::new);
                e.record.clone()
            })
            .collect();
        drop(known);
        of_machine
            .iter()
            .filter_map(|record| serve(record, harbor, &description, views).err())
            .map(|e| format!("the view of a takeover cannot be served: {}", e.what))
            .collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let known = guard(&self.known);
        known.values().filter(|e| e.record.drill.is_none()).count()
    }

    /// Those that were made for a drill: name, and the URI of the libvirt it is at.
    pub(crate) fn of_drill(&self, drill: &str) -> Vec<(String, String)> {
        let known = guard(&self.known);
        let of_drill = known
            .values()
            .filter(|e| e.record.drill.as_deref() == Some(drill));
        of_drill
            .map(|e| (e.record.name.clone(), e.record.uri.clone()))
            .collect()
    }

    /// The drills that takeovers were made for.
    pub(crate) fn drills(&self) -> Vec<String> {
        let known = guard(&self.known);
        let drills = known.values().filter_map(|e| e.record.drill.clone());
        drills.collect()
    }

    /// Checks that a takeover is somebody's own, and no drill's.
    pub(crate) fn require_own(&self, name: &str) -> ApiResult<()> {
        match self.get(name)?.record.drill {
            None => Ok(()),
            Some(drill) => Err(ApiError::new(
                ApiErrorKind::FailedPrecondition,
                format!("'{name}' belongs to drill {drill}"),
            )
            .hint(
                "it is removed when the drill ends; one that was kept is removed by drill-discard",
            )),
        }
    }

    /// The takeovers that need a machine's harbor.
    pub(crate) fn of_machine(&self, machine_id: &str) -> Vec<String> {
        let known = guard(&self.known);
        known
            .values()
            .filter(|e| e.record.machine_id == machine_id)
            .map(|e| e.record.name.clone())
            .collect()
    }

    /// Starts a VM from `point` of a machine, as it is asked for.
    pub(crate) fn start(
        &self,
        harbor: &Harbor,
        hypervisor: &Hypervisor,
        views: &Views,
        point: &Point,
        shape: Shape,
    ) -> ApiResult<Started> {
        let description = harbor.description();
        let then = shape::xml_of(harbor, &description, point)?;
        let name = match &shape.name {
            None => format!("{}-takeover-{}", description.name, point.id),
            Some(name) => name.clone(),
        };
        names::check("takeover", &name)?;
        let pin = harbor.pin(point.id).map_err(from_harbor)?;
        let record = self.prepare(&name, hypervisor, views, &description, (point, &shape))?;
        let spec = shape::spec(&record, &shape);
        self.begin(&record, hypervisor, pin)?;
        let started = self.bring_up(record, harbor, hypervisor, views, (&then, spec, shape.mode));
        if started.is_err() {
            // All or nothing: what was made so far goes away again.
            if let Err(error) = self.discard(&name, hypervisor, views) {
                tracing::warn!(name, %error, "a takeover that did not start could not be removed");
            }
        }
        started
    }

    fn prepare(
        &self,
        name: &str,
        hypervisor: &Hypervisor,
        views: &Views,
        description: &MachineDescription,
        (point, shape): (&Point, &Shape),
    ) -> ApiResult<Record> {
        let dir = self.overlay_dir.join(names::component(name));
        let uuid = new_uuid().map_err(from_libvirt)?;
        let come_along = |v: &&VolumeDescription| !shape.leave_out.contains(&v.target);
        let volumes = description.volumes.iter().filter(come_along);
        let disks = volumes.filter_map(|v| {
            Some(Disk {
                target: v.target.clone(),
                now: v.target.clone(),
                overlay: dir.join(format!("{}.qcow2", names::component(&v.target))),
                size: v.size_at(point.seq)?,
            })
        });
        Ok(Record {
            name: name.to_owned(),
            uri: hypervisor.uri().to_owned(),
            machine: description.name.clone(),
            machine_id: description.machine_id.clone(),
            point: point.clone(),
            created: now(),
            socket: views.takeover_socket(&uuid),
            uuid,
            disks: disks.collect(),
            nvram: None,
            console: shape.console.then(|| dir.join("console.log")),
            drill: shape.drill.clone(),
            dir,
        })
    }

    /// Checks that the name is free and writes the record; from here on discard can undo everything.
    fn begin(&self, record: &Record, hypervisor: &Hypervisor, pin: Pin) -> ApiResult<()> {
        let taken = |what: String| {
            Err(ApiError::new(ApiErrorKind::AlreadyExists, what)
                .hint("choose another name with --name"))
        };
        match hypervisor.lookup(&record.name) {
            Ok(_) => return taken(format!("there is a domain '{}' already", record.name)),
            Err(e) if e.kind == ErrorKind::NoSuchDomain => {}
            Err(e) => return Err(from_libvirt(e)),
        }
        let mut known = guard(&self.known);
        if known.contains_key(&record.name) {
            return taken(format!("there is a takeover '{}' already", record.name));
        }
        if record.dir.exists() {
            return taken(format!("{} is there already", record.dir.display()));
        }
        record.save(&self.records)?;
        known.insert(
            record.name.clone(),
            Entry {
                record: record.clone(),
                committing: false,
                _pin: Some(Arc::new(pin)),
            },
        );
        Ok(())
    }

    fn bring_up(
        &self,
        mut record: Record,
        harbor: &Harbor,
        hypervisor: &Hypervisor,
        views: &Views,
        (then, mut spec, mode): (&str, TakeoverSpec, StartMode),
    ) -> ApiResult<Started> {
        let description = harbor.description();
        serve(&record, harbor, &description, views)?;
        make_dir(&record.dir)?;
        if let Some(original) = nvram_of(then).map_err(from_libvirt)? {
            let copy = record.dir.join("nvram.fd");
            record.nvram = Some(copy.clone());
            record.save(&self.records)?;
            fs::copy(&original, &copy).map_err(|e| {
                host(
                    &format!("copy the UEFI variables {}", original.display()),
                    &e,
                )
            })?;
            own(&copy)?;
            spec.nvram = Some(copy);
        }
        for (disk, backing) in record
            .disks
            .iter()
            .zip(spec.disks.iter().filter_map(|d| d.backing.as_ref()))
        {
            create_overlay(&disk.overlay, disk.size, backing, qemu_identity())
                .map_err(from_libvirt)?;
        }
        let edited = takeover_xml::edit(then, &spec)
            .map_err(from_libvirt)
            .map_err(as_asked)?;
        for disk in &mut record.disks {
            if let Some(renamed) = edited.targets.iter().find(|t| t.then == disk.target) {
                disk.now.clone_from(&renamed.now);
            }
        }
        record.save(&self.records)?;
        if let Some(entry) = guard(&self.known).get_mut(&record.name) {
            entry.record = record.clone();
        }
        let domain = hypervisor
            .define_and_start(&edited.xml, mode)
            .map_err(from_libvirt)
            .map_err(as_asked)?;
        Ok(Started {
            record,
            domain,
            dropped: edited.dropped,
        })
    }

    /// A takeover as clients see it.
    pub(crate) fn seen(&self, record: &Record, hypervisor: &Hypervisor) -> v1::Takeover {
        let entry = Entry {
            record: record.clone(),
            committing: false,
            _pin: None,
        };
        self.message(&entry, hypervisor)
    }

    /// Lists all takeovers.
    pub(crate) fn list(
        &self,
        hypervisor: impl Fn(&str) -> ApiResult<Hypervisor>,
    ) -> Vec<v1::Takeover> {
        let all: Vec<Entry> = guard(&self.known).values().cloned().collect();
        let own = all.iter().filter(|entry| entry.record.drill.is_none());
        own.map(|entry| match hypervisor(&entry.record.uri) {
            Ok(hypervisor) => self.message(entry, &hypervisor),
            Err(e) => with_state(&entry.record, "broken", e.what),
        })
        .collect()
    }

    fn message(&self, entry: &Entry, hypervisor: &Hypervisor) -> v1::Takeover {
        let state = domain(&entry.record, hypervisor).and_then(|d| d.state());
        match state {
            Ok(_) if entry.committing => with_state(&entry.record, "committing", String::new()),
            Ok(DomainState::Off) => with_state(&entry.record, "off", String::new()),
            Ok(DomainState::Paused { io_error: true, .. }) => with_state(
                &entry.record,
                "paused",
                "stopped at a disk error; is its view served?".into(),
            ),
            Ok(DomainState::Paused { .. }) => with_state(&entry.record, "paused", String::new()),
            Ok(_) => with_state(&entry.record, "running", String::new()),
            Err(e) => with_state(&entry.record, "broken", sentence(&e)),
        }
    }

    /// Finds the URI of the libvirt a takeover runs on.
    pub(crate) fn uri_of(&self, name: &str) -> ApiResult<String> {
        self.get(name).map(|e| e.record.uri)
    }

    fn get(&self, name: &str) -> ApiResult<Entry> {
        guard(&self.known).get(name).cloned().ok_or_else(|| {
            ApiError::new(
                ApiErrorKind::NotFound,
                format!("there is no takeover '{name}'"),
            )
            .hint("see takeover-list")
        })
    }

    /// Removes the domain and the files of a takeover, which is still known then.
    pub(crate) fn strip(&self, name: &str, hypervisor: &Hypervisor) -> ApiResult<()> {
        strip(&self.get(name)?.record, hypervisor)
    }

    /// Removes all traces of a takeover.
    pub(crate) fn discard(
        &self,
        name: &str,
        hypervisor: &Hypervisor,
        views: &Views,
    ) -> ApiResult<()> {
        let Entry {
            record, committing, ..
        } = self.get(name)?;
        if committing {
            return Err(ApiError::new(
                ApiErrorKind::FailedPrecondition,
                format!("'{name}' is being committed"),
            )
            .hint("wait until the commit has ended"));
        }
        strip(&record, hypervisor)?;
        views.close_takeover(name);
        // One that an earlier daemon served, and nobody since, is still there.
        match fs::remove_file(&record.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(socket = %record.socket.display(), %error, "the socket of a view stays");
            }
            _ => {}
        }
        self.forget(name)
    }

    /// Marks a takeover as being committed, so that nothing else is done with it.
    pub(crate) fn begin_commit(&self, name: &str) -> ApiResult<Point> {
        let mut known = guard(&self.known);
        let entry = known.get_mut(name).ok_or_else(|| {
            ApiError::new(
                ApiErrorKind::NotFound,
                format!("there is no takeover '{name}'"),
            )
            .hint("see takeover-list")
        })?;
        if entry.committing {
            return Err(ApiError::new(
                ApiErrorKind::FailedPrecondition,
                format!("'{name}' is being committed already"),
            ));
        }
        entry.committing = true;
        Ok(entry.record.point.clone())
    }

    /// Pulls the rest of the view into the overlays; then the VM stands on its own and the view is let go.
    pub(crate) fn commit(
        &self,
        name: &str,
        hypervisor: &Hypervisor,
        views: &Views,
        job: &JobHandle,
    ) -> ApiResult<()> {
        let outcome = self.pull(name, hypervisor, job);
        if let Some(entry) = guard(&self.known).get_mut(name) {
            entry.committing = false;
        }
        outcome?;
        views.close_takeover(name);
        self.forget(name)
    }

    fn pull(&self, name: &str, hypervisor: &Hypervisor, job: &JobHandle) -> ApiResult<()> {
        let Entry { record, .. } = self.get(name)?;
        let domain = domain(&record, hypervisor).map_err(from_libvirt)?;
        let total: u64 = record.disks.iter().map(|d| d.size).sum();
        let mut before = 0;
        job.progress(0, total);
        for disk in &record.disks {
            domain
                .block_pull(&disk.now, &mut |p| {
                    job.progress(before + p.done.min(disk.size), total);
                    if job.is_cancelled() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
                .map_err(from_libvirt)?;
            before += disk.size;
            job.progress(before, total);
            job.wrote(disk.overlay.display().to_string());
        }
        Ok(())
    }

    fn forget(&self, name: &str) -> ApiResult<()> {
        record::remove(&self.records, name)?;
        guard(&self.known).remove(name);
        Ok(())
    }
}

/// Where libvirt or QEMU does not take the VM, it is mostly for what the user wanted to be other.
fn as_asked(error: ApiError) -> ApiError {
    match error.hint {
        Some(_) => error,
        None => error.hint("does the host have what was asked for? see --vcpus, --memory, --disk-bus and --network"),
    }
}

fn domain(record: &Record, hypervisor: &Hypervisor) -> Result<Domain, LibvirtError> {
    hypervisor.lookup(&record.uuid)
}

/// Serves the view of a takeover on a socket that QEMU's user can reach.
fn serve(
    record: &Record,
    harbor: &Harbor,
    description: &MachineDescription,
    views: &Views,
) -> ApiResult<v1::View> {
    // Whether it may be damaged was asked when it was started; once it runs, it needs what can be read.
    let view = harbor.view_damaged(record.point.id).map_err(from_harbor)?;
    let access = Access {
        mode: 0o600,
        owner: qemu_identity().map(|u| (u.uid, u.gid)),
    };
    let holder = Holder::Takeover(record.name.clone());
    views.open(
        description,
        view,
        holder,
        Some(record.socket.clone()),
        access,
    )
}

/// Makes the directory of a takeover's overlays; QEMU's user passes through it and sees no more.
fn make_dir(dir: &Path) -> ApiResult<()> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |e: io::Error| host(&format!("make {}", dir.display()), &e);
    fs::create_dir_all(dir).map_err(failed)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(failed)
}

fn own(path: &Path) -> ApiResult<()> {
    let Some(user) = qemu_identity() else {
        return Ok(());
    };
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
        .map_err(|e| host(&format!("give {} to QEMU's user", path.display()), &e))
}

fn with_state(record: &Record, state: &str, detail: String) -> v1::Takeover {
    use std::os::unix::fs::MetadataExt;
    let allocated = |d: &Disk| fs::metadata(&d.overlay).map_or(0, |m| m.blocks() * 512);
    v1::Takeover {
        name: record.name.clone(),
        machine: record.machine.clone(),
        point: Some(messages::point(&record.point)),
        state: state.into(),
        created_ns: messages::time(record.created),
        uuid: record.uuid.clone(),
        overlay_bytes: record.disks.iter().map(allocated).sum(),
        detail,
    }
}

fn strip(record: &Record, hypervisor: &Hypervisor) -> ApiResult<()> {
    let mut files: Vec<PathBuf> = record.disks.iter().map(|d| d.overlay.clone()).collect();
    files.extend(record.nvram.clone());
    files.extend(record.console.clone());
    files.extend(record.console_files());
    files.extend(record.libvirt_logs());
    let traces = Traces {
        uuid: record.uuid.clone(),
        files,
        directories: vec![record.dir.clone()],
    };
    hypervisor.discard(&traces).map_err(from_libvirt)
}
