//! `verify`: what is kept is read again, as a job; what is damaged is had again from the live disks.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cdp_core::{
    Finding, HarborError, MachineDescription, Scope, Timestamp, VerifyReport, VolumeId,
};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        errors::from_harbor,
        jobs::{JobHandle, Jobs},
        live::{self, Compared},
        machine::{Command, Machine, now},
    },
};

/// What was verified within this time is left out, unless all is asked for.
const RECENT: Duration = Duration::from_secs(24 * 3600);
/// Longest sleep until it is looked again whether the job is to end.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Starts the verification of a machine's harbor.
pub(crate) fn start(
    jobs: &Jobs,
    machine: &Arc<Machine>,
    request: &v1::VerifyRequest,
) -> ApiResult<v1::Job> {
    let recent = u64::try_from(RECENT.as_nanos()).unwrap_or(u64::MAX);
    let not_since = (!request.all).then(|| Timestamp(now().0.saturating_sub(recent)));
    let scope = Scope {
        not_since,
        suspects: false,
        bytes: None,
    };
    let (harbor, rate, live) = (machine.harbor(), request.rate, request.live);
    if live {
        // Whether that can be is told at once.
        machine.ask(Command::Live)?;
    }
    let machine = Arc::clone(machine);
    jobs.start("verify", &request.name, None, move |job| {
        let began = Instant::now();
        let done = harbor.verify(scope, &mut |told| {
            job.progress(told.done, told.total);
            keep_to_rate(job, began, told.done, rate)
        });
        match done {
            Ok(report) => {
                let (compared, failed) = match live {
                    true => compare(job, &machine, rate),
                    false => heal(job, &machine, rate),
                }
                .map_or_else(|e| (Vec::new(), Some(e)), |done| (done, None));
                // What is known already to be damaged, and was left out now, is told as well.
                let description = harbor.description();
                let told = message(&report, &harbor.damage(), &description);
                let of = |one: &Compared| live_volume(one, &description);
                job.found(v1::VerifyReport {
                    live: compared.iter().map(of).collect(),
                    not_healed: failed.as_ref().map(|e| e.what.clone()).unwrap_or_default(),
                    ..told
                });
                // What was asked for has failed then; else it is told in the report.
                failed.filter(|_| live).map_or(Ok(()), Err)
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

/// Compares what is kept last with the live disks.
fn compare(job: &JobHandle, machine: &Machine, rate: u64) -> ApiResult<Vec<Compared>> {
    let volumes = machine.description().volumes;
    let total = volumes.iter().map(|volume| volume.size).sum();
    let (began, done) = (Instant::now(), AtomicU64::new(0));
    live::compare_all(machine, &|bytes| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        job.progress(done.min(total), total);
        keep_to_rate(job, began, done, rate).is_continue()
    })
}

/// Has what is damaged again from the live disks.
fn heal(job: &JobHandle, machine: &Machine, rate: u64) -> ApiResult<Vec<Compared>> {
    let (began, done) = (Instant::now(), AtomicU64::new(0));
    live::heal(machine, &|bytes| {
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        keep_to_rate(job, began, done, rate).is_continue()
    })
}

fn live_volume(compared: &Compared, description: &MachineDescription) -> v1::LiveVolume {
    v1::LiveVolume {
        target: target(compared.volume, description),
        read_bytes: compared.read,
        differing_bytes: compared.differing,
        put_back_bytes: compared.put_back,
        journaled_bytes: compared.journaled,
    }
}

/// The target of a volume, or its number.
fn target(volume: VolumeId, description: &MachineDescription) -> String {
    description
        .volume(volume)
        .map_or_else(|| volume.to_string(), |volume| volume.target.clone())
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
        ..Default::default()
    }
}

/// A finding, with volumes by their targets.
fn finding(finding: &Finding, description: &MachineDescription) -> v1::Finding {
    let costs = finding.costs.iter().map(|cost| v1::DamageCost {
        first: cost.first.0,
        last: cost.last.0,
        volume: target(cost.volume, description),
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
