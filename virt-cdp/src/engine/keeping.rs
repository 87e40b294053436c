//! Points kept and let go by hand, and the policies they are kept by, as a client asks for it.
//!
//! Whatever writes to a harbor does so in a thread beside, for which a caller waits some seconds: a disk that hangs
//! holds up no call.

use std::sync::Arc;

use cdp_core::{Harbor, Point, PointId, retention::Class};

use super::{
    Engine, errors::from_harbor, guard, machine::Machine, messages, moments, policies::InForce,
    tidy,
};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    daemon::policy::{DEFAULT, Policy, SPAN},
    units::format_duration,
};

/// What becomes of a change for which its caller does not wait any longer.
const THEN: &str = "it is changed once it does";

/// Checks a label that a user gives.
pub(crate) fn check_label(label: &str) -> ApiResult<()> {
    match label.chars().find(|c| c.is_control()) {
        None => Ok(()),
        Some(bad) => {
            let what = format!("the label has the character {bad:?} in it");
            Err(ApiError::new(ApiErrorKind::InvalidArgument, what)
                .hint("use one line of printable characters"))
        }
    }
}

impl Engine {
    /// Locks or unlocks points.
    pub(super) fn lock_points(
        &self,
        request: &v1::PointsRequest,
        lock: bool,
    ) -> ApiResult<v1::PointChanges> {
        let (machine, harbor, points) = self.points_meant(&request.name, &request.at)?;
        self.change(&machine, points, move |id| match lock {
            true => harbor.lock_point(id),
            false => harbor.unlock_point(id),
        })
    }

    /// Gives a point another label; an empty one takes away what it has.
    pub(super) fn label_point(
        &self,
        request: &v1::LabelPointRequest,
    ) -> ApiResult<v1::PointChanges> {
        check_label(&request.label)?;
        let at: Vec<v1::At> = request.at.into_iter().collect();
        let (machine, harbor, points) = self.points_meant(&request.name, &at)?;
        let label = Some(request.label.clone()).filter(|label| !label.is_empty());
        self.change(&machine, points, move |id| {
            harbor.label_point(id, label.as_deref())
        })
    }

    /// Changes points one after the other; answers with what they are then.
    fn change(
        &self,
        machine: &Machine,
        points: Vec<Point>,
        change: impl Fn(PointId) -> cdp_core::error::Result<()> + Send + 'static,
    ) -> ApiResult<v1::PointChanges> {
        let harbor = machine.harbor();
        machine.asked.run(THEN, move || {
            let mut changed = Vec::new();
            for point in points {
                change(point.id).map_err(from_harbor)?;
                changed.push(harbor.point(point.id).unwrap_or(point));
            }
            Ok(v1::PointChanges {
                points: changed.iter().map(messages::point).collect(),
            })
        })
    }

    /// Deletes points, all of them or none.
    pub(super) fn delete_points(&self, request: &v1::PointsRequest) -> ApiResult<v1::PointChanges> {
        let (machine, harbor, points) = self.points_meant(&request.name, &request.at)?;
        machine.asked.run(THEN, move || {
            let ids: Vec<PointId> = points.iter().map(|point| point.id).collect();
            harbor.delete_points(&ids).map_err(from_harbor)?;
            Ok(v1::PointChanges {
                points: points.iter().map(messages::point).collect(),
            })
        })
    }

    /// The points that a user means, each once.
    fn points_meant(
        &self,
        name: &str,
        at: &[v1::At],
    ) -> ApiResult<(Arc<Machine>, Harbor, Vec<Point>)> {
        if at.is_empty() {
            let what = "no recovery point is named";
            return Err(ApiError::new(ApiErrorKind::InvalidArgument, what)
                .hint("see 'virt-cdp point-list' for the points there are"));
        }
        let machine = self.machine(name)?;
        let harbor = machine.harbor();
        let meant = at
            .iter()
            .map(|at| moments::resolve(name, &harbor, Some(at)));
        let mut points: Vec<Point> = meant.collect::<ApiResult<_>>()?;
        points.sort_by_key(|point| point.id);
        points.dedup_by_key(|point| point.id);
        Ok((machine, harbor, points))
    }

    /// Lists the policies in force.
    pub(super) fn list_policies(&self) -> ApiResult<v1::PolicyList> {
        let all = self.policies.all()?;
        let policies = all
            .iter()
            .map(|(name, policy)| self.policy_message(name, policy.clone()));
        Ok(v1::PolicyList {
            policies: policies.collect(),
        })
    }

    /// Shows one policy.
    pub(super) fn get_policy(&self, name: &str) -> ApiResult<v1::Policy> {
        Ok(self.policy_message(name, self.policies.require(name)?))
    }

    /// Changes a policy, makes it, or forgets what was set of it.
    pub(super) fn set_policy(&self, request: &v1::SetPolicyRequest) -> ApiResult<v1::Policy> {
        if request.reset {
            let used_by = self.machines_by(&request.name);
            if !self.policies.is_configured(&request.name) && !used_by.is_empty() {
                let what = format!(
                    "policy '{}' is assigned to {}",
                    request.name,
                    used_by.join(", ")
                );
                return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                    .hint("assign another one to them first: policy-assign"));
            }
            let was = self.policies.require(&request.name)?;
            let (policies, name) = (Arc::clone(&self.policies), request.name.clone());
            self.policies
                .asked
                .run(THEN, move || policies.reset(&name))?;
            let now = self.policies.get(&request.name).unwrap_or(was);
            return Ok(self.policy_message(&request.name, now));
        }
        let spans = [
            request.all_ms,
            request.hourly_ms,
            request.daily_ms,
            request.weekly_ms,
            request.monthly_ms,
        ];
        for (class, ms) in Class::ALL.iter().zip(spans) {
            let span = std::time::Duration::from_millis(ms.unwrap_or_default());
            if !SPAN.contains(span) {
                let (_, most) = SPAN.named(format_duration);
                let what = format!("{} for {} is too long", class.name(), format_duration(span));
                return Err(ApiError::new(ApiErrorKind::InvalidArgument, what)
                    .hint(format!("give at most {most}")));
            }
        }
        self.policies
            .set(&request.name, |policy| apply(request, policy))?;
        tracing::info!(policy = request.name, "policy set");
        self.get_policy(&request.name)
    }

    /// Has a machine's points kept by a policy.
    pub(super) fn assign_policy(
        &self,
        request: &v1::AssignPolicyRequest,
    ) -> ApiResult<v1::Machine> {
        let machine = self.machine(&request.name)?;
        self.policies.require(&request.policy)?;
        let (harbor, policy) = (machine.harbor(), request.policy.clone());
        machine.asked.run(THEN, move || {
            // A machine without one follows `default`: nothing needs to be kept for that.
            let named = Some(policy).filter(|name| name != DEFAULT);
            let changed = harbor.update_description(|description| description.policy = named);
            changed.map_err(from_harbor)
        })?;
        tracing::info!(
            machine = machine.name,
            policy = request.policy,
            "policy assigned"
        );
        Ok(messages::machine(&machine))
    }

    /// Says what a policy would remove of a machine's points.
    pub(super) fn preview_policy(
        &self,
        request: &v1::PreviewPolicyRequest,
    ) -> ApiResult<v1::PolicyPreview> {
        let machine = self.machine(&request.name)?;
        let name = match request.policy.as_str() {
            "" => machine.policy().0,
            name => name.to_owned(),
        };
        let in_force = self.policies.require(&name)?;
        let message = self.policy_message(&name, in_force.clone());
        tidy::preview(&machine.harbor(), message, in_force)
    }

    fn policy_message(&self, name: &str, in_force: InForce) -> v1::Policy {
        messages::policy(name, in_force, self.machines_by(name))
    }

    /// The machines whose points are kept by a policy.
    fn machines_by(&self, policy: &str) -> Vec<String> {
        let machines = guard(&self.machines);
        let by = machines
            .values()
            .filter(|machine| machine.policy().0 == policy);
        by.map(|machine| machine.name.clone()).collect()
    }
}

/// Puts what was asked for into a policy; what was not named stays.
fn apply(request: &v1::SetPolicyRequest, policy: &mut Policy) {
    let span = |ms: Option<u64>, now| ms.map_or(now, std::time::Duration::from_millis);
    let keep = &mut policy.keep;
    keep.all = span(request.all_ms, keep.all);
    keep.hourly = span(request.hourly_ms, keep.hourly);
    keep.daily = span(request.daily_ms, keep.daily);
    keep.weekly = span(request.weekly_ms, keep.weekly);
    keep.monthly = span(request.monthly_ms, keep.monthly);
    policy.size_limit = request.size_limit_bytes.unwrap_or(policy.size_limit);
}
