//! How large the takeover is: vCPUs and memory, and what was laid out for the old size.
//!
//! Where neither changes, everything stays. Where one does, the guest's NUMA cells no longer add up and go, with
//! all that refers to them.

use xmltree::Element;

use super::spec::TakeoverSpec;
use crate::xml_tree::{Tree, element};

pub(super) fn edit(domain: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    let cpus_changed = spec
        .vcpus
        .is_some_and(|count| set_vcpus(domain, count, notes));
    let memory_changed = spec
        .memory_kib
        .is_some_and(|kib| set_memory(domain, kib, notes));
    if cpus_changed || memory_changed {
        drop_numa(domain, notes);
    }
}

/// Sets the number of vCPUs; returns whether that changed anything.
fn set_vcpus(domain: &mut Element, count: u32, notes: &mut Vec<String>) -> bool {
    let was = domain.child_text("vcpu").unwrap_or_else(|| "1".to_owned());
    let all_online = domain
        .child_attr("vcpu", "current")
        .is_none_or(|current| current == was);
    if was == count.to_string() && all_online {
        return false;
    }
    if !domain.has("vcpu") {
        domain.push(element("vcpu", &[]));
    }
    if let Some(vcpu) = domain.get_mut_child("vcpu") {
        vcpu.unset("current");
        vcpu.set_text(&count.to_string());
    }
    if domain.remove_all("vcpus") > 0 {
        notes.push("vCPU list: which vCPUs were online is dropped, all are".to_owned());
    }
    if was == count.to_string() {
        return false;
    }
    if let Some(cputune) = domain.get_mut_child("cputune") {
        cputune.retain(|tune| keep_tune(tune, count, notes));
    }
    if domain
        .get_mut_child("cpu")
        .is_some_and(|cpu| cpu.remove_all("topology") > 0)
    {
        notes.push(format!("CPU topology: laid out for {was} vCPUs, dropped"));
    }
    true
}

fn keep_tune(tune: &Element, count: u32, notes: &mut Vec<String>) -> bool {
    match tune.name.as_str() {
        "vcpupin" => {
            let vcpu = tune.attr("vcpu").unwrap_or_default();
            let there = vcpu.parse::<u32>().is_ok_and(|vcpu| vcpu < count);
            if !there {
                notes.push(format!(
                    "CPU pinning of vCPU {vcpu}: there is no such vCPU now, dropped"
                ));
            }
            there
        }
        "vcpusched" | "cachetune" | "memorytune" => {
            let vcpus = tune.attr("vcpus").unwrap_or_default();
            notes.push(format!(
                "CPU tuning {} of vCPUs {vcpus}: laid out for another number of vCPUs, dropped",
                tune.name
            ));
            false
        }
        _ => true,
    }
}

/// Sets the memory; returns whether that changed anything.
fn set_memory(domain: &mut Element, kib: u64, notes: &mut Vec<String>) -> bool {
    let was = domain.get_child("memory").and_then(in_kib);
    for name in ["memory", "currentMemory"] {
        if !domain.has(name) {
            domain.push(element(name, &[]));
        }
        if let Some(memory) = domain.get_mut_child(name) {
            memory.set("unit", "KiB");
            memory.set_text(&kib.to_string());
        }
    }
    if was == Some(kib) {
        return false;
    }
    if domain.remove_all("maxMemory") > 0 {
        notes.push("memory hot-plug (maxMemory): laid out for another size, dropped".to_owned());
    }
    if let Some(devices) = domain.get_mut_child("devices") {
        devices.retain(|device| {
            let goes = device.name == "memory";
            if goes {
                let model = device.attr("model").unwrap_or_default();
                notes.push(format!(
                    "memory device {model}: the takeover has its own memory size, dropped"
                ));
            }
            !goes
        });
    }
    if domain.remove_all("memtune") > 0 {
        notes.push("memory limits (memtune): set for another size, dropped".to_owned());
    }
    true
}

/// The size an element like `<memory unit='MiB'>` tells, in KiB, rounded down.
fn in_kib(memory: &Element) -> Option<u64> {
    let number: u64 = memory.get_text()?.trim().parse().ok()?;
    let bytes: u64 = match memory.attr("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    Some(number.checked_mul(bytes)? / 1024)
}

/// Removes the guest's NUMA cells and what refers to them.
fn drop_numa(domain: &mut Element, notes: &mut Vec<String>) {
    let cells = domain
        .get_mut_child("cpu")
        .map_or(0, |cpu| cpu.remove_all("numa"));
    if cells == 0 {
        return;
    }
    notes.push("NUMA cells: laid out for another size, dropped".to_owned());
    if domain
        .get_mut_child("numatune")
        .is_some_and(|policy| policy.remove_all("memnode") > 0)
    {
        notes.push("NUMA policy of cells (memnode): there are no cells now, dropped".to_owned());
    }
    let pages = domain
        .get_mut_child("memoryBacking")
        .and_then(|backing| backing.get_mut_child("hugepages"));
    if let Some(pages) = pages {
        let before = pages.children.len();
        pages.retain(|page| page.attr("nodeset").is_none());
        if pages.children.len() < before {
            notes.push(
                "huge pages of cells: there are no cells now, the default size is used".to_owned(),
            );
        }
    }
    drop_node_references(domain, notes);
}

/// PCI expander buses name a cell, and memory modules must be in one.
fn drop_node_references(domain: &mut Element, notes: &mut Vec<String>) {
    let Some(devices) = domain.get_mut_child("devices") else {
        return;
    };
    for controller in devices
        .elements_mut()
        .filter(|device| device.name == "controller")
    {
        let index = controller.attr("index").unwrap_or_default().to_owned();
        let dropped = controller
            .get_mut_child("target")
            .map_or(0, |target| target.remove_all("node"));
        if dropped > 0 {
            notes.push(format!("PCI bus {index}: no longer belongs to a NUMA cell"));
        }
    }
    devices.retain(|device| {
        let goes = device.name == "memory"
            && device
                .get_child("target")
                .is_some_and(|target| target.has("node"));
        if goes {
            let model = device.attr("model").unwrap_or_default();
            notes.push(format!(
                "memory device {model}: there is no NUMA cell for it now, dropped"
            ));
        }
        !goes
    });
}
