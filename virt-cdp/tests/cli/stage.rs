//! Where the tests play: a fake engine behind a real socket, and the real programs as processes.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};
use virt_cdp::daemon::{self, config::Config, socket::ApiSocket};

use crate::fake::Fake;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A fake engine, served by the daemon's own code in this process.
pub(crate) struct Stage {
    pub(crate) engine: Arc<Fake>,
    pub(crate) socket: PathBuf,
    pub(crate) dir: TempDir,
    _stop: watch::Sender<bool>,
    _socket: ApiSocket,
    _runtime: Runtime,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("virtcdpd.sock");
        let config = Config {
            socket: socket.clone(),
            ..Config::default()
        };
        let mut api = ApiSocket::bind(&config).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let engine = Arc::new(Fake::default());
        let context = runtime.enter();
        let serving = daemon::serve(&mut api, engine.clone(), stopped).unwrap();
        runtime.spawn(serving);
        drop(context);
        Self {
            engine,
            socket,
            dir,
            _stop: stop,
            _socket: api,
            _runtime: runtime,
        }
    }

    /// Prepares `virt-cdp` with `words`, for this engine.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = program("virt-cdp", self.dir.path());
        command.env("VIRT_CDP_URI", &self.socket).args(words);
        command
    }

    /// Runs `virt-cdp` with `words`.
    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        Ran::from(self.command(words).output().unwrap())
    }

    /// Returns what the engine was asked last.
    pub(crate) fn asked(&self) -> String {
        self.engine.last.lock().unwrap().clone()
    }
}

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Ran {
    /// Asserts success and an empty stderr; returns stdout.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (Some(0), ""),
            "{}",
            self.stdout
        );
        self.stdout
    }
}

/// Prepares one of the binary's two programs, with nothing of this process's environment that it heeds.
pub(crate) fn program(name: &str, scratch: &Path) -> Command {
    let binary = env!("CARGO_BIN_EXE_virt-cdp");
    let mut command = match name {
        "virt-cdp" => Command::new(binary),
        _ => {
            let link = scratch.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(binary, &link).unwrap();
            }
            Command::new(link)
        }
    };
    command
        .stdin(Stdio::null())
        .env("TZ", "UTC")
        .env("XDG_STATE_HOME", scratch);
    for heeded in [
        "VIRT_CDP_URI",
        "RUST_LOG",
        "NOTIFY_SOCKET",
        "JOURNAL_STREAM",
    ] {
        command.env_remove(heeded);
    }
    command
}

/// Prepares a virtcdpd whose every path is below `dir`.
pub(crate) fn daemon_in(dir: &Path) -> Command {
    let config = dir.join("virtcdpd.toml");
    let text = format!(
        "[libvirt]\nuri = \"test:///default\"\n[takeover]\noverlay_dir = \"{}\"\n",
        dir.join("overlays").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = program("virtcdpd", dir);
    command.arg("--config").arg(config);
    command
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--socket")
        .arg(dir.join("run/api.sock"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A daemon that is killed when the test ends, however it ends.
pub(crate) struct Daemon {
    pub(crate) child: Child,
}

impl Daemon {
    /// Starts it and waits until it answers.
    pub(crate) fn start(mut command: Command, dir: &Path) -> Self {
        let daemon = Self {
            child: command.spawn().unwrap(),
        };
        let answers = || {
            let mut status = program("virt-cdp", dir);
            status
                .arg("-c")
                .arg(dir.join("run/api.sock"))
                .arg("version");
            status.output().unwrap().status.success()
        };
        wait_for("the daemon to answer", answers);
        daemon
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn stop(mut self) -> Ran {
        self.signal(rustix::process::Signal::TERM);
        wait_for("the daemon to stop", || {
            self.child.try_wait().unwrap().is_some()
        });
        let read = |from: &mut dyn std::io::Read| {
            let mut text = String::new();
            from.read_to_string(&mut text).unwrap();
            text
        };
        let code = self.child.wait().unwrap().code();
        let stdout = read(self.child.stdout.as_mut().unwrap());
        let stderr = read(self.child.stderr.as_mut().unwrap());
        Ran {
            code,
            stdout,
            stderr,
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        send(&self.child, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Waits until `is_so`, or fails.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
