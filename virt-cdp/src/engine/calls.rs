//! The calls of the API, each handed to the part of the engine that does it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cdp_core::{MachineSource, Mode, machine::FORMAT_VERSION};
use libvirt_driver::apparmor;

use super::{
    Engine,
    drills::{self, Moment, Wish},
    export::{self, view_of},
    guard,
    keeping::check_label,
    machine::{Machine, OBEY_DEADLINE, PointWish, State},
    messages, moments,
    quiesce::Made,
    space, takeovers, tidy, verify,
    views::Holder,
};
use crate::{
    api::{self, ApiResult, v1},
    daemon::{config::Config, peer::Peer},
};

/// Said where AppArmor runs without our rules.
const APPARMOR_PROBLEM: &str = "AppArmor keeps QEMU from the sockets of views, so takeovers will not start: run \
    'virt-cdp host-install', which adds our rules to /etc/apparmor.d/local/abstractions/libvirt-qemu";

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
        problems.extend(engine.room.low().map(|low| low.to_string()));
        let policies = engine.policies.problem();
        let are_known = policies.is_none();
        problems.extend(policies);
        for machine in &machines {
            let status = machine.status();
            if status.state == State::Failed {
                problems.push(format!(
                    "machine '{}' is not captured: {}",
                    machine.name, status.detail
                ));
            }
            let of_machine = |what| format!("machine '{}': {what}", machine.name);
            if are_known {
                problems.extend(tidy::problems(machine).into_iter().map(of_machine));
            }
        }
        problems.extend(engine.markers.problems());
        if !engine.watch.guard_stands() {
            problems.push(
                "there is no guard process: guests would wait for a daemon that is stopped".into(),
            );
        }
        if apparmor::apparmor_active() && !apparmor::apparmor_rules_installed() {
            problems.push(APPARMOR_PROBLEM.into());
        }
        let protected = machines
            .iter()
            .filter(|m| m.status().state == State::Protected)
            .count();
        let seen = engine.lookout.latest();
        Ok(v1::StatusReply {
            state_dir: engine.config.state_dir.display().to_string(),
            machines: count(machines.len()),
            machines_protected: count(protected),
            views: count(engine.views.list().len()),
            takeovers: count(engine.takeovers.count()),
            jobs_running: count(engine.jobs.running()),
            drills_running: count(engine.drills.count()),
            report_key: engine.drills.store().public_key().to_string(),
            free_bytes: engine.room.known().map_or(0, |room| room.space.free),
            problems,
            alerts: seen.alert_list(),
            protection: seen.protection(),
            ..Default::default()
        })
    }

    fn metrics(&self) -> String {
        self.0.exposition()
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
        let machine = self.0.machine(&request.name)?;
        let harbor = machine.harbor();
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
        let (gaps, coverage) = moments::covered(&machine, &points, (from, to), truncated);
        Ok(v1::PointList {
            points: points.iter().map(messages::point).collect(),
            truncated,
            gaps,
            coverage,
        })
    }

    fn create_point(&self, request: v1::CreatePointRequest) -> ApiResult<v1::CreatePointReply> {
        check_label(&request.label)?;
        let label = (!request.label.is_empty()).then_some(request.label);
        let machine = self.0.machine(&request.name)?;
        let made = match request.quiesce {
            true => self.0.quiesced_point(&machine, label)?,
            false => {
                let wish = PointWish { label, still: None };
                let point = machine.point(wish)?;
                Made {
                    point,
                    note: String::new(),
                    frozen: Duration::ZERO,
                }
            }
        };
        machine.wait_confirmed(&made.point)?;
        Ok(v1::CreatePointReply {
            point: Some(messages::point(&made.point)),
            note: made.note,
            frozen_ms: u64::try_from(made.frozen.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn lock_points(&self, request: v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        self.0.lock_points(&request, true)
    }

    fn unlock_points(&self, request: v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        self.0.lock_points(&request, false)
    }

    fn label_point(&self, request: v1::LabelPointRequest) -> ApiResult<v1::PointChanges> {
        self.0.label_point(&request)
    }

    fn delete_points(&self, request: v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        self.0.delete_points(&request)
    }

    fn list_policies(&self) -> ApiResult<v1::PolicyList> {
        self.0.list_policies()
    }

    fn get_policy(&self, request: v1::PolicyRequest) -> ApiResult<v1::Policy> {
        self.0.get_policy(&request.name)
    }

    fn set_policy(&self, request: v1::SetPolicyRequest) -> ApiResult<v1::Policy> {
        self.0.set_policy(&request)
    }

    fn assign_policy(&self, request: v1::AssignPolicyRequest) -> ApiResult<v1::Machine> {
        self.0.assign_policy(&request)
    }

    fn preview_policy(&self, request: v1::PreviewPolicyRequest) -> ApiResult<v1::PolicyPreview> {
        self.0.preview_policy(&request)
    }

    fn open_view(&self, request: v1::OpenViewRequest) -> ApiResult<v1::View> {
        let harbor = self.0.machine(&request.name)?.harbor();
        let point = moments::resolve(&request.name, &harbor, request.at.as_ref())?;
        let view = view_of(&harbor, &point, request.damaged)?;
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

    fn verify(&self, request: v1::VerifyRequest) -> ApiResult<v1::Job> {
        let machine = self.0.machine(&request.name)?;
        verify::start(&self.0.jobs, &machine, &request)
    }

    fn get_space(&self, request: v1::SpaceRequest) -> ApiResult<v1::Space> {
        space::space(&*self.0.machine(&request.name)?, &request)
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
        // Before anything is made of it.
        view_of(&harbor, &point, request.damaged)?;
        let uri = match harbor.description().source {
            MachineSource::Libvirt { uri, .. } => uri,
            MachineSource::Qmp { .. } => self.0.config.libvirt.uri.clone(),
        };
        let hypervisor = self.0.hypervisor(&uri)?;
        let shape = takeovers::asked(&request, &hypervisor)?;
        let (takeovers, views) = (&self.0.takeovers, &self.0.views);
        let started = takeovers.start(&harbor, &hypervisor, views, &point, shape)?;
        let takeover = takeovers.seen(&started.record, &hypervisor);
        let dropped = started.dropped;
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
        self.0.takeovers.require_own(&request.name)?;
        let hypervisor = self
            .0
            .hypervisor(&self.0.takeovers.uri_of(&request.name)?)?;
        self.0
            .takeovers
            .discard(&request.name, &hypervisor, &self.0.views)
    }

    fn commit_takeover(&self, request: v1::TakeoverNameRequest) -> ApiResult<v1::Job> {
        self.0.takeovers.require_own(&request.name)?;
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

    fn run_drill(&self, request: v1::DrillRequest, peer: Peer) -> ApiResult<v1::Job> {
        let at = request.at.unwrap_or_default();
        self.0.drill(Wish {
            plan: drills::plan(&request.plan)?,
            moment: match request.until {
                None => Moment::At(at),
                Some(until) => Moment::Random(at, until),
            },
            reason: match request.reason.as_str() {
                "" => "by hand".into(),
                reason => reason.into(),
            },
            asker: Some(peer),
        })
    }

    fn list_drills(&self, request: v1::ListDrillsRequest) -> ApiResult<v1::DrillList> {
        self.0.list_drills(&request)
    }

    fn get_drill_document(
        &self,
        request: v1::DrillDocumentRequest,
    ) -> ApiResult<v1::DrillDocument> {
        self.0.drill_document(&request)
    }

    fn discard_drill(&self, request: v1::DrillIdRequest) -> ApiResult<()> {
        self.0.discard_drill(&request.id)
    }

    fn bisect(&self, request: v1::BisectRequest, peer: Peer) -> ApiResult<v1::Job> {
        self.0.bisect(request, peer)
    }

    fn takeover_group(&self, request: v1::TakeoverGroupRequest) -> ApiResult<v1::Job> {
        self.0.takeover_group(request)
    }

    fn hint_domain(&self, hint: v1::DomainHint) {
        tracing::debug!(domain = hint.name, what = hint.what, "libvirt's hook");
        self.0.expect(&hint.name);
    }

    fn hand_over(&self) {
        self.0.jobs.cancel_all();
        self.0.views.close_all();
        let machines: Vec<Arc<Machine>> = guard(&self.0.machines).values().cloned().collect();
        machines.iter().for_each(|m| m.begin_hand_over());
        let give_up = Instant::now() + OBEY_DEADLINE;
        machines.iter().for_each(|m| m.join(give_up));
        if let Err(error) = self.0.watch.hand_over() {
            tracing::error!(%error, "there is no guard to hand over to; the taps end");
        }
    }

    fn shutdown(&self) {
        self.0.jobs.cancel_all();
        self.0.drills.stop();
        let machines: Vec<Arc<Machine>> = guard(&self.0.machines).values().cloned().collect();
        machines.iter().for_each(|m| m.begin_shutdown());
        let give_up = Instant::now() + OBEY_DEADLINE;
        machines.iter().for_each(|m| m.join(give_up));
        self.0.views.close_all();
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
