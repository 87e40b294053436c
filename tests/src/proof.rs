//! What a test proves of a machine's history: that it is exact, and that nothing kept has changed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{daemon::Daemon, guest::Guest, must};

/// The newest point, made now, shows every disk of the guest byte for byte, and none besides. The guest must not write.
pub fn newest_equals(daemon: &Daemon, guest: &Guest, machine: &str) {
    guest.flush();
    daemon.ok(&["point-create", machine]);
    newest_kept_equals(daemon, guest, machine);
}

/// As [`newest_equals`], of the newest point there is: for a guest that is off.
pub fn newest_kept_equals(daemon: &Daemon, guest: &Guest, machine: &str) {
    let view = daemon.json(&["view-open", machine, "--at", "latest"]);
    let shown = uris(&view);
    let disks = guest.disks();
    assert_eq!(shown.len(), disks.len(), "{shown:?} {disks:?}");
    for (target, image) in disks {
        same_content(&image, shown.get(&target).expect("its volume"));
    }
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
}

/// An image, which may be in use, and an export have the same length and the same content.
pub fn same_content(image: &str, uri: &str) {
    let about = must("qemu-img", &["info", "-U", "--output=json", image]);
    let about: Value = serde_json::from_str(&about).expect("JSON");
    let format = about["format"].as_str().expect("a format");
    let size = must("nbdinfo", &["--size", uri]);
    assert_eq!(size.trim(), about["virtual-size"].to_string(), "{image}");
    must(
        "qemu-img",
        &["compare", "-U", "-f", format, "-F", "raw", image, uri],
    );
}

/// Length and hash of every volume at a point, by target.
pub fn hashes(daemon: &Daemon, machine: &str, point: &Value) -> BTreeMap<String, String> {
    let view = daemon.json(&["view-open", machine, "--at", &point["id"].to_string()]);
    let hash = |(target, uri): (String, String)| {
        let script = format!("nbdcopy '{uri}' - | sha256sum && nbdinfo --size '{uri}'");
        (target, must("sh", &["-c", &script]))
    };
    let all = uris(&view).into_iter().map(hash).collect();
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    all
}

/// The URI of every volume of an open view, by target.
fn uris(view: &Value) -> BTreeMap<String, String> {
    let volumes = view["volumes"].as_array().expect("volumes");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    volumes
        .iter()
        .map(|v| (text(&v["target"]), text(&v["uri"])))
        .collect()
}

/// How many gaps a machine has, and that they are closed.
pub fn closed_gaps(info: &Value) -> usize {
    let gaps = info["gaps"].as_array().expect("gaps");
    assert!(gaps.iter().all(|g| !g["end"].is_null()), "{info}");
    gaps.len()
}
