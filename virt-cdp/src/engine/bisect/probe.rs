//! One look at a point: a drill of it, or a program of the host on a view of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use cdp_core::Point;
use drill_runner::{
    check::{self, Clock, Facts, Place},
    isolation::MARKER,
    outcome::{BISECT, Verdict},
    plan::{CheckPlan, MachinePlan, Plan, PointChoice},
    stage::{Guest, Life, StageError, Volume},
};
use serde_json::Value;

use super::{Bisection, Probe, marker, progress::Found};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        drills::{Moment, Taken, Wish},
        errors::from_harbor,
        export::view_of,
        jobs::JobHandle,
        views::{Access, Holder},
    },
};

impl Bisection {
    pub(super) fn probe(&self, point: &Point, job: &JobHandle) -> ApiResult<Found> {
        match &self.probe {
            Probe::Drill(checks) => self.drill(point, checks, job),
            Probe::Script(check) => self.script(point, check, job),
        }
    }

    fn drill(&self, point: &Point, checks: &[CheckPlan], job: &JobHandle) -> ApiResult<Found> {
        let machine = MachinePlan {
            checks: checks.to_vec(),
            ..MachinePlan::of(&self.machine.name)
        };
        let at = v1::At {
            at: Some(v1::at::At::Point(point.id.0)),
        };
        view_of(&self.machine.harbor(), point, false)?;
        let wish = Wish {
            plan: Plan::of_one(machine, PointChoice::At(vec![point.id.to_string()])),
            moment: Moment::At(at),
            reason: BISECT.into(),
            asker: Some(self.peer),
        };
        let taken = vec![Taken::new(Arc::clone(&self.machine), point.clone())?];
        let report = self.engine.hold(wish, taken, job)?;
        match report.verdict {
            Verdict::Proved => Ok(Found {
                passed: true,
                why: String::new(),
                drill: report.id,
            }),
            Verdict::Failed => Ok(Found {
                passed: false,
                why: report.why,
                drill: report.id,
            }),
            _ => Err(ApiError::new(ApiErrorKind::Unavailable, report.why)),
        }
    }

    fn script(&self, point: &Point, check: &CheckPlan, job: &JobHandle) -> ApiResult<Found> {
        let (harbor, views) = (self.machine.harbor(), &self.engine.views);
        let description = harbor.description();
        let run_as = (self.peer.uid != 0).then_some((self.peer.uid, self.peer.gid));
        let view = harbor.view(point.id).map_err(from_harbor)?;
        let access = Access {
            mode: 0o600,
            owner: run_as,
        };
        let view = views.open(&description, view, Holder::User, None, access)?;
        let volumes = view.volumes.iter().map(|volume| Volume {
            target: volume.target.clone(),
            size_bytes: volume.size_bytes,
            uri: volume.uri.clone(),
        });
        let guest = Shown(volumes.collect());
        let facts = Facts {
            drill: String::new(),
            machine: self.machine.name.clone(),
            point: point.id.to_string(),
            point_time: point.time.to_string(),
            ..Facts::default()
        };
        let is_cancelled = || job.is_cancelled();
        let place = Place {
            guest: &guest,
            facts: &facts,
            run_as,
            plugins: Path::new("/nonexistent"),
            dir: Path::new("/nonexistent"),
            clock: Clock {
                began: Instant::now(),
            },
            is_cancelled: &is_cancelled,
            marker: &(MARKER.to_owned(), marker(&self.notes)),
        };
        let report = check::run(check, &place, &mut |_| {});
        // It may have been closed from outside.
        let _ = views.close(&view.id);
        match report.verdict {
            Verdict::Proved => Ok(Found {
                passed: true,
                why: String::new(),
                drill: String::new(),
            }),
            Verdict::Failed => Ok(Found {
                passed: false,
                why: report.why,
                drill: String::new(),
            }),
            _ => Err(ApiError::new(ApiErrorKind::Unavailable, report.why)),
        }
    }
}

/// A view without a machine, as a script's check sees it.
struct Shown(Vec<Volume>);

impl Guest for Shown {
    fn life(&self) -> Life {
        Life::Running
    }

    fn agent(&self, _: &Value, _: std::time::Duration) -> Result<Value, StageError> {
        Err(StageError::Off(
            "there is no machine, only its disks".into(),
        ))
    }

    fn screenshot(&self) -> Result<Vec<u8>, StageError> {
        Err(StageError::Off(
            "there is no machine, only its disks".into(),
        ))
    }

    fn console(&self) -> Option<PathBuf> {
        None
    }

    fn volumes(&self) -> Vec<Volume> {
        self.0.clone()
    }

    fn addresses(&self) -> Vec<std::net::IpAddr> {
        Vec::new()
    }
}
