//! A store keeps what it was given, in one chain, whatever happens to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::sample;
use crate::{
    outcome::{BISECT, Report, Verdict},
    report::{Fault, Form, Key, Store, StoreError, is_id, json, verify},
};

fn store(dir: &Path) -> Store {
    Store::open(&dir.join("reports"), &dir.join("report.key")).unwrap()
}

fn small(n: u64) -> Report {
    let mut report = sample::row_of_drills(n + 1).pop().unwrap();
    report.machines.truncate(1);
    report
}

fn filled(dir: &Path, count: u64) -> (Store, Vec<String>) {
    let store = store(dir);
    let ids = (0..count)
        .map(|n| store.add(small(n)).unwrap().id)
        .collect();
    (store, ids)
}

fn file(store: &Store, id: &str, form: Form) -> PathBuf {
    store.path(id, form).unwrap()
}

#[test]
fn reports_are_chained_and_tell_of_those_before() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 55);
    let mut other = sample::passed();
    other.name = "another plan".into();
    let other = store.add(other).unwrap();
    assert!(other.history.is_empty());
    assert_eq!(other.previous.as_ref().unwrap().id, ids[54]);

    let last = store.get(&ids[54]).unwrap();
    assert_eq!(last.history.len(), 50);
    assert_eq!(last.history[0].id, ids[4]);
    assert_eq!(last.history[49].id, ids[53]);
    assert!(store.get(&ids[0]).unwrap().previous.is_none());
    let before = fs::read(file(&store, &ids[53], Form::Json)).unwrap();
    assert_eq!(
        last.previous.unwrap().sha256,
        verify(&before, None).unwrap().sha256
    );

    let listed: Vec<String> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(listed, [ids.clone(), vec![other.id.clone()]].concat());
    let chain = store.verify_chain().unwrap();
    assert_eq!(
        (chain.reports, chain.broken, chain.begins_after),
        (56, None, None)
    );
    assert_eq!(chain.head.unwrap().id, other.id);
    for form in Form::ALL {
        let bytes = store.read(&other.id, form).unwrap();
        let verified = verify(&bytes, Some(&store.public_key())).unwrap();
        assert_eq!(verified.previous.unwrap().id, ids[54]);
    }
}

#[test]
fn probes_of_bisections_are_in_no_trend_and_prove_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 2);
    let mut probe = small(2);
    probe.reason = BISECT.into();
    probe.machines[0].name = "only bisected".into();
    let probe = store.add(probe).unwrap();
    assert!(probe.history.is_empty());
    assert_eq!(probe.previous.unwrap().id, ids[1], "it is in the chain");
    let html = store.read(&probe.id, Form::Html).unwrap();
    assert!(String::from_utf8_lossy(&html).contains("has no place in the trend"));
    let next = store.add(small(3)).unwrap();
    let before: Vec<String> = next.history.into_iter().map(|one| one.id).collect();
    assert_eq!(before, ids);
    let index = fs::read_to_string(dir.path().join("reports/index.html")).unwrap();
    assert!(index.contains(&probe.id), "it is listed");
    let (proven, _) = index.split_once("id=\"drills\"").unwrap();
    assert!(!proven.contains("only bisected"));
}

#[test]
fn what_is_read_is_what_was_added() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let added = store.add(sample::failed()).unwrap();
    assert_eq!(store.get(&added.id).unwrap(), added);
    let summary = store.list().unwrap().pop().unwrap();
    assert_eq!(summary.verdict, Verdict::Failed);
    assert_eq!(summary.machines[0].point, Some(18_231));
    assert!(matches!(
        store.add(sample::failed()),
        Err(StoreError::Exists { .. })
    ));
    assert!(matches!(
        store.get("20261127-031500-ffff"),
        Err(StoreError::NoReport { .. })
    ));
}

#[test]
fn numbers_that_are_none_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for id in [
        "../report",
        "..",
        "",
        "/etc/passwd",
        "20261127-031500-9c01/../x",
        "lock",
    ] {
        assert!(!is_id(id));
        assert!(
            matches!(store.get(id), Err(StoreError::BadId { .. })),
            "{id}"
        );
        assert!(matches!(
            store.path(id, Form::Html),
            Err(StoreError::BadId { .. })
        ));
        let mut report = sample::passed();
        report.id = id.into();
        assert!(matches!(store.add(report), Err(StoreError::BadId { .. })));
    }
}

#[test]
fn a_changed_report_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 4);
    let path = file(&store, &ids[1], Form::Json);
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replacen("\"proved\"", "\"failed\"", 1);
    assert_eq!(changed.len(), text.len());
    fs::write(&path, changed).unwrap();
    let broken = store.verify_chain().unwrap().broken.unwrap();
    assert_eq!(broken.id, ids[1]);
    assert!(matches!(broken.fault, Fault::Untrusted(_)), "{broken}");
    assert!(matches!(
        store.get(&ids[1]),
        Err(StoreError::Untrusted { .. })
    ));
}

#[test]
fn a_missing_report_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 4);
    fs::remove_file(file(&store, &ids[1], Form::Json)).unwrap();
    let broken = store.verify_chain().unwrap().broken.unwrap();
    assert_eq!(broken.id, ids[2]);
    assert_eq!(broken.fault, Fault::Missing(ids[1].clone()));
    // Reports go on being added to the newest one.
    assert_eq!(store.add(small(4)).unwrap().previous.unwrap().id, ids[3]);
}

#[test]
fn a_report_that_was_made_anew_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 4);
    let key = Key::open_or_make(&dir.path().join("report.key")).unwrap();
    let mut report = store.get(&ids[1]).unwrap();
    report.rto_ms = Some(1);
    fs::write(
        file(&store, &ids[1], Form::Json),
        json(&report, &key).unwrap(),
    )
    .unwrap();
    let broken = store.verify_chain().unwrap().broken.unwrap();
    assert_eq!(broken.fault, Fault::WrongLink(ids[1].clone()));
    assert_eq!(broken.id, ids[2]);
}

#[test]
fn a_report_by_another_key_or_under_another_name_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 3);
    let path = file(&store, &ids[1], Form::Json);
    let good = fs::read(&path).unwrap();
    let report = store.get(&ids[1]).unwrap();
    fs::write(&path, json(&report, &super::key()).unwrap()).unwrap();
    let fault = store.verify_chain().unwrap().broken.unwrap().fault;
    assert!(
        fault.to_string().contains("was signed by the key"),
        "{fault}"
    );
    assert!(matches!(
        store.get(&ids[1]),
        Err(StoreError::Untrusted { .. })
    ));
    fs::write(&path, &good).unwrap();
    assert_eq!(store.verify_chain().unwrap().broken, None);

    fs::write(file(&store, &ids[2], Form::Json), &good).unwrap();
    let fault = store.verify_chain().unwrap().broken.unwrap().fault;
    assert_eq!(fault, Fault::OtherReport(ids[1].clone()));
    assert!(matches!(
        store.get(&ids[2]),
        Err(StoreError::Unreadable { .. })
    ));
}

#[test]
fn a_fork_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 3);
    let key = Key::open_or_make(&dir.path().join("report.key")).unwrap();
    let mut report = store.get(&ids[2]).unwrap();
    report.id = "20261121-000000-aaaa".into();
    fs::write(
        file(&store, &report.id, Form::Json),
        json(&report, &key).unwrap(),
    )
    .unwrap();
    let fault = store.verify_chain().unwrap().broken.unwrap().fault;
    assert_eq!(fault, Fault::Fork(ids[1].clone()));
}

#[test]
fn a_pruned_beginning_is_told_and_is_no_break() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 6);
    assert_eq!(store.prune(10).unwrap(), 0);
    assert_eq!(store.prune(4).unwrap(), 2);
    let chain = store.verify_chain().unwrap();
    assert_eq!((chain.reports, chain.broken), (4, None));
    assert_eq!(chain.begins_after.unwrap().id, ids[1]);
    let names = fs::read_dir(dir.path().join("reports")).unwrap();
    let gone = |name: &str| name.starts_with(&ids[0]) || name.starts_with(&ids[1]);
    assert!(
        names
            .map(|one| one.unwrap().file_name().into_string().unwrap())
            .all(|name| !gone(&name))
    );
    assert!(
        !fs::read_to_string(dir.path().join("reports/index.html"))
            .unwrap()
            .contains(&ids[1])
    );
    assert_eq!(store.prune(0).unwrap(), 4);
    let chain = store.verify_chain().unwrap();
    assert_eq!((chain.reports, chain.broken, chain.head), (0, None, None));
}

#[test]
fn the_chain_is_in_the_order_of_adding_not_of_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for n in [2, 0, 1] {
        store.add(small(n)).unwrap();
    }
    let chain = store.verify_chain().unwrap();
    assert_eq!((chain.broken, chain.head.unwrap().id), (None, small(1).id));
    store.prune(2).unwrap();
    let left: Vec<String> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|one| one.id)
        .collect();
    assert_eq!(left, [small(0).id, small(1).id]);
    assert_eq!(store.verify_chain().unwrap().broken, None);
}

#[test]
fn summaries_are_made_again_from_the_reports() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 4);
    let before = store.list().unwrap();
    let summary = |id: &str| dir.path().join(format!("reports/{id}.summary"));
    fs::remove_file(summary(&ids[0])).unwrap();
    fs::write(summary(&ids[1]), "{}").unwrap();
    fs::write(summary(&ids[2]), fs::read(summary(&ids[3])).unwrap()).unwrap();
    assert_eq!(store.list().unwrap(), before);
    for id in &ids {
        assert!(
            fs::read_to_string(summary(id))
                .unwrap()
                .contains(id.as_str())
        );
    }
}

#[test]
fn a_summary_that_lies_does_not_mislead_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ids) = filled(dir.path(), 3);
    let summary = dir.path().join(format!("reports/{}.summary", ids[2]));
    let text = fs::read_to_string(&summary).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["sha256"] = "00".repeat(32).into();
    fs::write(&summary, value.to_string()).unwrap();
    store.add(small(3)).unwrap();
    assert_eq!(store.verify_chain().unwrap().broken, None);
}

#[test]
fn a_death_at_any_moment_of_adding_leaves_an_intact_store() {
    let whole = tempfile::tempdir().unwrap();
    let (_, ids) = filled(whole.path(), 3);
    let reports = whole.path().join("reports");
    // The files of the newest report in the order they are written; a death leaves the first of them, one maybe cut.
    let written: Vec<String> = ["html", "xml", "summary", "json"]
        .map(|end| format!("{}.{end}", ids[2]))
        .into();
    for done in 0..=written.len() {
        for unfinished in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("reports");
            fs::create_dir(&copy).unwrap();
            fs::copy(
                whole.path().join("report.key"),
                dir.path().join("report.key"),
            )
            .unwrap();
            for entry in fs::read_dir(&reports).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if !written[done..].contains(&name) && name != "index.html" {
                    fs::copy(reports.join(&name), copy.join(&name)).unwrap();
                }
            }
            if unfinished {
                fs::write(copy.join(".unfinished-00-x.json"), "{\"rep").unwrap();
            }
            let store = store(dir.path());
            let is_there = done == written.len();
            assert_eq!(store.list().unwrap().len(), if is_there { 3 } else { 2 });
            assert!(!copy.join(".unfinished-00-x.json").exists());
            let page = fs::read_to_string(copy.join("index.html")).unwrap();
            assert_eq!(page.contains(&ids[2]), is_there, "{done}");
            match is_there {
                true => assert!(matches!(
                    store.add(small(2)),
                    Err(StoreError::Exists { .. })
                )),
                false => assert_eq!(store.add(small(2)).unwrap().previous.unwrap().id, ids[1]),
            }
            store.add(small(3)).unwrap();
            let chain = store.verify_chain().unwrap();
            assert_eq!((chain.reports, chain.broken), (4, None), "{done}");
        }
    }
}

#[test]
fn reports_added_at_once_are_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let one = store(dir.path());
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (one, dir) = (&one, dir.path());
            scope.spawn(move || {
                let other = store(dir);
                for n in 0..5 {
                    let store = if n % 2 == 0 { one } else { &other };
                    store.add(small(worker * 5 + n)).unwrap();
                }
            });
        }
    });
    let chain = one.verify_chain().unwrap();
    assert_eq!((chain.reports, chain.broken), (20, None));
}

#[test]
fn the_index_leads_to_every_report_and_to_the_newest_proven_points() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for report in [sample::passed(), sample::failed()] {
        store.add(report).unwrap();
    }
    let page = fs::read_to_string(dir.path().join("reports/index.html")).unwrap();
    for report in [sample::passed(), sample::failed()] {
        assert!(page.contains(&format!("href=\"{}.html\"", report.id)));
    }
    assert!(page.find("Proved up to").unwrap() < page.find("2026-11-27 04:14:58 UTC").unwrap());
    let order = [sample::passed().id, sample::failed().id].map(|id| page.rfind(&id).unwrap());
    assert!(order[0] < order[1], "the newest is first");
}

#[test]
fn a_write_that_fails_leaves_no_report_and_can_be_tried_again() {
    for end in ["html", "xml", "summary"] {
        let dir = tempfile::tempdir().unwrap();
        let (store, ids) = filled(dir.path(), 2);
        let next = small(2);
        let obstacle = dir.path().join(format!("reports/{}.{end}", next.id));
        fs::create_dir(&obstacle).unwrap();
        assert!(
            matches!(store.add(next.clone()), Err(StoreError::Io { .. })),
            "{end}"
        );
        assert_eq!(store.list().unwrap().len(), 2, "{end}");
        let chain = store.verify_chain().unwrap();
        assert_eq!(
            (chain.broken, chain.head.unwrap().id),
            (None, ids[1].clone())
        );
        fs::remove_dir(&obstacle).unwrap();
        assert_eq!(store.add(next).unwrap().previous.unwrap().id, ids[1]);
    }
}
