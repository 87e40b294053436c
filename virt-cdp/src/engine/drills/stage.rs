//! Where the machines of a drill come from: takeovers with loose network cards, and what is known of their networks.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use drill_runner::{
    isolation::Segment,
    outcome::{DiskFacts, PointFacts},
    plan::{MachinePlan, Plan, Ready},
    stage::{Brought, Card, CardAddress, Stage, StageError, Volume},
    units,
};
use libvirt_driver::{
    Hypervisor,
    networks::{Network, NetworkAddresses},
    takeover::StartMode,
    takeover_xml::{self, MacChoice, NetworkChoice},
};

use super::{
    group::{self, Taken},
    vm::DrillVm,
};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        Engine,
        errors::{from_harbor, from_libvirt},
        machine::{State, now},
        messages,
        takeovers::Shape,
        views::{Access, Holder},
    },
};
use cdp_core::MachineSource;

/// How long the agent of a running original may take to tell its addresses.
const ORIGINAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest name of a domain, bytes.
const NAME_MAX: usize = 80;

/// The machines of a drill.
pub(super) struct DrillStage {
    engine: Arc<Engine>,
    id: String,
    work: PathBuf,
    run_as: Option<(u32, u32)>,
    members: Vec<Planned>,
    segments: Vec<Segment>,
    began_ns: i64,
}

/// A machine, and what is known of it before it is started.
struct Planned {
    taken: Taken,
    hypervisor: Hypervisor,
    cards: Vec<Card>,
    /// Whether the agent of the running original answers.
    agent_answers: bool,
}

impl DrillStage {
    pub(super) fn new(
        engine: &Arc<Engine>,
        id: &str,
        plan: &Plan,
        taken: Vec<Taken>,
        run_as: Option<(u32, u32)>,
    ) -> ApiResult<Self> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut members = Vec::new();
        for (plan_of, taken) in plan.machines.iter().zip(taken) {
            let (uri, uuid) = match taken.machine.description().source {
                MachineSource::Libvirt { uri, uuid } => (uri, uuid),
                MachineSource::Qmp { .. } => {
                    return Err(ApiError::new(
                        ApiErrorKind::FailedPrecondition,
                        format!("'{}' is protected over a plain QMP socket: there is no domain XML to start a VM from", plan_of.name),
                    )
                    .hint("check its views with bisect --script, or with a script on view-open"));
                }
            };
            let hypervisor = engine.hypervisor(&uri)?;
            let networks = hypervisor.networks().map_err(from_libvirt)?;
            let version = taken.point.xml.ok_or_else(|| {
                let what = format!(
                    "no domain XML was kept for point {} of '{}'",
                    taken.point.id, plan_of.name
                );
                ApiError::new(ApiErrorKind::FailedPrecondition, what).hint("take a later point")
            })?;
            let xml = taken.machine.harbor().xml(version).map_err(from_harbor)?;
            let found = takeover_xml::cards(&xml).map_err(from_libvirt)?;
            require(plan_of, &found, &taken)?;
            // What is waited for then is the agent, and nothing else.
            let agent_answers = plan_of.ready == Ready::Auto && answers(&hypervisor, &uuid);
            let mut of_agent = None;
            let mut cards = Vec::new();
            for (number, card) in found.into_iter().enumerate() {
                let said = plan_of.cards.iter().find(|one| {
                    one.card.to_ascii_lowercase() == card.mac || one.card == number.to_string()
                });
                let segment = match said.and_then(|one| one.network.as_deref()) {
                    Some("none") => None,
                    Some(other) => Some(other.to_owned()),
                    None => Some(card.was_in.clone()),
                };
                let Some(segment) = segment else {
                    cards.push(Card {
                        mac: card.mac,
                        segment: None,
                        address: None,
                    });
                    continue;
                };
                let known = addresses(&hypervisor, &networks, &segment, card.is_network);
                let place = place(&mut segments, plan, &segment, &known);
                let given = said
                    .and_then(|one| one.address)
                    .map(|(ip, len)| (ip, len, "plan"));
                let lease = || {
                    let found = known
                        .guests
                        .iter()
                        .find(|(mac, ip)| *mac == card.mac && ip.is_ipv4());
                    found.map(|(_, ip)| (*ip, prefix(&place.gateways, *ip), "libvirt"))
                };
                let mut original = || {
                    let told = of_agent.get_or_insert_with(|| ask(&hypervisor, &uuid));
                    let found = told
                        .iter()
                        .find(|(mac, ip, _)| *mac == card.mac && ip.is_ipv4());
                    found.map(|(_, ip, len)| (*ip, *len, "original"))
                };
                let address = given.or_else(lease).or_else(&mut original);
                if let Some((ip, _, _)) = address {
                    place.guests.retain(|(mac, _)| *mac != card.mac);
                    place.guests.push((card.mac.clone(), ip));
                }
                cards.push(Card {
                    mac: card.mac,
                    segment: Some(segment),
                    address,
                });
            }
            members.push(Planned {
                taken,
                hypervisor,
                cards,
                agent_answers,
            });
        }
        Ok(Self {
            engine: Arc::clone(engine),
            id: id.to_owned(),
            work: engine.drills.work(id),
            run_as,
            members,
            segments,
            began_ns: messages::time(now()),
        })
    }

    fn member(&self, machine: &str) -> Option<&Planned> {
        let mut members = self.members.iter();
        members.find(|one| {
            one.taken.machine.name == machine
                || one.taken.machine.status().called.as_deref() == Some(machine)
        })
    }

    /// The name of a machine's domain in this drill. One that is cut gets a number: another may begin alike.
    fn domain_name(&self, machine: &str) -> String {
        let ending = format!("-drill-{}", self.id);
        let most = NAME_MAX.saturating_sub(ending.len());
        if machine.len() <= most {
            return format!("{}{ending}", machine.trim());
        }
        let mut members = self.members.iter();
        let number = members.position(|one| one.taken.machine.name == machine);
        let number = format!("-{}", number.unwrap_or(0));
        let cut = units::cut(machine, most.saturating_sub(number.len())).trim();
        format!("{cut}{number}{ending}")
    }
}

/// Checks that what a plan names of a machine is there: a slip of the pen would change nothing, silently.
fn require(plan: &MachinePlan, cards: &[takeover_xml::Card], taken: &Taken) -> ApiResult<()> {
    let wrong = |what: String, hint: String| {
        Err(ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint))
    };
    let is_card = |name: &str| {
        let mut all = cards.iter().enumerate();
        all.any(|(number, card)| {
            name.to_ascii_lowercase() == card.mac || name == number.to_string()
        })
    };
    if let Some(card) = plan.cards.iter().find(|one| !is_card(&one.card)) {
        let macs: Vec<&str> = cards.iter().map(|card| card.mac.as_str()).collect();
        return wrong(
            format!("'{}' has no network card {}", plan.name, card.card),
            format!(
                "it has: {}; give a number from 0, or a MAC address",
                macs.join(", ")
            ),
        );
    }
    let description = taken.machine.description();
    let volumes = description.volumes.iter();
    let there = volumes.filter(|one| one.size_at(taken.point.seq).is_some());
    let targets: Vec<&str> = there.map(|one| one.target.as_str()).collect();
    let left_out = |target: &&str| plan.leave_out.iter().any(|one| one == *target);
    if let Some(disk) = plan
        .leave_out
        .iter()
        .find(|one| !targets.contains(&one.as_str()))
    {
        return wrong(
            format!("'{}' has no disk {disk} to be left out", plan.name),
            format!("it has: {}", targets.join(", ")),
        );
    }
    match targets.iter().all(left_out) {
        true => wrong(
            format!("no disk of '{}' is left", plan.name),
            "take one out of leave_out".into(),
        ),
        false => Ok(()),
    }
}

/// Tells whether the agent of the original, if that runs, answers.
fn answers(hypervisor: &Hypervisor, uuid: &str) -> bool {
    let ping = serde_json::json!({ "execute": "guest-ping" });
    let Ok(original) = hypervisor.lookup(uuid) else {
        return false;
    };
    original.running_id().is_ok()
        && original.has_agent_channel().unwrap_or(false)
        && original.agent_command(&ping, ORIGINAL_TIMEOUT).is_ok()
}

/// The addresses of the network a card was in.
fn addresses(
    hypervisor: &Hypervisor,
    networks: &[Network],
    place: &str,
    is_network: bool,
) -> NetworkAddresses {
    let name = match is_network {
        true => Some(place),
        false => {
            let mut all = networks.iter();
            let found = all.find(|one| one.bridge.as_deref() == Some(place) || one.name == place);
            found.map(|one| one.name.as_str())
        }
    };
    name.and_then(|name| hypervisor.network_addresses(name).ok())
        .unwrap_or_default()
}

/// Finds or adds a segment.
fn place<'s>(
    segments: &'s mut Vec<Segment>,
    plan: &Plan,
    name: &str,
    known: &NetworkAddresses,
) -> &'s mut Segment {
    let at = segments
        .iter()
        .position(|one| one.name == name)
        .unwrap_or_else(|| {
            let said = plan.networks.iter().find(|one| one.name == name);
            segments.push(Segment {
                name: name.to_owned(),
                gateways: match said {
                    Some(network) => vec![network.gateway],
                    None => known.gateways.clone(),
                },
                guests: Vec::new(),
            });
            segments.len() - 1
        });
    &mut segments[at]
}

/// The prefix length of an address in a network.
fn prefix(gateways: &[(IpAddr, u8)], ip: IpAddr) -> u8 {
    let mut same = gateways
        .iter()
        .filter(|(gateway, _)| gateway.is_ipv4() == ip.is_ipv4());
    same.next()
        .map_or(if ip.is_ipv4() { 24 } else { 64 }, |(_, len)| *len)
}

/// Asks the agent of the original, if that runs, for its addresses.
fn ask(hypervisor: &Hypervisor, uuid: &str) -> Vec<CardAddress> {
    let Ok(original) = hypervisor.lookup(uuid) else {
        return Vec::new();
    };
    if original.running_id().is_err() || !original.has_agent_channel().unwrap_or(false) {
        return Vec::new();
    }
    let told = original
        .agent_addresses(ORIGINAL_TIMEOUT)
        .unwrap_or_default();
    told.into_iter()
        .map(|one| (one.mac, one.ip, one.prefix))
        .collect()
}

/// An error of a start. Only what is wrong with the machine itself speaks against the copy; libvirt refuses for many reasons.
fn host(error: ApiError) -> StageError {
    match error.kind {
        ApiErrorKind::InvalidArgument => StageError::Refused(error.what),
        _ => StageError::Host(error.what),
    }
}

impl Stage for DrillStage {
    fn segments(&self) -> Vec<Segment> {
        self.segments.clone()
    }

    fn point(&self, machine: &str) -> Option<(PointFacts, u64, Vec<DiskFacts>)> {
        let Taken { machine, point, .. } = &self.member(machine)?.taken;
        let harbor = machine.harbor();
        let facts = PointFacts {
            id: point.id.0,
            time: point.time.to_string(),
            grade: messages::point(point).grade,
            label: point.label.clone().unwrap_or_default(),
            seq: point.seq.0,
            chain_hash: harbor
                .chain_hash(point.seq)
                .map(|hash| blake3::Hash::from(hash).to_string())
                .unwrap_or_default(),
        };
        // What was not written to since is as old as the drill.
        let is_current = harbor
            .newest_point()
            .is_some_and(|newest| newest.id == point.id)
            && machine.status().state == State::Protected
            && !group::is_ahead(machine, point);
        let age_ns = self
            .began_ns
            .saturating_sub(messages::time(point.time))
            .max(0);
        let age_ns = if is_current { 0 } else { age_ns };
        let description = harbor.description();
        let disks = description.volumes.iter().filter_map(|volume| {
            Some(DiskFacts {
                target: volume.target.clone(),
                size_bytes: volume.size_at(point.seq)?,
            })
        });
        Some((facts, age_ns as u64 / 1_000_000, disks.collect()))
    }

    fn bring_up(&self, plan: &MachinePlan) -> Result<Brought, StageError> {
        let planned = self
            .member(&plan.name)
            .ok_or_else(|| StageError::Host("it is not in the drill".into()))?;
        let (harbor, point) = (planned.taken.machine.harbor(), &planned.taken.point);
        let down = planned
            .cards
            .iter()
            .enumerate()
            .filter(|(_, card)| card.segment.is_none());
        let shape = Shape {
            name: Some(self.domain_name(&plan.name)),
            vcpus: plan.vcpus,
            memory_kib: plan.memory.map(|bytes| bytes / 1024),
            network: NetworkChoice::Loose {
                down: down.map(|(number, _)| number).collect(),
            },
            mac: MacChoice::Keep,
            disk_bus: None,
            mode: StartMode::Paused,
            leave_out: plan.leave_out.clone(),
            console: true,
            drill: Some(self.id.clone()),
        };
        let (takeovers, views) = (&self.engine.takeovers, &self.engine.views);
        let started = takeovers
            .start(&harbor, &planned.hypervisor, views, point, shape)
            .map_err(host)?;
        let volumes = |uri: &dyn Fn(&str) -> String| -> Vec<Volume> {
            let disks = started.record.disks.iter();
            disks
                .map(|disk| Volume {
                    target: disk.target.clone(),
                    size_bytes: disk.size,
                    uri: uri(&disk.target),
                })
                .collect()
        };
        let socket = started.record.socket.clone();
        let mut vm = DrillVm {
            engine: Arc::clone(&self.engine),
            hypervisor: planned.hypervisor.clone(),
            domain: started.domain.clone(),
            record: started.record.clone(),
            work: self.work.clone(),
            volumes: volumes(&|target| crate::engine::views::uri(&socket, target)),
            view: None,
        };
        if let Some(owner) = self.run_as {
            // What a script of theirs looks at must be theirs to open.
            let opened = harbor
                .view_damaged(point.id)
                .map_err(from_harbor)
                .and_then(|view| {
                    let access = Access {
                        mode: 0o600,
                        owner: Some(owner),
                    };
                    views.open(&harbor.description(), view, Holder::User, None, access)
                });
            match opened {
                Ok(view) => {
                    for volume in &mut vm.volumes {
                        let of_view = view.volumes.iter().find(|one| one.target == volume.target);
                        if let Some(one) = of_view {
                            volume.uri.clone_from(&one.uri);
                        }
                    }
                    vm.view = Some(view.id);
                }
                Err(error) => {
                    let _ = takeovers.discard(&started.record.name, &planned.hypervisor, views);
                    return Err(host(error));
                }
            }
        }
        let size = started.domain.size().ok();
        let has_agent = started.domain.has_agent_channel().unwrap_or(false);
        Ok(Brought {
            domain: started.record.name.clone(),
            vcpus: size.map(|(vcpus, _)| vcpus),
            memory_bytes: size.map(|(_, memory)| memory),
            cards: planned.cards.clone(),
            has_agent,
            agent_is_expected: has_agent && planned.agent_answers,
            dropped: started.dropped,
            vm: Arc::new(vm),
        })
    }
}
