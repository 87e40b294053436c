//! The shell: commands from stdin, words and quotes, and what Tab offers.

use std::{
    io::{Read as _, Write as _},
    process::Stdio,
};

use virt_cdp::cli::{
    self,
    complete::{Names, candidates},
    words::{quote, split},
};

use crate::stage::{Ran, Stage, wait_for};

fn fed(stage: &Stage, words: &[&str], lines: &str) -> Ran {
    let mut command = stage.command(words);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    Ran::from(child.wait_with_output().unwrap())
}

#[test]
fn commands_are_read_from_stdin() {
    let stage = Stage::new();
    let ran = fed(
        &stage,
        &[],
        "# a comment\n\nsuspend web1\npoint-create web1 --label 'be fore' # why\nquit\nlist\n",
    );
    assert_eq!(
        ran.good(),
        "web1 is suspended\npoint 123, 2026-01-02 03:04:05.123 (be fore)\n"
    );
}

#[test]
fn json_holds_for_the_whole_shell_or_for_one_line() {
    let stage = Stage::new();
    assert_eq!(
        fed(&stage, &["--json"], "unprotect a\nunprotect b --delete\n").good(),
        "{\"name\":\"a\",\"deleted\":false}\n{\"name\":\"b\",\"deleted\":true}\n"
    );
    assert_eq!(
        fed(&stage, &[], "unprotect a --json\nsuspend b").good(),
        "{\"name\":\"a\",\"deleted\":false}\nb is suspended\n"
    );
}

#[test]
fn the_last_command_decides_the_exit_code() {
    let stage = Stage::new();
    let table = [
        ("", 0),
        ("list\n", 0),
        ("info fail-not-found\nlist\n", 0),
        ("list\ninfo fail-not-found\n", 1),
        ("list\ninfo fail-not-found\n\n# end\n", 1),
        ("list\nno-such-verb\n", 1),
        ("list\ninfo 'open\n", 1),
        ("help\n", 0),
        ("daemon\n", 1),
        ("-c /nonexistent list\n", 1),
    ];
    for (lines, code) in table {
        let ran = fed(&stage, &[], lines);
        assert_eq!(
            ran.code,
            Some(code),
            "{lines:?}: {}{}",
            ran.stdout,
            ran.stderr
        );
    }
}

#[test]
fn words_are_split_as_in_sh() {
    let table: &[(&str, &[&str])] = &[
        ("", &[]),
        ("  a  b\t", &["a", "b"]),
        ("a 'b c' \"d e\"", &["a", "b c", "d e"]),
        (r#"'a\b' "a\"\\\n" a\ b"#, &[r"a\b", r#"a"\\n"#, "a b"]),
        ("a''b '' c\"d\"", &["ab", "", "cd"]),
        ("a #comment", &["a"]),
        ("a#b", &["a#b"]),
    ];
    for (line, expected) in table {
        let words: Vec<_> = split(line)
            .unwrap()
            .into_iter()
            .map(|word| word.text)
            .collect();
        assert_eq!(&words, expected, "{line}");
    }
    for line in ["'a", "a \"b", "a\\"] {
        assert!(split(line).is_err(), "{line}");
    }
    for text in ["a", "", "a b", "it's", "\"x\"", "a\\b", "#a", "ü ö"] {
        let words = split(&quote(text)).unwrap();
        assert_eq!(
            words
                .iter()
                .map(|word| word.text.as_str())
                .collect::<Vec<_>>(),
            [text]
        );
    }
}

#[test]
fn tab_offers_what_may_come_next() {
    let mut command = cli::command();
    command.build();
    let offered = |before: &[&str], partial: &str| {
        let before: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
        candidates(&command, &before, partial, &mut |names| match names {
            Names::Machines => vec!["web1".into(), "db 2".into()],
            Names::Views => vec!["v1".into()],
            Names::Takeovers => vec!["t1".into()],
            Names::Drills => vec!["20260102-030405-4f2a".into()],
            Names::Policies => vec!["default".into(), "long".into()],
        })
    };
    let table: &[(&[&str], &str, &[&str])] = &[
        (&[], "view-", &["view-close", "view-list", "view-open"]),
        (&[], "q", &["quit"]),
        (&[], "da", &[]),
        (&["help"], "un", &["unprotect"]),
        (&["info"], "", &["db 2", "web1"]),
        (&["info"], "w", &["web1"]),
        (&["info", "web1"], "", &[]),
        (&["view-close"], "", &["v1"]),
        (&["takeover-commit"], "", &["t1"]),
        (&["policy-assign", "web1"], "", &["default", "long"]),
        (&["point-lock", "web1"], "", &["latest"]),
        (&["unprotect", "web1"], "--d", &["--delete"]),
        (&["takeover", "web1"], "--m", &["--mac", "--memory"]),
        (&["takeover", "web1", "--mac"], "", &["keep", "new"]),
        (&["takeover", "--at", "latest"], "", &["db 2", "web1"]),
        (&["takeover", "web1", "--at"], "l", &["latest"]),
        (&["takeover", "web1", "--network"], "", &["none"]),
        (&["list"], "--j", &["--json"]),
        (&["no-such-verb"], "", &[]),
    ];
    for (before, partial, expected) in table {
        assert_eq!(offered(before, partial), *expected, "{before:?} {partial}");
    }
}

/// A shell on a terminal, by script(1).
struct Typist {
    script: std::process::Child,
    seen: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Typist {
    fn new(stage: &Stage) -> Option<Self> {
        if !std::path::Path::new("/usr/bin/script").exists() {
            eprintln!("skipped: no /usr/bin/script");
            return None;
        }
        // `script` has a shell start the command. One that stayed beside it would get the Ctrl-C as well, and dash then
        // ends with 130, whatever the command's own status.
        let run = concat!("exec ", env!("CARGO_BIN_EXE_virt-cdp"));
        let mut command = std::process::Command::new("script");
        command.args(["-qefc", run, "/dev/null"]);
        command
            .env("VIRT_CDP_URI", &stage.socket)
            .env("XDG_STATE_HOME", stage.dir.path());
        command.env("TERM", "xterm").env("TZ", "UTC");
        let mut script = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let seen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (mut from, into) = (script.stdout.take().unwrap(), seen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut bytes) {
                into.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        });
        Some(Self { script, seen })
    }

    /// Waits until `text` is shown, and forgets what was shown up to its end.
    #[track_caller]
    fn sees(&mut self, text: &str) {
        wait_for(text, || {
            let mut seen = self.seen.lock().unwrap();
            let end = seen.find(text).map(|at| at + text.len());
            end.map(|end| seen.drain(..end)).is_some()
        });
    }

    /// Waits for the shell to be ready for a line, which is when its terminal is in raw mode.
    #[track_caller]
    fn prompted(&mut self) {
        self.sees("\u{1b}[?2004h");
        self.sees("virt-cdp # ");
    }

    fn types(&mut self, keys: &str) {
        let keyboard = self.script.stdin.as_mut().unwrap();
        keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end with the keyboard still connected: `Child::wait` would close it first, which
    /// script(1) tells the shell as an end of input.
    #[track_caller]
    fn ends_well(&mut self) {
        let mut ended = None;
        wait_for("the end of the shell", || {
            ended = self.script.try_wait().unwrap();
            ended.is_some()
        });
        let seen = self.seen.lock().unwrap();
        assert!(ended.unwrap().success(), "{ended:?}: {seen}");
    }
}

#[test]
fn on_a_terminal_there_are_completion_history_and_ctrl_c() {
    let stage = Stage::new();
    let Some(mut typist) = Typist::new(&stage) else {
        return;
    };
    typist.prompted();
    typist.types("info w\t\r");
    typist.sees("Harbor:");
    typist.prompted();
    typist.types("export slow --at lat\t /out\r");
    typist.sees("10.00 GiB");
    typist.types("\u{3}");
    typist.sees("error: the export was cancelled");
    typist.prompted();
    typist.types("point-li\t web1\r");
    typist.sees("(there are older ones)");
    typist.prompted();
    typist.types("quit\r");
    typist.ends_well();
    let history = std::fs::read_to_string(stage.dir.path().join("virt-cdp/history")).unwrap();
    assert!(
        history.contains("export slow --at latest") && history.contains("point-list"),
        "{history}"
    );
}
