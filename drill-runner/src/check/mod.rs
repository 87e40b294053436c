//! The checks of a drill: what must hold in a machine is looked at until it does, or its time is over.
//!
//! [`run`] makes one attempt after the other ([`series`]). An attempt looks once ([`attempt`]) within its [`bound`] and
//! tells what it has [`seen`]. Programs of the host run as a [`process`]; commands in the guest go through its agent.
//!
//! The caller runs each check on a thread of its own that is in the network of the drill already. Every socket, every child
//! and every runtime is made on that thread, so all of them are in that network, too.
//!
//! Invariant: nothing a guest or a script does keeps a check beyond its deadline, but for a call behind the door to the
//! machine, which has a bound of its own; and nothing a check has started outlives it.

mod place;

mod bound;
mod seen;
mod series;
mod words;

mod attempt;
mod console;
mod exec;
mod files;
mod fsck;
mod http;
mod ping;
mod plugin;
mod process;
mod ready;
mod screen;
mod script;
mod sockets;
mod stuck;
mod tcp;

#[cfg(test)]
mod tests;

pub use console::plain_text;
pub use ping::answers as answers_ping;
pub use place::{Clock, Facts, Place};
pub use ready::{SCREEN_INSTEAD_OF_AGENT, Sign, wait_ready};
pub use series::{run, seen_before};
pub use words::expects;
