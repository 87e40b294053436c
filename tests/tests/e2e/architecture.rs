//! What a crate must not know, as the design's table has it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use virt_cdp_tests::{must, repository};

/// Crate, what it must not know in words, packages it must not reach by any path.
const MUST_NOT_KNOW: [(&str, &str, &[&str]); 4] = [
    (
        "qemu-hook",
        "libvirt, how data is kept",
        &["virt", "virt-sys", "libvirt-driver", "cdp-core", "virt-cdp"],
    ),
    (
        "cdp-core",
        "QEMU, NBD, libvirt, network",
        &[
            "qemu-hook",
            "qapi",
            "virt",
            "virt-sys",
            "libvirt-driver",
            "virt-cdp",
            "tokio",
            "tonic",
            "hyper",
            "reqwest",
        ],
    ),
    (
        "libvirt-driver",
        "how data is kept",
        &["cdp-core", "virt-cdp"],
    ),
    (
        "drill-runner",
        "how data is captured and kept, libvirt",
        &[
            "qemu-hook",
            "cdp-core",
            "virt",
            "virt-sys",
            "libvirt-driver",
            "virt-cdp",
        ],
    ),
];

/// Package to its direct dependencies, of the workspace as it is resolved.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = repository().join("Cargo.toml");
    let manifest = manifest.to_str().expect("a plain path");
    // Only what this platform needs has been fetched.
    let about = must("rustc", &["-vV"]);
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let out = must(
        "cargo",
        &[
            "metadata",
            "--filter-platform",
            host.expect("rustc's host"),
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--manifest-path",
            manifest,
        ],
    );
    let metadata: Value = serde_json::from_str(&out).expect("JSON");
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        names.insert(
            package["id"].as_str().expect("an id"),
            package["name"].as_str().expect("a name"),
        );
    }
    let mut graph = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().expect("nodes") {
        // Of a member only what it ships with: tests may look at it with other eyes.
        let direct = node["deps"].as_array().expect("deps").iter().filter(|d| {
            d["dep_kinds"]
                .as_array()
                .expect("kinds")
                .iter()
                .any(|k| k["kind"].is_null())
        });
        let direct = direct
            .map(|d| names[d["pkg"].as_str().expect("an id")].to_owned())
            .collect();
        graph.insert(
            names[node["id"].as_str().expect("an id")].to_owned(),
            direct,
        );
    }
    graph
}

fn reachable(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut ahead = vec![from.to_owned()];
    while let Some(package) = ahead.pop() {
        for next in graph.get(&package).into_iter().flatten() {
            if seen.insert(next.clone()) {
                ahead.push(next.clone());
            }
        }
    }
    seen
}

#[test]
fn no_crate_knows_what_it_must_not() {
    let graph = dependencies();
    for (name, what, forbidden) in MUST_NOT_KNOW {
        assert!(graph.contains_key(name), "there is a crate {name}");
        let reached = reachable(&graph, name);
        let wrong: Vec<_> = forbidden.iter().filter(|f| reached.contains(**f)).collect();
        assert!(
            wrong.is_empty(),
            "{name} must not know {what}, and reaches {wrong:?}"
        );
    }
    // The test sees what there is to see: the program does reach all of them.
    let program = reachable(&graph, "virt-cdp");
    for seen in ["cdp-core", "qemu-hook", "libvirt-driver", "virt", "tonic"] {
        assert!(program.contains(seen), "virt-cdp reaches {seen}");
    }
}

#[test]
fn the_core_speaks_of_no_hypervisor() {
    let dir = repository().join("cdp-core/src");
    let mut files = vec![dir];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(&path)
                    .expect("a directory")
                    .map(|e| e.expect("an entry").path()),
            );
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in [
                "qemu_hook",
                "libvirt_driver",
                "nbd",
                "UnixStream",
                "TcpStream",
                "UdpSocket",
            ] {
                assert!(
                    !code.contains(word),
                    "{}:{}: {word}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}
