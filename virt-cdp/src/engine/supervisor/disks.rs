//! Disks that are unplugged, plugged in, or taken in while a machine is captured.
//!
//! A disk that is unplugged leaves the others' capture as it is: points from then on are of those that are
//! left. One that is back, or is taken in, needs a new capture, as it has to be read. One that was unplugged and plugged
//! in again unnoticed was not captured in between: a gap since the mirrors were last confirmed.
//!
//! Invariant: a volume's era ends behind the last point that shows it. A crash before the description is written
//! leaves the volume as it was; the next attach finds its disk gone.

use std::time::Instant;

use cdp_core::VolumeId;

use super::{End, Supervisor, mode::DISK_DEADLINE};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{disk_silent, from_harbor, sentence},
        source::{Found, Presence},
        upkeep::{Changes, Task, Upkeep},
        volumes,
    },
};

impl Supervisor {
    /// Brings the capture into line with the disks there are; false when it has ended over it.
    pub(super) fn look_at_disks(&mut self) -> bool {
        let Some(active) = &self.capture else {
            return false;
        };
        if let Some(left_out) = active.upkeep.left_out() {
            self.machine.update(|s| s.left_out = left_out);
        }
        let Changes {
            gone,
            replaced,
            back,
        } = active.upkeep.changes();
        let stays = active.capture.volumes().iter().any(|v| !gone.contains(v));
        if gone.is_empty() && replaced.is_empty() {
            if back.is_empty() || !active.ready {
                return true;
            }
            tracing::info!(machine = self.machine.name, volumes = ?back, "disks are back");
            self.put_down(End::DiskAdded);
            self.look_at = Instant::now();
            return false;
        }
        if active.ready && replaced.is_empty() && stays {
            match self.let_go(&gone) {
                Ok(()) => return true,
                Err(error) => {
                    tracing::warn!(machine = self.machine.name, %error, "the capture starts anew");
                }
            }
        }
        self.capture_anew(&[gone, replaced].concat());
        false
    }

    /// Goes on without the volumes `gone`, whose disks are unplugged.
    fn let_go(&mut self, gone: &[VolumeId]) -> ApiResult<()> {
        let harbor = self.harbor();
        let Some(active) = &mut self.capture else {
            return Ok(());
        };
        let recorder = active.capture.recorder().clone();
        recorder.begin_point_if_written().map_err(from_harbor)?;
        let head = recorder.sync_within(DISK_DEADLINE).map_err(from_harbor)?;
        let changed = harbor.update_description(|description| {
            let volumes = description.volumes.iter_mut();
            volumes
                .filter(|v| gone.contains(&v.id))
                .for_each(|volume| volume.change(head, None));
        });
        changed.map_err(from_harbor)?;
        // It works on the bitmaps of all volumes.
        active.upkeep.stop();
        for node in active.capture.let_go(gone) {
            let monitor = active.capture.monitor();
            self.setting.source.clear_unplugged(monitor, &node);
        }
        let task = Task {
            qemu: active.capture.qemu_side().into(),
            confirmed: active.upkeep.confirmed(),
            here: active.upkeep.here(),
            ..active.task.clone()
        };
        active.task = task.clone();
        active.upkeep = Upkeep::start(task).map_err(|e| {
            let what = format!("cannot start a thread: {e}");
            ApiError::new(ApiErrorKind::ResourceExhausted, what)
        })?;
        tracing::info!(machine = self.machine.name, volumes = ?gone, "disks were unplugged");
        let attached = active.capture.volumes();
        self.machine.update(|s| s.attached = attached);
        Ok(())
    }

    /// Ends a capture whose disks have changed under it; the next one is of those that are there.
    fn capture_anew(&mut self, changed: &[VolumeId]) {
        let Some(active) = &self.capture else {
            return;
        };
        tracing::warn!(machine = self.machine.name, volumes = ?changed, "disks have changed");
        let nodes = active.capture.tapped();
        self.put_down(End::TapLost);
        if let Ok(monitor) = self.setting.source.monitor() {
            let held = nodes.iter().filter(|(id, _)| changed.contains(id));
            for (_, node) in held {
                self.setting.source.clear_unplugged(&*monitor, node);
            }
        }
        self.look_at = Instant::now();
    }

    /// Takes disks into the protection that are not volumes yet, named by their targets.
    pub(super) fn take_in(&mut self, targets: &[String]) -> ApiResult<()> {
        let refused = |what: String| ApiError::new(ApiErrorKind::FailedPrecondition, what);
        if !self.capture.as_ref().is_some_and(|active| active.ready) {
            let state = self.machine.status().state.name();
            let what = format!("'{}' is {state}", self.machine.name);
            return Err(refused(what).hint("a disk is taken in while the machine is protected"));
        }
        let found = self.setting.source.disks()?;
        let harbor = self.harbor();
        let before = harbor.description();
        let chosen = targets
            .iter()
            .map(|target| chosen(&self.machine.name, &found, target))
            .collect::<ApiResult<Vec<_>>>()?;
        if !self.put_down(End::DiskAdded) {
            return Err(disk_silent("no disk is taken in meanwhile"));
        }
        let head = harbor.head();
        let changed = harbor.update_description(|description| {
            for (target, node) in chosen {
                let late = volumes::late(description, target, node, head);
                description.volumes.push(late);
            }
        });
        changed.map_err(from_harbor)?;
        self.look_at = Instant::now();
        self.try_capture().inspect_err(|_| {
            let back =
                harbor.update_description(|description| description.volumes = before.volumes);
            if let Err(error) = back {
                let error = sentence(&error);
                tracing::warn!(machine = self.machine.name, error, "a disk stays taken in");
            }
        })
    }

    /// Fits the volumes to the disks found, before a capture.
    pub(super) fn fit_volumes(&self, found: &[Found]) -> ApiResult<()> {
        let harbor = self.harbor();
        let description = harbor.description();
        let fitted = volumes::fit(&description.volumes, found, harbor.head(), |id| {
            harbor.has_base(id)
        })?;
        if fitted == description.volumes {
            return Ok(());
        }
        tracing::info!(machine = self.machine.name, volumes = ?fitted, "the disks have changed");
        let changed = harbor.update_description(|description| description.volumes = fitted);
        changed.map_err(from_harbor)
    }

    /// Asks whether the machine runs, and what it is called.
    pub(super) fn presence(&self) -> Presence {
        let name = self.setting.source.name();
        if name.is_some() {
            self.machine.update(|s| s.called = name);
        }
        self.setting.source.presence()
    }
}

/// The node of a disk that is to be taken in.
fn chosen<'a>(
    machine: &str,
    found: &'a [Found],
    target: &'a str,
) -> ApiResult<(&'a str, &'a qemu_hook::node::Node)> {
    use qemu_hook::node::Verdict;
    let Some(disk) = found.iter().find(|f| f.target == target) else {
        let names: Vec<&str> = found.iter().map(|f| f.target.as_str()).collect();
        let what = format!("'{machine}' has no disk '{target}'");
        return Err(ApiError::new(ApiErrorKind::NotFound, what)
            .hint(format!("it has: {}", names.join(", "))));
    };
    match &disk.verdict {
        Verdict::Protectable(node) => Ok((target, node)),
        Verdict::LeftOut(reason) | Verdict::Refused(reason) => {
            let what = format!("disk {target} cannot be protected: {reason}");
            Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                .hint("leave it out of --disk"))
        }
    }
}
