//! Taking away: exactly what the manifest names, as far as it is as it was laid down.

use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use super::{
    Done, Host, HostError, MANIFEST, Step, block, failed,
    manifest::{Entry, Kind, Manifest, hash},
    write,
};
use crate::daemon::config::{Config, DEFAULT_SOCKET};

/// The link that `systemctl enable` makes; it is not ours.
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/virtcdpd.service";

/// What was taken away.
#[derive(Debug)]
pub(crate) struct Uninstalled {
    /// Path by path.
    pub(crate) steps: Vec<Step>,
    /// Where everything lies that is kept of the machines, if there is anything; it stays.
    pub(crate) kept: Option<PathBuf>,
}

/// Takes away what the manifest names. What is kept of the machines stays.
///
/// # Errors
/// There is no manifest; the daemon is in use; the file system. The same again goes on from there.
pub(crate) fn uninstall(host: &Host) -> Result<Uninstalled, HostError> {
    let manifest = Manifest::read(host)?.ok_or(HostError::NotInstalled)?;
    refuse_in_use(host)?;
    let state_dir = state_dir(host);
    let mut steps = Vec::new();
    let (dirs, others): (Vec<_>, Vec<_>) = manifest
        .entries
        .iter()
        .rev()
        .partition(|entry| entry.kind == Kind::Dir);
    for entry in others {
        let done = take_away(host, entry)?;
        steps.push(Step {
            path: entry.path.clone(),
            done,
        });
    }
    if !host.dry_run {
        // What is left now is directories, which hold nothing of ours.
        let path = host.at(Path::new(MANIFEST));
        let holds_it = |dir: &&&Entry| Path::new(MANIFEST).starts_with(&dir.path);
        for dir in dirs.iter().filter(|dir| !holds_it(dir)) {
            remove_dir(host, &dir.path)?;
        }
        write::remove(&path).map_err(failed("remove", &path))?;
        for dir in dirs.iter().filter(holds_it) {
            remove_dir(host, &dir.path)?;
        }
    }
    let kept = state_dir.filter(|dir| host.at(dir).exists());
    Ok(Uninstalled { steps, kept })
}

/// Removes what an entry names, if it is as it was laid down.
pub(super) fn take_away(host: &Host, entry: &Entry) -> Result<Done, HostError> {
    let path = host.at(&entry.path);
    let Some(there) = write::found(&path)? else {
        return Ok(Done::Left("it is gone already"));
    };
    let ours = |bytes: &[u8]| entry.hashes.contains(&hash(bytes));
    let changed = Ok(Done::Left("it was changed since it was laid down"));
    let rest = match entry.kind {
        Kind::Dir => return Ok(Done::Left("it is a directory")),
        Kind::File | Kind::Link if !ours(&there) => return changed,
        Kind::File | Kind::Link => None,
        Kind::Block | Kind::BlockFile => {
            let text = String::from_utf8_lossy(&there).into_owned();
            match block::find(&text) {
                Some(cut) if ours(cut.lines.as_bytes()) => {}
                Some(_) => return changed,
                None => return Ok(Done::Left("it is gone already")),
            }
            let rest = block::take_out(&text);
            let whole = entry.kind == Kind::BlockFile && rest.trim().is_empty();
            (!whole).then_some(rest)
        }
    };
    if !host.dry_run {
        match rest {
            Some(rest) => write::file(&path, rest.as_bytes(), 0o644)?,
            None => write::remove(&path).map_err(failed("remove", &path))?,
        }
    }
    Ok(Done::Removed)
}

/// Removes a directory that is empty; others stay.
fn remove_dir(host: &Host, dir: &Path) -> Result<(), HostError> {
    let path = host.at(dir);
    let is_empty = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty {
        fs::remove_dir(&path).map_err(failed("remove the directory", &path))?;
    }
    Ok(())
}

/// Where the daemon of this host keeps what it keeps.
fn state_dir(host: &Host) -> Option<PathBuf> {
    let usual = || Config::default().state_dir;
    let file = host.at(Path::new(crate::daemon::config::DEFAULT_PATH));
    Some(match Config::load(Some(&file)) {
        Ok(config) => config.state_dir,
        Err(_) => usual(),
    })
}

/// Refuses while systemd starts the daemon, or somebody serves its socket.
fn refuse_in_use(host: &Host) -> Result<(), HostError> {
    if host.at(Path::new(ENABLED)).is_symlink() {
        let what = "virtcdpd is enabled: systemd starts it at boot".to_owned();
        return Err(HostError::InUse(what));
    }
    let socket = host.at(Path::new(DEFAULT_SOCKET));
    let is_socket = fs::symlink_metadata(&socket).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        let what = format!("virtcdpd runs: it serves {}", socket.display());
        return Err(HostError::InUse(what));
    }
    Ok(())
}
