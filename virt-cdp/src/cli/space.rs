//! `space`: what is kept of a machine takes on the disk, part by part.

use super::{
    at,
    error::CliResult,
    json_space,
    session::Session,
    text::{Table, local, pairs},
};
use crate::{api::v1, units::format_size};

/// Shows what a machine's harbor takes on the disk, and what deleting points would free; deletes nothing
///
/// Sizes are what was allocated, as `du` counts it, and the parts add up to the total. A layer is named after the
/// first recovery point that is shown with it; one without is what newer ones stand on.
///
/// With --from, --to or both it is estimated what deleting the points in between would free: soon, when the journal is
/// next compacted, within some minutes; and later, of segments that are compacted once half of their points are
/// gone, or a newer base point is built. Locked points, points in use, and the newest one are not counted.
///
/// --from and --to take what --at takes: `latest`, a point id, an age (30s, 5m, 2h, 1d), a local time
/// (YYYY-MM-DD HH:MM:SS[.mmm]) or RFC 3339. Both ends are included.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// Work out what deleting the points from this moment on would free
    #[arg(long, value_name = "T")]
    from: Option<String>,

    /// The same up to this moment
    #[arg(long, value_name = "T")]
    to: Option<String>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let parse = |text: &Option<String>| text.as_deref().map(at::parse_here).transpose();
    let request = v1::SpaceRequest {
        name: args.name,
        from: parse(&args.from)?.map(at::At::oldest),
        to: parse(&args.to)?.map(at::At::newest),
    };
    let space = session
        .client
        .call(async |api| api.get_space(request).await)?;
    session.answer(&json_space::Space::from(&space), || describe(&space))
}

fn describe(space: &v1::Space) -> String {
    let mut layers = Table::new(["Volume", "Record", "First point", "Image", "Hashes"]);
    for layer in &space.layers {
        let point = layer.first_point.as_ref();
        layers.row([
            layer.volume.clone(),
            layer.seq.to_string(),
            point.map_or("-".into(), |one| {
                format!("{}, {}", one.id, local(one.time_ns))
            }),
            format_size(layer.image_bytes),
            format_size(layer.hashes_bytes),
        ]);
    }
    let mut text = format!("{}\n{}", layers.render(), pairs(&parts(space)));
    if let Some(deletion) = &space.deletion {
        text.push('\n');
        text.push_str(&describe_deletion(deletion));
    }
    text
}

/// The parts, and the total at the end.
fn parts(space: &v1::Space) -> Vec<(&'static str, String)> {
    let of_one = |layer: &v1::LayerSpace| layer.image_bytes.saturating_add(layer.hashes_bytes);
    let layers = space.layers.iter().map(of_one).fold(0, u64::saturating_add);
    let journal = space.journal.unwrap_or_default();
    let segments = |bytes, count| match count {
        1 => format!("{} in 1 segment", format_size(bytes)),
        count => format!("{} in {count} segments", format_size(bytes)),
    };
    vec![
        ("Base points", format_size(layers)),
        (
            "Journal, sealed",
            segments(journal.sealed_bytes, journal.sealed_segments),
        ),
        (
            "Journal, cold",
            segments(journal.cold_bytes, journal.cold_segments),
        ),
        ("Journal, since then", format_size(journal.recorded_bytes)),
        ("Journal, reserved", format_size(journal.reserved_bytes)),
        ("Unfinished work", format_size(space.unfinished_bytes)),
        ("Other files", format_size(space.other_bytes)),
        (
            "Total",
            format!("{} in {}", format_size(space.total_bytes), space.harbor),
        ),
    ]
}

fn describe_deletion(deletion: &v1::Deletion) -> String {
    let others = match deletion.held {
        0 => "",
        _ => "; the others are locked, in use, or the newest",
    };
    format!(
        "{} of {} points could be deleted, which frees about {} soon and {} later{others}\n",
        deletion.points.saturating_sub(deletion.held),
        deletion.points,
        format_size(deletion.freed_soon_bytes),
        format_size(deletion.freed_later_bytes)
    )
}
