//! `verify`: what is kept is read again, as a job.

use std::{
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

use cdp_core::{Finding, HarborError, MachineDescription, Scope, Timestamp, VerifyReport};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        errors::from_harbor,
        jobs::{JobHandle, Jobs},
        machine::{Machine, now},
    },
};

/// What was verified within this time is left out, unless all is asked for.
const RECENT: Duration = Duration::from_secs(24 * 3600);
/// Longest sleep until it is looked again whether the job is to end.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Starts the verification of a machine's harbor.
pub(crate) fn start(
    jobs: &Jobs,
    machine: &Machine,
    request: &v1::VerifyRequest,
) -> ApiResult<v1::Job> {
    let recent = u64::try_from(RECENT.as_nanos()).unwrap_or(u64::MAX);
    let not_since = (!request.all).then(|| Timestamp(now().0.saturating_sub(recent)));
    let scope = Scope {
        not_since,
        bytes: None,
    };
    let (harbor, rate) = (machine.harbor(), request.rate);
    jobs.start("verify", &request.name, None, move |job| {
        let began = Instant::now();
        let done = harbor.verify(scope, &mut |told| {
            job.progress(told.done, told.total);
            keep_to_rate(job, began, told.done, rate)
        });
        // What is known already to be damaged, and was left out now, is told as well.
        let known = harbor.damage();
        let description = harbor.description();
        match done {
            Ok(report) => {
                job.found(message(&report, &known, &description));
                Ok(())
            }
            Err(HarborError::Cancelled) => Err(ApiError::new(
                ApiErrorKind::FailedPrecondition,
                "cancelled; what was verified until then counts",
            )),
            Err(error) => Err(from_harbor(error)),
        }
    })
}

/// Waits until so many bytes may have been read; ends the work when the job is cancelled.
fn keep_to_rate(job: &JobHandle, began: Instant, done: u64, rate: u64) -> ControlFlow<()> {
    let due = match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(done as f64 / rate as f64),
    };
    loop {
        if job.is_cancelled() {
            return ControlFlow::Break(());
        }
        match due.checked_sub(began.elapsed()) {
            None | Some(Duration::ZERO) => return ControlFlow::Continue(()),
            Some(rest) => thread::sleep(rest.min(SLEEP_MAX)),
        }
    }
}

fn message(
    report: &VerifyReport,
    known: &[Finding],
    description: &MachineDescription,
) -> v1::VerifyReport {
    let unchecked = report.unchecked.iter().map(|one| v1::Unchecked {
        file: one.file.clone(),
        clusters: one.clusters,
    });
    v1::VerifyReport {
        files: report.files,
        bytes: report.bytes,
        left: report.left,
        findings: known.iter().map(|one| finding(one, description)).collect(),
        unchecked: unchecked.collect(),
    }
}

/// A finding, with volumes by their targets.
fn finding(finding: &Finding, description: &MachineDescription) -> v1::Finding {
    let costs = finding.costs.iter().map(|cost| v1::DamageCost {
        first: cost.first.0,
        last: cost.last.0,
        volume: description
            .volume(cost.volume)
            .map_or_else(|| cost.volume.to_string(), |volume| volume.target.clone()),
        areas: cost
            .areas
            .iter()
            .map(|area| v1::DamagedArea {
                offset: area.offset,
                length: area.length,
            })
            .collect(),
    });
    v1::Finding {
        file: finding.file.clone(),
        what: finding.what.clone(),
        offset: finding.from,
        length: finding.bytes,
        costs: costs.collect(),
    }
}
