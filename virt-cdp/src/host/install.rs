//! Laying down.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    Done, Host, HostError, MANIFEST, Step, block, failed,
    files::{Content, Item},
    manifest::{Kind, Manifest},
    plan::{Planned, plan},
    uninstall, write,
};

/// Lays down `items` below `prefix` and `/etc`; what an older version laid down beside them goes.
///
/// # Errors
/// Nothing was changed, or the list has what was about to be done: the same again goes on from there.
pub(crate) fn install(host: &Host, prefix: &Path, items: &[Item]) -> Result<Vec<Step>, HostError> {
    let before = Manifest::read(host)?;
    if let Some(other) = before.as_ref().filter(|before| before.prefix != prefix) {
        let prefix = other.prefix.clone();
        return Err(HostError::OtherPrefix { prefix });
    }
    let mut manifest = before.unwrap_or_else(|| Manifest::new(prefix));
    let planned = items
        .iter()
        .map(|item| plan(host, &manifest, item))
        .collect::<Result<Vec<_>, _>>()?;
    let obsolete = obsolete(&manifest, items);
    let to_do = |planned: &&Planned<'_>| matches!(planned.done, Done::Made | Done::Updated);
    if !host.dry_run {
        let paths = planned.iter().filter(to_do).map(|p| p.item.path.clone());
        let dirs = missing_dirs(host, paths.chain([PathBuf::from(MANIFEST)]));
        // The manifest's own directory has to be there to hold it.
        let own = Path::new(MANIFEST).parent().unwrap_or(Path::new("/"));
        let (first, rest): (Vec<_>, Vec<_>) =
            dirs.into_iter().partition(|dir| own.starts_with(dir));
        make_dirs(host, &first)?;
        for dir in first.iter().chain(&rest) {
            manifest.note(dir, Kind::Dir, None);
        }
        for planned in planned.iter().filter(to_do) {
            manifest.note(&planned.item.path, planned.kind, Some(planned.hash.clone()));
        }
        manifest.write(host)?;
        make_dirs(host, &rest)?;
        for planned in planned.iter().filter(to_do) {
            lay_down(host, planned.item)?;
            manifest.settle(&planned.item.path, planned.hash.clone());
        }
    }
    let mut steps: Vec<Step> = Vec::new();
    for entry in &obsolete {
        let done = uninstall::take_away(host, entry)?;
        steps.push(Step {
            path: entry.path.clone(),
            done,
        });
    }
    if !host.dry_run {
        manifest.entries.retain(|entry| !obsolete.contains(entry));
        manifest.write(host)?;
    }
    steps.extend(planned.into_iter().map(|planned| Step {
        path: planned.item.path.clone(),
        done: planned.done,
    }));
    Ok(steps)
}

/// What an older version laid down and this one does not.
fn obsolete(manifest: &Manifest, items: &[Item]) -> Vec<super::manifest::Entry> {
    let entries = manifest.entries.iter();
    let gone = entries.filter(|entry| {
        entry.kind != Kind::Dir && !items.iter().any(|item| item.path == entry.path)
    });
    gone.cloned().collect()
}

/// The directories that are not there, each after the one it is in.
fn missing_dirs(host: &Host, paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for path in paths {
        let above = path
            .ancestors()
            .skip(1)
            .take_while(|dir| *dir != Path::new("/"));
        let mut chain: Vec<PathBuf> = above
            .take_while(|dir| !host.at(dir).exists())
            .map(PathBuf::from)
            .collect();
        chain.reverse();
        chain.retain(|dir| !missing.contains(dir));
        missing.extend(chain);
    }
    missing
}

fn make_dirs(host: &Host, dirs: &[PathBuf]) -> Result<(), HostError> {
    for dir in dirs {
        let dir = host.at(dir);
        // Of whoever runs this; the root of another system may be missing altogether.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(!host.root.exists()).mode(0o755);
        match builder.create(&dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // Whatever the umask is.
            made => made
                .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)))
                .map_err(failed("make the directory", &dir))?,
        }
    }
    Ok(())
}

fn lay_down(host: &Host, item: &Item) -> Result<(), HostError> {
    let path = host.at(&item.path);
    match &item.content {
        Content::File(bytes, mode) => write::file(&path, bytes, *mode),
        Content::Link(target) => write::link(&path, target),
        Content::Block(lines) => {
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
                Err(e) => return Err(failed("read", &path)(e)),
            };
            write::file(&path, block::put(&text, lines).as_bytes(), 0o644)
        }
    }
}
