//! Whatever is changed in a report is found.

use super::{chance, key, sample};
use crate::report::{Form, Key, VerifyError, html, json, junit, verify};

fn forms(key: &Key) -> [(Form, Vec<u8>); 3] {
    let mut report = sample::failed();
    report.previous = Some(crate::outcome::Link {
        id: "20261127-021500-0001".into(),
        sha256: "ab".repeat(32),
    });
    [
        (Form::Html, html(&report, key)),
        (Form::Json, json(&report, key).unwrap()),
        (Form::JUnit, junit(&report, key)),
    ]
}

#[test]
fn each_form_is_verified_and_tells_what_it_is() {
    let key = key();
    for (form, bytes) in forms(&key) {
        let verified = verify(&bytes, Some(&key.public())).unwrap();
        assert_eq!(verified.form, form);
        assert_eq!(verified.public_key, key.public());
        assert_eq!(verified.id.as_deref(), Some("20261127-031500-9c01"));
        let previous = verified.previous.unwrap();
        assert_eq!(previous.id, "20261127-021500-0001");
        assert_eq!(previous.sha256, "ab".repeat(32));
        assert_eq!(verified.sha256.len(), 64);
    }
}

#[test]
fn a_report_of_another_key_is_told_apart() {
    let (key, other) = (key(), super::key());
    for (form, bytes) in forms(&key) {
        let error = verify(&bytes, Some(&other.public())).unwrap_err();
        let expected = VerifyError::OtherKey {
            form,
            signed_by: key.public(),
            expected: other.public(),
        };
        assert_eq!(error, expected);
        assert!(error.to_string().contains(&key.public().fingerprint()));
    }
}

#[test]
fn a_report_without_a_signature_is_told_apart() {
    let key = key();
    for (form, bytes) in forms(&key) {
        let text = String::from_utf8(bytes).unwrap();
        let unsigned = match form {
            Form::Json => {
                text.split(",\"signature\":{\"algorithm\"")
                    .next()
                    .unwrap()
                    .to_owned()
                    + "}\n"
            }
            Form::Html | Form::JUnit => text.split("<!-- virt").next().unwrap().to_owned(),
        };
        assert_eq!(
            verify(unsigned.as_bytes(), None),
            Err(VerifyError::NoSignature { form })
        );
    }
    assert_eq!(verify(b"", None), Err(VerifyError::NoReport));
}

#[test]
fn every_changed_byte_is_found() {
    let key = key();
    let mut report = sample::failed();
    for machine in &mut report.machines {
        machine.screenshots.clear();
    }
    report.machines.truncate(1);
    let forms = [
        html(&report, &key),
        json(&report, &key).unwrap(),
        junit(&report, &key),
    ];
    let mut seed = 1;
    for bytes in forms {
        assert!(verify(&bytes, None).is_ok());
        // Every byte of the beginning and the end, and others by chance; each with one bit and with a likely letter.
        let ends = (0..300).chain(bytes.len() - 400..bytes.len());
        let others: Vec<usize> = (0..600).map(|_| chance(&mut seed) % bytes.len()).collect();
        for at in ends.chain(others) {
            for new in [
                bytes[at] ^ (1 << (chance(&mut seed) % 8)),
                b' ',
                b'a',
                b'A',
                b'0',
            ] {
                let mut changed = bytes.clone();
                changed[at] = new;
                let is_same = changed == bytes;
                assert_eq!(
                    verify(&changed, None).is_ok(),
                    is_same,
                    "byte {at} to {new:#x}"
                );
            }
        }
    }
}

#[test]
fn what_is_added_or_taken_away_is_found() {
    let key = key();
    for (form, bytes) in forms(&key) {
        for garbage in ["\n", " ", "\0", "x", "<!-- -->", "}"] {
            let longer = [&bytes, garbage.as_bytes()].concat();
            assert!(
                verify(&longer, None).is_err(),
                "{form:?} {garbage:?} behind"
            );
            let before = [garbage.as_bytes(), &bytes].concat();
            assert!(
                verify(&before, None).is_err(),
                "{form:?} {garbage:?} before"
            );
        }
        let twice = [&bytes[..], &bytes[..]].concat();
        assert!(verify(&twice, None).is_err());
        let mut seed = 7;
        for _ in 0..200 {
            let at = chance(&mut seed) % bytes.len();
            assert!(verify(&bytes[..at], None).is_err(), "{form:?} cut at {at}");
            let mut shorter = bytes.clone();
            shorter.remove(at);
            assert!(verify(&shorter, None).is_err(), "{form:?} without {at}");
        }
    }
}

#[test]
fn json_is_written_in_one_way_only() {
    let key = key();
    let text = String::from_utf8(json(&sample::passed(), &key).unwrap()).unwrap();
    for (from, to) in [
        ("{\"report\":", "{ \"report\":"),
        ("{\"report\":", "{\"note\":1,\"report\":"),
        (
            ",\"signature\":{\"algorithm\"",
            ",\"signature\":{\"x\":1,\"algorithm\"",
        ),
        ("\"ed25519\"", "\"ed448\""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        let error = verify(changed.as_bytes(), None).unwrap_err();
        assert!(matches!(error, VerifyError::Broken { .. }), "{error}");
    }
}

#[test]
fn any_bytes_may_be_given() {
    let key = key();
    let mut seed = 3;
    let mut starts: Vec<Vec<u8>> = forms(&key).into_iter().map(|(_, bytes)| bytes).collect();
    starts.push(b"{\"report\":".to_vec());
    starts.push([b'['; 5000].to_vec());
    starts.push(
        b"{\"report\":"
            .iter()
            .copied()
            .chain([b'['; 50_000])
            .collect(),
    );
    starts.push(
        "<!DOCTYPE html><!-- virt-cdp-signature: ed25519 ü"
            .repeat(20)
            .into_bytes(),
    );
    for start in starts {
        for _ in 0..300 {
            let mut bytes = start[..chance(&mut seed) % (start.len() + 1)].to_vec();
            bytes.extend((0..chance(&mut seed) % 300).map(|_| chance(&mut seed) as u8));
            assert!(verify(&bytes, None).is_err());
        }
    }
    let too_large = vec![b'{'; super::super::BYTES_MAX + 1];
    assert!(matches!(
        verify(&too_large, None),
        Err(VerifyError::TooLarge { .. })
    ));
}

#[test]
fn a_signed_report_has_the_hash_of_its_report_member() {
    let key = key();
    let report = sample::passed();
    let raw = serde_json::to_string(&report).unwrap();
    let verified = verify(&json(&report, &key).unwrap(), None).unwrap();
    assert_eq!(verified.sha256, crate::report::hex::sha256(raw.as_bytes()));
}
