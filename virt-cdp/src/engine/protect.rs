//! Protecting a machine and letting it go: what is checked before, what is made and removed.
//!
//! Invariant: a call that is refused has changed nothing; a harbor that was made for it is gone again.

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use cdp_core::{
    Harbor, MachineDescription, MachineSource, Mode, VolumeDescription, VolumeId,
    machine::FORMAT_VERSION_OLDEST,
};
use qemu_hook::{node::Verdict, read_export};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        Engine,
        errors::{from_harbor, from_libvirt, sentence},
        guard,
        machine::{COMMAND_DEADLINE, Command, Machine, now},
        messages, names,
        pace::{self, PaceWish},
        source::{Found, Presence},
    },
    units::format_size,
};

/// Bytes a harbor must have for its journal beside the base points.
const JOURNAL_ROOM: u64 = 16 << 20;

/// A machine as it was asked for.
struct Asked {
    name: String,
    source: MachineSource,
    /// Targets to protect; empty: all that can be.
    targets: Vec<String>,
    /// Whether the targets are nodes that the user named.
    by_node: bool,
}

impl Engine {
    /// Starts to protect a machine; the seed goes on after the return.
    pub(crate) fn protect(
        self: &Arc<Self>,
        request: &v1::ProtectRequest,
    ) -> ApiResult<v1::Machine> {
        let wish = PaceWish::of(request)?;
        let asked = match self.asked(request) {
            Ok(asked) => asked,
            // A machine need not run, nor libvirt answer, for what is in its harbor to be changed.
            Err(error) if !wish.is_empty() && names_only(request) => {
                let machine = self.under_protection(&request.name).ok_or(error)?;
                return pace::changed(&machine, wish, || Ok(()))
                    .map(|()| messages::machine(&machine));
            }
            Err(error) => return Err(error),
        };
        let _roster = guard(&self.roster);
        if let Some(known) = self.known(&asked, wish)? {
            return pace::changed(&known, wish, || self.protect_again(&known, request))
                .map(|()| messages::machine(&known));
        }
        let nodes = if asked.by_node {
            asked.targets.clone()
        } else {
            Vec::new()
        };
        let placeholders: Vec<VolumeDescription> = nodes
            .iter()
            .map(|n| volume(0, n, 1, Some(n.clone())))
            .collect();
        let source = self.source(&asked.source, &placeholders)?;
        match source.presence() {
            Presence::Running(_) => {}
            Presence::Off(_) => return Err(off(&asked)),
            Presence::Migrating => {
                let what = format!("'{}' is being migrated", asked.name);
                return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                    .hint("wait until it has come, or protect it where it goes"));
            }
            Presence::Unknown(reason) => {
                return Err(ApiError::new(ApiErrorKind::Unavailable, reason));
            }
        }
        let found = source.disks()?;
        let (volumes, left_out) = choose(&asked, &found)?;
        self.require_room(&asked, &volumes, &found)?;
        read_export::require_free(&*source.monitor()?).map_err(|e| {
            ApiError::new(ApiErrorKind::FailedPrecondition, format!("'{}' cannot be read: {}", asked.name, sentence(&e)))
                .hint("QEMU has one NBD server: wait for the backup or migration, or export by vhost-user or FUSE")
        })?;
        // One connection at a time: the supervisor makes its own.
        let definition = source.look()?.definition;
        drop(source);
        let harbor = self.create_harbor(&asked, wish, volumes)?;
        if let Some(xml) = definition {
            harbor.record_xml(&xml).map_err(from_harbor)?;
        }
        let dir = harbor.dir().to_path_buf();
        let started = self
            .look_after(harbor, left_out)
            .and_then(|machine| machine.ask(Command::Start).map(|()| machine));
        started
            .map(|machine| messages::machine(&machine))
            .map_err(|error| {
                self.forget(&asked.name);
                remove_harbor(&dir).err().unwrap_or(error)
            })
    }

    fn asked(self: &Arc<Self>, request: &v1::ProtectRequest) -> ApiResult<Asked> {
        names::check("machine", &request.name)?;
        let invalid = |what: &str, hint: &str| {
            Err(ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint))
        };
        if request.qmp_socket.is_empty() {
            if !request.nodes.is_empty() {
                return invalid(
                    "--node needs --qmp",
                    "use --disk for the disks of a libvirt domain",
                );
            }
            let uri = self.config.libvirt.uri.clone();
            let domain = self
                .hypervisor(&uri)?
                .lookup(&request.name)
                .map_err(from_libvirt)?;
            return Ok(Asked {
                name: domain.name().to_owned(),
                source: MachineSource::Libvirt {
                    uri,
                    uuid: domain.uuid().to_owned(),
                },
                targets: request.disks.clone(),
                by_node: false,
            });
        }
        let socket = PathBuf::from(&request.qmp_socket);
        if !socket.is_absolute() {
            return invalid(
                "the QMP socket's path is not absolute",
                "give the whole path to --qmp",
            );
        }
        if !request.nodes.is_empty() && !request.disks.is_empty() {
            return invalid(
                "--disk and --node exclude each other",
                "name devices, or nodes",
            );
        }
        let by_node = !request.nodes.is_empty();
        let targets = if by_node {
            request.nodes.clone()
        } else {
            request.disks.clone()
        };
        Ok(Asked {
            name: request.name.clone(),
            source: MachineSource::Qmp { socket },
            targets,
            by_node,
        })
    }

    /// The machine of that name or source, if there is one.
    fn known(&self, asked: &Asked, wish: PaceWish) -> ApiResult<Option<Arc<Machine>>> {
        let machines = guard(&self.machines);
        let same = |m: &&Arc<Machine>| m.description().source == asked.source;
        let Some(found) = machines
            .get(&asked.name)
            .or_else(|| machines.values().find(same))
        else {
            return Ok(None);
        };
        let description = found.description();
        let same_source = description.source == asked.source;
        let has_new = !new_targets(&description, &asked.targets).is_empty();
        if same_source && (has_new && !asked.by_node || !has_new && !wish.is_empty()) {
            return Ok(Some(Arc::clone(found)));
        }
        if description.mode != Mode::Released {
            let what = format!("'{}' is already protected", description.name);
            return Err(ApiError::new(ApiErrorKind::AlreadyExists, what)
                .hint(format!("see 'virt-cdp info {}'", description.name)));
        }
        if !same_source {
            let what = format!(
                "there is a harbor '{}' of another machine",
                description.name
            );
            return Err(ApiError::new(ApiErrorKind::AlreadyExists, what).hint(
                "remove it with 'virt-cdp unprotect NAME --delete', or choose another name",
            ));
        }
        Ok(Some(Arc::clone(found)))
    }

    /// Goes on with the harbor of a machine that was unprotected, where what was missed is read; takes new disks
    /// into one that is protected.
    fn protect_again(&self, machine: &Arc<Machine>, request: &v1::ProtectRequest) -> ApiResult<()> {
        let description = machine.description();
        if description.mode != Mode::Released {
            let new = new_targets(&description, &request.disks);
            if new.is_empty() {
                return Ok(());
            }
            self.room.require()?;
            return machine.ask(|answer| Command::TakeIn(new, answer));
        }
        let kept: Vec<String> = description
            .volumes
            .iter()
            .map(|v| v.target.clone())
            .collect();
        let asked: Vec<&String> = request.disks.iter().chain(&request.nodes).collect();
        if !asked.is_empty()
            && (asked.len() != kept.len() || asked.iter().any(|a| !kept.contains(a)))
        {
            let what = format!(
                "the harbor of '{}' has the disks {}",
                machine.name,
                kept.join(", ")
            );
            return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                .hint("protect it without --disk, or remove the harbor with 'virt-cdp unprotect NAME --delete'"));
        }
        self.room.require()?;
        machine.ask(|answer| Command::SetMode(Mode::Active, answer))?;
        if let Err(error) = machine.ask(Command::Start) {
            machine.ask(|answer| Command::SetMode(Mode::Released, answer))?;
            return Err(error);
        }
        Ok(())
    }

    /// Refuses a seed for which there is no room, or that is bound to use up what there is.
    fn require_room(
        &self,
        asked: &Asked,
        volumes: &[VolumeDescription],
        found: &[Found],
    ) -> ApiResult<()> {
        let allocated = |disk: &&Found| match &disk.verdict {
            Verdict::Protectable(node) => node.allocated,
            _ => None,
        };
        let chosen = found
            .iter()
            .filter(|f| volumes.iter().any(|v| v.target == f.target));
        let needed = chosen
            .filter_map(|f| allocated(&f))
            .sum::<u64>()
            .saturating_add(JOURNAL_ROOM);
        self.room.require()?;
        let Ok((free, reserve)) = self.room.free() else {
            return Ok(());
        };
        if free.saturating_sub(reserve) >= needed {
            return Ok(());
        }
        let what = format!(
            "no space for the harbor of '{}': the disks take {}, {} has {} left, and {} are kept free",
            asked.name,
            format_size(needed - JOURNAL_ROOM),
            self.harbors.display(),
            format_size(free),
            format_size(reserve)
        );
        Err(ApiError::new(ApiErrorKind::ResourceExhausted, what)
            .hint("make room on that file system, or set state_dir to a larger one"))
    }

    fn create_harbor(
        &self,
        asked: &Asked,
        wish: PaceWish,
        volumes: Vec<VolumeDescription>,
    ) -> ApiResult<Harbor> {
        let mut description = MachineDescription {
            format_version: FORMAT_VERSION_OLDEST,
            name: asked.name.clone(),
            machine_id: libvirt_driver::takeover::new_uuid().map_err(from_libvirt)?,
            point_interval_ms: u64::try_from(self.config.capture.point_interval.as_millis())
                .unwrap_or(u64::MAX),
            created: now(),
            mode: Mode::Active,
            ack: None,
            flush_interval_ms: None,
            policy: None,
            source: asked.source.clone(),
            volumes,
        };
        wish.apply(&mut description);
        let dir = self.harbors.join(names::component(&asked.name));
        Harbor::create(&dir, &description, self.options()).map_err(from_harbor)
    }

    /// Ends the protection; the harbor stays unless it is to be deleted.
    pub(crate) fn unprotect(&self, request: &v1::UnprotectRequest) -> ApiResult<()> {
        let _roster = guard(&self.roster);
        let machine = self.machine(&request.name)?;
        let description = machine.description();
        if !request.delete {
            if description.mode == Mode::Released {
                let what = format!("'{}' is not protected any more", request.name);
                return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                    .hint("what was kept is still there; --delete removes it"));
            }
            return machine.ask(|answer| Command::SetMode(Mode::Released, answer));
        }
        let mut users = self.views.holders(&request.name);
        users.extend(
            self.takeovers
                .of_machine(&description.machine_id)
                .iter()
                .map(|t| format!("takeover '{t}'")),
        );
        if !users.is_empty() {
            let what = format!(
                "the harbor of '{}' is in use: {}",
                request.name,
                users.join(", ")
            );
            return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                .hint("close the views, and commit or discard the takeovers, first"));
        }
        match machine.ask(|answer| Command::SetMode(Mode::Released, answer)) {
            // A full disk must not keep anybody from making room on it.
            Err(e) if e.kind == ApiErrorKind::ResourceExhausted => {
                tracing::warn!(
                    machine = request.name,
                    error = e.what,
                    "deleted without being released first"
                );
            }
            released => released?,
        }
        let dir = machine.harbor().dir().to_path_buf();
        drop(machine);
        self.forget(&request.name);
        remove_harbor(&dir)
    }

    /// Puts a machine down and takes it off the list.
    fn forget(&self, name: &str) {
        let machine = guard(&self.machines).remove(name);
        if let Some(machine) = machine {
            machine.begin_shutdown();
            let give_up = Instant::now() + COMMAND_DEADLINE;
            machine.join(give_up);
            machine.close(give_up);
            self.watch.forget(&machine.id);
        }
    }

    /// Suspends or resumes a machine.
    pub(crate) fn set_mode(&self, name: &str, mode: Mode) -> ApiResult<v1::Machine> {
        let machine = self.machine(name)?;
        let now = machine.description().mode;
        let refused = |what: String, hint: &str| {
            Err(ApiError::new(ApiErrorKind::FailedPrecondition, what).hint(hint.to_owned()))
        };
        match (now, mode) {
            (Mode::Released, _) => {
                return refused(
                    format!("'{name}' is not protected any more"),
                    "protect it again first",
                );
            }
            (Mode::Suspended, Mode::Suspended) => {
                return refused(
                    format!("'{name}' is suspended already"),
                    "use resume to go on",
                );
            }
            (Mode::Active, Mode::Active) => {
                return refused(
                    format!("'{name}' is not suspended"),
                    "see 'virt-cdp info' for its state",
                );
            }
            _ => {}
        }
        machine.ask(|answer| Command::SetMode(mode, answer))?;
        Ok(messages::machine(&machine))
    }
}

/// Tells whether a request says nothing of where the machine is and which disks are meant.
fn names_only(request: &v1::ProtectRequest) -> bool {
    request.qmp_socket.is_empty() && request.disks.is_empty() && request.nodes.is_empty()
}

/// The targets that are no volumes of the machine.
fn new_targets(description: &MachineDescription, targets: &[String]) -> Vec<String> {
    let is_new = |t: &&String| !description.volumes.iter().any(|v| v.target == **t);
    targets.iter().filter(is_new).cloned().collect()
}

/// Which of the found disks become volumes, and what is said of the others.
fn choose(asked: &Asked, found: &[Found]) -> ApiResult<(Vec<VolumeDescription>, Vec<String>)> {
    let refuse = |what: String, hint: String| {
        Err(ApiError::new(ApiErrorKind::FailedPrecondition, what).hint(hint))
    };
    let names: Vec<&str> = found.iter().map(|f| f.target.as_str()).collect();
    if let Some(twice) = asked
        .targets
        .iter()
        .enumerate()
        .find(|(at, t)| asked.targets[..*at].contains(t))
    {
        return Err(ApiError::new(
            ApiErrorKind::InvalidArgument,
            format!("'{}' is named twice", twice.1),
        )
        .hint("name every disk once"));
    }
    if let Some(unknown) = asked.targets.iter().find(|t| !names.contains(&t.as_str())) {
        return Err(ApiError::new(
            ApiErrorKind::NotFound,
            format!("'{}' has no disk '{unknown}'", asked.name),
        )
        .hint(format!("it has: {}", names.join(", "))));
    }
    let (mut volumes, mut left_out) = (Vec::new(), Vec::new());
    for disk in found {
        let named = asked.targets.contains(&disk.target);
        if !named && !asked.targets.is_empty() {
            left_out.push(disk.left_out(&asked.name));
            continue;
        }
        match &disk.verdict {
            Verdict::Protectable(node) => {
                let id = u16::try_from(volumes.len()).unwrap_or(u16::MAX);
                let by_node = asked.by_node.then(|| disk.target.clone());
                let mut volume = volume(id, &disk.target, node.size, by_node);
                volume.original_format = Some(node.format.clone());
                volume.original_path = Some(node.image.clone());
                volumes.push(volume);
            }
            Verdict::LeftOut(reason) if named => {
                return refuse(
                    format!("disk {} cannot be protected: {reason}", disk.target),
                    "leave it out of --disk".into(),
                );
            }
            Verdict::LeftOut(_) => left_out.push(disk.left_out(&asked.name)),
            Verdict::Refused(reason) => {
                return refuse(
                    format!("disk {} cannot be protected: {reason}", disk.target),
                    "mend that, or choose the other disks with --disk".into(),
                );
            }
        }
    }
    if volumes.is_empty() {
        return refuse(
            format!("'{}' has no disk that can be protected", asked.name),
            if left_out.is_empty() {
                "it has no disks at all".into()
            } else {
                left_out.join("; ")
            },
        );
    }
    Ok((volumes, left_out))
}

fn volume(id: u16, target: &str, size: u64, node: Option<String>) -> VolumeDescription {
    VolumeDescription {
        node,
        ..VolumeDescription::new(VolumeId(id), target, size)
    }
}

fn off(asked: &Asked) -> ApiError {
    match &asked.source {
        MachineSource::Libvirt { .. } => ApiError::new(
            ApiErrorKind::FailedPrecondition,
            format!("domain '{}' is off", asked.name),
        )
        .hint(format!("start it first: virsh start {}", asked.name)),
        MachineSource::Qmp { socket } => ApiError::new(
            ApiErrorKind::FailedPrecondition,
            format!("no QEMU answers at {}", socket.display()),
        )
        .hint("give the QMP socket of a running QEMU or qemu-storage-daemon"),
    }
}

fn remove_harbor(dir: &std::path::Path) -> ApiResult<()> {
    fs::remove_dir_all(dir).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(ApiError::new(
            ApiErrorKind::Internal,
            format!("cannot remove the harbor {}: {e}", dir.display()),
        )),
    })
}
