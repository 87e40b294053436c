//! A virtcdpd of the test's own, with everything it keeps in one directory that is removed at the end.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{Ran, program, run, unique, wait_for};

/// How long a daemon may take to start or stop.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running (or killed, to be started again) daemon.
pub struct Daemon {
    /// Everything of it: configuration, state, sockets, overlays, log.
    pub dir: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a daemon with default settings.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a daemon with more lines in its configuration (they follow `[takeover]`).
    pub fn start_with(more: &str) -> Self {
        // Not a private directory: QEMU's user has to pass through to a view's socket.
        let dir = PathBuf::from("/var/tmp").join(unique("daemon"));
        fs::create_dir_all(&dir).expect("a directory for the daemon");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("its mode");
        let at = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "state_dir = '{}'\nsocket = '{}'\n[takeover]\noverlay_dir = '{}'\n{more}\n",
            at("state"),
            at("run/virtcdpd.sock"),
            at("overlays")
        );
        fs::write(dir.join("virtcdpd.toml"), config).expect("its configuration");
        let mut daemon = Self { dir, child: None };
        daemon.start_again();
        daemon
    }

    /// Starts the daemon on what an earlier run left.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let child = Command::new(program())
            .args(["daemon", "--config"])
            .arg(self.dir.join("virtcdpd.toml"))
            .env(
                "RUST_LOG",
                "info,virt_cdp=debug,qemu_hook=debug,cdp_core=debug",
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("its log"))
            .stderr(log)
            .spawn()
            .expect("virtcdpd starts");
        self.child = Some(child);
        wait_for("the daemon answers", START_DEADLINE, || {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                panic_with_log(self, &format!("virtcdpd ended: {status}"));
            }
            let ran = self.cli(&["status"]);
            if ran.ok { Ok(()) } else { Err(ran.err) }
        });
    }

    /// Has it go on with another configuration: stopped, and started again.
    pub fn reconfigure(&mut self, change: impl FnOnce(&str) -> String) {
        self.stop();
        let file = self.dir.join("virtcdpd.toml");
        let text = fs::read_to_string(&file).expect("its configuration");
        fs::write(&file, change(&text)).expect("its configuration");
        self.start_again();
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Ends the daemon as a crash would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("SIGKILL");
        child.wait().expect("it is gone");
    }

    /// Ends the daemon as systemd would; it has to end well.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        run("kill", &["-TERM", &child.id().to_string()]);
        let status = wait_for("the daemon stops", Duration::from_secs(70), || {
            child
                .try_wait()
                .expect("its status")
                .ok_or_else(|| "it runs".into())
        });
        if !status.success() {
            panic_with_log(self, &format!("virtcdpd ended with {status}"));
        }
    }

    /// Runs `virt-cdp` against this daemon.
    pub fn cli(&self, arguments: &[&str]) -> Ran {
        let program = program();
        let socket = self.socket();
        let mut all = vec!["-c", socket.to_str().expect("a plain path")];
        all.extend(arguments);
        run(program.to_str().expect("a plain path"), &all)
    }

    /// Runs `virt-cdp`, which has to go well; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.cli(arguments);
        if !ran.ok {
            panic_with_log(
                self,
                &format!(
                    "virt-cdp {arguments:?} exited with {:?}: {}{}",
                    ran.code, ran.out, ran.err
                ),
            );
        }
        ran.out
    }

    /// Runs `virt-cdp --json`, which has to go well; returns the value it printed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let out = self.ok(&all);
        serde_json::from_str(&out)
            .unwrap_or_else(|e| panic!("virt-cdp {all:?} printed no JSON: {e}: {out}"))
    }

    /// Runs `virt-cdp`, which has to fail with exit code 1, an error that holds `error` and a hint.
    pub fn refused(&self, arguments: &[&str], error: &str) -> Ran {
        let ran = self.cli(arguments);
        assert_eq!(ran.code, Some(1), "virt-cdp {arguments:?}: {ran:?}");
        assert!(
            ran.err.contains("error: ") && ran.err.contains(error),
            "virt-cdp {arguments:?} should say {error:?}: {}",
            ran.err
        );
        ran
    }

    /// Waits until a machine is in `state`.
    pub fn wait_state(&self, machine: &str, state: &str, deadline: Duration) -> Value {
        let give_up = std::time::Instant::now() + deadline;
        loop {
            let info = self.json(&["info", machine]);
            if info["state"] == state {
                return info;
            }
            if std::time::Instant::now() >= give_up {
                panic_with_log(
                    self,
                    &format!(
                        "{machine} is not {state} within {deadline:?}: {} {}",
                        info["state"], info["state_detail"]
                    ),
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Path of the API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/virtcdpd.sock")
    }

    /// Path of the log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The directory of the harbors.
    pub fn harbors(&self) -> PathBuf {
        self.dir.join("state/harbors")
    }
}

fn panic_with_log(daemon: &Daemon, what: &str) -> ! {
    let log = fs::read_to_string(daemon.log_path()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines
        .iter()
        .skip(lines.len().saturating_sub(60))
        .copied()
        .collect::<Vec<_>>()
        .join("\n");
    panic!("{what}\n--- the daemon's log ends with\n{tail}");
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status();
            let gone = (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(50));
                matches!(child.try_wait(), Ok(Some(_)))
            });
            if !gone {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::env::var_os("VIRT_CDP_KEEP").is_none() {
            remove(&self.dir);
        }
    }
}

fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}
