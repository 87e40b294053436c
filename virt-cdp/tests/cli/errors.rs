//! Every kind of error: `error:` and `hint:` on stderr, nothing on stdout, and the exit code.

use virt_cdp::{
    api::{ApiError, ApiErrorKind, HINT_KEY},
    daemon::service::status_of,
};

use crate::{
    fake::kind_name,
    stage::{Ran, Stage, program},
};

#[track_caller]
fn assert_fails(ran: &Ran, code: i32, stderr: &str) {
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(code), "", stderr)
    );
}

#[test]
fn each_kind_of_error_shows_its_sentence_and_its_hint() {
    let stage = Stage::new();
    for kind in ApiErrorKind::ALL {
        let name = format!("fail-{}", kind_name(kind));
        let expected = format!(
            "error: no luck with `{name}` – on purpose\nhint: ask for another one – naïve\n"
        );
        assert_fails(&stage.run(&["info", &name]), 1, &expected);
        assert_fails(&stage.run(&["--json", "info", &name]), 1, &expected);
    }
}

#[test]
fn each_kind_of_error_is_its_own_grpc_code() {
    let codes: std::collections::HashSet<_> = ApiErrorKind::ALL
        .iter()
        .map(|kind| status_of(&ApiError::new(*kind, "x")).code() as i32)
        .collect();
    assert_eq!(codes.len(), ApiErrorKind::ALL.len());
    let status = status_of(&ApiError::new(ApiErrorKind::NotFound, "x").hint("ü"));
    assert_eq!(
        status
            .metadata()
            .get_bin(HINT_KEY)
            .unwrap()
            .to_bytes()
            .unwrap(),
        "ü".as_bytes()
    );
}

#[test]
fn a_panic_in_the_engine_is_its_callers_error_only() {
    let stage = Stage::new();
    let ran = stage.run(&["suspend", "panic"]);
    assert_fails(
        &ran,
        1,
        "error: virtcdpd failed in suspend by a defect\nhint: it goes on; its log has the place (journalctl -u virtcdpd)\n",
    );
    stage.run(&["list"]).good();
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody.sock");
    let uri = format!("unix://{}", socket.display());
    let hint = "hint: start it (systemctl start virtcdpd), or say where it listens with -c URI or VIRT_CDP_URI\n";
    let run = || {
        Ran::from(
            program("virt-cdp", dir.path())
                .args(["-c", &uri, "list"])
                .output()
                .unwrap(),
        )
    };
    assert_fails(
        &run(),
        1,
        &format!("error: cannot reach virtcdpd at {uri}: there is no such socket\n{hint}"),
    );
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_fails(
        &run(),
        1,
        &format!("error: cannot reach virtcdpd at {uri}: nobody serves this socket\n{hint}"),
    );
}

#[test]
fn a_uri_that_is_none_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for uri in ["tcp://host", "relative.sock", "unix://relative", ""] {
        let ran = Ran::from(
            program("virt-cdp", dir.path())
                .args(["-c", uri, "list"])
                .output()
                .unwrap(),
        );
        let expected = format!(
            "error: `{uri}` is no URI of a virtcdpd\nhint: give unix:///path/to/socket or /path/to/socket\n"
        );
        assert_fails(&ran, 2, &expected);
    }
}

#[test]
fn a_command_line_that_is_wrong_is_a_usage_error() {
    let stage = Stage::new();
    let table: &[&[&str]] = &[
        &["no-such-verb"],
        &["info"],
        &["list", "too-much"],
        &["view-open", "web1"],
        &["protect", "web1", "--disk", "vda", "--qmp", "/x"],
        &["protect", "web1", "--node", "n"],
        &["protect", "web1", "--ack", "never"],
        &["protect", "web1", "--flush-interval", "0.5ms"],
        &["protect", "web1", "--flush-interval", "11s"],
        &["protect", "web1", "--flush-interval", "soon"],
        &["takeover", "web1", "--at", "latest", "--mac", "other"],
        &["takeover", "web1", "--at", "latest", "--vcpus", "0"],
        &["takeover", "web1", "--at", "latest", "--memory", "much"],
        &["takeover", "web1", "--at", "latest", "--memory", "2048"],
        &["view-open", "web1", "--at", "yesterday"],
        &["point-list", "web1", "--from", "soon"],
        &["point-list", "web1", "--limit", "0"],
        &["point-lock", "web1"],
        &["point-delete", "web1", "yesterday"],
        &["point-label", "web1", "123"],
        &["policy-set", "long"],
        &["policy-set", "long", "--all", "forever"],
        &["policy-set", "long", "--all", "36501d"],
        &["policy-set", "long", "--all", "1d", "--reset"],
        &["policy-set", "long", "--size-limit", "big"],
        &["policy-assign", "web1"],
    ];
    for words in table {
        let ran = stage.run(words);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (Some(2), ""),
            "{words:?}: {}",
            ran.stderr
        );
        assert!(
            ran.stderr.starts_with("error: "),
            "{words:?}: {}",
            ran.stderr
        );
    }
    assert_eq!(stage.asked(), "", "nothing of this reaches the daemon");
}

#[test]
fn a_moment_in_the_future_is_named() {
    let stage = Stage::new();
    let ran = stage.run(&["view-open", "web1", "--at", "2200-01-01T00:00:00Z"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr
            .starts_with("error: 2200-01-01 00:00:00.000 is in the future; it is 2"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("\nhint: give a moment that has passed"),
        "{}",
        ran.stderr
    );
}

#[test]
fn version_shows_the_clients_own_even_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let ran = Ran::from(
        program("virt-cdp", dir.path())
            .args(["-c", "/nonexistent", "version"])
            .output()
            .unwrap(),
    );
    assert_eq!(
        (ran.code, ran.stdout),
        (Some(1), format!("virt-cdp {}\n", env!("CARGO_PKG_VERSION")))
    );
}
