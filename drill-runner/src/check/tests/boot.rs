//! When a boot counts as finished.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::*;
use crate::{
    check::{Sign, bound::Bound, console::Follower, ready, wait_ready},
    outcome::Verdict,
    plan::Ready,
};

fn wait(
    scene: &Scene,
    ready: &Ready,
    has_agent: bool,
    ms: u64,
) -> (Result<Sign, String>, Vec<Sign>) {
    let mut told = Vec::new();
    let time = Duration::from_millis(ms);
    let facts = Facts {
        has_agent_channel: has_agent,
        ..scene.facts.clone()
    };
    let result = scene.at(|place| {
        let place = Place {
            facts: &facts,
            ..*place
        };
        wait_ready(ready, time, &place, &mut |sign| told.push(sign))
    });
    (result, told)
}

/// A picture with something on it.
fn picture(shade: u8) -> Vec<u8> {
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 4, 4);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut pixels = [0; 48];
    pixels[7] = shade;
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    png
}

#[test]
fn the_agent_is_waited_for() {
    let asked = AtomicU64::new(0);
    let scene = Scene::with_agent(move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Err(StageError::AgentSilent("not connected".into())),
        _ => Ok(json!({})),
    });
    let (sign, told) = wait(&scene, &Ready::Auto, true, 5000);
    assert_eq!(sign, Ok(Sign::Agent));
    assert_eq!(told, [Sign::Running, Sign::Agent]);
}

#[test]
fn without_a_channel_for_an_agent_the_screen_will_do() {
    let mut scene = Scene::new();
    scene.machine.screen = Box::new(|| Ok(picture(200)));
    let began = Instant::now();
    let (sign, told) = wait(&scene, &Ready::Auto, false, 8000);
    assert_eq!(sign, Ok(Sign::Screen));
    assert_eq!(told, [Sign::Running, Sign::Screen]);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_silent_agent_gives_way_to_a_still_screen_after_a_while() {
    let mut scene = Scene::new();
    scene.machine.screen = Box::new(|| Ok(picture(200)));
    let began = Instant::now();
    let result = scene.at(|place| {
        let bound = Bound::new(place, Duration::from_secs(20), true);
        let instead = Duration::from_secs(5);
        ready::wait(&Ready::Auto, instead, place, &bound, &mut |_| {})
    });
    assert_eq!(result, Ok(Sign::ScreenWithoutAgent));
    assert!(began.elapsed() >= Duration::from_secs(5));
    // Before that it does not.
    let (sign, _) = wait(&scene, &Ready::Auto, true, 4000);
    assert_eq!(
        sign,
        Err(
            "its guest agent did not answer and its screen did not come to a standstill within 4 s"
                .into()
        )
    );
}

#[test]
fn an_agent_that_must_answer_is_not_replaced_by_a_screen() {
    let mut scene = Scene::new();
    scene.machine.screen = Box::new(|| Ok(picture(200)));
    scene.facts.agent_is_expected = true;
    let result = scene.at(|place| {
        let bound = Bound::new(place, Duration::from_secs(5), true);
        ready::wait(&Ready::Auto, Duration::ZERO, place, &bound, &mut |_| {})
    });
    let why = result.unwrap_err().saw;
    assert!(why.contains("which the original's does"), "{why}");
}

#[test]
fn a_screen_that_stands_still_before_the_system_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let console = folder.path().join("console.log");
    let machine = |text: Option<&str>, console: Option<&Path>, read: Option<u64>| {
        let mut scene = Scene::new();
        scene.machine.screen = Box::new(|| Ok(picture(200)));
        scene.machine.screen_text = text.map(str::to_owned);
        scene.machine.console = console.map(Path::to_owned);
        scene.machine.disk_reads = read;
        scene
    };
    let wide = format!(
        "Booting from Hard Disk...{}No bootable    device.",
        " ".repeat(60)
    );
    fs::write(
        &console,
        "[ 1.2] end Kernel panic - not syncing: VFS: Unable to mount root",
    )
    .unwrap();
    for (scene, why) in [
        (machine(Some(&wide), None, Some(9 << 20)), "in the firmware"),
        (machine(None, Some(&console), None), "in the kernel"),
        (machine(None, None, Some(5632)), "has read 5.5 KiB"),
    ] {
        let (sign, _) = wait(&scene, &Ready::Auto, false, 4500);
        let told = sign.unwrap_err();
        assert!(told.contains(why), "{told}");
    }
    fs::write(
        &console,
        format!(
            "Kernel panic - not syncing\n{}login:",
            "later\n".repeat(900)
        ),
    )
    .unwrap();
    let scene = machine(Some("Debian 13 login:"), Some(&console), Some(9 << 20));
    assert_eq!(wait(&scene, &Ready::Auto, false, 8000).0, Ok(Sign::Screen));
}

#[test]
fn a_screen_that_moves_or_is_missing_is_told() {
    let mut scene = Scene::new();
    let (sign, _) = wait(&scene, &Ready::Screen, false, 600);
    assert_eq!(
        sign,
        Err("its screen did not come to a standstill within 600 ms: it has no screen".into())
    );
    let shown = AtomicU64::new(0);
    scene.machine.screen =
        Box::new(move || Ok(picture(shown.fetch_add(1, Ordering::SeqCst) as u8 + 1)));
    let (sign, _) = wait(&scene, &Ready::Screen, false, 5000);
    assert!(sign.is_err());
}

#[test]
fn a_machine_that_runs_is_enough_where_that_is_asked_for() {
    let scene = Scene::new();
    let (sign, told) = wait(&scene, &Ready::Running, true, 1000);
    assert_eq!((sign, told), (Ok(Sign::Running), vec![Sign::Running]));
    *scene.machine.life.lock().unwrap() = Life::Paused("it waits for a migration".into());
    let (sign, told) = wait(&scene, &Ready::Running, true, 300);
    assert_eq!(
        sign,
        Err(
            "its CPUs did not run within 300 ms; its CPUs stand still: it waits for a migration"
                .into()
        )
    );
    assert!(told.is_empty());
    *scene.machine.life.lock().unwrap() = Life::Off("no bootable disk".into());
    let (sign, _) = wait(&scene, &Ready::Agent, true, 60_000);
    assert_eq!(sign, Err("the machine is off: no bootable disk".into()));
}

#[test]
fn a_ping_is_a_sign_too() {
    if !is_root() {
        eprintln!("SKIPPED: raw sockets need root");
        return;
    }
    let (sign, _) = wait(&Scene::new(), &Ready::Ping, false, 3000);
    assert_eq!(sign, Ok(Sign::Ping));
}

#[test]
fn the_check_boot_has_all_of_its_deadline() {
    let mut scene = Scene::new();
    scene.facts.has_agent_channel = false;
    scene.machine.screen = Box::new(|| Ok(picture(200)));
    let mut plan = once(CheckKind::Boot(Ready::Auto), 100);
    plan.deadline = Duration::from_secs(8);
    let report = scene.run(&plan);
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    assert_eq!(report.attempts[0].saw, "its screen stands still");
}

/// Looks until there is nothing more at once; whether the pattern was there.
fn look(follower: &mut Follower, text: &str) -> bool {
    loop {
        match follower.look(&pattern(text)) {
            (true, _) => return true,
            (false, true) => {}
            (false, false) => return false,
        }
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_console_is_followed_while_it_grows() {
    let folder = tempfile::tempdir().unwrap();
    let mut scene = Scene::new();
    let path = folder.path().join("console");
    scene.machine.console = Some(path.clone());
    let shown = Ready::Console(pattern("^db login: $"));
    let (sign, _) = thread::scope(|scope| {
        scope.spawn(|| {
            for piece in [
                "\x1b[2J[    0.00] boot\r\n",
                "db lo",
                "\x1b[1mgin\x1b[0m",
                ": ",
            ] {
                thread::sleep(Duration::from_millis(100));
                append(&path, piece.as_bytes());
            }
        });
        wait(&scene, &shown, false, 5000)
    });
    assert_eq!(sign, Ok(Sign::Console));
    let shown = Ready::Console(pattern("panic"));
    let (sign, _) = wait(&scene, &shown, false, 300);
    assert_eq!(
        sign,
        Err(
            "its console did not show /panic/ within 300 ms; its last line is \"db login:\"".into()
        )
    );
    scene.machine.console = None;
    let (sign, _) = wait(&scene, &shown, false, 300);
    assert_eq!(sign, Err("the machine has no console".into()));
}

#[test]
fn a_pattern_is_found_across_the_border_of_two_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    // Wherever the border is, for a while around it, in lines and in one single line.
    for end in ["\n", " "] {
        for shift in 0..24 {
            let mut text = format!("x{end}").repeat(32 * 1024 - 12).into_bytes();
            text.extend(vec![b'y'; shift]);
            text.extend(format!("{end}login: äö ready\n").as_bytes());
            text.extend(b"z\n".repeat(50_000));
            fs::write(&path, &text).unwrap();
            assert!(
                look(&mut Follower::new(&path), "login: äö ready"),
                "{shift}"
            );
            assert!(!look(&mut Follower::new(&path), "login: äö$"), "{shift}");
        }
    }
}

#[test]
fn a_large_console_is_read_in_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut file = File::create(&path).unwrap();
    let line = "[    1.234567] something of the kernel\r\n".repeat(1024);
    for _ in 0..1300 {
        file.write_all(line.as_bytes()).unwrap();
    }
    assert!(file.metadata().unwrap().len() > 50_000_000);
    let mut follower = Follower::new(&path);
    assert!(!look(&mut follower, "^login:$"));
    assert!(follower.held() < 256 * 1024, "{}", follower.held());
    append(&path, b"login:");
    assert!(look(&mut follower, "^login:$"));
    // One line without end, too.
    fs::write(&path, vec![b'x'; 5_000_000]).unwrap();
    let mut follower = Follower::new(&path);
    assert!(!look(&mut follower, "login"));
    assert!(follower.held() < 256 * 1024, "{}", follower.held());
}

#[test]
fn a_console_that_is_moved_away_or_cut_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let moved = folder.path().join("console.0");
    fs::write(&path, "one\n").unwrap();
    let mut follower = Follower::new(&path);
    assert!(!look(&mut follower, "two|three"));
    append(&path, b"two\n");
    fs::rename(&path, &moved).unwrap();
    fs::write(&path, "three\n").unwrap();
    assert!(look(&mut follower, "two"), "the end of the old one is read");
    assert!(look(&mut follower, "three"));
    fs::write(&path, "4\n").unwrap();
    assert!(look(&mut follower, "^4$"), "cut and written anew");
    // Who comes late begins with what was moved away.
    assert!(look(&mut Follower::new(&path), "one"));
}

#[test]
fn escape_sequences_and_returns_are_taken_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let text = b"\x1b]0;title\x07\x1b[01;32mWel\x1b[0mcome\x1b(B to\x00 db\r\nlogin: \xff\x1b[6n\r50%\r100%\n";
    fs::write(&path, text).unwrap();
    let shown = "^Welcome to db\\nlogin: \u{fffd}\\n50%\\n100%\\n";
    assert!(look(&mut Follower::new(&path), shown));
    // A guest cannot hide all that follows behind one that never ends.
    let mut text = b"\x1b]".to_vec();
    text.extend(b"x".repeat(10_000));
    text.extend(b"\nlogin:");
    fs::write(&path, &text).unwrap();
    assert!(look(&mut Follower::new(&path), "^login:$"));
}
