//! The shell: commands from stdin, words and quotes, and what Tab offers.

use std::{io::Write as _, process::Stdio};

use virt_cdp::cli::{
    self,
    complete::{Names, candidates},
    words::{quote, split},
};

use crate::stage::{Ran, Stage};

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
