//! Points are kept by a policy, by a lock, and by whoever has them open; what goes is gone, what stays is exact.

use std::{collections::BTreeMap, fs, time::Duration};

use serde_json::{Value, json};
use virt_cdp_tests::{
    daemon::Daemon, epoch_ns, nbd::Writer, needs, proof::hashes, storage_daemon::StorageDaemon,
    wait_for,
};

const SOON: Duration = Duration::from_secs(60);
/// Points settle after a minute; then a run of the policies takes some moments.
const SETTLED: Duration = Duration::from_secs(100);
const MACHINE: &str = "kept";
const CONFIGURED: &str =
    "[capture]\npoint_interval = '1h'\n[tidy]\ninterval = '1s'\n[policy.hours]\nhourly = '1d'";

/// The points that are listed, by their ids.
fn points(daemon: &Daemon) -> BTreeMap<u64, Value> {
    let list = daemon.json(&["point-list", MACHINE]);
    let points = list["points"].as_array().expect("points").clone();
    points
        .into_iter()
        .map(|point| (point["id"].as_u64().expect("an id"), point))
        .collect()
}

fn ids(daemon: &Daemon) -> Vec<u64> {
    points(daemon).into_keys().collect()
}

/// Of each hour the last point.
fn last_of_hours(points: &BTreeMap<u64, Value>) -> Vec<u64> {
    let mut last = BTreeMap::new();
    for (id, point) in points {
        let time = point["time"].as_str().and_then(epoch_ns).expect("a time");
        last.insert(time / 3_600_000_000_000, *id);
    }
    last.into_values().collect()
}

/// Waits until of the points before `newest` exactly these are listed.
fn wait_points(daemon: &Daemon, newest: u64, expected: &[u64], deadline: Duration) {
    wait_for("the points are those wanted", deadline, || {
        let before = ids(daemon).into_iter().filter(|id| *id < newest);
        match before.collect::<Vec<_>>() {
            ids if ids == expected => Ok(()),
            ids => Err(format!("{ids:?}, not {expected:?}")),
        }
    });
}

#[test]
fn a_policy_keeps_what_is_locked_in_use_and_wanted_and_nothing_else() {
    if !needs(&["qemu-storage-daemon", "qemu-img", "nbdcopy", "nbdinfo"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 16 << 20)]);
    let mut daemon = Daemon::start_with(CONFIGURED);
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"]);
    let socket = storage.serve(1);
    for number in 1..=7_u64 {
        let mut writer = Writer::connect(&socket, "disk0", 1, number);
        writer.write(number * 65_536, 4096, |id| vec![id as u8; 4096]);
        writer.finish();
        daemon.ok(&[
            "point-create",
            MACHINE,
            "--label",
            &format!("number {number}"),
        ]);
    }
    let made = points(&daemon);
    let all: Vec<u64> = made.keys().copied().collect();
    let [_, locked, labelled, viewed, deleted, .., newest] = all[..] else {
        panic!("too few points: {all:?}");
    };
    let before: BTreeMap<u64, _> = made
        .iter()
        .map(|(id, point)| (*id, hashes(&daemon, MACHINE, point)))
        .collect();

    // By hand.
    let (locked_id, labelled_id, viewed_id) =
        (locked.to_string(), labelled.to_string(), viewed.to_string());
    daemon.ok(&["point-lock", MACHINE, &locked_id]);
    daemon.ok(&["point-label", MACHINE, &labelled_id, "another one"]);
    let view = daemon.json(&["view-open", MACHINE, "--at", &viewed_id]);
    let gone = daemon.json(&["point-delete", MACHINE, &deleted.to_string()]);
    assert_eq!(gone["points"][0]["id"], deleted);
    daemon.refused(
        &["point-delete", MACHINE, &labelled_id, &locked_id],
        "is locked",
    );
    daemon.refused(
        &["point-delete", MACHINE, &viewed_id],
        "is in use by a view",
    );
    daemon.refused(&["point-delete", MACHINE, "latest"], "is the newest");
    daemon.refused(
        &["view-open", MACHINE, "--at", &deleted.to_string()],
        "has no recovery point",
    );
    let left: Vec<u64> = all.iter().copied().filter(|id| *id != deleted).collect();
    assert_eq!(ids(&daemon), left);
    assert_eq!(points(&daemon)[&labelled]["label"], "another one");

    // By a policy: what is younger than a minute does not go yet.
    daemon.ok(&[
        "policy-set",
        "brief",
        "--hourly",
        "1d",
        "--size-limit",
        "64K",
    ]);
    let preview = daemon.json(&["policy-preview", MACHINE, "brief"]);
    assert_eq!(preview["policy"]["name"], "brief");
    daemon.refused(
        &["policy-assign", MACHINE, "unheard-of"],
        "there is no policy 'unheard-of'",
    );
    let info = daemon.json(&["policy-assign", MACHINE, "brief"]);
    assert_eq!(
        (&info["policy"], &info["size_state"]),
        (&json!("brief"), &json!("over"))
    );
    let problems = daemon.json(&["status"])["problems"].to_string();
    assert!(
        problems.contains("more than its size limit of 64 KiB"),
        "{problems}"
    );
    // The newest may be followed by another one after a restart; it is not looked at.
    let mut by_hour = last_of_hours(&made);
    by_hour.retain(|id| *id != newest);
    let wanted = |also: &[u64]| {
        let mut wanted = [&by_hour, also].concat();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    };
    let mut kept = wanted(&[locked, viewed]);
    wait_points(&daemon, newest, &kept, SETTLED);
    assert!(kept.len() + 1 < left.len(), "{kept:?} of {left:?}");

    // All of it outlives a crash of the daemon, but for the view: its point goes then.
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    daemon.kill();
    storage.stop_serving();
    daemon.start_again();
    kept = wanted(&[locked]);
    wait_points(&daemon, newest, &kept, SOON);
    let now = points(&daemon);
    assert_eq!(now[&locked]["locked"], true);
    for id in &kept {
        assert_eq!(
            hashes(&daemon, MACHINE, &now[id]),
            before[id],
            "point {id} is as it was"
        );
    }
    daemon.ok(&["point-unlock", MACHINE, &locked_id]);
    wait_points(&daemon, newest, &wanted(&[]), SOON);

    // What was set is given up again; a policy that is not there removes nothing and is told.
    daemon.refused(&["policy-set", "brief", "--reset"], "is assigned to kept");
    daemon.ok(&["policy-assign", MACHINE, "hours"]);
    daemon.ok(&["policy-set", "brief", "--reset"]);
    daemon.refused(&["policy-show", "brief"], "there is no policy 'brief'");
    daemon.stop();
    let config = daemon.dir.join("virtcdpd.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, text.replace("[policy.hours]", "[policy.days]")).expect("another one");
    daemon.start_again();
    let info = daemon.json(&["info", MACHINE]);
    let problem = info["policy_problem"].as_str().expect("a text");
    assert!(
        problem.contains("its policy 'hours' is not known"),
        "{problem}"
    );
    let problems = daemon.json(&["status"])["problems"].to_string();
    assert!(
        problems.contains("its policy 'hours' is not known"),
        "{problems}"
    );
    daemon.stop();
}
