//! A network namespace of its own, held by a process that does nothing.
//!
//! It lives as long as any process is in it, and no name of it is left in the file system.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{HOLDER, IsolationError, MARKER, Result, host};

/// How long the holder may take to have the namespace.
const DEADLINE: Duration = Duration::from_secs(10);

/// A namespace; its holder is killed when it is dropped.
#[derive(Debug)]
pub(super) struct Namespace {
    holder: Child,
    file: File,
}

impl Namespace {
    pub(super) fn make(id: &str) -> Result<Self> {
        let failed = |what: String| IsolationError::Program {
            program: "unshare",
            what,
        };
        let holder = Command::new("unshare")
            .args(["--net", "--", "sleep", "infinity"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env(MARKER, id)
            .env(HOLDER, id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("{error}; is util-linux installed?")))?;
        let mut holder = Holder(Some(holder));
        let path = |pid: u32| PathBuf::from(format!("/proc/{pid}/ns/net"));
        let own = fs::read_link("/proc/self/ns/net").map_err(host("read the own namespace"))?;
        let give_up = Instant::now() + DEADLINE;
        loop {
            let child = holder.0.as_mut();
            let Some(child) = child else {
                return Err(failed("it is gone".into()));
            };
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(format!(
                    "{status}; making a network namespace needs root"
                )));
            }
            let path = path(child.id());
            if fs::read_link(&path).is_ok_and(|link| link != own) {
                let file = File::open(&path).map_err(host("open the namespace"))?;
                return match holder.0.take() {
                    Some(holder) => Ok(Self { holder, file }),
                    None => Err(failed("it is gone".into())),
                };
            }
            if Instant::now() > give_up {
                return Err(failed("it makes no namespace".into()));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    pub(super) fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(
            self.file.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// Runs something on a thread in the namespace.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let done = thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                self.enter()?;
                Ok(work())
            })?;
            match thread.join() {
                Ok(done) => done,
                Err(_) => Err(io::Error::other("the thread in it has panicked")),
            }
        });
        done.map_err(host("work in the drill's network namespace"))
    }

    /// Ends the holder.
    pub(super) fn reap(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A holder that has no namespace yet.
struct Holder(Option<Child>);

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
