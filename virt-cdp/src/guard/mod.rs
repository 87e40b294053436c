//! The guard: a small process beside the daemon that keeps a stopped or dying daemon from holding up guests.
//!
//! What: it holds another descriptor of every tap's socket. No data goes through it, and it does no disk I/O. The
//! daemon sends it a beat many times within the bypass deadline ([`qemu_hook::tap::Bypass`] does, which also
//! closes single taps that are overdue). Beats that stay away (SIGSTOP, a machine without memory), or a
//! connection that ends (SIGKILL, a crash), have the guard close all taps: QEMU's mirrors fail, the guests go on.
//! A daemon that re-executes itself (an upgrade) parks its taps and says so first: the guard keeps them
//! open, gives them to the daemon's successor, and closes only those for which a guest has waited too long.
//!
//! How: this very program under another name ([`NAME`]), connected over a SOCK_SEQPACKET socket in the daemon's private
//! directory, one guard for a daemon. It ends by itself when no daemon is connected and it holds no tap.
//! Invariant: a tap is known to the guard before QEMU can send it a write, until it is closed.
//! A crash of the guard harms nobody: the daemon has its own descriptors, notices, and starts another.

use std::{io, path::PathBuf};

mod link;
mod process;
mod wire;

pub use link::{Held, Link, Orphan};
pub use process::main;

/// The program's own file, also when it was replaced since this process started: then the new one.
///
/// # Errors
/// The system does not tell.
pub fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    let replaced = text.strip_suffix(" (deleted)").map(PathBuf::from);
    Ok(replaced.unwrap_or(path))
}

/// The name under which this program is the guard.
pub const NAME: &str = "virtcdp-guard";
