//! A takeover's life: defined and started from edited XML, and discarded without a trace.
//!
//! How, in order: overlays ([`crate::overlay::create_overlay`]), XML ([`crate::takeover_xml::edit`]),
//! [`Hypervisor::define_and_start`], then either [`Domain::block_pull`] for each disk, or [`Hypervisor::discard`].
//! The XML carries a mark in its metadata; without it nothing here redefines or destroys a domain.
//!
//! Each step can be repeated: a crash of ours between any two is cured by calling it again.
//!
//! Invariant: no domain that we did not make is ever changed, stopped or removed.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use virt::{enumutil::Enum, error::ErrorNumber};
use virt_sys as sys;

use crate::connection::Hypervisor;
use crate::domain::{Domain, DomainState};
use crate::error::{ErrorKind, LibvirtError, Result};
use crate::takeover_xml::{MARK_NAMESPACE, is_takeover};
use crate::xml_tree::{Tree, parse_domain};

/// How a takeover starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMode {
    /// The guest runs.
    Running,
    /// QEMU runs and the CPUs stand still, until [`Domain::resume`].
    Paused,
}

/// What [`Hypervisor::discard`] removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// The takeover's UUID.
    pub uuid: String,
    /// Its overlays, its NVRAM copy, its console log: whatever files were made for it.
    pub files: Vec<PathBuf>,
    /// Directories made for it, the inner before the outer; one that is not empty stays, and that is an error.
    pub directories: Vec<PathBuf>,
}

impl Hypervisor {
    /// Defines the domain and starts it, unless it runs already.
    ///
    /// `xml` comes from [`crate::takeover_xml::edit`].
    ///
    /// # Errors
    /// [`ErrorKind::DomainExists`] when a domain that is no takeover has that name or UUID; [`ErrorKind::BadXml`];
    /// [`ErrorKind::Refused`] when QEMU does not start: the domain then stays defined, for a look or [`Self::discard`].
    pub fn define_and_start(&self, xml: &str, mode: StartMode) -> Result<Domain> {
        let root = parse_domain(xml)?;
        let name = root.child_text("name").unwrap_or_default();
        let uuid = root.child_text("uuid").unwrap_or_default();
        let what = format!("define takeover {name}");
        if !is_takeover(&root) || uuid.is_empty() {
            return Err(LibvirtError::new(
                ErrorKind::BadXml,
                what,
                "this XML was not made for a takeover",
            ));
        }
        self.require_own(&uuid, &what)?;
        let defined = self
            .connection()?
            .define_domain_xml_flags(xml, sys::VIR_DOMAIN_DEFINE_VALIDATE)
            .map_err(|error| self.error(what, error))?;
        let domain = Domain::from_virt(self, &defined)?;
        if domain.state()? == DomainState::Off {
            let flags = match mode {
                StartMode::Running => 0,
                StartMode::Paused => sys::VIR_DOMAIN_START_PAUSED,
            };
            defined
                .create_with_flags(flags)
                .map_err(|error| domain.error("start", error))?;
        }
        Ok(domain)
    }

    /// Stops and undefines a takeover and removes its files; what is gone already is fine.
    ///
    /// # Errors
    /// [`ErrorKind::DomainExists`] when the UUID belongs to a domain that is no takeover: nothing is touched then;
    /// [`ErrorKind::Host`] for a file or directory that cannot be removed.
    pub fn discard(&self, traces: &Traces) -> Result<()> {
        let what = format!("discard takeover {}", traces.uuid);
        if let Some(domain) = self.require_own(&traces.uuid, &what)? {
            remove_domain(&domain)?;
        }
        for file in &traces.files {
            remove(file, fs::remove_file(file))?;
            let unfinished = crate::overlay::unfinished(file);
            remove(&unfinished, fs::remove_file(&unfinished))?;
        }
        for directory in &traces.directories {
            remove(directory, fs::remove_dir(directory))?;
        }
        Ok(())
    }

    /// Finds a takeover by UUID; an error if the domain is somebody else's.
    fn require_own(&self, uuid: &str, what: &str) -> Result<Option<Domain>> {
        let domain = match self.lookup(uuid) {
            Err(error) if error.kind == ErrorKind::NoSuchDomain => return Ok(None),
            other => other?,
        };
        if is_marked(&domain)? {
            return Ok(Some(domain));
        }
        let message = format!(
            "domain {} has that UUID and is not a takeover of ours",
            domain.name()
        );
        Err(LibvirtError::new(ErrorKind::DomainExists, what, message))
    }
}

/// Tells whether a domain is a takeover. Its XML would say so, too, but libvirt does not give that out while a start hangs, as
/// one does whose views are gone.
fn is_marked(domain: &Domain) -> Result<bool> {
    let kind = sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed();
    let found = domain
        .virt()?
        .metadata(kind, Some(MARK_NAMESPACE), sys::VIR_DOMAIN_AFFECT_CURRENT);
    match found {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.code(), Enum::Known(ErrorNumber::NoDomainMetadata)) => {
            Ok(false)
        }
        Err(error) => Err(domain.error("read the mark of", error)),
    }
}

fn remove_domain(domain: &Domain) -> Result<()> {
    let found = domain.virt()?;
    if domain.state()? != DomainState::Off {
        ignore(
            found.destroy().map_err(|error| domain.error("stop", error)),
            ErrorKind::DomainOff,
        )?;
    }
    let flags = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
    let undefined = found
        .undefine_flags(flags)
        .map_err(|error| domain.error("undefine", error));
    ignore(undefined, ErrorKind::NoSuchDomain)
}

fn ignore(result: Result<()>, kind: ErrorKind) -> Result<()> {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        other => other,
    }
}

fn remove(path: &Path, result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LibvirtError::io(
            format!("remove {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

impl Domain {
    /// Lets the CPUs of a paused domain run; fine if they run.
    ///
    /// After an IO error over a lost view the first read may fail once more and pause the domain again: QEMU looks
    /// for a returned NBD server in steps of up to 16 s. Look at the state and call again.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`], [`ErrorKind::Refused`].
    pub fn resume(&self) -> Result<()> {
        match self.state()? {
            DomainState::Running { .. } => Ok(()),
            _ => self
                .virt()?
                .resume()
                .map_err(|error| self.error("resume", error))
                .map(drop),
        }
    }

    /// Lets the CPUs of a running domain stand still; fine if they do.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`], [`ErrorKind::Refused`].
    pub fn pause(&self) -> Result<()> {
        match self.state()? {
            DomainState::Paused { .. } => Ok(()),
            _ => self
                .virt()?
                .suspend()
                .map_err(|error| self.error("pause", error))
                .map(drop),
        }
    }
}

/// Makes a random UUID, as the kernel makes them.
///
/// # Errors
/// [`ErrorKind::Host`] where /proc is not mounted.
pub fn new_uuid() -> Result<String> {
    let mut text = String::new();
    fs::File::open("/proc/sys/kernel/random/uuid")
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|error| LibvirtError::io("make a UUID", error))?;
    Ok(text.trim().to_owned())
}
