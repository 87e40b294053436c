//! One attempt of a check: each type's own way to look, chosen in one place.

use super::{
    Place, bound::Bound, exec, files, fsck, http, ping, plugin, ready, script, seen::Seen, tcp,
};
use crate::{
    plan::{CheckKind, CheckPlan},
    stage::StageError,
};

/// Looks once. `number` is the attempt's, from 1.
pub(super) fn make(plan: &CheckPlan, place: &Place<'_>, bound: &Bound<'_>, number: u64) -> Seen {
    match &plan.kind {
        CheckKind::Agent => match exec::ping(place, bound.call()) {
            Ok(()) => Seen::passed("the guest agent answered"),
            Err(error) => agent_trouble(&error),
        },
        CheckKind::Boot(sign) => ready::attempt(sign, place, bound),
        CheckKind::Ping => ping::attempt(place, bound),
        CheckKind::Tcp { port, banner } => tcp::attempt(*port, banner.as_ref(), place, bound),
        CheckKind::Http {
            tls,
            port,
            path,
            host,
            status,
            body,
        } => {
            let wanted = http::Wanted {
                tls: *tls,
                port: *port,
                path: path.clone(),
                host: host.clone(),
                status: *status,
                body: body.clone(),
            };
            http::attempt(&wanted, place, bound)
        }
        CheckKind::Script {
            path,
            args,
            exit_code,
            output,
        } => script::attempt(path, args, *exit_code, output.as_ref(), place, bound),
        CheckKind::Exec {
            command,
            exit_code,
            output,
        } => exec::attempt(command, *exit_code, output.as_ref(), place, bound),
        CheckKind::Fsck { disks } => fsck::attempt(disks, place, bound),
        CheckKind::Files(sums) => files::attempt(sums, place, bound),
        CheckKind::Plugin { name, settings } => {
            plugin::attempt(name, settings, number, place, bound)
        }
    }
}

/// What is seen when the guest agent does not do what it was asked for.
pub(super) fn agent_trouble(error: &StageError) -> Seen {
    Seen::not_yet(match error {
        StageError::AgentSilent(why) if why.is_empty() => {
            "the guest agent does not answer".to_owned()
        }
        StageError::AgentSilent(why) => format!("the guest agent does not answer: {why}"),
        StageError::Refused(why) => format!("the guest agent refused: {why}"),
        StageError::Off(why) => super::seen::off(why),
        StageError::Host(why) => why.clone(),
    })
}
