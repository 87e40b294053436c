//! Pulls what a takeover's disk still reads from its view into the overlay, so that the view can go.
//!
//! How: libvirt's block pull on the disk, polled until it is over; then the live XML tells whether the disk has a
//! backing left. A crash of ours leaves the job running in QEMU: [`Domain::block_pull`] called again joins it, and
//! called after the end finds that nothing is left to do.
//!
//! Invariant: `Ok` means that the overlay's header names no backing image any more.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::domain::{Domain, DomainState};
use crate::error::{ErrorKind, LibvirtError, Result};
use crate::ffi;
use crate::xml_tree::{Tree, parse_domain};

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How far a pull is, in bytes of the disk's virtual size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullProgress {
    /// Done so far.
    pub done: u64,
    /// All of it; may grow while the job starts.
    pub total: u64,
}

impl Domain {
    /// Pulls the disk's backing into it; blocks until that is done.
    ///
    /// `target` is the target in the takeover's own XML. `progress` is called about five times a second and
    /// stops the pull with [`ControlFlow::Break`]; what was pulled stays, and a later pull goes on from there.
    /// A paused domain can be pulled; one that is off cannot.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`] (the message tells the cure), [`ErrorKind::Cancelled`], [`ErrorKind::Refused`] when the
    /// job failed: the backing is still there.
    pub fn block_pull(
        &self,
        target: &str,
        progress: &mut dyn FnMut(PullProgress) -> ControlFlow<()>,
    ) -> Result<()> {
        let what = format!("pull disk {target} of domain {}", self.name());
        let failed = |kind, message: &str| LibvirtError::new(kind, what.clone(), message);
        if self.state()? == DomainState::Off {
            return Err(failed(
                ErrorKind::DomainOff,
                "QEMU must run to pull the rest in: start the domain first (paused will do)",
            ));
        }
        if !self.has_backing(target)? {
            return Ok(());
        }
        let domain = self.virt()?;
        let error = |error| self.hypervisor().error(what.clone(), error);
        if ffi::block_job(&domain, target).map_err(error)?.is_none() {
            ffi::block_pull(&domain, target).map_err(error)?;
        }
        while let Some(job) = ffi::block_job(&domain, target).map_err(error)? {
            if progress(PullProgress {
                done: job.done,
                total: job.total,
            })
            .is_break()
            {
                ffi::block_job_abort(&domain, target).map_err(error)?;
                return Err(failed(
                    ErrorKind::Cancelled,
                    "stopped; what was pulled stays, and a later pull goes on",
                ));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        if self.has_backing(target)? {
            return Err(failed(
                ErrorKind::Refused,
                "the job ended before everything was pulled: see the domain's QEMU log, then pull again",
            ));
        }
        Ok(())
    }

    /// Tells whether the disk's image has a backing image in the domain's present XML.
    ///
    /// # Errors
    /// [`ErrorKind::BadXml`] when there is no such disk; those of [`Domain::xml_now`].
    pub fn has_backing(&self, target: &str) -> Result<bool> {
        let xml = self.xml_now()?;
        backing_in(&xml, target)?.ok_or_else(|| {
            let what = format!("find disk {target} of domain {}", self.name());
            LibvirtError::new(ErrorKind::BadXml, what, "the domain has no such disk")
        })
    }
}

/// Whether the disk of that target has a backing image; none when there is no such disk.
fn backing_in(xml: &str, target: &str) -> Result<Option<bool>> {
    let domain = parse_domain(xml)?;
    let disk = domain.get_child("devices").and_then(|devices| {
        devices
            .elements()
            .find(|disk| disk.name == "disk" && disk.child_attr("target", "dev") == Some(target))
    });
    // libvirt ends a chain with an empty <backingStore/>.
    Ok(disk.map(|disk| {
        disk.get_child("backingStore")
            .is_some_and(|backing| backing.has("source"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_chain_is_an_empty_element() {
        let disk = |backing: &str| {
            format!(
                "<domain><devices><disk type='file'><source file='/o'/>{backing}<target dev='vda'/></disk></devices></domain>"
            )
        };
        let table = [
            ("<backingStore/>", Some(false)),
            ("", Some(false)),
            (
                "<backingStore type='network'><format type='raw'/><source protocol='nbd'/><backingStore/></backingStore>",
                Some(true),
            ),
        ];
        for (backing, expected) in table {
            assert_eq!(
                backing_in(&disk(backing), "vda").unwrap(),
                expected,
                "{backing}"
            );
        }
        assert_eq!(backing_in(&disk(""), "vdb").unwrap(), None);
    }
}
