//! Memory of the host: what drills want, and what is free for another one.

use std::{fs, sync::Arc};

use drill_runner::plan::Plan;

use super::Running;
use crate::engine::{Engine, guard};

/// The memory the machines of a plan will have, bytes; what is not known is left out.
pub(super) fn wanted(engine: &Engine, plan: &Plan) -> u64 {
    let of_original = |name: &str| {
        let harbor = engine.machine(name).ok()?.harbor();
        let xml = harbor.xml(harbor.newest_point()?.xml?).ok()?;
        libvirt_driver::takeover_xml::memory_bytes(&xml)
    };
    let all = plan.machines.iter();
    all.map(|one| one.memory.or_else(|| of_original(&one.name)).unwrap_or(0))
        .sum()
}

/// The memory that another drill could have without any being pushed out, bytes: machines of drills take what they were
/// promised bit by bit, so what they have not taken yet is not free.
pub(super) fn free(engine: &Arc<Engine>) -> u64 {
    let Some(available) = available() else {
        return u64::MAX;
    };
    let running = engine.drills.known();
    let to_come = running.iter().map(|(_, one)| to_come(engine, one));
    available.saturating_sub(to_come.sum())
}

/// What the machines of a drill were promised and have not taken yet.
fn to_come(engine: &Arc<Engine>, drill: &Running) -> u64 {
    let live = guard(&drill.live).clone();
    let machines = live.map_or(Vec::new(), |report| report.machines);
    let taken = machines.iter().filter_map(|machine| {
        let uri = engine.takeovers.uri_of(&machine.domain).ok()?;
        let domain = engine.hypervisor(&uri).ok()?.lookup(&machine.domain).ok()?;
        domain.resident().ok()
    });
    drill.memory.saturating_sub(taken.sum())
}

/// The memory that programs of the host can have without any being pushed out, bytes.
fn available() -> Option<u64> {
    let about = fs::read_to_string("/proc/meminfo").ok()?;
    let line = about
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
