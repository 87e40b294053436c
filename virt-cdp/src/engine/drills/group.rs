//! The machines of a plan, all of them at one moment.

use std::sync::Arc;

use cdp_core::{Pin, Point, Timestamp};
use drill_runner::plan::Plan;

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        Engine,
        errors::from_harbor,
        export::view_of,
        machine::{Machine, State},
        messages, moments,
    },
};

/// Which moment is meant.
#[derive(Debug, Clone)]
pub(crate) enum Moment {
    /// As a user says it.
    At(v1::At),
    /// One by chance between two.
    Random(v1::At, v1::At),
}

/// A machine, and the point it is taken from.
#[derive(Clone)]
pub(crate) struct Taken {
    pub(crate) machine: Arc<Machine>,
    pub(crate) point: Point,
    /// Keeps the point until the last machine of the plan has been started from it.
    _pin: Arc<Pin>,
}

impl Taken {
    pub(crate) fn new(machine: Arc<Machine>, point: Point) -> ApiResult<Self> {
        let pin = machine.harbor().pin(point.id).map_err(from_harbor)?;
        Ok(Self {
            machine,
            point,
            _pin: Arc::new(pin),
        })
    }
}

/// Finds the point of each machine of a plan, in the order of the plan.
///
/// The newest moment of several machines is the oldest of the newest points of those that are written to: up to then all
/// of them are known. What is not written to is at that moment as it was at its newest point.
pub(crate) fn take(engine: &Arc<Engine>, plan: &Plan, moment: &Moment) -> ApiResult<Vec<Taken>> {
    let machines = plan.machines.iter().map(|one| engine.machine(&one.name));
    let machines: Vec<Arc<Machine>> = machines.collect::<ApiResult<_>>()?;
    let at = match moment {
        Moment::At(at) => one_moment(&machines, at)?,
        Moment::Random(from, to) => by_chance(&machines, from, to)?,
    };
    let taken = machines.into_iter().map(|machine| {
        let harbor = machine.harbor();
        let point = moments::resolve(&machine.name, &harbor, Some(&at))?;
        let taken = Taken::new(machine, point)?;
        // Before anything is made of it.
        view_of(&harbor, &taken.point, false)?;
        Ok(taken)
    });
    taken.collect()
}

fn at_time(time: Timestamp) -> v1::At {
    v1::At {
        at: Some(v1::at::At::TimeNs(messages::time(time))),
    }
}

fn one_moment(machines: &[Arc<Machine>], at: &v1::At) -> ApiResult<v1::At> {
    if machines.len() == 1 {
        return Ok(*at);
    }
    match at.at {
        Some(v1::at::At::TimeNs(_)) => Ok(*at),
        Some(v1::at::At::Point(id)) => Err(ApiError::new(
            ApiErrorKind::InvalidArgument,
            format!("{id} is the number of one machine's point, and there are several machines"),
        )
        .hint("give a time, an age, or `latest`")),
        None | Some(v1::at::At::Latest(_)) => {
            let newest = |machine: &&Arc<Machine>| {
                machine
                    .harbor()
                    .newest_point()
                    .map(|point| (is_ahead(machine, &point), point.time))
            };
            let times: Vec<(bool, Timestamp)> =
                machines.iter().filter_map(|m| newest(&m)).collect();
            let ahead = times
                .iter()
                .filter(|(ahead, _)| *ahead)
                .map(|(_, time)| *time);
            let latest = ahead.min().or(times.iter().map(|(_, time)| *time).max());
            Ok(latest.map_or(*at, at_time))
        }
    }
}

/// Tells whether there is something behind a machine's newest point, or may be.
pub(super) fn is_ahead(machine: &Machine, newest: &Point) -> bool {
    let status = machine.status();
    match (status.state, status.stats) {
        (State::Protected, Some(stats)) => stats.head > newest.seq,
        (State::Off, _) => false,
        _ => true,
    }
}

fn by_chance(machines: &[Arc<Machine>], from: &v1::At, to: &v1::At) -> ApiResult<v1::At> {
    let Some(first) = machines.first() else {
        return Ok(*to);
    };
    let harbor = first.harbor();
    let from = moments::bound(&harbor, Some(from))?;
    let to = moments::bound(&harbor, Some(to))?;
    let points = harbor.points_between(from, to, usize::MAX);
    if points.is_empty() {
        let what = format!("'{}' has no recovery point in that span", first.name);
        return Err(ApiError::new(ApiErrorKind::NotFound, what)
            .hint("see 'virt-cdp point-list'; give `from` before `to`"));
    }
    let number =
        libvirt_driver::takeover::new_uuid().map_err(crate::engine::errors::from_libvirt)?;
    let number = number
        .get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let chosen = points.get(number.unwrap_or(0) as usize % points.len());
    Ok(chosen.map_or(v1::At::default(), |point| at_time(point.time)))
}
