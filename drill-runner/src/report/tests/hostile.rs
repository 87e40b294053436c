//! Nothing that a guest or a plan wrote can do anything in a page.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{key, sample};
use crate::{
    outcome::Report,
    report::{entry::Summary, html::unsigned, index::index, junit},
};

const HOSTILE: [&str; 10] = [
    "<script>alert(1)</script>",
    "\"><script src=//x></script>",
    "\" onload=\"alert(1)\" x='",
    "' autofocus onfocus='alert(1)",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "--></style></title></textarea></pre></svg><img src=x onerror=alert(1)><!--",
    "]]><a href=\"javascript:alert(1)\">x</a>&lt;script&gt;&#x3c;script&#x3e;",
    "a\u{202e}b\u{2066}c\u{200b}\0\u{1b}[31m\u{7}\u{8}\r\n\u{9b}\u{feff}\u{ffff}\u{2028}\u{85}",
    "<meta http-equiv=\"refresh\" content=\"0;url=//x\"><base href=\"//x\"><property name=\"virt-cdp-report\" value=\"y\"/>",
];

/// A report in which every text, wherever it is, is another one.
fn with_every_text(text: &str) -> Report {
    fn change(value: &mut Value, text: &str) -> usize {
        match value {
            Value::String(old) if is_verdict(old) => 0,
            Value::String(old) => {
                *old = text.to_owned();
                1
            }
            Value::Array(all) => all.iter_mut().map(|one| change(one, text)).sum(),
            Value::Object(all) => all.values_mut().map(|one| change(one, text)).sum(),
            _ => 0,
        }
    }
    let mut report = sample::failed();
    report.previous = Some(crate::outcome::Link {
        id: "x".into(),
        sha256: "x".into(),
    });
    report.history = vec![crate::outcome::Earlier {
        id: "x".into(),
        started: "x".into(),
        verdict: report.verdict,
        rto_ms: Some(1),
        rpo_ms: None,
    }];
    report.machines[1].why = "x".into();
    let mut value = serde_json::to_value(report).unwrap();
    let changed = change(&mut value, text);
    assert!(changed > 120, "{changed}");
    serde_json::from_value(value).unwrap()
}

fn is_verdict(text: &str) -> bool {
    ["proved", "failed", "error", "cancelled", "skipped"].contains(&text)
}

/// The elements of a page with their attributes, and the values of those that lead somewhere.
fn skeleton(page: &str) -> (Vec<String>, Vec<String>) {
    let (mut tags, mut links) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let name_len = rest.find([' ', '>']).unwrap();
        let mut tag = rest[..name_len].to_owned();
        rest = &rest[name_len..];
        while let Some(attributes) = rest.strip_prefix(' ') {
            let (name, after) = attributes.split_once(['=', ' ', '>']).unwrap();
            tag.push(' ');
            tag.push_str(name);
            match after.strip_prefix('"') {
                Some(value) => {
                    let (value, after) = value.split_once('"').unwrap();
                    assert!(!value.contains(['<', '>']), "{value}");
                    if ["href", "src", "action", "data", "xlink:href"].contains(&name) {
                        links.push(value.to_owned());
                    }
                    rest = after;
                }
                None => rest = &rest[1 + name.len()..],
            }
        }
        assert!(
            rest.starts_with(['>', '?', ' ']) || tag.starts_with('!'),
            "{tag} {}",
            &rest[..20]
        );
        tags.push(tag);
    }
    (tags, links)
}

#[test]
fn a_page_has_the_same_elements_whatever_the_texts_are() {
    let key = key().public();
    let plain = unsigned(&with_every_text("x"), &key).into_string();
    let (tags, _) = skeleton(&plain);
    assert!(tags.len() > 500, "{}", tags.len());
    for text in HOSTILE {
        let page = unsigned(&with_every_text(text), &key).into_string();
        let (hostile_tags, links) = skeleton(&page);
        assert_eq!(hostile_tags, tags, "{text}");
        for link in links {
            assert!(link.starts_with("#m"), "{text}: {link}");
        }
        assert!(!page.to_lowercase().contains("<script"), "{text}");
    }
}

#[test]
fn the_index_has_the_same_elements_whatever_the_texts_are() {
    let page = |text| {
        index(&[
            Summary::of(&with_every_text(text)),
            Summary::of(&with_every_text(text)),
        ])
    };
    let (tags, _) = skeleton(&page("x"));
    for text in HOSTILE {
        let (hostile_tags, links) = skeleton(&page(text));
        assert_eq!(hostile_tags, tags, "{text}");
        assert!(links.is_empty(), "{links:?}");
    }
}

#[test]
fn junit_has_the_same_elements_whatever_the_texts_are() {
    let (tags, _) = skeleton(&junit::unsigned(&with_every_text("x")));
    for text in HOSTILE {
        let (hostile_tags, _) = skeleton(&junit::unsigned(&with_every_text(text)));
        assert_eq!(hostile_tags, tags, "{text}");
    }
}

#[test]
fn a_hostile_text_is_seen_for_what_it_is() {
    let page = unsigned(&with_every_text(HOSTILE[8]), &key().public()).into_string();
    let hidden = |letter: &char| {
        (letter.is_control() && *letter != '\n')
            || "\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}".contains(*letter)
    };
    assert_eq!(page.chars().find(hidden), None);
    assert!(page.contains("a‹U+202E›b‹U+2066›c‹U+200B›"));
}

#[test]
fn a_page_asks_for_nothing_from_outside_and_has_no_script() {
    let page = unsigned(&sample::failed(), &key().public()).into_string();
    let (tags, links) = skeleton(&page);
    let names: BTreeSet<&str> = tags
        .iter()
        .map(|tag| tag.split(' ').next().unwrap())
        .collect();
    for never in [
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignObject",
        "use",
    ] {
        assert!(!names.contains(never), "{never}");
    }
    assert!(
        tags.iter()
            .all(|tag| !tag.contains(" on") && !tag.contains(" style"))
    );
    for link in links {
        assert!(
            link.starts_with("#m") || link.starts_with("data:image/png;base64,"),
            "{link}"
        );
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_picture_with_another_hash_is_not_embedded() {
    let mut report = sample::passed();
    let pictures = |report: &Report| {
        unsigned(report, &key().public())
            .into_string()
            .matches("<img ")
            .count()
    };
    assert_eq!(pictures(&report), 2);
    report.machines[0].screenshots[0].sha256 = "00".repeat(32);
    assert_eq!(pictures(&report), 1);
}

#[test]
fn the_page_says_the_verdict_first() {
    let text = |report: &Report| unsigned(report, &key().public()).into_string();
    let page = text(&sample::passed());
    assert!(page.contains("Recovered in 12.3 s") && page.contains("Data 1.2 s old"));
    let page = text(&sample::failed());
    let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what}"));
    assert!(at("Recovery failed") < at("http://:80/health</bdi></a> of machine"));
    assert!(at("of machine") < at("<svg"));
    let (tags, _) = skeleton(&page);
    assert_eq!(tags.iter().filter(|tag| tag.starts_with("h1")).count(), 1);
    assert!(
        tags.iter()
            .filter(|tag| tag.starts_with("img"))
            .all(|tag| tag.contains(" alt"))
    );
    assert!(page.contains("<html lang=\"en\">") && page.contains("name=\"viewport\""));
}

#[test]
fn extreme_numbers_are_shown() {
    fn change(value: &mut Value, number: u64) {
        match value {
            Value::Number(old) if old.as_u64() != Some(1) => *value = number.into(),
            Value::Array(all) => all.iter_mut().for_each(|one| change(one, number)),
            Value::Object(all) => all
                .iter_mut()
                .filter(|(name, _)| {
                    !["width", "height", "vcpus", "format"].contains(&name.as_str())
                })
                .for_each(|(_, one)| change(one, number)),
            _ => {}
        }
    }
    for number in [0, u64::MAX] {
        let mut value = serde_json::to_value(sample::failed()).unwrap();
        change(&mut value, number);
        let report: Report = serde_json::from_value(value).unwrap();
        let page = unsigned(&report, &key().public()).into_string();
        assert!(!page.contains("NaN%") && !page.contains("inf%"));
        junit::unsigned(&report);
    }
}

#[test]
fn junit_is_xml_whatever_the_texts_are() {
    let key = crate::report::tests::key();
    for text in HOSTILE
        .into_iter()
        .chain(["]]>", "\0\u{b}\u{c}\u{fffe}", "&undefined;"])
    {
        let xml = crate::report::junit(&with_every_text(text), &key);
        let root = xmltree::Element::parse(xml.as_slice()).unwrap();
        assert_eq!(root.name, "testsuites", "{text}");
        let suites = root
            .children
            .iter()
            .filter(|node| node.as_element().is_some());
        assert_eq!(suites.count(), 2, "{text}");
    }
}
