//! A soak: faults, one after the other, from a seed, against a guest that checks what it writes.
//!
//! `SOAK_MINUTES` (2) says for how long, `SOAK_SEED` which faults in which order; the seed is printed. The guest
//! writes marks (tests/guest/marks.c) to two disks and something else to a third. Whatever happens meanwhile, its writes
//! may not fail nor wait beyond the bound. At the end, points chosen at random must show exactly the marks that had
//! been written at their time, none may lie in a gap, and the newest must equal the disks.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use virt_cdp_tests::{
    HangingFs, daemon::Daemon, epoch_ns, guest::Guest, must, nbd, needs_libvirt, now_ns,
    proof::newest_equals, random::Random, run, unique, wait_for,
};

use crate::marks::{Log, judge};

/// The bypass deadline and what is allowed on top of it, in microseconds.
const BOUND_US: u64 = 1_300_000;
const HEALED: Duration = Duration::from_secs(90);
const SLOTS: u64 = 1024;

/// What is done to the capture.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// SIGKILL of the daemon, which is started again a little later.
    Kill,
    /// SIGSTOP of the daemon for some seconds.
    Stop,
    /// A short SIGSTOP, within the deadline.
    Hiccup,
    /// SIGHUP: hand-over to a new run of the program.
    Upgrade,
    /// SIGTERM and a new start.
    Restart,
    /// SIGKILL of the guard.
    KillGuard,
    /// The harbor's disk does not answer for some seconds.
    HangDisk,
    /// The harbor's disk is full for some seconds.
    FillDisk,
    /// Somebody cancels a mirror.
    CancelMirror,
    /// The user suspends and resumes.
    Suspend,
    /// The user makes a point by hand.
    Point,
}

const FAULTS: [Fault; 11] = [
    Fault::Kill,
    Fault::Stop,
    Fault::Hiccup,
    Fault::Upgrade,
    Fault::Restart,
    Fault::KillGuard,
    Fault::HangDisk,
    Fault::FillDisk,
    Fault::CancelMirror,
    Fault::Suspend,
    Fault::Point,
];

struct Soak {
    name: String,
    guest: Guest,
    daemon: Daemon,
    disk: HangingFs,
    random: Random,
}

impl Soak {
    fn signal(&self, signal: &str) {
        must("kill", &[signal, &self.daemon.pid().to_string()]);
    }

    fn pause(&mut self, least_ms: u64, most_ms: u64) {
        let pause = least_ms + self.random.below(most_ms - least_ms);
        thread::sleep(Duration::from_millis(pause));
    }

    fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => {
                self.daemon.kill();
                self.pause(50, 1500);
                self.daemon.start_again();
            }
            Fault::Stop => {
                self.signal("-STOP");
                self.pause(1500, 4000);
                self.signal("-CONT");
            }
            Fault::Hiccup => {
                self.signal("-STOP");
                self.pause(50, 500);
                self.signal("-CONT");
            }
            Fault::Upgrade => self.signal("-HUP"),
            Fault::Restart => {
                self.daemon.stop();
                self.daemon.start_again();
            }
            Fault::KillGuard => {
                let socket = self.daemon.dir.join("run/private/guard.sock");
                let ran = run(
                    "pgrep",
                    &["-f", &format!("virtcdp-guard {}", socket.display())],
                );
                for pid in ran.out.split_whitespace() {
                    run("kill", &["-KILL", pid]);
                }
            }
            Fault::HangDisk => {
                self.disk.hang();
                self.pause(300, 4000);
                self.disk.answer();
            }
            Fault::FillDisk => {
                let filler = self.daemon.harbors().join("filler");
                let path = filler.to_str().expect("a plain path").to_owned();
                // As much as there is; a little less if that is refused.
                for tenths in [10, 9, 7] {
                    let free = must("df", &["--output=avail", "-B1", &path_of(&self.daemon)]);
                    let free: u64 = free
                        .split_whitespace()
                        .last()
                        .and_then(|word| word.parse().ok())
                        .expect("a number");
                    let size = (free / 10 * tenths).to_string();
                    if run("fallocate", &["-l", &size, &path]).ok {
                        break;
                    }
                }
                self.pause(1000, 4000);
                let _ = std::fs::remove_file(filler);
            }
            Fault::CancelMirror => {
                let jobs = self.guest.virsh(&[
                    "qemu-monitor-command",
                    &self.name,
                    "{\"execute\":\"query-block-jobs\"}",
                ]);
                let jobs: Value = serde_json::from_str(&jobs).unwrap_or_default();
                let job = jobs["return"][0]["device"].clone();
                let verbs = ["resume", "cancel"].iter().filter(|_| job.is_string());
                for verb in verbs {
                    let command = format!(
                        "{{\"execute\":\"block-job-{verb}\",\"arguments\":{{\"device\":{job}}}}}"
                    );
                    run(
                        "virsh",
                        &[
                            "-q",
                            "-c",
                            "qemu:///system",
                            "qemu-monitor-command",
                            &self.name,
                            &command,
                        ],
                    );
                }
            }
            Fault::Suspend => {
                let name = self.name.clone();
                // Refused or late while it heals from something else, which is no fault.
                self.daemon.cli(&["suspend", &name]);
                self.pause(300, 2000);
                self.daemon.ok(&["resume", &name]);
            }
            Fault::Point => {
                let name = self.name.clone();
                self.daemon.cli(&["point-create", &name, "--label", "soak"]);
            }
        }
    }

    /// Waits until the machine is protected and the newest point is newer than now.
    fn heal(&self) {
        let since = now_ns();
        wait_for("points are made again", HEALED, || {
            let ran = self.daemon.cli(&["--json", "info", &self.name]);
            let info: Value = serde_json::from_str(&ran.out).unwrap_or_default();
            let newest = time_ns(&info["newest_point"]["time"]);
            if ran.ok && info["state"] == "protected" && newest > since {
                Ok(())
            } else {
                Err(format!(
                    "{} {} {}",
                    info["state"], info["state_detail"], ran.err
                ))
            }
        });
    }
}

fn path_of(daemon: &Daemon) -> String {
    daemon.harbors().display().to_string()
}

/// A time as the program prints it, in nanoseconds since the epoch; 0 if there is none.
fn time_ns(time: &Value) -> i64 {
    time.as_str().map_or(0, |text| {
        epoch_ns(text).unwrap_or_else(|| panic!("no time: {text}"))
    })
}

#[test]
fn a_soak_of_faults_leaves_the_guest_alone_and_the_history_right() {
    if !needs_libvirt() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let minutes = number("SOAK_MINUTES").unwrap_or(2).max(1);
    let seed = number("SOAK_SEED").unwrap_or_else(|| now_ns().unsigned_abs() >> 10);
    eprintln!("soak of {minutes} minutes, SOAK_SEED={seed}");

    let name = unique("soak");
    let guest = Guest::start(
        &name,
        &[("qcow2", 16 << 20), ("raw", 16 << 20), ("qcow2", 64 << 20)],
    );
    let daemon = Daemon::start();
    let image = daemon.dir.join("harbors.img");
    let disk = HangingFs::mount(&daemon.harbors(), &image, 2048 + 3072 * minutes);
    daemon.ok(&["protect", &name]);
    let seconds = minutes * 60;
    guest.sh(&format!(
        "(marks /dev/vda,/dev/vdb --slots {SLOTS} --seconds {} --log /tmp/marks.log >/tmp/marks.out 2>&1; echo $? >/tmp/marks.code) \
         </dev/null >/dev/null 2>&1 &",
        seconds + 15
    ));
    guest.sh(
        "(while wload /dev/vdc --bs 65536 --seconds 1; do usleep 300000; test -e /tmp/marks.code && break; done) \
         </dev/null >/dev/null 2>&1 &",
    );
    let mut soak = Soak {
        name: name.clone(),
        guest,
        daemon,
        disk,
        random: Random(seed | 1),
    };

    let begun = Instant::now();
    let mut inflicted = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        soak.pause(1000, 4000);
        let fault = FAULTS[soak.random.below(FAULTS.len() as u64) as usize];
        eprintln!("{:6.1} s {fault:?}", begun.elapsed().as_secs_f64());
        soak.inflict(fault);
        inflicted += 1;
        // Now and then a second fault comes before the first is healed.
        if soak.random.below(4) > 0 {
            soak.heal();
        }
    }
    soak.heal();
    let Soak {
        guest,
        daemon,
        mut random,
        disk: _disk,
        ..
    } = soak;
    wait_for("the marks end", Duration::from_secs(90), || {
        match guest.try_run("cat /tmp/marks.code", Duration::from_secs(10)) {
            Ok((0, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let out = guest.sh("cat /tmp/marks.out");
    eprintln!("{inflicted} faults; {}", out.trim());
    assert_eq!(guest.sh("cat /tmp/marks.code").trim(), "0", "{out}");
    let longest: u64 = out
        .split_whitespace()
        .find_map(|word| word.strip_prefix("max_us="))
        .and_then(|us| us.parse().ok())
        .expect("the longest write");
    assert!(longest < BOUND_US, "a write waited for {longest} us");

    let log = Log::fetch(&guest);
    check_gaps(&daemon, &name);
    let points = daemon.json(&["point-list", &name]);
    let points = points["points"].as_array().expect("points").clone();
    let during: Vec<&Value> = points
        .iter()
        .filter(|point| time_ns(&point["time"]) > log.first_ns())
        .collect();
    assert!(during.len() > 10, "{} points", during.len());
    let wanted = if minutes > 5 { 200 } else { 40 };
    for _ in 0..wanted {
        let point = during[random.below(during.len() as u64) as usize];
        let view = daemon.json(&["view-open", &name, "--at", &point["id"].to_string()]);
        let disks = [0, 1].map(|at| read(&view, at));
        judge(&disks, SLOTS, time_ns(&point["time"]), &log)
            .unwrap_or_else(|e| panic!("SOAK_SEED={seed}, point {}: {e}", point["id"]));
        daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    }

    // The judge can say no: the state of one point is none of another time, and half a state is none at all.
    let (early, late) = (during[0], during[during.len() - 1]);
    let view = daemon.json(&["view-open", &name, "--at", &late["id"].to_string()]);
    let mut disks = [0, 1].map(|at| read(&view, at));
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    assert!(judge(&disks, SLOTS, time_ns(&early["time"]), &log).is_err());
    disks[1][..8192].fill(0);
    assert!(judge(&disks, SLOTS, time_ns(&late["time"]), &log).is_err());

    newest_equals(&daemon, &guest, &name);
}

/// The content of the view's volume number `at`.
fn read(view: &Value, at: usize) -> Vec<u8> {
    let uri = view["volumes"][at]["uri"].as_str().expect("a URI");
    let (export, socket) = uri
        .strip_prefix("nbd+unix:///")
        .and_then(|rest| rest.split_once("?socket="))
        .expect("an NBD URI");
    nbd::read_all(socket.as_ref(), export)
}

/// No point may lie in a gap.
fn check_gaps(daemon: &Daemon, name: &str) {
    let gaps = daemon.json(&["info", name])["gaps"].clone();
    let points = daemon.json(&["point-list", name]);
    for gap in gaps.as_array().expect("gaps") {
        let (start, end) = (time_ns(&gap["start"]), time_ns(&gap["end"]));
        for point in points["points"].as_array().expect("points") {
            let time = time_ns(&point["time"]);
            assert!(
                time <= start || (end > 0 && time >= end),
                "point {} lies in {gap}",
                point["id"]
            );
        }
    }
}
