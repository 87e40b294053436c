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
