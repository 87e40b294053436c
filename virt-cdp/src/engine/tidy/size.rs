//! How large a harbor is, measured by its policy's size limit. Nothing is removed because of it.

use crate::units::format_size;

/// From this part of the limit on it is told, in percent.
const WARNING_PERCENT: u128 = 75;
/// From this part of the limit on it is told with urgency, in percent.
const CRITICAL_PERCENT: u128 = 85;

/// How large a harbor is, measured by its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SizeState {
    /// There is no limit.
    NoLimit,
    /// Below three quarters of it.
    Fine,
    /// 75 % of it, or more.
    Warning,
    /// 85 % of it, or more.
    Critical,
    /// More than the limit.
    Over,
}

impl SizeState {
    /// Judges `used` bytes by a limit.
    pub(crate) fn of(used: u64, limit: u64) -> Self {
        let percent = |percent: u128| u128::from(limit) * percent;
        match u128::from(used) * 100 {
            _ if limit == 0 => Self::NoLimit,
            used if used > percent(100) => Self::Over,
            used if used >= percent(CRITICAL_PERCENT) => Self::Critical,
            used if used >= percent(WARNING_PERCENT) => Self::Warning,
            _ => Self::Fine,
        }
    }

    /// The state's stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoLimit => "none",
            Self::Fine => "fine",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Over => "over",
        }
    }
}

/// Says that a harbor is near its limit, or over it.
pub(super) fn words(used: u64, limit: u64) -> Option<String> {
    let state = SizeState::of(used, limit);
    if state < SizeState::Warning {
        return None;
    }
    let of = match state {
        SizeState::Over => "more than its size limit of",
        _ => "near its size limit of",
    };
    Some(format!(
        "its harbor takes {}, {of} {}: keep points for a shorter time (policy-set), delete some (point-delete), or raise \
         the limit",
        format_size(used),
        format_size(limit)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harbor_is_judged_by_its_limit() {
        let table = [
            (5, 0, SizeState::NoLimit, false),
            (0, 1000, SizeState::Fine, false),
            (749, 1000, SizeState::Fine, false),
            (750, 1000, SizeState::Warning, true),
            (849, 1000, SizeState::Warning, true),
            (850, 1000, SizeState::Critical, true),
            (1000, 1000, SizeState::Critical, true),
            (1001, 1000, SizeState::Over, true),
            (u64::MAX, u64::MAX, SizeState::Critical, true),
            (u64::MAX, 1, SizeState::Over, true),
        ];
        for (used, limit, state, is_told) in table {
            assert_eq!(SizeState::of(used, limit), state, "{used} of {limit}");
            assert_eq!(words(used, limit).is_some(), is_told, "{used} of {limit}");
        }
        assert!(
            words(900, 1000)
                .unwrap()
                .contains("near its size limit of 1000 B")
        );
        assert!(
            words(1001, 1000)
                .unwrap()
                .contains("more than its size limit of 1000 B")
        );
    }
}
