//! The whole way once on a real Debian guest: what `make demo` shows holds.

use std::{fs, process::Command};

use virt_cdp_tests::{needs_libvirt, repository, unique};

#[test]
fn a_debian_guest_is_protected_destroyed_and_taken_over() {
    if !needs_libvirt() {
        return;
    }
    let out = std::path::PathBuf::from("/var/tmp").join(unique("demo"));
    // The demo judges by itself: rows whole, none torn, both disks agreeing, data no older than it should be.
    let ran = Command::new(repository().join("tests/demo"))
        .env("VIRT_CDP_DEMO_DIR", &out)
        // The point that is taken over lies between base points, of which some were merged.
        .env(
            "VIRT_CDP_DEMO_SETTINGS",
            "[tidy]\ninterval = '1s'\nbase_interval = '2s'\n",
        )
        .output()
        .expect("the demo runs");
    let said =
        String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let summary = fs::read_to_string(out.join("summary.txt")).expect("a summary");
    assert!(summary.lines().count() > 3, "{summary}");
    eprintln!("{summary}");
    let layers = summary
        .lines()
        .find_map(|line| line.split_once("Base points")?.1.split_whitespace().next());
    let layers: Option<u32> = layers.and_then(|count| count.parse().ok());
    assert!(layers >= Some(5), "{summary}");
    let screenshot = fs::read(out.join("screenshot.png")).expect("a screenshot");
    assert!(screenshot.starts_with(b"\x89PNG") && screenshot.len() > 1000);
    fs::remove_dir_all(&out).expect("it is the test's own");
}
