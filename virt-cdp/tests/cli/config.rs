//! The configuration: its defaults are the file's, and its errors name key, line and cure.

use std::{path::Path, time::Duration};

use virt_cdp::daemon::{
    config::{Ack, Config},
    policy::Policy,
};

const SHIPPED: &str = include_str!("../../../plugins/host/virtcdpd.toml");

/// Takes the `#` away in front of every key.
fn uncommented() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') && !key.is_empty() => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    SHIPPED.lines().map(line).collect()
}

#[test]
fn the_shipped_file_is_the_default_with_and_without_its_comments() {
    let path = Path::new("virtcdpd.toml");
    assert_eq!(Config::parse(SHIPPED, path).unwrap(), Config::default());
    assert_eq!(
        Config::parse(&uncommented(), path).unwrap(),
        Config::default()
    );
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let shown: toml::Table = toml::from_str(&uncommented()).unwrap();
    assert_eq!(shown, toml::Table::try_from(Config::default()).unwrap());
}

#[test]
fn values_are_taken() {
    let text = "socket = \"/tmp/x/api.sock\"\n[capture]\npoint_interval = \"5s\"\nio_buffer = \"256MiB\"\nack = \"durable\"";
    let config = Config::parse(text, Path::new("x")).unwrap();
    assert_eq!(config.run_dir(), Path::new("/tmp/x"));
    assert_eq!(config.capture.point_interval, Duration::from_secs(5));
    assert_eq!(config.capture.io_buffer, 256 << 20);
    assert_eq!(config.capture.ack, Ack::Durable);
}

#[test]
fn policies_are_taken_by_their_names() {
    const DAY: Duration = Duration::from_secs(86_400);
    let parse = |text| Config::parse(text, Path::new("x")).unwrap();
    let text = "[policy.long]\nall = \"2w\"\nmonthly = \"3650d\"\nsize_limit = \"500G\"\n[tidy]\ninterval = \"1s\"";
    let config = parse(text);
    assert_eq!(
        config.policy.keys().collect::<Vec<_>>(),
        ["default", "long"]
    );
    assert_eq!(config.policy["default"], Policy::built_in());
    let long = &config.policy["long"];
    assert_eq!((long.keep.all, long.keep.monthly), (14 * DAY, 3650 * DAY));
    assert_eq!(
        (long.keep.hourly, long.keep.daily, long.size_limit),
        (Duration::ZERO, Duration::ZERO, 500 << 30),
        "an absent key is a class that is not used"
    );
    assert_eq!(config.tidy.interval, Duration::from_secs(1));
    // In `default` it has the built-in value.
    let config = parse("[policy.default]\nall = \"2h\"\nweekly = \"0s\"");
    let default = &config.policy["default"];
    let expected = Policy::built_in();
    assert_eq!(
        (default.keep.all, default.keep.weekly),
        (DAY / 12, Duration::ZERO)
    );
    assert_eq!(default.keep.monthly, expected.keep.monthly);
}

#[test]
fn metrics_listen_on_loopback_unless_an_address_says_otherwise() {
    for (given, expected) in [
        ("", None),
        ("9123", Some("127.0.0.1:9123")),
        ("[::1]:9123", Some("[::1]:9123")),
        ("192.0.2.7:80", Some("192.0.2.7:80")),
    ] {
        let text = format!("[metrics]\nlisten = \"{given}\"");
        let config = Config::parse(&text, Path::new("x")).unwrap();
        let expected = expected.map(|address| address.parse().unwrap());
        assert_eq!(config.metrics.listen, expected, "{given}");
    }
}

#[test]
fn a_token_does_not_show_itself() {
    let text = "[alerts]\nwebhook = \"https://example.org/\"\nwebhook_token = \"t0ps3cret\"";
    let config = Config::parse(text, Path::new("x")).unwrap();
    let token = config.alerts.webhook_token.as_ref().unwrap();
    assert_eq!(token.reveal(), "t0ps3cret");
    assert!(!format!("{config:?}").contains("t0ps3cret"));
}

#[test]
fn an_error_names_the_key_the_line_and_the_cure() {
    let table = [
        (
            "[capture]\n\npoint_interval = \"500ms\"",
            "c.toml, line 3: capture.point_interval: 500ms is below the least, 1s",
            "give 1s to 1d",
        ),
        (
            "[capture]\nio_buffer = \"1GiB\"",
            "c.toml, line 2: capture.io_buffer: 1GiB is above the most, 256MiB",
            "give 48MiB to 256MiB",
        ),
        (
            "[capture]\nio_buffer = \"64 pounds\"",
            "c.toml, line 2: capture.io_buffer: `pounds` is no unit; \
             the units are B, KiB, MiB, GiB, TiB (or K, M, G, T), KB, MB, GB, TB",
            "write it like \"64MiB\" or \"1GiB\"",
        ),
        (
            "[capture]\nack = \"never\"",
            "c.toml, line 2: capture.ack: unknown variant `never`, expected `buffered` or `durable`",
            "correct that line; plugins/host/virtcdpd.toml shows every key with its default",
        ),
        (
            "[metrics]\nlisten = \"everywhere\"",
            "c.toml, line 2: metrics.listen: `everywhere` is no address with a port",
            "write it like \"127.0.0.1:9123\" or \"[::1]:9123\"",
        ),
        (
            "[alerts]\nwebhook = \"ftp://t0ps3cret@example.org/\"",
            "c.toml, line 2: alerts.webhook: `ftp:` is not spoken",
            "write it like \"https://example.org/hook\"",
        ),
        (
            "[alerts]\nwebhook = \"t0ps3cret\"",
            "c.toml, line 2: alerts.webhook: it is no URL: relative URL without a base",
            "write it like \"https://example.org/hook\"",
        ),
        (
            "[alerts]\nwebhook_token = \"two words\"",
            "c.toml, line 2: alerts.webhook_token: it has characters that no header may have",
            "use letters, digits and ASCII punctuation",
        ),
        (
            "[alerts]\ngap_limit = \"2d\"",
            "c.toml, line 2: alerts.gap_limit: 2d is above the most, 1d",
            "give 1s to 1d",
        ),
        (
            "state_dir = \"here\"",
            "c.toml, line 1: state_dir: `here` is no absolute path",
            "start it with /",
        ),
        (
            "[policy.a]\nall = \"1d\"\n[policy.long]\ndaily = \"40000d\"",
            "c.toml, line 4: policy.long.daily: 40000d is above the most, 36500d",
            "give 0s to 36500d",
        ),
        (
            "[policy.long]\nyearly = \"1d\"",
            "c.toml, line 2: policy.long.yearly: there is no key `yearly`",
            "known is one of `all`, `hourly`, `daily`, `weekly`, `monthly`, `size_limit`, `drill` here; \
             plugins/host/virtcdpd.toml shows them all",
        ),
        (
            "log_level = \"info\"\n[policy.long]\nsize_limit = \"500G\"",
            "c.toml, line 2: policy.long: policy `long` keeps nothing but the newest point",
            "give at least one of all, hourly, daily, weekly, monthly a span",
        ),
        (
            "[policy.\"a b\"]\nall = \"1d\"",
            "c.toml, line 1: policy.\"a b\": \"a b\" is no name of a policy",
            "use 1 to 64 letters, digits, '-', '_' and '.'",
        ),
        (
            "[libvirt]\nurl = \"qemu:///system\"",
            "c.toml, line 2: libvirt.url: there is no key `url`",
            "known is `uri` here; plugins/host/virtcdpd.toml shows them all",
        ),
    ];
    for (text, what, hint) in table {
        let error = Config::parse(text, Path::new("c.toml")).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_str()),
            (what, hint)
        );
    }
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    for text in [
        "x",
        "[capture",
        "\n\nstate_dir = ",
        "state_dir = \"/a\"\nstate_dir = \"/b\"",
        "\u{0}",
    ] {
        let error = Config::parse(text, Path::new("c.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("c.toml, line "), "{error}");
    }
}

#[test]
fn a_given_file_must_exist() {
    let error = Config::load(Some(Path::new("/nonexistent/virtcdpd.toml"))).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/virtcdpd.toml"),
        "{error}"
    );
}
