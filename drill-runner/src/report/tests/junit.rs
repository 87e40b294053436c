//! JUnit is red exactly where the drill was not proved.

use super::sample;
use crate::{
    outcome::{Report, Verdict},
    report::junit::unsigned,
};

fn is_red(report: &Report) -> bool {
    let text = unsigned(report);
    let elements = text.contains("<failure ") || text.contains("<error ");
    let counted = !text.contains(" failures=\"0\" errors=\"0\"")
        || text
            .lines()
            .nth(1)
            .is_some_and(|line| !line.contains(" failures=\"0\" errors=\"0\""));
    assert_eq!(elements, counted, "{text}");
    elements
}

#[test]
fn it_tells_the_checks_and_what_they_came_to() {
    let text = unsigned(&sample::failed());
    assert!(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites "));
    assert!(text.contains(
        "<testsuites name=\"web-shop\" tests=\"7\" failures=\"1\" errors=\"0\" skipped=\"1\""
    ));
    assert!(
        text.contains("<testcase name=\"http://:80/health\" classname=\"web1\" time=\"60.010\">")
    );
    assert!(
        text.contains(
            "<failure message=\"it did not pass within 1m: status 502\" type=\"failed\">"
        )
    );
    assert!(text.contains("<skipped message=\"a check before it failed\">"));
    assert!(text.contains("<property name=\"rpo_ms\" value=\"1230\">"));
    assert!(text.contains("web1 login: </system-out>"));
    let text = unsigned(&sample::passed());
    assert!(text.contains("<property name=\"rto_ms\" value=\"12345\">"));
    assert!(text.contains("<property name=\"point\" value=\"18231\">"));
}

#[test]
fn it_is_red_exactly_where_the_drill_was_not_proved() {
    assert!(!is_red(&sample::passed()));
    assert!(is_red(&sample::failed()));
    for verdict in [
        Verdict::Failed,
        Verdict::Error,
        Verdict::Cancelled,
        Verdict::Skipped,
    ] {
        let mut late = sample::passed();
        late.verdict = verdict;
        assert!(is_red(&late), "{verdict:?} of the drill alone");
        let mut none = late.clone();
        none.machines.clear();
        assert!(is_red(&none), "{verdict:?} without machines");
        let mut boot = late.clone();
        boot.machines[0].verdict = verdict;
        boot.machines[0].checks.clear();
        assert!(is_red(&boot), "{verdict:?} of a boot");
    }
}
