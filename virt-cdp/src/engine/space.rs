//! `space`: what a machine's harbor takes, and what deleting points of it would free.

use cdp_core::{Harbor, LayerSpace, MachineDescription, SpaceTaken};

use crate::{
    api::{ApiResult, v1},
    engine::{errors::from_harbor, machine::Machine, messages, moments},
};

/// Measures a machine's harbor; with a bound, also what deleting the points within would free.
pub(crate) fn space(machine: &Machine, request: &v1::SpaceRequest) -> ApiResult<v1::Space> {
    let harbor = machine.harbor();
    let taken = harbor.space().map_err(from_harbor)?;
    let is_asked = request.from.is_some() || request.to.is_some();
    let deletion = is_asked.then(|| deletion(&harbor, request)).transpose()?;
    Ok(v1::Space {
        harbor: harbor.dir().display().to_string(),
        deletion,
        ..message(&taken, &harbor.description())
    })
}

fn deletion(harbor: &Harbor, request: &v1::SpaceRequest) -> ApiResult<v1::Deletion> {
    let from = moments::bound(harbor, request.from.as_ref())?;
    let to = moments::bound(harbor, request.to.as_ref())?;
    let points = harbor.points_between(from, to, usize::MAX);
    let going = harbor.deletable(&points);
    let freed = harbor.gain(&going).map_err(from_harbor)?;
    Ok(v1::Deletion {
        points: points.len() as u64,
        held: points.len().saturating_sub(going.len()) as u64,
        freed_soon_bytes: freed.soon,
        freed_later_bytes: freed.later,
    })
}

fn message(taken: &SpaceTaken, description: &MachineDescription) -> v1::Space {
    let journal = taken.journal;
    v1::Space {
        harbor: String::new(),
        layers: taken
            .layers
            .iter()
            .map(|one| layer(one, description))
            .collect(),
        journal: Some(v1::JournalSpace {
            sealed_segments: journal.sealed_count,
            sealed_bytes: journal.sealed,
            cold_segments: journal.cold_count,
            cold_bytes: journal.cold,
            recorded_bytes: journal.recorded,
            reserved_bytes: journal.reserved,
        }),
        unfinished_bytes: taken.unfinished,
        other_bytes: taken.other,
        total_bytes: taken.total(),
        deletion: None,
    }
}

fn layer(layer: &LayerSpace, description: &MachineDescription) -> v1::LayerSpace {
    let volume = description.volume(layer.volume);
    v1::LayerSpace {
        volume: volume.map_or_else(|| layer.volume.to_string(), |one| one.target.clone()),
        seq: layer.seq.0,
        first_point: layer.first_point.as_ref().map(messages::point),
        image_bytes: layer.image,
        hashes_bytes: layer.hashes,
    }
}

#[cfg(test)]
mod tests {
    use cdp_core::{
        JournalSpace, MachineSource, Mode, Seq, Timestamp, VolumeDescription, VolumeId,
        machine::FORMAT_VERSION,
    };

    use super::*;

    #[test]
    fn each_part_comes_under_its_name_and_volumes_under_their_targets() {
        let described = MachineDescription {
            format_version: FORMAT_VERSION,
            name: "web1".into(),
            machine_id: "0b7a".into(),
            point_interval_ms: 1000,
            created: Timestamp(0),
            mode: Mode::Active,
            ack: None,
            flush_interval_ms: None,
            policy: None,
            source: MachineSource::Qmp {
                socket: "/run/qmp".into(),
            },
            volumes: vec![VolumeDescription::new(VolumeId(7), "vda", 512)],
        };
        let layer = |volume, image| LayerSpace {
            volume: VolumeId(volume),
            seq: Seq(11),
            first_point: None,
            image,
            hashes: 2,
        };
        let taken = SpaceTaken {
            layers: vec![layer(7, 1), layer(9, 3)],
            journal: JournalSpace {
                sealed_count: 4,
                sealed: 5,
                cold_count: 6,
                cold: 7,
                recorded: 8,
                reserved: 9,
            },
            unfinished: 10,
            other: 12,
        };
        let said = message(&taken, &described);
        let journal = v1::JournalSpace {
            sealed_segments: 4,
            sealed_bytes: 5,
            cold_segments: 6,
            cold_bytes: 7,
            recorded_bytes: 8,
            reserved_bytes: 9,
        };
        assert_eq!(said.journal, Some(journal));
        assert_eq!((said.unfinished_bytes, said.other_bytes), (10, 12));
        assert_eq!(said.total_bytes, 1 + 2 + 3 + 2 + 5 + 7 + 8 + 9 + 10 + 12);
        let volumes: Vec<&str> = said.layers.iter().map(|one| one.volume.as_str()).collect();
        // One of a volume that is not described any more is known by its number.
        assert_eq!(volumes, ["vda", &VolumeId(9).to_string()]);
        let sizes = said
            .layers
            .iter()
            .map(|one| (one.image_bytes, one.hashes_bytes, one.seq));
        assert_eq!(sizes.collect::<Vec<_>>(), [(1, 2, 11), (3, 2, 11)]);
    }
}
