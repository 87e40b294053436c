//! What is installed around the program on a host: laid down by `host-install`, taken away by `host-uninstall`.
//!
//! How: a list of items ([`files`]) is compared with what is there and with the manifest of what was laid down before
//! ([`manifest`]); what is to be done is decided first ([`plan`]), noted in the manifest, and then done. A file is
//! known by its hash: one that somebody changed since is neither overwritten nor removed, but named.
//!
//! Invariant: nothing is laid down that the manifest, on stable storage, does not name, and nothing is removed that it
//! does not. What is kept of machines is not among it. A crash leaves a manifest that names too much; the same
//! command again finishes the work.

pub(crate) mod files;

mod block;
mod manifest;
mod plan;
mod write;

mod install;
mod uninstall;

use std::{
    io,
    path::{Path, PathBuf},
};

pub(crate) use self::{install::install, uninstall::uninstall};

/// The manifest's place.
pub(crate) const MANIFEST: &str = "/etc/virt-cdp/host-install.json";

/// Where things are laid down.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// What stands for `/`.
    pub(crate) root: PathBuf,
    /// Only tells what would be done.
    pub(crate) dry_run: bool,
}

impl Host {
    /// Where a path of the host is from here.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Something that was done, or left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The path on the host.
    pub(crate) path: PathBuf,
    /// What became of it.
    pub(crate) done: Done,
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// It was not there.
    Made,
    /// It was ours, of another version.
    Updated,
    /// It is as it should be.
    Kept,
    /// It was ours and is gone now.
    Removed,
    /// It is not as we left it, or not ours: the reason.
    Left(&'static str),
}

/// Why the host cannot be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// Something in the file system.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// As in `write`.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest is not one of ours.
    #[error("{} is no list of what was installed: {reason}", .path.display())]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is installed somewhere else.
    #[error("virt-cdp is installed below {} already", .prefix.display())]
    OtherPrefix {
        /// Where.
        prefix: PathBuf,
    },
    /// There is nothing to uninstall.
    #[error("there is no list of what was installed ({MANIFEST})")]
    NotInstalled,
    /// The daemon is still in use.
    #[error("{0}")]
    InUse(String),
}

impl HostError {
    /// What can be done about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run it as root, or give --root DIR with a directory that is yours".into()
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "mount that file system writable, or choose another place with --prefix or --root".into()
                }
                io::ErrorKind::StorageFull => "make room there and run it again".into(),
                _ => "run it again when that is put right; what was done so far is in the list".into(),
            },
            Self::Manifest { .. } => {
                "move that file away; what is there then counts as not ours and is left alone".into()
            }
            Self::OtherPrefix { prefix } => format!(
                "run host-uninstall first, or give --prefix {}",
                prefix.display()
            ),
            Self::NotInstalled => "what a package or 'make install' of an older version laid down is removed by \
                                   the same"
                .into(),
            Self::InUse(_) => "run: systemctl disable --now virtcdpd".into(),
        }
    }
}

/// Wraps what went wrong with `path`.
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> HostError + 'a {
    move |source| HostError::Io {
        action,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests;
