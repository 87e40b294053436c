//! What is left of drills that nobody holds any more: an earlier daemon was ended in the middle, or something could not be
//! removed. It is tried again until it is gone.

use std::{sync::Arc, thread, time::Duration};

use drill_runner::{
    isolation::leftover,
    outcome::{Console, FORMAT, MachineReport, Recycling, Report, Times, Verdict},
};

use super::record::{self, Record};
use crate::{api::ApiResult, engine::Engine};

/// The time between two tries.
const AGAIN: Duration = Duration::from_secs(5);

/// How long libvirt may take to do what a daemon that is gone had asked it for: a domain may appear after it was removed.
const SETTLE: Duration = Duration::from_secs(4);

/// Removes what there is of drills that have a record, or a takeover.
pub(super) fn all(engine: &Arc<Engine>) {
    let records = record::read_all(&engine.drills.dir);
    let mut ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
    ids.extend(engine.takeovers.drills());
    ids.sort();
    ids.dedup();
    for id in ids {
        if let Some(record) = records.iter().find(|record| record.id == id)
            && engine.drills.store.get(&id).is_err()
        {
            report(engine, record);
        }
        tracing::warn!(drill = id, "a drill was left in the middle; it is removed");
        begin(engine, &id);
    }
}

/// Starts to remove a drill.
pub(super) fn begin(engine: &Arc<Engine>, id: &str) {
    let (weak, id) = (Arc::downgrade(engine), id.to_owned());
    let started = thread::Builder::new()
        .name("drill-recycle".into())
        .spawn(move || {
            loop {
                let Some(engine) = weak.upgrade() else { return };
                match once(&engine, &id) {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(drill = id, %error, "a drill cannot be removed yet")
                    }
                }
                drop(engine);
                thread::sleep(AGAIN);
            }
        });
    if let Err(error) = started {
        tracing::error!(%error, "what is left of a drill stays until the next start");
    }
}

fn once(engine: &Arc<Engine>, id: &str) -> ApiResult<()> {
    leftover::kill(id);
    for (name, uri) in engine.takeovers.of_drill(id) {
        let hypervisor = engine.hypervisor(&uri)?;
        engine.takeovers.strip(&name, &hypervisor)?;
        thread::sleep(SETTLE);
        engine
            .takeovers
            .discard(&name, &hypervisor, &engine.views)?;
    }
    engine.drills.forget(id)
}

/// Keeps a report of a drill whose daemon was ended.
fn report(engine: &Arc<Engine>, record: &Record) {
    let why = "virtcdpd was ended in the middle of it";
    let machine = |name: &String| MachineReport {
        name: name.clone(),
        machine_id: engine
            .machine(name)
            .map(|machine| machine.id.clone())
            .unwrap_or_default(),
        domain: String::new(),
        point: None,
        data_age_ms: None,
        verdict: Verdict::Error,
        why: why.to_owned(),
        vcpus: None,
        memory_bytes: None,
        disks: Vec::new(),
        cards: Vec::new(),
        dropped: Vec::new(),
        times: Times::default(),
        events: Vec::new(),
        checks: Vec::new(),
        screenshots: Vec::new(),
        console: Console::default(),
    };
    let report = Report {
        format: FORMAT,
        id: record.id.clone(),
        name: record.name.clone(),
        verdict: Verdict::Error,
        why: why.to_owned(),
        reason: record.reason.clone(),
        asked_by: record.asked_by.clone(),
        started: record.started.to_string(),
        ended: format!("{:.9}", jiff::Timestamp::now()),
        rto_ms: None,
        rpo_ms: None,
        host: engine.host(),
        plan: record.plan.clone(),
        machines: record.machines.iter().map(machine).collect(),
        recycling: Recycling::default(),
        history: Vec::new(),
        previous: None,
    };
    if let Err(error) = engine.drills.store.add(report) {
        tracing::error!(drill = record.id, %error, "its report cannot be kept");
    }
}
