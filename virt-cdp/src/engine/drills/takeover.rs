//! Takeovers of groups: the machines of a plan, all of them at one moment, in the plan's order.
//!
//! All or nothing: where one cannot be started, or the job is cancelled, those before it are removed again.

use std::{sync::Arc, time::Instant};

use cdp_core::MachineSource;
use drill_runner::plan::Plan;

use super::group::{self, Moment};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{Engine, jobs::JobHandle, messages, takeovers},
};

impl Engine {
    /// Starts the machines of a plan, as a job; what can be refused is refused before it starts.
    pub(crate) fn takeover_group(
        self: &Arc<Self>,
        request: v1::TakeoverGroupRequest,
    ) -> ApiResult<v1::Job> {
        let plan = super::plan(&request.plan)?;
        let moment = Moment::At(request.at.unwrap_or_default());
        let taken = group::take(self, &plan, &moment)?;
        let first = taken.first().map(|one| messages::point(&one.point));
        let (name, engine) = (plan.name.clone(), Arc::clone(self));
        self.jobs.start("takeover", &name, first, move |job| {
            let mut made = Vec::new();
            let started = engine.start_group(&request, &plan, &taken, job, &mut made);
            if started.is_err() {
                engine.remove_group(&made);
                job.gave_back();
            }
            started
        })
    }

    /// Starts one machine after the other; notes the name of each, and where it is.
    fn start_group(
        self: &Arc<Self>,
        request: &v1::TakeoverGroupRequest,
        plan: &Plan,
        taken: &[group::Taken],
        job: &JobHandle,
        made: &mut Vec<(String, String)>,
    ) -> ApiResult<()> {
        let cancelled = || Err(ApiError::new(ApiErrorKind::Unavailable, "cancelled"));
        for wanted in plan.boot_order() {
            let at = plan.machines.iter().position(|one| one.name == wanted.name);
            let Some(one) = at.and_then(|at| taken.get(at)) else {
                continue;
            };
            if !job.wait(wanted.delay) {
                return cancelled();
            }
            let (reply, uri) = self.takeover_member(request, wanted, one)?;
            let takeover = reply.takeover.as_ref();
            let name = takeover.map(|one| one.name.clone()).unwrap_or_default();
            made.push((name, uri));
            job.took_over(reply);
        }
        match job.is_cancelled() {
            true => cancelled(),
            false => Ok(()),
        }
    }

    /// Removes the machines of a group that was not started whole.
    fn remove_group(self: &Arc<Self>, made: &[(String, String)]) {
        for (name, uri) in made {
            let removed = self
                .hypervisor(uri)
                .and_then(|hypervisor| self.takeovers.discard(name, &hypervisor, &self.views));
            if let Err(error) = removed {
                tracing::warn!(name, %error, "a takeover of a group that did not start stays");
            }
        }
    }

    fn takeover_member(
        self: &Arc<Self>,
        request: &v1::TakeoverGroupRequest,
        wanted: &drill_runner::plan::MachinePlan,
        one: &group::Taken,
    ) -> ApiResult<(v1::TakeoverReply, String)> {
        let began = Instant::now();
        let harbor = one.machine.harbor();
        let uri = match harbor.description().source {
            MachineSource::Libvirt { uri, .. } => uri,
            MachineSource::Qmp { .. } => self.config.libvirt.uri.clone(),
        };
        let hypervisor = self.hypervisor(&uri)?;
        let single = v1::TakeoverRequest {
            name: wanted.name.clone(),
            new_name: match request.prefix.as_str() {
                "" => String::new(),
                prefix => format!("{prefix}-{}", wanted.name),
            },
            vcpus: wanted.vcpus.unwrap_or(0),
            memory_bytes: wanted.memory.unwrap_or(0),
            network: request.network.clone(),
            mac: request.mac.clone(),
            paused: request.paused,
            ..Default::default()
        };
        let mut shape = takeovers::asked(&single, &hypervisor)?;
        shape.leave_out.clone_from(&wanted.leave_out);
        let (takeovers, views) = (&self.takeovers, &self.views);
        let started = takeovers.start(&harbor, &hypervisor, views, &one.point, shape)?;
        let reply = v1::TakeoverReply {
            takeover: Some(takeovers.seen(&started.record, &hypervisor)),
            dropped: started.dropped,
            ready_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        Ok((reply, uri))
    }
}
