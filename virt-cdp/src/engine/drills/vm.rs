//! A machine of a drill: a takeover, as `drill-runner` wants it.

use std::{fs, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use drill_runner::stage::{CardAddress, Guest, Life, StageError, Vm, Volume};
use libvirt_driver::{Domain, DomainState, ErrorKind, Hypervisor, LibvirtError, WhyOff};
use serde_json::Value;

use crate::engine::{Engine, errors::sentence, takeovers::Record};

/// How long the agent may take to tell its addresses.
const ADDRESSES_TIMEOUT: Duration = Duration::from_secs(3);
/// The most that a console may write beside what libvirt keeps of it.
const CONSOLE_MAX: u64 = 64 << 20;

/// A machine of a drill.
pub(super) struct DrillVm {
    pub(super) engine: Arc<Engine>,
    pub(super) hypervisor: Hypervisor,
    pub(super) domain: Domain,
    pub(super) record: Record,
    pub(super) work: PathBuf,
    pub(super) volumes: Vec<Volume>,
    /// A view that was opened for whoever asked for the drill.
    pub(super) view: Option<String>,
}

fn refused(error: &LibvirtError) -> StageError {
    let what = sentence(error);
    match error.kind {
        // What was tried, with which domain, is known to whoever reads that.
        ErrorKind::AgentSilent => StageError::AgentSilent(error.message.clone()),
        ErrorKind::DomainOff | ErrorKind::NoSuchDomain => StageError::Off(what),
        ErrorKind::Refused => StageError::Refused(what),
        _ => StageError::Host(what),
    }
}

impl Guest for DrillVm {
    fn life(&self) -> Life {
        match self.domain.state() {
            Ok(DomainState::Off) => Life::Off(match self.domain.why_off() {
                Ok(WhyOff::ShutDown) => "it shut down".into(),
                Ok(WhyOff::Destroyed) => "somebody stopped it".into(),
                Ok(WhyOff::Crashed) => "it crashed".into(),
                _ => "it is off".into(),
            }),
            Ok(DomainState::Crashed { .. }) => Life::Off("its kernel crashed".into()),
            Ok(DomainState::Paused { io_error: true, .. }) => {
                Life::Paused("stopped at a disk error".into())
            }
            Ok(DomainState::Paused { .. }) => Life::Paused("its CPUs stand still".into()),
            Err(error) if error.kind == ErrorKind::NoSuchDomain => {
                Life::Off("somebody removed it".into())
            }
            // libvirt may be restarting: that says nothing about the machine.
            Ok(_) | Err(_) => Life::Running,
        }
    }

    fn agent(&self, command: &Value, timeout: Duration) -> Result<Value, StageError> {
        let answer = self.domain.agent_command(command, timeout);
        answer.map_err(|error| refused(&error))
    }

    fn screenshot(&self) -> Result<Vec<u8>, StageError> {
        let host = |error: std::io::Error| StageError::Host(error.to_string());
        let name = format!(
            "{}-{:?}",
            self.record.name.len(),
            std::thread::current().id()
        );
        let stem = self
            .work
            .join(format!("screen-{}", super::super::names::component(&name)));
        let path = self
            .domain
            .screenshot(&stem)
            .map_err(|error| refused(&error))?;
        let png = fs::read(&path).map_err(host)?;
        fs::remove_file(&path).map_err(host)?;
        Ok(png)
    }

    fn screen_text(&self) -> Option<String> {
        self.domain.screen_text().ok()
    }

    fn disk_reads(&self) -> Option<u64> {
        self.domain.disk_reads().ok().flatten()
    }

    fn console(&self) -> Option<PathBuf> {
        let console = self.record.console.clone()?;
        // Where nobody begins it anew, it would fill the disk.
        if fs::metadata(&console).is_ok_and(|about| about.len() > CONSOLE_MAX)
            && let Ok(file) = fs::OpenOptions::new().write(true).open(&console)
        {
            let _ = file.set_len(0);
        }
        Some(console)
    }

    fn volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        Vec::new()
    }
}

impl Vm for DrillVm {
    fn go(&self) -> Result<(), StageError> {
        self.domain.resume().map_err(|error| refused(&error))
    }

    fn devices(&self) -> Result<Vec<(String, String)>, StageError> {
        self.domain.card_devices().map_err(|error| refused(&error))
    }

    fn agent_addresses(&self) -> Vec<CardAddress> {
        let told = self.domain.agent_addresses(ADDRESSES_TIMEOUT);
        let told = told.unwrap_or_default().into_iter();
        told.map(|one| (one.mac, one.ip, one.prefix)).collect()
    }

    fn remove(&self) -> Result<(), StageError> {
        if let Some(view) = &self.view {
            // It may be gone already.
            let _ = self.engine.views.close(view);
        }
        let (takeovers, views) = (&self.engine.takeovers, &self.engine.views);
        if takeovers.uri_of(&self.record.name).is_err() {
            return Ok(());
        }
        takeovers
            .discard(&self.record.name, &self.hypervisor, views)
            .map_err(|error| StageError::Host(error.what))
    }
}
