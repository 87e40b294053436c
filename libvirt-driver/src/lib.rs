//! libvirt domains for virt-cdp: discovery, XML, the monitor as a QMP transport, takeover, lifecycle events.
//!
//! The modules in the order in which a domain is met:
//!
//! - [`error`], [`connection`], [`events`]: libvirt itself, and what it tells by itself;
//! - [`domain`], [`disks`], [`nodes`], [`monitor`], [`agent`], [`screenshot`]: a machine as it is;
//! - [`takeover_xml`], [`overlay`], [`takeover`], [`networks`]: a machine made from a view;
//! - [`qemu_user`], [`apparmor`]: what the host must allow QEMU.
//!
//! Everything blocks and may be called from any thread. Nothing here knows how data is kept.
//!
//! Invariant: what is decided about XML or QMP answers is decided by functions from text to value
//! ([`disks::parse_disks`], [`nodes::find_node`], [`takeover_xml::edit`]); only their callers touch libvirt.

pub mod error;
mod ffi;

pub mod connection;
pub mod events;

pub mod disks;
pub mod domain;
pub mod nodes;
pub mod nvram;
mod xml_tree;

pub mod agent;
pub mod monitor;
pub mod screen_text;
mod screenshot;

pub mod takeover_xml;

pub mod block_pull;
pub mod networks;
pub mod overlay;
pub mod takeover;

pub mod apparmor;
pub mod qemu_user;

pub use connection::Hypervisor;
pub use disks::{Disk, Verdict, parse_disks};
pub use domain::{Domain, DomainState, WhyOff};
pub use error::{ErrorKind, LibvirtError};
pub use events::{DomainEvent, DomainEventKind};
pub use monitor::DomainMonitor;
pub use takeover_xml::{Edited, TakeoverSpec, edit};
