//! Which of a machine's disks are volumes now: the harbor's description fitted to the disks that QEMU has.
//!
//! A disk that grew or shrank, was unplugged, or is back, becomes an era of its volume, so that each point
//! shows the volumes as they were then. Pure: what was found goes in, the new description comes out.

use cdp_core::{MachineDescription, Plug, Seq, VolumeDescription, VolumeId, machine::Era};
use qemu_hook::node::{Node, Verdict};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::source::Found,
};

/// Fits `volumes` to the disks `found`; what changes does so behind record `head`.
///
/// `has_base` tells whether anything of a volume is kept: one without has no history that could be cut.
///
/// # Errors
/// A protected disk cannot be protected any more, or none of them is there.
pub(crate) fn fit(
    volumes: &[VolumeDescription],
    found: &[Found],
    head: Seq,
    has_base: impl Fn(VolumeId) -> bool,
) -> ApiResult<Vec<VolumeDescription>> {
    let failed = |what: String| Err(ApiError::new(ApiErrorKind::FailedPrecondition, what));
    let mut fitted = volumes.to_vec();
    for volume in &mut fitted {
        let size = match found.iter().find(|f| f.target == volume.target) {
            None => None,
            Some(disk) => match &disk.verdict {
                Verdict::Protectable(node) => Some(node.size),
                // What came in the place of an unplugged disk is no reason to leave the others unprotected.
                _ if volume.plug == Plug::Out => None,
                Verdict::LeftOut(reason) | Verdict::Refused(reason) => {
                    return failed(format!("disk {}: {reason}", volume.target));
                }
            },
        };
        if has_base(volume.id) {
            volume.change(head, size);
        } else {
            change_unseeded(volume, head, size);
        }
    }
    if fitted.iter().any(|v| v.plug == Plug::In) {
        return Ok(fitted);
    }
    let targets: Vec<&str> = volumes.iter().map(|v| v.target.as_str()).collect();
    failed(format!(
        "none of the protected disks is there: {}",
        targets.join(", ")
    ))
}

/// A volume of which nothing is kept yet: it is as it is now, or begins when it comes.
fn change_unseeded(volume: &mut VolumeDescription, head: Seq, size: Option<u64>) {
    match size {
        Some(size) => {
            volume.size = size;
            volume.plug = Plug::In;
        }
        None => {
            volume.plug = Plug::Out;
            volume.before = vec![Era {
                up_to: head,
                size: 0,
            }];
        }
    }
}

/// Makes the volume of a disk that is taken in behind record `head`, beside those there are.
pub(crate) fn late(
    description: &MachineDescription,
    target: &str,
    node: &Node,
    head: Seq,
) -> VolumeDescription {
    let id = description.volumes.iter().map(|v| v.id.0).max();
    let id = VolumeId(id.map_or(0, |id| id.saturating_add(1)));
    VolumeDescription {
        original_format: Some(node.format.clone()),
        original_path: Some(node.image.clone()),
        before: vec![Era {
            up_to: head,
            size: 0,
        }],
        ..VolumeDescription::new(id, target, node.size)
    }
}

/// Says of every disk that is no volume why, and of every volume without its disk that it is gone.
pub(crate) fn left_out(
    machine: &str,
    volumes: &[VolumeDescription],
    found: &[Found],
) -> Vec<String> {
    let others = found
        .iter()
        .filter(|f| !volumes.iter().any(|v| v.target == f.target));
    let gone = volumes
        .iter()
        .filter(|v| !found.iter().any(|f| f.target == v.target));
    others
        .map(|f| f.left_out(machine))
        .chain(gone.map(|v| {
            format!(
                "{}: unplugged; points from before have it, and plugged in again it is protected again",
                v.target
            )
        }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(target: &str, size: u64) -> Found {
        let node = Node {
            name: target.to_owned(),
            size,
            format: "raw".into(),
            image: String::new(),
            allocated: None,
            persistent_bitmaps: false,
        };
        Found {
            target: target.to_owned(),
            plug: String::new(),
            verdict: Verdict::Protectable(node),
        }
    }

    fn volume(id: u16, target: &str) -> VolumeDescription {
        VolumeDescription::new(VolumeId(id), target, 1024)
    }

    fn sizes(volumes: &[VolumeDescription], seq: u64) -> Vec<Option<u64>> {
        volumes.iter().map(|v| v.size_at(Seq(seq))).collect()
    }

    #[test]
    fn what_changed_is_an_era() {
        let volumes = [volume(0, "vda"), volume(1, "vdb")];
        let table = [
            (
                vec![disk("vda", 1024), disk("vdb", 1024)],
                vec![Some(1024), Some(1024)],
            ),
            (
                vec![disk("vda", 4096), disk("vdb", 1024)],
                vec![Some(4096), Some(1024)],
            ),
            (
                vec![disk("vda", 512), disk("vdb", 1024)],
                vec![Some(512), Some(1024)],
            ),
            (
                vec![disk("vda", 1024), disk("vdc", 1024)],
                vec![Some(1024), None],
            ),
        ];
        for (found, expected) in table {
            let fitted = fit(&volumes, &found, Seq(7), |_| true).expect("it fits");
            assert_eq!(sizes(&fitted, 8), expected, "{found:?}");
            assert_eq!(sizes(&fitted, 7), [Some(1024), Some(1024)], "{found:?}");
        }
    }

    #[test]
    fn a_disk_that_is_back_is_the_same_volume() {
        let volumes = [volume(0, "vda"), volume(1, "vdb")];
        let gone = fit(&volumes, &[disk("vda", 1024)], Seq(3), |_| true).expect("it fits");
        let back = [disk("vda", 1024), disk("vdb", 2048)];
        let back = fit(&gone, &back, Seq(9), |_| true).expect("it fits");
        assert_eq!(sizes(&back, 3), [Some(1024), Some(1024)]);
        assert_eq!(sizes(&back, 9), [Some(1024), None]);
        assert_eq!(sizes(&back, 10), [Some(1024), Some(2048)]);
    }

    #[test]
    fn nothing_to_protect_or_what_cannot_be_is_an_error() {
        let volumes = [volume(0, "vda")];
        let error = fit(&volumes, &[disk("vdb", 1024)], Seq(3), |_| true).expect_err("none");
        assert!(error.what.contains("vda"), "{error}");
        let mut refused = disk("vda", 1024);
        refused.verdict = Verdict::Refused("it is encrypted".into());
        let error = fit(&volumes, &[refused], Seq(3), |_| true).expect_err("refused");
        assert!(error.what.contains("encrypted"), "{error}");
    }

    #[test]
    fn a_disk_that_vanished_before_its_seed_takes_no_point_away() {
        let volumes = [volume(0, "vda"), volume(1, "vdb")];
        let fitted = fit(&volumes, &[disk("vda", 1024)], Seq(3), |_| false).expect("it fits");
        assert_eq!(sizes(&fitted, 1), [Some(1024), None]);
        assert!(!fitted[1].is_original());
    }

    #[test]
    fn every_disk_that_is_not_protected_is_named() {
        let volumes = [volume(0, "vda"), volume(1, "vdb")];
        let said = left_out("web1", &volumes, &[disk("vda", 1024), disk("vdc", 1)]);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("vdc: ") && said[0].contains("protect web1 --disk vdc"));
        assert!(said[1].starts_with("vdb: unplugged"));
    }
}
