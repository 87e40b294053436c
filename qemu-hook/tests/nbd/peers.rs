//! Runs the programs on the other end.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tells whether all of `tools` are installed; says aloud what is missing.
pub(crate) fn requires(tools: &[&str]) -> bool {
    let is_missing = |tool: &&&str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&paths).any(|dir| dir.join(tool).exists())
    };
    match tools.iter().find(is_missing) {
        Some(tool) => {
            drop(writeln!(std::io::stderr(), "SKIPPED: needs {tool}"));
            false
        }
        None => true,
    }
}

/// The system's own Python has libnbd, another one that comes first in PATH has not.
pub(crate) fn python_with_libnbd() -> Option<&'static str> {
    const PYTHON: &str = "/usr/bin/python3";
    let found = Command::new(PYTHON).args(["-c", "import nbd"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(PYTHON);
    }
    drop(writeln!(std::io::stderr(), "SKIPPED: needs python3-libnbd"));
    None
}

/// Runs a program to its end, at most a minute; returns whether it succeeded, and all its output.
pub(crate) fn attempt(program: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new("timeout");
    command.args(["60", program]).args(args);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Runs a program that must succeed; returns its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let (success, text) = attempt(program, args);
    assert!(success, "{program} {args:?} failed:\n{text}");
    text
}

/// Waits until `condition` holds, at most ten seconds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} has not come to pass");
        std::thread::sleep(Duration::from_millis(5));
    }
}
