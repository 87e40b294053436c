//! Points that somebody asks for.

use std::{sync::Arc, time::Instant};

use cdp_core::{Grade, Point};

use super::{Active, Supervisor};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::from_harbor,
        machine::{PointWish, Still},
        quiesce::Quiet,
    },
};

impl Supervisor {
    /// The capture, if points can be made of it now.
    fn marking(&self) -> ApiResult<&Active> {
        match &self.capture {
            Some(active) if active.ready && active.capture.lost().is_empty() => Ok(active),
            _ => {
                let state = self.machine.status().state.name();
                let what = format!(
                    "no recovery point of '{}' can be made now: it is {state}",
                    self.machine.name
                );
                Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                    .hint("wait until its state is 'protected'; see 'virt-cdp info'"))
            }
        }
    }

    pub(super) fn make_point(&self, wish: &PointWish) -> ApiResult<Point> {
        let active = self.marking()?;
        let recorder = active.capture.recorder();
        let label = wish.label.as_deref();
        let unwanted = |what: &str| Err(ApiError::new(ApiErrorKind::FailedPrecondition, what));
        let made = match wish.still {
            None => recorder.point(Grade::Crash, label),
            Some(still) if still.capture != active.number => {
                return unwanted("the capture was begun anew meanwhile");
            }
            Some(still) if Instant::now() > still.until => {
                return unwanted("it is too late for the point");
            }
            Some(still) => recorder.point_if_still(still.writes, label),
        };
        made.map_err(from_harbor)
    }

    pub(super) fn quiet(&self) -> ApiResult<Quiet> {
        let active = self.marking()?;
        Ok(Quiet {
            source: Arc::clone(&self.setting.source),
            run: active.run.clone(),
            qemu: active.capture.qemu_side(),
            still: Still {
                capture: active.number,
                writes: active.capture.recorder().stats().writes,
                until: Instant::now(),
            },
        })
    }
}
