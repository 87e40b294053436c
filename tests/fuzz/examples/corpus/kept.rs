//! What is said of points, and what verifications find, of the harbor that the targets have: as it is, with a segment or a
//! layer that is damaged or gone, and what nobody wrote but a hand.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use cdp_core::storage::SimulatedStorage;
use cdp_core::{Harbor, Options, PointId, Scope};
use virt_cdp_fuzz::recorded;

use crate::{Done, keep};

pub(crate) fn make() -> Done {
    const DIR: &str = "/harbor";
    let read = |storage: &SimulatedStorage, name: &str| {
        let bytes = storage.content(&Path::new(DIR).join(name));
        bytes.ok_or_else(|| format!("no {name}"))
    };
    // With its checksum as it is, and put right.
    let twice = |target: &str, name: &str, bytes: &[u8]| -> Done {
        keep(target, &format!("{name}-0"), &[b"0", bytes].concat())?;
        keep(target, &format!("{name}-1"), &[b"1", bytes].concat())
    };
    let open = |storage: &SimulatedStorage| {
        let options = Options {
            storage: Arc::new(storage.clone()),
            ..Options::default()
        };
        Harbor::open(Path::new(DIR), options).map(|(harbor, _)| harbor)
    };
    let storage = recorded();
    let harbor = open(&storage)?;
    harbor.label_point(PointId(3), Some("a \"label\""))?;
    harbor.label_point(PointId(6), None)?;
    harbor.lock_point(PointId(2))?;
    harbor.delete_points(&[1, 4, 5].map(PointId))?;
    twice("points", "used", &read(&storage, "points.toml")?)?;
    twice("scrub", "verified", &read(&storage, "scrub.toml")?)?;
    let files = storage.files().into_iter();
    let files = files.filter(|path| {
        [".seg", ".qcow2"]
            .iter()
            .any(|end| path.to_string_lossy().ends_with(end))
    });
    for (number, path) in files.enumerate() {
        let bytes = storage.content(&path).ok_or("no such file")?;
        for (name, damaged) in [("gone", Vec::new()), ("flipped", flipped(bytes))] {
            let storage = recorded();
            storage.put(&path, &damaged);
            let harbor = open(&storage)?;
            harbor.verify(Scope::default(), &mut |_| ControlFlow::Continue(()))?;
            // What nothing covers is found by nobody.
            let Ok(found) = read(&storage, "damage.toml") else {
                continue;
            };
            twice("damage", &format!("{name}-{number}"), &found)?;
        }
    }
    for (target, name, text) in HANDMADE {
        keep(target, name, &[b"1", text.as_bytes()].concat())?;
    }
    Ok(())
}

/// Flips a bit in the middle of each 4 KiB that have anything in them but the first, which is a header.
fn flipped(mut bytes: Vec<u8>) -> Vec<u8> {
    let filled = bytes.chunks_mut(4096).skip(1);
    for piece in filled.filter(|piece| piece.iter().any(|byte| *byte != 0)) {
        let middle = piece.len() / 2;
        piece[middle] ^= 1;
    }
    bytes
}

/// What no program of ours writes, of which the checksum is put right.
const HANDMADE: [(&str, &str, &str); 13] = [
    ("points", "all", "deleted = [[0, 9223372036854775807]]\n"),
    (
        "points",
        "later",
        "deleted = [[5, 99]]\nlocked = [9, 99]\n[[labels]]\npoint = 9\nlabel = \"later\"\n",
    ),
    ("points", "disorder", "deleted = [[5, 6], [2, 1]]\n"),
    (
        "points",
        "twice",
        "locked = [1, 1]\n[[labels]]\npoint = 1\nlabel = \"a\"\n[[labels]]\npoint = 1\nlabel = \"\"\n",
    ),
    ("points", "unknown", "kept = [1]\n"),
    ("damage", "nothing", "judged = 8\n"),
    (
        "damage",
        "unknown",
        "judged = 8\n[[findings]]\nfile = \"a\"\nwhat = \"b\"\nfrom = 0\nbytes = 0\nlost = \"more\"\n",
    ),
    (
        "damage",
        "all-records",
        "judged = 0\n[[findings]]\nfile = \"journal\"\nwhat = \"b\"\nfrom = 0\nbytes = 0\nlost = \"records\"\nfirst = 0\nlast = 9223372036854775807\n",
    ),
    (
        "damage",
        "whole-layer",
        "judged = 0\n[[findings]]\nfile = \"base/vol-00000/full-00000000000000000000.qcow2\"\nwhat = \"b\"\nfrom = 0\nbytes = 0\nlost = \"layer\"\nvolume = 0\nlayer = 0\n",
    ),
    (
        "damage",
        "all-areas",
        "judged = 0\n[[findings]]\nfile = \"base/vol-00000/full-00000000000000000000.qcow2\"\nwhat = \"b\"\nfrom = 9223372036854775807\nbytes = 9223372036854775807\nlost = \"area\"\nvolume = 0\nlayer = 0\noffset = 9223372036854775807\nlength = 9223372036854775807\n[[findings.costs]]\nfirst = 7\nlast = 3\nvolume = 0\nareas = [{ offset = 9223372036854775807, length = 9223372036854775807 }]\n",
    ),
    (
        "damage",
        "judged-ahead",
        "judged = 9223372036854775807\n[[findings]]\nfile = \"journal/000000000001.seg\"\nwhat = \"b\"\nfrom = 0\nbytes = 1\nlost = \"record\"\nvolume = 0\nseq = 1\noffset = 0\nlength = 9223372036854775807\n",
    ),
    (
        "scrub",
        "others",
        "[[files]]\nname = \"../../a\"\nlen = 9223372036854775807\nat = \"2026-01-01T00:00:00Z\"\n",
    ),
    ("scrub", "nothing", ""),
];
