//! Drills are alone: each reaches its own machines under the originals' addresses, and nothing else does.

use std::{
    fs,
    io::Read as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::Value;
use virt_cdp_tests::{
    daemon::Daemon,
    drill::{self, Actor, Network, drill_one, failed_checks, has_address, traces},
    must, needs, needs_libvirt, unique,
};

/// Prints the device of every frame on the host that holds one of the IPv4 addresses it is given, and which.
const CAPTURE: &str = r#"
import socket, sys
marks = {socket.inet_aton(one): one for one in sys.argv[1:]}
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("listening", flush=True)
while True:
    frame, about = wire.recvfrom(65535)
    for mark, text in marks.items():
        if mark in frame:
            print(about[0], text, flush=True)
"#;

/// What goes over the devices of the host, until it is dropped.
struct Capture {
    child: Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(dir: &Path, marks: &[String]) -> Self {
        let file = dir.join(unique("capture"));
        let out = fs::File::create(&file).expect("a file");
        let child = Command::new("python3")
            .args(["-c", CAPTURE])
            .args(marks)
            .stdin(Stdio::null())
            .stdout(out)
            .spawn()
            .expect("python3");
        let capture = Self { child, file };
        virt_cdp_tests::wait_for(
            "the capture",
            std::time::Duration::from_secs(20),
            || match capture.seen().contains("listening") {
                true => Ok(()),
                false => Err("it does not listen".into()),
            },
        );
        capture
    }

    fn seen(&self) -> String {
        fs::read_to_string(&self.file).expect("what was seen")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// The host's own IPv4 addresses.
fn own_addresses() -> Vec<String> {
    let list = must("ip", &["-o", "-4", "addr"]);
    let address = |line: &str| {
        let address = line.split_whitespace().nth(3)?.split('/').next()?;
        (!address.starts_with("127.")).then(|| address.to_owned())
    };
    list.lines().filter_map(address).collect()
}

#[test]
fn two_drills_and_their_original_have_one_address_and_each_is_reached_and_none_reaches_another() {
    if !needs_libvirt() || !needs(&["python3", "ip"]) {
        return;
    }
    let daemon = Daemon::start();
    let (known, unknown) = (Network::with_host(), Network::without_host());
    let actor = |what: &str, network: &Network| {
        Actor::start(
            &daemon,
            what,
            &["--network", &network.name, "--agent", "qemu-ga"],
        )
    };
    let (first, second) = (actor("first", &known), actor("second", &unknown));
    let names = [first.name(), second.name()];
    let (address, gateway) = (known.address(60), known.address(1));
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port of the host");
    listener.set_nonblocking(true).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let host = own_addresses().join(" ");
    // Each talks to everything it can think of, the host's own addresses among it, and tells what answered.
    let does = |greeting: &str, mark: &str| {
        format!(
            "{}\nip route add default via {gateway}\nstart-qemu-ga\nnc -ll -p 7000 -e echo '{greeting}' &\n\
             arping -c 3 -I eth0 {mark} & ping -c 2 -W 1 {mark} & ping -c 2 -b 255.255.255.255 & ping -c 2 {gateway}\n\
             for one in {host}; do\n\
             [ $one = {gateway} ] || ! ping -c 1 -W 1 $one || echo $one answers >>/tmp/reached\n\
             ! echo x | nc -w 1 $one {port} || echo $one port {port} >>/tmp/reached\ndone\n\
             touch /tmp/reached; mv /tmp/reached /tmp/all",
            has_address(&address)
        )
    };
    let marks = [known.address(231), known.address(232), known.address(233)];
    first.point(&daemon, &does("copy of the first", &marks[0]));
    second.point(&daemon, &does("copy of the second", &marks[1]));
    let original = |greeting: &str| {
        format!(
            "{}\n(nc -ll -p 7000 -e echo '{greeting}' >/dev/null 2>&1 </dev/null &)",
            has_address(&address)
        )
    };
    first.guest.sh(&original("the first itself"));
    second.guest.sh(&original("the second itself"));
    let capture = Capture::start(&daemon.dir, &marks);

    let plan = |name: &str, greeting: &str, more: &str| {
        let file = daemon.dir.join(format!("{name}.toml"));
        let plan = format!(
            "[[machine]]\nname = '{name}'\nready = 'agent'\nboot_deadline = '90s'\n{more}\
            [[machine.check]]\ntype = 'tcp'\nport = 7000\nbanner = '^{greeting}$'\ndeadline = '20s'\n\
            [[machine.check]]\ntype = 'ping'\ndeadline = '20s'\n\
            [[machine.check]]\ntype = 'exec'\ncommand = 'cat /tmp/all'\noutput = '^$'\ndeadline = '60s'\n\
            [[machine.check]]\ntype = 'exec'\ncommand = 'arping -D -c 2 -w 2 -I eth0 {address}'\ndeadline = '20s'\n"
        );
        fs::write(&file, plan).expect("a plan");
        file.display().to_string()
    };
    let plans = [
        plan(names[0], "copy of the first", ""),
        plan(names[1], "copy of the second", ""),
    ];
    let before = traces(&daemon, &names);
    let drills: Vec<(i32, Value)> = thread::scope(|scope| {
        let both: Vec<_> = plans
            .iter()
            .map(|plan| scope.spawn(|| drill_one(&daemon, &[plan])))
            .collect();
        both.into_iter()
            .map(|one| one.join().expect("a drill"))
            .collect()
    });
    for (code, drill) in &drills {
        assert_eq!(*code, 0, "{:?} {drill}", failed_checks(drill));
        assert_eq!(
            drill["machines"][0]["addresses"][0],
            format!("{address}/24"),
            "{drill}"
        );
    }
    let [start, end] = ["started", "ended"].map(|key| {
        drills
            .iter()
            .map(|(_, one)| one[key].as_str().expect("a time").to_owned())
            .collect::<Vec<_>>()
    });
    assert!(
        start.iter().max() < end.iter().min(),
        "they ran at once: {drills:?}"
    );

    // The wire was listened to: the original is heard, the copies were not.
    first
        .guest
        .try_run(
            &format!("arping -c 2 -I eth0 {}; true", marks[2]),
            std::time::Duration::from_secs(20),
        )
        .expect("an answer");
    let seen = capture.seen();
    assert!(
        seen.contains(&format!("{} {}", known.bridge(), marks[2])),
        "the capture works: {seen}"
    );
    for mark in &marks[..2] {
        assert!(
            !seen.contains(mark.as_str()),
            "a packet of a drill was on the host: {seen}"
        );
    }
    assert!(listener.accept().is_err(), "a drill has reached the host");
    // The original is as it was.
    let mut greeting = String::new();
    let target = format!("{address}:7000").parse().expect("an address");
    let mut stream =
        std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_secs(10))
            .expect("the original");
    stream.read_to_string(&mut greeting).expect("its greeting");
    assert_eq!(greeting, "the first itself\n");
    for name in names {
        daemon.wait_state(name, "protected", std::time::Duration::from_secs(1));
    }
    drill::wait_nothing_left(&daemon, &names, &before);
}

#[test]
fn a_group_boots_in_order_from_one_moment_into_the_networks_of_its_plan() {
    if !needs_libvirt() {
        return;
    }
    let daemon = Daemon::start();
    let (shared, elsewhere) = (Network::with_host(), Network::without_host());
    let store = Actor::start(&daemon, "store", &["--network", &shared.name]);
    let shop = Actor::start(
        &daemon,
        "shop",
        &["--network", &elsewhere.name, "--agent", "qemu-ga"],
    );
    let (store_at, shop_at) = (shared.address(70), shared.address(71));
    let old = store.point(
        &daemon,
        &format!(
            "{}\nmkdir /tmp/www; echo goods >/tmp/www/index.html; httpd -p 80 -h /tmp/www",
            has_address(&store_at)
        ),
    );
    let point = shop.point(
        &daemon,
        &format!(
            "{}\nstart-qemu-ga\nmkdir /tmp/www; until printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {store_at} 80 | tail -n 1 | grep goods >/tmp/www/index.html; do sleep 0.2; done; httpd -p 80 -h /tmp/www",
            has_address(&shop_at)
        ),
    );
    let points = daemon.json(&["point-list", shop.name()]);
    let all = points["points"].as_array().expect("points");
    let made = all
        .iter()
        .find(|one| one["id"].as_u64() == point.parse().ok())
        .expect("the point");
    let moment = made["time"].as_str().expect("a time").to_owned();
    // Of the store there is a later one, which is not of that moment.
    store.point(&daemon, "poweroff -f");

    let wrong = daemon.dir.join("wrong.toml");
    for (plan, line, what) in [
        (
            "name = 'x'\n[[machine]]\nname = 'a'\nafter = ['b']\n",
            4,
            "not in the plan",
        ),
        (
            "[[machine]]\nname = 'a'\n\n[[machine.check]]\ntype = 'tcp'\nport = 0\n",
            6,
            "no port",
        ),
        (
            "[[machine]]\nname = 'a'\nafter = ['b']\n[[machine]]\nname = 'b'\nafter = ['a']\n",
            3,
            "waits for",
        ),
        (
            "[[machine]]\nname = 'a'\n[[machine.check]]\ntype = 'http'\nbody = '('\n",
            5,
            "pattern",
        ),
        ("[[machine]]\nname = 'a'\nspeed = 3\n", 3, "speed"),
    ] {
        fs::write(&wrong, plan).expect("a wrong plan");
        let path = wrong.display().to_string();
        let ran = daemon.refused(&["plan-check", &path], what);
        assert!(ran.err.contains(&format!("line {line}")), "{}", ran.err);
        daemon.refused(&["drill-run", &path], what);
    }

    let file = daemon.dir.join("group.toml");
    let plan = format!(
        "name = 'group'\npoint = '{moment}'\ndeadline = '3m'\n\
        [[machine]]\nname = '{shop}'\nafter = ['{store}']\ndelay = '1500ms'\nready = 'agent'\n\
        [[machine.card]]\ncard = '0'\nnetwork = '{network}'\naddress = '{shop_at}/24'\n\
        [[machine.check]]\ntype = 'http'\nbody = '^goods$'\ndeadline = '30s'\n\
        [[machine]]\nname = '{store}'\nready = 'ping'\n\
        [[machine.card]]\ncard = '0'\naddress = '{store_at}/24'\n\
        [[machine.check]]\ntype = 'http'\nbody = '^goods$'\ndeadline = '30s'\n",
        shop = shop.name(),
        store = store.name(),
        network = shared.name,
    );
    fs::write(&file, plan).expect("a plan");
    let names = [shop.name(), store.name()];
    let before = traces(&daemon, &names);
    let (code, drill) = drill_one(&daemon, &[file.to_str().expect("a plain path")]);
    assert_eq!(code, 0, "{drill}");
    let report = drill::report(&daemon, &drill);
    let [first, second] = [0, 1].map(|at| &report["machines"][at]);
    assert_eq!(
        (first["name"].as_str(), second["name"].as_str()),
        (Some(names[1]), Some(names[0]))
    );
    assert_eq!(
        first["point"]["id"].to_string(),
        old,
        "of the moment, not the newest"
    );
    assert_eq!(second["point"]["id"].to_string(), point);
    let (ready, turn) = (
        first["times"]["ready_ms"].as_u64(),
        second["times"]["turn_ms"].as_u64(),
    );
    assert!(
        turn >= ready.map(|ready| ready + 1500),
        "{turn:?} after {ready:?}"
    );
    assert_eq!(
        second["cards"][0]["network"].as_str(),
        Some(shared.name.as_str())
    );

    // The one that is waited for does not come: the other's turn never is, and the report says so.
    let text = fs::read_to_string(&file)
        .expect("the plan")
        .replace(&moment, "latest");
    fs::write(&file, text).expect("a plan");
    let (code, drill) = drill_one(&daemon, &[file.to_str().expect("a plain path")]);
    assert_eq!(code, 3, "{drill}");
    let machines = &drill["machines"];
    assert!(
        machines[0]["why"]
            .as_str()
            .is_some_and(|why| why.contains("shut down")),
        "{machines}"
    );
    assert_eq!(machines[1]["verdict"], "skipped", "{machines}");
    drill::wait_nothing_left(&daemon, &names, &before);
}
