//! Making, opening, locking and describing harbors.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cdp_core::machine::FORMAT_VERSION;
use cdp_core::{Grade, Harbor, HarborError, MachineDescription, Options, VolumeId, XmlVersion};
use tempfile::TempDir;

use crate::harness::{KIB, description, machine};

#[test]
fn a_harbor_is_made_once_and_opened_by_one() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("h");
    let desc = description(&[64 * KIB]);
    let missing = Harbor::open(&dir, Options::default());
    assert!(matches!(missing, Err(HarborError::NotAHarbor { .. })));
    let harbor = Harbor::create(&dir, &desc, Options::default()).unwrap();
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let toml = dir.join("machine.toml");
    assert_eq!(
        fs::metadata(&toml).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(matches!(
        Harbor::open(&dir, Options::default()),
        Err(HarborError::Locked { .. })
    ));
    let written = MachineDescription {
        format_version: FORMAT_VERSION,
        ..desc.clone()
    };
    assert_eq!(Harbor::peek(&dir).unwrap(), written);
    drop(harbor);
    let again = Harbor::create(&dir, &desc, Options::default());
    assert!(matches!(again, Err(HarborError::AlreadyExists { .. })));
    Harbor::open(&dir, Options::default()).unwrap();

    // What a crash leaves of making a harbor is none, and is taken over.
    fs::rename(&toml, dir.join("machine.toml.part")).unwrap();
    assert!(matches!(
        Harbor::peek(&dir),
        Err(HarborError::NotAHarbor { .. })
    ));
    Harbor::create(&dir, &desc, Options::default()).unwrap();

    let foreign = home.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("letter.txt"), "dear").unwrap();
    let refused = Harbor::create(&foreign, &desc, Options::default());
    assert!(matches!(refused, Err(HarborError::AlreadyExists { .. })));
    assert_eq!(
        fs::read_dir(&foreign).unwrap().count(),
        1,
        "nothing is left in it"
    );
}

#[test]
fn a_newer_format_is_refused() {
    let machine = machine(&[64 * KIB], Options::default());
    let dir = machine.dir();
    let home = machine.home;
    drop((machine.harbor, machine.recorder));
    let toml = dir.join("machine.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(
        &toml,
        text.replace("format_version = 3", "format_version = 4"),
    )
    .unwrap();
    let refused = Harbor::open(&dir, Options::default());
    assert!(
        matches!(refused, Err(HarborError::UnknownVersion { found: 4, .. })),
        "{refused:?}"
    );
    drop(home);
}

#[test]
fn a_description_is_checked_and_replaced_as_a_whole() {
    let machine = machine(&[64 * KIB], Options::default());
    let good = machine.harbor.description();
    let mut changed = good.clone();
    changed.name = "renamed".into();
    machine.harbor.set_description(changed.clone()).unwrap();
    assert_eq!(Harbor::peek(machine.harbor.dir()).unwrap(), changed);
    let mut bad = Vec::new();
    for _ in 0..8 {
        bad.push(good.clone());
    }
    bad[0].machine_id = "other".into();
    bad[1].name = String::new();
    bad[2].volumes[0].size = 0;
    bad[3].volumes[0].size = 1000;
    bad[4].volumes.push(good.volumes[0].clone());
    bad[5].volumes[0].id = VolumeId(u16::MAX);
    bad[6].flush_interval_ms = Some(0);
    bad[7].flush_interval_ms = Some(60_001);
    for desc in bad {
        let refused = machine.harbor.set_description(desc);
        assert!(
            matches!(refused, Err(HarborError::InvalidDescription(_))),
            "{refused:?}"
        );
    }
    assert_eq!(machine.harbor.description(), changed);
}

#[test]
fn every_xml_is_kept_once_and_named_by_points() {
    let machine = machine(&[64 * KIB], Options::default());
    let harbor = &machine.harbor;
    assert_eq!(
        machine.recorder.point(Grade::Crash, None).unwrap().xml,
        None
    );
    assert_eq!(
        harbor.record_xml("<domain>1</domain>").unwrap(),
        XmlVersion(1)
    );
    assert_eq!(
        harbor.record_xml("<domain>1</domain>").unwrap(),
        XmlVersion(1)
    );
    assert_eq!(
        machine.recorder.point(Grade::Crash, None).unwrap().xml,
        Some(XmlVersion(1))
    );
    assert_eq!(
        harbor.record_xml("<domain>2</domain>").unwrap(),
        XmlVersion(2)
    );
    assert_eq!(harbor.xml(XmlVersion(1)).unwrap(), "<domain>1</domain>");
    assert!(matches!(
        harbor.xml(XmlVersion(3)),
        Err(HarborError::NoSuchXml(_))
    ));
    let dir = machine.dir();
    let home = machine.home;
    drop((machine.harbor, machine.recorder));
    let (harbor, _) = Harbor::open(&dir, Options::default()).unwrap();
    assert_eq!(
        harbor.record_xml("<domain>2</domain>").unwrap(),
        XmlVersion(2)
    );
    assert_eq!(harbor.points()[1].xml, Some(XmlVersion(1)));
    drop(home);
}

#[test]
fn one_recording_at_a_time_and_dropping_it_closes_it() {
    let machine = machine(&[64 * KIB], Options::default());
    assert!(matches!(machine.harbor.record(), Err(HarborError::Busy(_))));
    machine.write(0, 0, b"before the drop");
    drop(machine.recorder);
    let recorder = machine.harbor.record().unwrap();
    recorder.close().unwrap();
    drop(machine.harbor);
    drop(recorder);
    let dir = machine.home.path().join("h");
    let (harbor, report) = Harbor::open(&dir, Options::default()).unwrap();
    assert!(report.is_clean() && report.segments == 2, "{report:?}");
    let mut bytes = [0; 15];
    harbor
        .latest_image(VolumeId(0))
        .unwrap()
        .read_at(&mut bytes, 0)
        .unwrap();
    assert_eq!(&bytes, b"before the drop");
}
