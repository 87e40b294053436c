//! What the takeover starts from: UEFI variables and TPM.

use xmltree::Element;

use super::spec::TakeoverSpec;
use crate::xml_tree::Tree;

pub(super) fn edit(domain: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    if let Some(os) = domain.get_mut_child("os") {
        nvram(os, spec, notes);
    }
    if let Some(devices) = domain.get_mut_child("devices") {
        devices.retain(|device| device.name != "tpm" || keep_tpm(device, notes));
    }
}

/// The path becomes the copy's. Template and format stay: they tell what the file is.
fn nvram(os: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    let Some(nvram) = os.get_mut_child("nvram") else {
        return;
    };
    nvram.unset("type");
    nvram.children.clear();
    match &spec.nvram {
        Some(path) => nvram.set_text(&path.to_string_lossy()),
        None => {
            let source = if nvram.attr("template").is_some() {
                "the template"
            } else {
                "libvirt's default template"
            };
            notes.push(format!(
                "UEFI variables: there is no copy of that time, they start from {source} (boot entries and enrolled keys are lost)"
            ));
        }
    }
}

fn keep_tpm(tpm: &mut Element, notes: &mut Vec<String>) -> bool {
    let kind = tpm
        .child_attr("backend", "type")
        .unwrap_or("unknown")
        .to_owned();
    if kind != "emulator" {
        notes.push(format!(
            "TPM: its backend ({kind}) belongs to the host, dropped"
        ));
        return false;
    }
    if let Some(backend) = tpm.get_mut_child("backend") {
        backend.remove_all("source");
    }
    notes.push(
        "TPM: kept, but its state is not captured: it starts empty, and what is sealed to it (BitLocker, LUKS) needs its recovery key"
            .to_owned(),
    );
    true
}
