//! Ack rule and flush interval of a machine's own, as a client asks for them.
//!
//! They are kept in the machine's description, and count from the moment that is written: for the recording that
//! runs, and for every later one. Without them the daemon's configuration counts.

use cdp_core::{AckRule, MachineDescription, Mode};

use super::{
    Engine,
    machine::{Command, Machine},
};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    daemon::config::FLUSH_INTERVAL,
    units::format_duration,
};

/// What is to be changed: for each, nothing, or to a value of its own, or back to what is configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PaceWish {
    ack: Option<Option<AckRule>>,
    flush_interval_ms: Option<Option<u64>>,
}

impl PaceWish {
    /// Reads and checks what a client asks for.
    pub(crate) fn of(request: &v1::ProtectRequest) -> ApiResult<Self> {
        let invalid = |what: String, hint: String| {
            Err(ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint))
        };
        let ack = match request.ack.as_str() {
            "" => None,
            "buffered" => Some(Some(AckRule::Buffered)),
            "durable" => Some(Some(AckRule::Durable)),
            "default" => Some(None),
            other => {
                let what = format!("there is no ack rule `{other}`");
                return invalid(what, "give buffered, durable or default".into());
            }
        };
        let flush_interval_ms = match request.flush_interval_ms {
            None => None,
            Some(0) => Some(None),
            Some(ms) => {
                let asked = std::time::Duration::from_millis(ms);
                if !FLUSH_INTERVAL.contains(asked) {
                    let (least, most) = FLUSH_INTERVAL.named(format_duration);
                    let what = format!(
                        "a flush interval of {} is not allowed",
                        format_duration(asked)
                    );
                    return invalid(what, format!("give {least} to {most}, or default"));
                }
                Some(Some(ms))
            }
        };
        Ok(Self {
            ack,
            flush_interval_ms,
        })
    }

    /// True when nothing is to be changed.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Changes a description; returns what puts it back.
    pub(crate) fn apply(self, description: &mut MachineDescription) -> Self {
        let before = Self {
            ack: self.ack.map(|_| description.ack),
            flush_interval_ms: self
                .flush_interval_ms
                .map(|_| description.flush_interval_ms),
        };
        description.ack = self.ack.unwrap_or(description.ack);
        description.flush_interval_ms = self
            .flush_interval_ms
            .unwrap_or(description.flush_interval_ms);
        before
    }
}

impl Engine {
    /// The machine that is under protection by that name, wherever it runs or does not.
    pub(super) fn under_protection(&self, name: &str) -> Option<std::sync::Arc<Machine>> {
        let machine = self.machine(name).ok()?;
        (machine.description().mode != Mode::Released).then_some(machine)
    }
}

/// Changes a machine's ack rule and flush interval for as long as `then` goes well; else they are put back.
pub(crate) fn changed<T>(
    machine: &Machine,
    wish: PaceWish,
    then: impl FnOnce() -> ApiResult<T>,
) -> ApiResult<T> {
    if wish.is_empty() {
        return then();
    }
    let before = machine.ask(|answer| Command::SetPace(wish, answer))?;
    then().inspect_err(|_| {
        if let Err(error) = machine.ask(|answer| Command::SetPace(before, answer)) {
            tracing::warn!(machine = machine.name, %error, "ack rule and flush interval stay changed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(ack: &str, flush_interval_ms: Option<u64>) -> Result<PaceWish, String> {
        let request = v1::ProtectRequest {
            ack: ack.into(),
            flush_interval_ms,
            ..Default::default()
        };
        PaceWish::of(&request).map_err(|e| e.what)
    }

    #[test]
    fn what_is_asked_for_is_read_and_checked() {
        let wish = |ack, flush_interval_ms| {
            Ok(PaceWish {
                ack,
                flush_interval_ms,
            })
        };
        let table = [
            ("", None, wish(None, None)),
            ("buffered", None, wish(Some(Some(AckRule::Buffered)), None)),
            (
                "durable",
                Some(50),
                wish(Some(Some(AckRule::Durable)), Some(Some(50))),
            ),
            ("default", Some(0), wish(Some(None), Some(None))),
            ("", Some(10_000), wish(None, Some(Some(10_000)))),
            (
                "",
                Some(10_001),
                Err("a flush interval of 10s1ms is not allowed".into()),
            ),
            ("never", None, Err("there is no ack rule `never`".into())),
        ];
        for (ack, ms, expected) in table {
            assert_eq!(asked(ack, ms), expected, "{ack} {ms:?}");
        }
    }
}
