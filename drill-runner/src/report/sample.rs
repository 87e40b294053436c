//! Reports of drills that never were, as they come out of real ones.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use crate::outcome::{
    Attempt, CardFacts, CheckReport, Console, DiskFacts, Event, FORMAT, Host, MachineReport,
    PointFacts, Recycling, Report, Screenshot, Times, Verdict,
};

const PLAN: &str = r#"name = "web-shop"
point = "latest"
deadline = "15m"

[[network]]
name = "default"
gateway = "192.168.122.1/24"

[[machine]]
name = "db1"
ready = "agent"
check = ["ping", "tcp:5432", "exec: sudo -u postgres psql -c 'select count(*) from orders'"]

[[machine]]
name = "web1"
after = ["db1"]
check = ["ping", "tcp:443", "http://:80/health"]
"#;

const BOOT: &str = "[    0.000000] Linux version 6.1.0-28-amd64 (debian-kernel@lists.debian.org)\n\
[    0.000000] Command line: BOOT_IMAGE=/boot/vmlinuz-6.1.0-28-amd64 root=/dev/vda1 ro console=ttyS0\n\
[    1.204411] EXT4-fs (vda1): recovery complete\n\
[    1.206128] EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.\n\
[\u{1b}[0;32m  OK  \u{1b}[0m] Reached target network.target - Network.\r\n\
[\u{1b}[0;32m  OK  \u{1b}[0m] Started ssh.service - OpenBSD Secure Shell server.\r\n";

/// A drill in which all was proved.
pub(crate) fn passed() -> Report {
    let machines = vec![database(), web_server()];
    Report {
        format: FORMAT,
        id: "20261127-041500-4f2a".into(),
        name: "web-shop".into(),
        verdict: Verdict::Proved,
        why: String::new(),
        reason: "every 1h".into(),
        asked_by: "virtcdpd".into(),
        started: "2026-11-27T04:15:00.120034512Z".into(),
        ended: "2026-11-27T04:15:14.902337101Z".into(),
        rto_ms: Some(12_345),
        rpo_ms: Some(1230),
        host: Host {
            name: "kvm-03.example.net".into(),
            virt_cdp: "0.1.0".into(),
            qemu: "7.2.15".into(),
            libvirt: "9.0.0".into(),
            kernel: "6.1.0-28-amd64".into(),
        },
        plan: PLAN.into(),
        machines,
        recycling: Recycling {
            kept: false,
            took_ms: 1840,
            left: Vec::new(),
        },
        history: Vec::new(),
        previous: None,
    }
}

/// A drill in which one of two machines failed.
pub(crate) fn failed() -> Report {
    let mut report = passed();
    report.id = "20261127-031500-9c01".into();
    report.started = "2026-11-27T03:15:00.120034512Z".into();
    report.ended = "2026-11-27T03:16:12.402337101Z".into();
    report.verdict = Verdict::Failed;
    report.why = "check `http://:80/health` of web1 did not pass within 1m".into();
    report.reason = "after base point".into();
    report.rto_ms = None;
    report.recycling.left = vec!["directory /var/lib/virt-cdp/drills/9c01: it is busy".into()];
    if let Some(web) = report.machines.last_mut() {
        web.verdict = Verdict::Failed;
        web.why = "check `http://:80/health` did not pass within 1m".into();
        web.times.proved_ms = None;
        web.times.removed_ms = Some(71_900);
        web.console.bytes = 8_402_113;
        web.console.tail = "nginx: [emerg] open() \"/etc/nginx/sites-enabled/shop\" failed (2: No such file or directory)\n\
            systemd[1]: nginx.service: Failed with result 'exit-code'.\n\nweb1 login: "
            .into();
        web.screenshots.push(screenshot(70_100, "failure", 7));
        web.events
            .push(event(70_080, "check `http://:80/health` is given up"));
        if let Some(check) = web.checks.last_mut() {
            *check = failed_check();
        }
        web.checks.push(CheckReport {
            name: "exec: systemctl is-system-running".into(),
            kind: "exec".into(),
            expects: "the command ends with 0 and prints `running`".into(),
            verdict: Verdict::Skipped,
            why: "a check before it failed".into(),
            started_ms: None,
            ended_ms: None,
            deadline_ms: 30_000,
            attempts_total: 0,
            attempts: Vec::new(),
        });
    }
    report
}

/// Drills of the same plan, one an hour before the others.
pub(crate) fn row_of_drills(count: u64) -> Vec<Report> {
    (0..count)
        .map(|n| {
            let mut report = passed();
            let (day, hour) = (20 + n / 24, n % 24);
            report.id = format!("202611{day:02}-{hour:02}1500-{n:04x}");
            report.started = format!("2026-11-{day:02}T{hour:02}:15:00.000000001Z");
            report.ended = format!("2026-11-{day:02}T{hour:02}:15:16.000000001Z");
            report.rto_ms = Some(11_000 + n * 7919 % 4800);
            for machine in &mut report.machines {
                machine.screenshots.clear();
                if let Some(point) = &mut machine.point {
                    point.time = format!("2026-11-{day:02}T{hour:02}:14:58.500000001Z");
                    point.id = 1000 + n;
                }
            }
            if n % 5 == 3 {
                report.verdict = Verdict::Error;
                report.why = "the host has 1.2 GiB of free memory, 4 GiB are needed".into();
                report.rto_ms = None;
                for machine in &mut report.machines {
                    machine.verdict = Verdict::Skipped;
                    machine.why = "the drill was not begun".into();
                }
            }
            report
        })
        .collect()
}

fn database() -> MachineReport {
    MachineReport {
        name: "db1".into(),
        machine_id: "0b9f2c1e-5a5d-4f0e-8d3b-4a1f6c7d8e90".into(),
        domain: "db1-drill-4f2a".into(),
        point: Some(point(18_231)),
        data_age_ms: Some(1230),
        verdict: Verdict::Proved,
        why: String::new(),
        vcpus: Some(2),
        memory_bytes: Some(4 << 30),
        disks: vec![disk("vda", 40 << 30), disk("vdb", 200 << 30)],
        cards: vec![card("52:54:00:6b:3c:58", "192.168.122.11/24", "agent")],
        dropped: vec!["host device 0000:3b:00.0: a drill takes no hardware of the host".into()],
        times: Times {
            turn_ms: Some(412),
            running_ms: Some(1180),
            ping_ms: Some(3902),
            agent_ms: Some(5127),
            ready_ms: Some(5127),
            proved_ms: Some(6980),
            removed_ms: Some(13_400),
        },
        events: vec![
            event(412, "its turn came"),
            event(1180, "its CPUs run"),
            event(5127, "its guest agent answers: its boot is finished"),
        ],
        checks: vec![
            check("ping", "ping", "it answers a ping", 3900, 2),
            check("tcp:5432", "tcp", "port 5432 takes a connection", 6010, 3),
            check(
                "exec: sudo -u postgres psql -c 'select count(*) from orders'",
                "exec",
                "the command ends with 0",
                6980,
                1,
            ),
        ],
        screenshots: vec![screenshot(5200, "boot", 3)],
        console: Console {
            bytes: BOOT.len() as u64,
            head: BOOT.into(),
            tail: String::new(),
        },
    }
}

fn web_server() -> MachineReport {
    MachineReport {
        name: "web1".into(),
        machine_id: "7c3d5e8a-2b4f-4a6c-9e1d-0f2a3b4c5d6e".into(),
        domain: "web1-drill-4f2a".into(),
        point: Some(PointFacts {
            grade: "crash".into(),
            label: String::new(),
            chain_hash: String::new(),
            ..point(9120)
        }),
        data_age_ms: Some(804),
        vcpus: Some(1),
        memory_bytes: Some(1 << 30),
        disks: vec![disk("vda", 20 << 30)],
        cards: vec![
            card("52:54:00:11:9a:02", "192.168.122.12/24", "neighbour"),
            card("52:54:00:11:9a:03", "", ""),
        ],
        dropped: Vec::new(),
        times: Times {
            turn_ms: Some(5200),
            running_ms: Some(5910),
            ping_ms: Some(8811),
            agent_ms: None,
            ready_ms: Some(8811),
            proved_ms: Some(12_345),
            removed_ms: Some(14_100),
        },
        events: vec![event(5200, "its turn came: db1 is ready")],
        checks: vec![
            check("ping", "ping", "it answers a ping", 8811, 1),
            check("tcp:443", "tcp", "port 443 takes a connection", 11_040, 4),
            check(
                "http://:80/health",
                "http",
                "the answer has status 200 and contains `ok`",
                12_345,
                6,
            ),
        ],
        screenshots: vec![screenshot(8900, "boot", 5)],
        ..database()
    }
}

fn failed_check() -> CheckReport {
    let attempt = |number: u64| Attempt {
        number,
        at_ms: 9000 + number * 1000,
        took_ms: 4,
        passed: false,
        saw: "status 502".into(),
        output: "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n</html>\r\n".into(),
    };
    CheckReport {
        name: "http://:80/health".into(),
        kind: "http".into(),
        expects: "the answer has status 200 and contains `ok`".into(),
        verdict: Verdict::Failed,
        why: "it did not pass within 1m: status 502".into(),
        started_ms: Some(9980),
        ended_ms: Some(69_990),
        deadline_ms: 60_000,
        attempts_total: 60,
        attempts: (1..=3).chain(58..=60).map(attempt).collect(),
    }
}

fn check(name: &str, kind: &str, expects: &str, ended_ms: u64, attempts: u64) -> CheckReport {
    let at_ms = |number: u64| ended_ms - (attempts - number) * 500 - 60;
    let attempt = |number: u64| Attempt {
        number,
        at_ms: at_ms(number),
        took_ms: 55,
        passed: number == attempts,
        saw: match number == attempts {
            true => "what was expected".into(),
            false => "connection refused".into(),
        },
        output: match kind {
            "exec" => " count \n-------\n 48213\n(1 row)\n".into(),
            _ => String::new(),
        },
    };
    CheckReport {
        name: name.into(),
        kind: kind.into(),
        expects: expects.into(),
        verdict: Verdict::Proved,
        why: String::new(),
        started_ms: Some(at_ms(1)),
        ended_ms: Some(ended_ms),
        deadline_ms: 60_000,
        attempts_total: attempts,
        attempts: (1..=attempts).map(attempt).collect(),
    }
}

fn point(id: u64) -> PointFacts {
    PointFacts {
        id,
        time: "2026-11-27T04:14:58.890113402Z".into(),
        grade: "quiesced".into(),
        label: "before nightly import".into(),
        seq: 48_112_907,
        chain_hash: digits(&Sha256::digest(id.to_be_bytes())),
    }
}

fn disk(target: &str, size_bytes: u64) -> DiskFacts {
    DiskFacts {
        target: target.into(),
        size_bytes,
    }
}

fn card(mac: &str, address: &str, learnt_from: &str) -> CardFacts {
    CardFacts {
        mac: mac.into(),
        network: "default".into(),
        address: address.into(),
        learnt_from: learnt_from.into(),
    }
}

fn event(at_ms: u64, what: &str) -> Event {
    Event {
        at_ms,
        what: what.into(),
    }
}

fn screenshot(at_ms: u64, what: &str, seed: u32) -> Screenshot {
    let (width, height) = (720, 400);
    let png = picture(width, height, seed);
    Screenshot {
        at_ms,
        what: what.into(),
        sha256: digits(&Sha256::digest(&png)),
        width,
        height,
        png: STANDARD.encode(png),
    }
}

/// A PNG file, one bit a pixel, that looks like a console from afar.
fn picture(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let mut rows = Vec::new();
    for y in 0..height {
        let (text_row, in_row) = (y / 16, y % 16);
        rows.push(0);
        for column in 0..width / 8 {
            let chance =
                (text_row * 131 + column * 37 + seed * 17).wrapping_mul(2_654_435_761) >> 24;
            let len = 20 + (text_row * 29 + seed * 11) % 50;
            let is_ink = text_row < 18 && column < len && chance > 40 && (3..13).contains(&in_row);
            rows.push(if is_ink {
                (chance as u8 | 0x10) & 0x7e
            } else {
                0
            });
        }
    }
    let mut data = vec![0x78, 0x01];
    let blocks = rows.chunks(0xffff);
    let last = blocks.len() - 1;
    for (n, block) in blocks.enumerate() {
        let len = block.len() as u16;
        data.push(u8::from(n == last));
        data.extend([len.to_le_bytes(), (!len).to_le_bytes()].concat());
        data.extend(block);
    }
    let sums = rows.iter().fold((1, 0), |(a, b): (u32, u32), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    data.extend((sums.1 << 16 | sums.0).to_be_bytes());
    let mut head = [width.to_be_bytes(), height.to_be_bytes()].concat();
    head.extend([1, 0, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [(b"IHDR", head), (b"IDAT", data), (b"IEND", Vec::new())] {
        let part = [kind.as_slice(), &body].concat();
        png.extend((body.len() as u32).to_be_bytes());
        png.extend(&part);
        png.extend(crc(&part).to_be_bytes());
    }
    png
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 * (sum & 1))
        })
    })
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
