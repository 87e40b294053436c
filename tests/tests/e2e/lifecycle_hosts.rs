//! What happens to a protection when its guest moves to another host, and when libvirtd is restarted.

use std::time::Duration;

use virt_cdp_tests::{
    daemon::Daemon,
    guest::Guest,
    libvirtd::Libvirtd,
    needs, needs_libvirt,
    proof::{closed_gaps, hashes, newest_equals},
    unique, wait_for,
};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_guest_migrates_away_and_back_and_libvirtd_is_restarted_under_it() {
    if !needs_libvirt() || !needs(&["unshare", "libvirtd"]) {
        return;
    }
    let (mut here, there) = (Libvirtd::start(), Libvirtd::start());
    let name = unique("move");
    let guest = Guest::start_at(here.at(), &name, &[("qcow2", 32 << 20)], &[]);
    let daemon = Daemon::start_with(&format!("[libvirt]\nuri = '{}'", here.uri()));
    daemon.ok(&["protect", &name]);
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=50 seek=200 oflag=direct");
    let old = daemon.json(&["point-create", &name]);
    let kept = hashes(&daemon, &name, &old);

    // libvirtd is restarted: taps and points do not need it, and it is found again.
    guest.begin_load("/dev/vda", 8);
    here.stop();
    std::thread::sleep(Duration::from_secs(2));
    let before = daemon.json(&["info", &name])["points"].as_u64();
    std::thread::sleep(Duration::from_secs(3));
    let info = daemon.json(&["info", &name]);
    assert!(
        info["points"].as_u64() > before,
        "points go on without libvirtd: {info}"
    );
    here.start_again();
    wait_for("libvirt is heard again", SOON, || {
        let log = std::fs::read_to_string(daemon.log_path()).expect("its log");
        if log.contains("libvirt answers again") {
            Ok(())
        } else {
            Err("not yet".into())
        }
    });
    let info = daemon.json(&["info", &name]);
    assert_eq!(
        (&info["state"], closed_gaps(&info)),
        (&"protected".into(), 0),
        "{info}"
    );

    // To another host, under load: nothing that was made after the switch-over is offered.
    let (to, by) = (there.uri(), there.migration_uri());
    let migrate = [
        "migrate",
        "--live",
        "--unsafe",
        &name,
        &to,
        "--migrateuri",
        &by,
    ];
    guest.virsh(&migrate);
    let moved = guest.moved(there.at());
    let info = wait_for("the move is noticed", SOON, || {
        let info = daemon.json(&["info", &name]);
        let detail = info["state_detail"].as_str().unwrap_or_default();
        if info["state"] == "off" && detail.contains("migrated to another host") {
            Ok(info)
        } else {
            Err(info.to_string())
        }
    });
    let gap = info["gaps"][0].clone();
    assert!(gap["end"].is_null(), "it is not protected there: {info}");
    assert!(
        info["newest_point"]["time"].as_str() <= gap["start"].as_str(),
        "no point is later than the last time the guest was seen here: {info}"
    );
    assert_eq!(hashes(&daemon, &name, &old), kept);
    moved.end_load();
    moved.begin_load("/dev/vda", 4);

    // And back: what was written there is found.
    let (to, by) = (here.uri(), here.migration_uri());
    let migrate = [
        "migrate",
        "--live",
        "--unsafe",
        &name,
        &to,
        "--migrateuri",
        &by,
    ];
    moved.virsh(&migrate);
    let info = daemon.wait_state(&name, "protected", SOON);
    closed_gaps(&info);
    guest.end_load();
    newest_equals(&daemon, &guest, &name);
    assert_eq!(hashes(&daemon, &name, &old), kept);
}
