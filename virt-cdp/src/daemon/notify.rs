//! Tells systemd how the daemon is: sd_notify(3), which is one datagram to `$NOTIFY_SOCKET`.
//!
//! Invariant: without the variable nothing is sent; a failure is logged and changes nothing else.

use std::{
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Sends state lines to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    to: Option<OsString>,
}

impl Notifier {
    /// Takes the address from the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            to: std::env::var_os("NOTIFY_SOCKET").filter(|to| !to.is_empty()),
        }
    }

    /// Makes one that sends to `address`: a path, or a name after `@` in the abstract namespace.
    #[must_use]
    pub fn to(address: impl Into<OsString>) -> Self {
        Self {
            to: Some(address.into()),
        }
    }

    /// Says that the daemon serves.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// Says that the daemon is about to execute itself anew; [`ready`](Self::ready) ends that.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=handing over\n"
        ));
    }

    /// Says that the daemon is going down.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping\n");
    }

    /// Says what the daemon is doing.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}\n"));
    }

    fn send(&self, state: &str) {
        let Some(to) = &self.to else { return };
        let address = match to.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(to),
        };
        let sent: io::Result<usize> = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.send_to_addr(state.as_bytes(), &address)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, address = %to.display(), "cannot tell the service manager our state");
        }
    }
}
