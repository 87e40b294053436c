//! What the end-to-end tests stand on: a daemon of their own, guests, and QEMU's storage daemon.
//!
//! Every piece cleans up after itself when it is dropped, and ends only what it started. What a machine
//! lacks is said aloud by [`needs`]; where `CI` is set nothing may be lacking.

pub mod daemon;

pub mod drill;

pub mod guest;

pub mod storage_daemon;

pub mod nbd;

pub mod libvirtd;

pub mod exposition;

pub mod proof;

pub mod random;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lies in the repository")
        .to_path_buf()
}

/// The built program `virt-cdp`.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a path of this test");
    let target = test
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps/TEST");
    let program = target.join("virt-cdp");
    assert!(
        program.exists(),
        "{} is not built: run cargo build first",
        program.display()
    );
    program
}

/// A name that no other test, in this or another process, uses.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "vct-{what}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// True when every one of `programs` is there; otherwise says what is skipped. In CI it must be there.
pub fn needs(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|p| !run("sh", &["-c", &format!("command -v {p}")]).ok)
        .collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI lacks {missing:?}; tests/setup should have installed it"
    );
    skipped(&format!("needs {missing:?}; tests/setup installs it"));
    false
}

/// True when libvirt answers; otherwise says what is skipped. In CI it must answer.
pub fn needs_libvirt() -> bool {
    if needs(&["virsh", "qemu-system-x86_64"]) && run("virsh", &["-c", "qemu:///system", "list"]).ok
    {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "libvirt does not answer in CI; tests/setup should have started it"
    );
    skipped("needs libvirt on qemu:///system; tests/setup starts it");
    false
}

/// Says so past the capture of a test's output, which is shown only where a test fails.
fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}

/// What a command printed and whether it went well.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Exit code 0.
    pub ok: bool,
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end.
pub fn run(program: &str, arguments: &[&str]) -> Ran {
    match Command::new(program).args(arguments).output() {
        Ok(output) => output.into(),
        Err(e) => Ran {
            ok: false,
            code: None,
            out: String::new(),
            err: format!("{program}: {e}"),
        },
    }
}

/// Runs a command that has to go well; returns what it printed.
pub fn must(program: &str, arguments: &[&str]) -> String {
    let ran = run(program, arguments);
    assert!(ran.ok, "{program} {arguments:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// A file system in memory, mounted for a test; unmounted when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one at `dir` with mount's `options`, such as `size=16m`.
    pub fn mount(dir: &Path, options: &str) -> Self {
        let tmpfs = Self(dir.to_path_buf());
        must(
            "mount",
            &["-t", "tmpfs", "-o", options, "none", tmpfs.path()],
        );
        tmpfs
    }

    /// Changes its options.
    pub fn remount(&self, options: &str) {
        must("mount", &["-o", &format!("remount,{options}"), self.path()]);
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a plain path")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run("umount", &["-l", self.path()]);
    }
}

/// An ext4 in a file, mounted for a test, whose writes can be made to hang; unmounted at its end.
pub struct HangingFs {
    dir: PathBuf,
    image: PathBuf,
}

impl HangingFs {
    /// Makes one of `mib` MiB in the file `image` and mounts it at `dir`.
    pub fn mount(dir: &Path, image: &Path, mib: u64) -> Self {
        let file = image.to_str().expect("a plain path");
        must("truncate", &["-s", &format!("{mib}M"), file]);
        must("mkfs.ext4", &["-q", "-F", file]);
        let made = Self {
            dir: dir.to_path_buf(),
            image: image.to_path_buf(),
        };
        must("mount", &["-o", "loop", file, made.path()]);
        made
    }

    /// Has every write to it wait from now on, as on a disk that does not answer.
    pub fn hang(&self) {
        must("fsfreeze", &["-f", self.path()]);
    }

    /// Has it answer again.
    pub fn answer(&self) {
        must("fsfreeze", &["-u", self.path()]);
    }

    fn path(&self) -> &str {
        self.dir.to_str().expect("a plain path")
    }
}

impl Drop for HangingFs {
    fn drop(&mut self) {
        run("fsfreeze", &["-u", self.path()]);
        run("umount", &["-l", self.path()]);
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Waits until `what` holds, asking every 50 ms; fails with its last answer at the deadline.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<T, String>,
) -> T {
    let give_up = Instant::now() + deadline;
    loop {
        match ask() {
            Ok(found) => return found,
            Err(last) => assert!(
                Instant::now() < give_up,
                "{what}: not within {deadline:?}: {last}"
            ),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Nanoseconds since the epoch, as guests and daemon count them.
pub fn now_ns() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    i64::try_from(since.as_nanos()).expect("before 2262")
}

/// Nanoseconds since the epoch of a UTC time such as `2026-11-22T08:51:00.710431833Z`; `None` if it is no such time.
pub fn epoch_ns(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let numbers = |text: &str, by: char| -> Option<Vec<i64>> {
        text.split(by).map(|part| part.parse().ok()).collect()
    };
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let [hours, minutes, seconds] = numbers(whole, ':')?.try_into().ok()?;
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 719_469;
    let ns: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000_000 + ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, ns) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T00:00:01.5Z", Some(1_500_000_000)),
            (
                "2026-11-22T08:51:00.710431833Z",
                Some(1_795_337_460_710_431_833),
            ),
            ("2024-02-29T23:59:59Z", Some(1_709_251_199_000_000_000)),
            (
                "2024-03-01T00:00:00.000000001Z",
                Some(1_709_251_200_000_000_001),
            ),
            ("yesterday", None),
        ] {
            assert_eq!(epoch_ns(text), ns, "{text}");
        }
    }
}
