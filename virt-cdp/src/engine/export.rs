//! Export: a point's volumes as standalone qcow2 images in a directory of the user's.

use std::{fs, io, ops::ControlFlow, path::PathBuf};

use cdp_core::{Harbor, Point, View, VolumeDescription};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{errors::from_harbor, jobs::Jobs, messages, moments, names},
};

/// Opens a view of a point; of one that is damaged only if `damaged` says that this is known.
pub(crate) fn view_of(harbor: &Harbor, point: &Point, damaged: bool) -> ApiResult<View> {
    let view = match damaged {
        true => harbor.view_damaged(point.id),
        false => harbor.view(point.id),
    };
    view.map_err(from_harbor)
}

/// Starts the export; everything that can be refused is refused before it starts.
pub(crate) fn start(
    jobs: &Jobs,
    harbor: &Harbor,
    request: &v1::ExportRequest,
) -> ApiResult<v1::Job> {
    let point = moments::resolve(&request.name, harbor, request.at.as_ref())?;
    let description = harbor.description();
    let there = |v: &&VolumeDescription| v.size_at(point.seq).is_some();
    let there: Vec<&VolumeDescription> = description.volumes.iter().filter(there).collect();
    for disk in &request.disks {
        if !there.iter().any(|v| v.target == *disk) {
            let targets: Vec<&str> = there.iter().map(|v| v.target.as_str()).collect();
            return Err(ApiError::new(
                ApiErrorKind::NotFound,
                format!(
                    "'{}' has no protected disk '{disk}' at point {}",
                    request.name, point.id
                ),
            )
            .hint(format!("it has: {}", targets.join(", "))));
        }
    }
    let dir = PathBuf::from(&request.dir);
    if !dir.is_absolute() {
        return Err(ApiError::new(
            ApiErrorKind::InvalidArgument,
            format!("{:?} is not an absolute path", request.dir),
        ));
    }
    fs::create_dir_all(&dir).map_err(|e| {
        let kind = match e.kind() {
            io::ErrorKind::PermissionDenied => ApiErrorKind::PermissionDenied,
            _ => ApiErrorKind::InvalidArgument,
        };
        ApiError::new(kind, format!("cannot make {}: {e}", dir.display()))
            .hint("name a directory virtcdpd can write to")
    })?;
    let wanted = |target: &String| request.disks.is_empty() || request.disks.contains(target);
    let mut volumes = Vec::new();
    for volume in there.iter().filter(|v| wanted(&v.target)) {
        let path = dir.join(format!("{}.qcow2", names::component(&volume.target)));
        if path.exists() {
            return Err(ApiError::new(
                ApiErrorKind::AlreadyExists,
                format!("{} is there already", path.display()),
            )
            .hint("remove it, or export to another directory"));
        }
        let size = volume.size_at(point.seq).unwrap_or_default();
        volumes.push((volume.id, size, path));
    }
    let view = view_of(harbor, &point, request.damaged)?;
    let total: u64 = volumes.iter().map(|(_, size, _)| size).sum();
    jobs.start(
        "export",
        &request.name,
        Some(messages::point(&point)),
        move |job| {
            let mut before = 0;
            job.progress(0, total);
            for (id, size, path) in volumes {
                view.export(id, &path, &mut |done| {
                    job.progress(before + done, total);
                    if job.is_cancelled() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
                .map_err(from_harbor)?;
                job.wrote(path.display().to_string());
                before += size;
            }
            job.progress(total, total);
            Ok(())
        },
    )
}
