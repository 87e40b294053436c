//! Drills that policies ask for: when they are held, and what puts them off.

use std::{fs, time::Duration};

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, Actor, traces},
    epoch_ns,
    exposition::{Page, free_port, get},
    must, needs_libvirt, wait_for,
};

/// Until a drill that is due has been held.
const HELD: Duration = Duration::from_secs(60);
/// Within so long the daemon has looked at every machine.
const LOOKED: Duration = Duration::from_secs(4);

/// Has the daemon go on with another configuration.
fn configure(daemon: &mut Daemon, base_interval: &str, drills: &str, rule: &str) {
    daemon.reconfigure(|text| {
        let ours = text.split("[tidy]").next().expect("what comes before");
        format!("{ours}{}", config(base_interval, drills, rule))
    });
}

fn config(base_interval: &str, drills: &str, rule: &str) -> String {
    format!(
        "[tidy]\ninterval = '1s'\nbase_interval = '{base_interval}'\n[drills]\n{drills}\n\
         [policy.default]\nhourly = '1d'\ndrill = {{ {rule} }}\n"
    )
}

/// The drills of a machine that have ended: reason, verdict, begin, end; the newest last.
fn held(daemon: &Daemon, machine: &str) -> Vec<(String, String, i64, i64)> {
    let list = daemon.json(&["drill-list", machine, "--limit", "100"]);
    let ended = list["drills"].as_array().expect("drills").iter();
    let ended = ended.filter(|one| one["state"] == "ended");
    ended
        .map(|one| {
            let text = |key: &str| one[key].as_str().expect("a text").to_owned();
            let time = |key: &str| epoch_ns(&text(key)).expect("a time");
            (
                text("reason"),
                text("verdict"),
                time("started"),
                time("ended"),
            )
        })
        .collect()
}

/// Waits until so many drills of a machine have ended.
fn wait_held(daemon: &Daemon, machine: &str, count: usize) -> Vec<(String, String, i64, i64)> {
    wait_for("drills are held", HELD, || {
        let held = held(daemon, machine);
        match held.len() >= count {
            true => Ok(held),
            false => Err(format!("{held:?}; {}", proof(daemon, machine))),
        }
    })
}

fn proof(daemon: &Daemon, machine: &str) -> Value {
    daemon.json(&["info", machine])["drills"].clone()
}

/// Waits until a drill is put off for a reason.
fn wait_put_off(daemon: &Daemon, machine: &str, why: &str) {
    wait_for("a drill is put off", LOOKED, || {
        let proof = proof(daemon, machine);
        match proof["put_off"].as_str().is_some_and(|is| is.contains(why)) {
            true => Ok(()),
            false => Err(format!("not {why:?}: {proof}")),
        }
    });
    // People are told, too.
    let text = daemon.ok(&["info", machine]);
    assert!(text.contains("put off: ") && text.contains(why), "{text}");
}

/// A figure of a machine, as it is served.
fn figure(port: u16, name: &str, machine: &str) -> f64 {
    let answer = get(port).expect("the endpoint answers");
    let (_, page) = answer.split_once("\r\n\r\n").expect("a head");
    let page = Page::read(page).expect("metrics");
    let found = page.value(&format!("{name}{{machine=\"{machine}\"}}"));
    found.unwrap_or_else(|| panic!("no {name} of {machine}: {answer}"))
}

/// A part of the day in local time that begins in two hours.
fn other_window() -> String {
    let [begin, end] = ["+2 hours", "+3 hours"]
        .map(|ahead| must("date", &["-d", ahead, "+%H:%M"]).trim().to_owned());
    format!("{begin}-{end}")
}

#[test]
fn policies_have_their_machines_drilled_when_it_is_due_and_the_host_can() {
    if !needs_libvirt() {
        return;
    }
    let after_base = "after = 'base-point', checks = ['boot']";
    // All the memory there is stays free.
    let port = free_port();
    let metrics = format!("[metrics]\nlisten = '{port}'\n");
    let short = config("1s", "reserve_memory = '1000GiB'", after_base);
    let mut daemon = Daemon::start_with(&format!("{metrics}{short}"));
    let actor = Actor::start(&daemon, "auto", &[]);
    let name = actor.name();
    let point: u64 = actor.point(&daemon, "true").parse().expect("a number");
    wait_put_off(&daemon, name, "the host is short of memory");
    assert!(figure(port, "virtcdp_drill_put_off_seconds", name) > 0.0);

    configure(
        &mut daemon,
        "1s",
        &format!("window = '{}'", other_window()),
        after_base,
    );
    wait_put_off(&daemon, name, "drills may begin in");
    configure(&mut daemon, "1s", "parallel = 0", after_base);
    wait_put_off(&daemon, name, "drills.parallel is 0");
    assert_eq!(held(&daemon, name), []);

    // What is due is held as soon as it can be, once.
    let before = traces(&daemon, &[name]);
    configure(&mut daemon, "1h", "", after_base);
    let all = wait_held(&daemon, name, 1);
    let (reason, verdict, ..) = &all[0];
    assert_eq!(
        (reason.as_str(), verdict.as_str()),
        ("after base point", "proved")
    );
    wait_for("it is known as proved", LOOKED, || {
        let proof = proof(&daemon, name);
        let is_proved = proof["proven_point"].as_u64() >= Some(point)
            && proof["last_proved"] == true
            && proof["put_off"].is_null();
        is_proved.then_some(()).ok_or_else(|| proof.to_string())
    });
    std::thread::sleep(LOOKED);
    drill::wait_nothing_left(&daemon, &[name], &before);
    assert_eq!(
        held(&daemon, name).len(),
        1,
        "there was no other base point"
    );

    // The next base point is followed by the next drill.
    configure(&mut daemon, "1s", "", after_base);
    daemon.wait_state(name, "protected", HELD);
    actor.point(&daemon, "echo again");
    assert_eq!(wait_held(&daemon, name, 2)[1].0, "after base point");

    configure(&mut daemon, "1h", "", "every = '10s', checks = ['boot']");
    let all = wait_held(&daemon, name, 4);
    for pair in all.windows(2).skip(1) {
        let ((_, _, _, ended), (reason, verdict, began, _)) = (&pair[0], &pair[1]);
        assert_eq!((reason.as_str(), verdict.as_str()), ("every 10s", "proved"));
        assert!(began - ended >= 10_000_000_000, "{all:?}");
    }

    // Of the calendar: a second that comes soon, each minute.
    let second: u8 = must("date", &["-d", "+15 seconds", "+%S"])
        .trim()
        .parse()
        .expect("a second");
    let at = format!("*:*:{second:02}");
    configure(
        &mut daemon,
        "1h",
        "",
        &format!("at = '{at}', checks = ['boot']"),
    );
    let known = held(&daemon, name).len();
    let all = wait_held(&daemon, name, known + 1);
    let (reason, _, began, _) = &all[known];
    assert_eq!(reason, &format!("at {at}"));
    let late = (began / 1_000_000_000 - i64::from(second)).rem_euclid(60);
    assert!(late <= 3, "it began {late} s late");
}

#[test]
fn continuous_drills_take_turns_and_one_that_fails_is_told() {
    if !needs_libvirt() {
        return;
    }
    let rule = "continuous = true, checks = ['boot']";
    let port = free_port();
    let metrics = format!("[metrics]\nlisten = '{port}'\n");
    let daemon = Daemon::start_with(&format!("{metrics}{}", config("1h", "", rule)));
    let (one, other) = (
        Actor::start(&daemon, "turn", &[]),
        Actor::start(&daemon, "wait", &[]),
    );
    let names = [one.name(), other.name()];
    let mut seen_put_off = false;
    wait_for("both are drilled, by turns", HELD * 2, || {
        for name in names {
            let why = proof(&daemon, name)["put_off"].to_string();
            seen_put_off |= why.contains("a drill of another machine runs");
        }
        let counts = names.map(|name| held(&daemon, name).len());
        match counts.iter().all(|count| *count >= 2) {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    });
    assert!(seen_put_off, "while one is drilled the other waits");
    let mut all: Vec<_> = names.iter().flat_map(|name| held(&daemon, name)).collect();
    all.sort_by_key(|(_, _, began, _)| *began);
    for pair in all.windows(2) {
        assert!(pair[0].3 <= pair[1].2, "two at once: {all:?}");
    }
    assert!(
        all.iter()
            .all(|(reason, verdict, ..)| reason == "continuous" && verdict == "proved")
    );

    // A point that does not boot any more: the policy finds out, and it is an alert.
    one.point(&daemon, "poweroff -f");
    let name = names[0];
    wait_for("the break is found", HELD, || {
        let proof = proof(&daemon, name);
        match proof["last_proved"] == false {
            true => Ok(()),
            false => Err(proof.to_string()),
        }
    });
    wait_for("there is an alert", LOOKED, || {
        let status = daemon.json(&["status"]);
        let mut alerts = status["alerts"].as_array().expect("alerts").iter();
        let told = alerts.any(|one| one["key"] == "drill-failed" && one["machine"] == name);
        told.then_some(())
            .ok_or_else(|| status["alerts"].to_string())
    });
    assert_eq!(figure(port, "virtcdp_last_drill_proved", name), 0.0);
    assert_eq!(figure(port, "virtcdp_last_drill_proved", names[1]), 1.0);
}

#[test]
fn a_rule_whose_plan_nobody_holds_is_told() {
    if !needs_libvirt() {
        return;
    }
    let none = "parallel = 0";
    let mut daemon = Daemon::start_with(&config("1h", none, "every = '1h', checks = ['boot']"));
    let actor = Actor::start(&daemon, "unheld", &[]);
    let name = actor.name();
    actor.point(&daemon, "true");
    // Its plan begins with a machine that nobody protects.
    let plan = daemon.dir.join("plan.toml");
    let text = format!("[[machine]]\nname = 'nobody'\n[[machine]]\nname = '{name}'\n");
    fs::write(&plan, text).expect("a plan");
    let rule = format!("every = '1h', plan = '{}'", plan.display());
    configure(&mut daemon, "1h", "", &rule);
    wait_put_off(
        &daemon,
        name,
        "begins with 'nobody', which is not protected",
    );
    assert_eq!(held(&daemon, name), []);

    // With a plan that begins with it there is nothing in the way.
    fs::write(&plan, format!("[[machine]]\nname = '{name}'\n")).expect("a plan");
    let all = wait_held(&daemon, name, 1);
    assert_eq!(all[0].1, "proved", "{all:?}");
    wait_for("nothing is put off", LOOKED, || {
        let proof = proof(&daemon, name);
        let is_held = proof["put_off"].is_null() && proof["last_proved"] == true;
        is_held.then_some(()).ok_or_else(|| proof.to_string())
    });
}
