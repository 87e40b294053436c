//! Takeovers of groups: the machines of a plan, all of them at one moment, in the plan's order.

use std::{sync::Arc, time::Instant};

use cdp_core::MachineSource;

use super::group::{self, Moment};
use crate::{
    api::{ApiResult, v1},
    engine::{Engine, takeovers},
};

impl Engine {
    /// Starts the machines of a plan; where one cannot be started, those before it are removed again.
    pub(crate) fn takeover_group(
        self: &Arc<Self>,
        request: &v1::TakeoverGroupRequest,
    ) -> ApiResult<v1::TakeoverGroupReply> {
        let plan = super::plan(&request.plan)?;
        let moment = Moment::At(request.at.unwrap_or_default());
        let taken = group::take(self, &plan, &moment)?;
        let mut made: Vec<(v1::TakeoverReply, String)> = Vec::new();
        for wanted in plan.boot_order() {
            let Some(at) = plan.machines.iter().position(|one| one.name == wanted.name) else {
                continue;
            };
            let Some(one) = taken.get(at) else { continue };
            std::thread::sleep(wanted.delay);
            let started = self.takeover_member(request, wanted, one);
            match started {
                Ok(started) => made.push(started),
                Err(error) => {
                    for (reply, uri) in made {
                        let name = reply.takeover.unwrap_or_default().name;
                        let removed = self.hypervisor(&uri).and_then(|hypervisor| {
                            self.takeovers.discard(&name, &hypervisor, &self.views)
                        });
                        if let Err(error) = removed {
                            tracing::warn!(name, %error, "a takeover of a group that did not start stays");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(v1::TakeoverGroupReply {
            takeovers: made.into_iter().map(|(reply, _)| reply).collect(),
        })
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
