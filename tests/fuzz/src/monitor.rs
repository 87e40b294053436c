//! What QEMU says over its monitor: lines of JSON, answers and events.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use qemu_hook::monitor::Monitor;
use qemu_hook::node;
use qemu_hook::qmp::QmpSocket;
use serde_json::{Value, json};

const INPUT_MAX: usize = 64 << 10;

/// Everything that comes from the socket, while nodes and devices are asked for.
pub(crate) fn qmp(input: &[u8]) {
    let (ours, mut qemu) = UnixStream::pair().expect("a pair of sockets");
    let input = &input[..input.len().min(INPUT_MAX)];
    qemu.write_all(input).expect("room in the socket");
    qemu.shutdown(Shutdown::Write)
        .expect("a socket that is connected");
    let Ok(monitor) = QmpSocket::over(ours, "fuzz") else {
        return;
    };
    let events = monitor.events();
    // What it answers is QEMU's affair; that it answers is ours.
    let _ = node::devices(&monitor);
    let _ = node::inspect(&monitor, "vda");
    let _ = node::names(&monitor);
    let _ = monitor.execute("query-status", json!({"any": Value::Null}));
    drop(monitor);
    for event in events.try_iter() {
        assert!(event.get("event").is_some());
    }
}
