//! Compares what the harbor has with what was promised.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cdp_core::bounds::LAYERS_MAX;
use cdp_core::{PointId, View, VolumeId};

use crate::guest::{BLOCK, Shown, hash};
use crate::keeper::Keeper;

impl Keeper {
    /// Checks everything, and the content of so many points.
    pub(crate) fn check(&mut self, contents: usize) {
        let points: Vec<u64> = self
            .harbor()
            .points()
            .iter()
            .map(|point| point.id.0)
            .collect();
        let kept: Vec<u64> = self.kept.keys().copied().collect();
        assert_eq!(points, kept);
        for (view, shown, _) in &self.views {
            compare(view, shown);
        }
        let mut chosen = kept;
        while chosen.len() > contents.max(2) {
            // The oldest and the newest stay.
            let at = 1 + self.chance.below(chosen.len() as u64 - 2) as usize;
            chosen.remove(at);
        }
        for id in &chosen {
            compare(&self.harbor().view(PointId(*id)).unwrap(), &self.kept[id]);
        }
        self.count("contents compared", chosen.len());
        self.check_layers();
        self.check_usage();
    }

    fn check_layers(&mut self) {
        let description = self.harbor().description();
        for volume in &description.volumes {
            let layers = self.harbor().base_points(volume.id);
            assert!(layers.len() <= LAYERS_MAX, "{} layers", layers.len());
            for layer in layers {
                let checked = Command::new("qemu-img")
                    .arg("check")
                    .arg(&layer.path)
                    .output();
                match checked {
                    Ok(output) => {
                        assert!(
                            output.status.success(),
                            "{}: {output:?}",
                            layer.path.display()
                        );
                        self.count("layers checked", 1);
                    }
                    Err(error) => drop(writeln!(
                        std::io::stderr(),
                        "SKIPPED: qemu-img check: {error}"
                    )),
                }
            }
        }
    }

    /// What is said to be taken is what the files take, and no file is there that is not counted.
    fn check_usage(&self) {
        let usage = self.harbor().usage().unwrap();
        for (folder, said) in [("journal", usage.journal_bytes), ("base", usage.base_bytes)] {
            let files = files(&self.dir.join(folder));
            let (mut bytes, mut blocks) = (0, 0);
            for path in &files {
                let metadata = fs::metadata(path).unwrap();
                bytes += metadata.len();
                blocks += metadata.blocks() * 512;
            }
            assert_eq!(said, bytes, "{folder}: {files:?}");
            let spare = 4096 * files.len() as u64;
            assert!(
                blocks <= bytes + spare,
                "{folder}: du says {blocks}, not {bytes}"
            );
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files
}

fn compare(view: &View, shown: &[Shown]) {
    for (number, disk) in shown.iter().enumerate() {
        let volume = VolumeId(number as u16);
        let point = view.point().id;
        assert_eq!(
            view.size(volume).unwrap(),
            disk.size as u64,
            "{volume} at {point}"
        );
        let mut bytes = vec![0xee; disk.size];
        view.read_at(volume, &mut bytes, 0).unwrap();
        for (at, (found, expected)) in bytes.chunks(BLOCK).zip(&disk.hashes).enumerate() {
            assert!(
                hash(found) == *expected,
                "block {at} of {volume} at point {point}"
            );
        }
    }
}
