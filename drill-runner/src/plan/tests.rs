use super::*;

fn parse(text: &str) -> Result<Plan, PlanError> {
    Plan::parse(text, &|moment| match moment {
        "never" => Err("`never` is no moment".into()),
        _ => Ok(()),
    })
}

const WHOLE: &str = r#"
name = "shop"
point = { from = "7d", to = "1h" }
deadline = "10m"
keep_on_failure = true

[[network]]
name = "default"
gateway = "192.168.122.1/24"

[[machine]]
name = "web"
after = ["db"]
delay = "2s"
ready = "console:login:"
boot_deadline = "90s"
vcpus = 2
memory = "512MiB"
leave_out = ["vdb"]
[[machine.card]]
card = "52:54:00:00:00:01"
address = "192.168.122.10/24"
network = "dmz"
[[machine.check]]
type = "http"
path = "/health?x=1"
status = 200
body = "ok"
[[machine.check]]
type = "script"
path = "/bin/true"
args = ["a"]
exit_code = 1
output = "^x$"

[[machine]]
name = "db"
[[machine.check]]
type = "tcp"
port = 22
banner = "^SSH"
deadline = "30s"
interval = "1s"
timeout = "3s"
attempts = 5
[[machine.check]]
type = "exec"
name = "rows"
command = "psql -c 'select 1'"
[[machine.check]]
type = "fsck"
disks = ["vda"]
[[machine.check]]
type = "files"
files = { "/etc/hostname" = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
[[machine.check]]
type = "plugin"
plugin = "mysql"
settings = { user = "x" }
[[machine.check]]
type = "boot"
ready = "screen"
[[machine.check]]
type = "agent"
[[machine.check]]
type = "ping"
"#;

#[test]
fn a_plan_is_read_and_what_is_written_reads_the_same() {
    let plan = parse(WHOLE).unwrap();
    assert_eq!(plan.machines[1].checks.len(), 8);
    assert_eq!(plan.machines[0].memory, Some(512 << 20));
    let order: Vec<&str> = plan.boot_order().iter().map(|m| m.name.as_str()).collect();
    assert_eq!(order, ["db", "web"]);
    assert_eq!(parse(&plan.to_toml()).unwrap(), plan);
    let each = parse("point = ['1h', '2h']\n[[machine]]\nname = 'a'").unwrap();
    assert_eq!(each.point, PointChoice::At(vec!["1h".into(), "2h".into()]));
    assert_eq!(parse(&each.to_toml()).unwrap(), each);
    let least = parse("[[machine]]\nname = 'a'\n[[machine]]\nname = 'b'").unwrap();
    assert_eq!(
        (least.name.as_str(), &least.point),
        ("a+b", &PointChoice::default())
    );
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let machine = "[[machine]]\nname = 'a'\n";
    let check = |rest: &str| format!("{machine}[[machine.check]]\n{rest}");
    let table: Vec<(String, usize, &str)> = vec![
        ("name = 'x'".into(), 1, "no machine"),
        ("x = 1\n[[machine]]\nname='a'".into(), 1, "no key `x`"),
        ("name = ".into(), 1, ""),
        (format!("point = 'never'\n{machine}"), 1, "no moment"),
        (
            format!("\npoint = ['1h', 'never']\n{machine}"),
            2,
            "no moment",
        ),
        (format!("point = []\n{machine}"), 1, "empty"),
        (format!("point = 7\n{machine}"), 1, "no moment"),
        (format!("deadline = '5x'\n{machine}"), 1, "no unit"),
        (format!("deadline = '8d'\n{machine}"), 1, "week"),
        (format!("{machine}{machine}"), 4, "twice"),
        (format!("{machine}after = ['b']"), 3, "not in the plan"),
        (format!("{machine}after = ['a']"), 3, "waits for it"),
        (
            "[[machine]]\nname='a'\nafter=['b']\n[[machine]]\nname='b'\nafter=['a']".into(),
            3,
            "waits for it",
        ),
        (format!("{machine}memory = 'x'"), 3, "number"),
        (format!("{machine}memory = '5KiB'"), 3, "too little"),
        (format!("{machine}vcpus = 0"), 3, "vCPU"),
        (format!("{machine}ready = 'soon'"), 3, "readiness"),
        (format!("{machine}ready = 'console:('"), 3, "no pattern"),
        (
            format!("{machine}[[machine.card]]\ncard='0'\naddress='1.2.3.4'"),
            5,
            "prefix",
        ),
        (
            format!("{machine}[[network]]\nname='n'\ngateway='1.2.3.4/33'"),
            5,
            "prefix",
        ),
        (
            format!("{machine}[[machine.card]]\ncard='0'\naddress='1.2.3.4/0'"),
            5,
            "prefix",
        ),
        (
            format!("{machine}[[machine.card]]\ncard='0'\n[[machine.card]]\ncard='0'"),
            6,
            "twice",
        ),
        (format!("deadline = '0s'\n{machine}"), 1, "no time"),
        (check("type = 'ping'\ninterval = '0.2ms'"), 5, "no time"),
        (check("type = 'pong'"), 4, "no type of check"),
        (check("type = 'tcp'"), 3, "no `port`"),
        (check("type = 'tcp'\nport = 0"), 5, "no port"),
        (
            check("type = 'tcp'\nport = 22\nbanner = '('"),
            6,
            "no pattern",
        ),
        (check("type = 'ping'\nport = 22"), 5, "has no `port`"),
        (check("type = 'ping'\nattempts = 0"), 5, "attempt"),
        (check("type = 'ping'\ndeadline = '0s'"), 5, "no time"),
        (check("type = 'http'\npath = 'x'"), 5, "no path"),
        (check("type = 'script'\npath = 'x'"), 5, "absolute"),
        (
            check("type = 'files'\nfiles = { '/a' = 'b' }"),
            5,
            "SHA-256",
        ),
        (check("type = 'files'\nfiles = {}"), 5, "no file"),
        (check("type = 'plugin'\nplugin = '../x'"), 5, "plugin"),
        (check("type = 'plugin'"), 3, "no `plugin`"),
    ];
    for (text, line, what) in table {
        let error = parse(&text).unwrap_err();
        assert_eq!(error.line, Some(line), "{text}: {error}");
        assert!(error.what.contains(what), "{text}: {error}");
        assert!(!error.hint.is_empty());
    }
}

#[test]
fn a_name_that_is_made_of_names_has_its_bounds() {
    let machines = (0..8).map(|n| format!("[[machine]]\nname = '{}{n}'\n", "ü".repeat(20)));
    let plan = parse(&machines.collect::<String>()).unwrap();
    assert!(plan.name.len() <= 200, "{}", plan.name);
    assert_eq!(parse(&plan.to_toml()).unwrap(), plan);
}

#[test]
fn short_forms_are_read_and_told_again() {
    let sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let files = format!("files:/a={sum}");
    for (text, title) in [
        ("ping", "ping"),
        ("agent", "agent"),
        ("boot", "boot"),
        ("tcp:22", "tcp:22"),
        ("tcp:22:^SSH-2", "tcp:22"),
        ("http:80", "http:80/"),
        ("http:80/health?a=b:c", "http:80/health?a=b:c"),
        ("https:443/x", "https:443/x"),
        ("script:/bin/true", "script:/bin/true"),
        ("exec:test -e /a:b", "exec:test -e /a:b"),
        ("fsck", "fsck"),
        ("fsck:vda,vdb", "fsck:vda,vdb"),
        (&files, "files:/a"),
        ("plugin:mysql:user=a,port=3", "plugin:mysql"),
    ] {
        let check = CheckPlan::parse_short(text).unwrap();
        assert_eq!(check.title(), title);
        let plan = Plan::of_one(
            MachinePlan {
                checks: vec![check],
                ..MachinePlan::of("a")
            },
            PointChoice::default(),
        );
        assert_eq!(parse(&plan.to_toml()).unwrap(), plan, "{text}");
    }
    for text in [
        "",
        "pong",
        "ping:1",
        "tcp",
        "tcp:",
        "tcp:x",
        "tcp:0",
        "tcp:70000",
        "tcp:22:(",
        "http:/x",
        "script:",
        "exec:",
        "files:/a",
        "files:/a=b",
        "plugin:",
        "plugin:a/b",
        "plugin:a:b",
    ] {
        let (what, hint) = CheckPlan::parse_short(text).unwrap_err();
        assert!(!what.is_empty() && hint.contains("tcp:PORT"), "{text}");
    }
}
