//! A qemu-storage-daemon with a QMP socket: the nearest thing to a guest's QEMU without a guest.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::peers::wait_until;

pub(crate) struct StorageDaemon {
    child: Child,
    qmp: BufReader<UnixStream>,
    events: VecDeque<Value>,
    dir: PathBuf,
}

impl StorageDaemon {
    /// Starts one with an NBD server on `<dir>/qsd.sock` and the given further arguments.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_with(dir, args, Stdio::null())
    }

    /// The same with a raw file as node `disk`, exported writable as `disk`, and a node `tap`
    /// whose server is on the other end of `socket`.
    ///
    /// The daemon has no `getfd`: the socket is handed over as its standard input.
    pub(crate) fn tapped(dir: &Path, file: &Path, socket: UnixStream, tap: &str) -> Self {
        let disk = format!("driver=file,node-name=disk,filename={}", file.display());
        let tap = format!(
            "driver=nbd,node-name=tap,server.type=fd,server.str=0,reconnect-delay=0,export={tap}"
        );
        let export = "type=nbd,id=e,node-name=disk,name=disk,writable=on";
        let args = ["--blockdev", &disk, "--blockdev", &tap, "--export", export];
        Self::start_with(dir, &args, OwnedFd::from(socket).into())
    }

    fn start_with(dir: &Path, args: &[&str], input: Stdio) -> Self {
        let socket = dir.join("qmp.sock");
        let chardev = format!("socket,id=q,server=on,wait=off,path={}", socket.display());
        let server = format!("addr.type=unix,addr.path={}/qsd.sock", dir.display());
        let child = Command::new("qemu-storage-daemon")
            .args(["--chardev", &chardev, "--monitor", "chardev=q"])
            .args(["--nbd-server", &server])
            .args(args)
            .stdin(input)
            .spawn()
            .unwrap();
        let mut connected = None;
        wait_until("a QMP socket", || {
            connected = UnixStream::connect(&socket).ok();
            connected.is_some()
        });
        let stream = connected.unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut daemon = Self {
            child,
            qmp: BufReader::new(stream),
            events: VecDeque::new(),
            dir: dir.to_path_buf(),
        };
        daemon.line();
        daemon.command("qmp_capabilities", json!({}));
        daemon
    }

    /// The URI of an export of the daemon's NBD server.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}/qsd.sock",
            self.dir.display()
        )
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.join("qsd.sock")).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command that must succeed.
    pub(crate) fn command(&mut self, name: &str, arguments: Value) -> Value {
        let command = json!({"execute": name, "arguments": arguments});
        self.send(command.to_string().as_bytes());
        self.answer(name)
    }

    /// Makes `disk`'s writes go to the tap as well.
    pub(crate) fn mirror(&mut self) {
        let mirror = json!({"job-id": "mirror", "device": "disk", "target": "tap", "sync": "none",
            "copy-mode": "write-blocking", "granularity": 4096, "on-target-error": "report",
            "filter-node-name": "filter"});
        self.command("blockdev-mirror", mirror);
        self.event("BLOCK_JOB_READY");
    }

    /// Drains everything: what was written before has reached the tap after it.
    pub(crate) fn barrier(&mut self) {
        self.command("transaction", json!({"actions": []}));
    }

    /// Waits for an event; others that come before it are kept.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
            return self.events.remove(at).unwrap();
        }
        loop {
            let line = self.line();
            if line["event"] == name {
                return line;
            }
            self.events.push_back(line);
        }
    }

    fn answer(&mut self, name: &str) -> Value {
        loop {
            let mut line = self.line();
            if line.get("return").is_some() {
                return line["return"].take();
            }
            assert!(line.get("event").is_some(), "{name} failed: {line}");
            self.events.push_back(line);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.qmp.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
