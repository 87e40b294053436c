//! The state directory's lock: one daemon a directory.
//!
//! What: `state_dir/lock`, held with flock(2) for the daemon's life; the pid in it is for people.
//! Invariant: only who holds a [`StateLock`] writes below the directory. After a crash the kernel has
//! let the lock go; the file stays and means nothing.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::error::DaemonError;

const ROLE: &str = "state directory";

/// Holds the lock until dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Makes the state directory where it is missing (mode 0700) and locks it.
    ///
    /// # Errors
    /// [`DaemonError::Directory`] where it cannot be made or written to, [`DaemonError::Locked`] where
    /// another daemon has it.
    pub fn take(state_dir: &Path) -> Result<Self, DaemonError> {
        let refused = |path: &Path, source| DaemonError::Directory {
            role: ROLE,
            path: path.into(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|error| refused(state_dir, error))?;
        let path = state_dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| refused(&path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let pid = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(DaemonError::Locked {
                    state_dir: state_dir.into(),
                    pid,
                });
            }
            Err(errno) => return Err(refused(&path, errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| refused(&path, error))?;
        Ok(Self { _file: file })
    }
}
