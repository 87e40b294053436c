//! Which recovery point a user means.

use cdp_core::{Harbor, Point, PointId, Timestamp};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::{
        coverage,
        machine::{Machine, now},
        messages::{self, timestamp},
    },
};

/// Finds the point `at` means: the newest not later than a time, a point by number, or the newest.
pub(crate) fn resolve(machine: &str, harbor: &Harbor, at: Option<&v1::At>) -> ApiResult<Point> {
    let none =
        |what: String, hint: String| Err(ApiError::new(ApiErrorKind::NotFound, what).hint(hint));
    let Some(first) = harbor.points().into_iter().next() else {
        return none(
            format!("'{machine}' has no recovery point yet"),
            "wait until its state is 'protected'; see 'virt-cdp info'".into(),
        );
    };
    match at.and_then(|at| at.at) {
        None | Some(v1::at::At::Latest(_)) => Ok(harbor.newest_point().unwrap_or(first)),
        Some(v1::at::At::Point(id)) => match harbor.point(PointId(id)) {
            Some(point) => Ok(point),
            None => none(
                format!("'{machine}' has no recovery point {id}"),
                format!("see 'virt-cdp point-list'; the first is {}", first.id),
            ),
        },
        Some(v1::at::At::TimeNs(ns)) => match harbor.point_at(timestamp(ns)) {
            Some(point) => Ok(point),
            None => none(
                format!(
                    "'{machine}' has no recovery point at or before {}",
                    timestamp(ns)
                ),
                format!("the first is {}, of {}", first.id, first.time),
            ),
        },
    }
}

/// A bound of a list: the time of a point, or a time as it is.
pub(crate) fn bound(harbor: &Harbor, at: Option<&v1::At>) -> ApiResult<Option<Timestamp>> {
    match at.and_then(|at| at.at) {
        None => Ok(None),
        Some(v1::at::At::Latest(_)) => Ok(harbor.newest_point().map(|p| p.time)),
        Some(v1::at::At::TimeNs(ns)) => Ok(Some(timestamp(ns))),
        Some(v1::at::At::Point(id)) => match harbor.point(PointId(id)) {
            Some(point) => Ok(Some(point.time)),
            None => Err(ApiError::new(
                ApiErrorKind::NotFound,
                format!("there is no recovery point {id}"),
            )
            .hint("see 'virt-cdp point-list'")),
        },
    }
}

/// The gaps and the coverage of a list of points between two bounds.
///
/// Without a bound it begins with the first point listed and ends now. It never begins before the first point
/// of all, and where older points were left out, not before the first listed.
pub(crate) fn covered(
    machine: &Machine,
    listed: &[Point],
    (from, to): (Option<Timestamp>, Option<Timestamp>),
    truncated: bool,
) -> (Vec<v1::Gap>, Vec<v1::Span>) {
    let harbor = machine.harbor();
    let all = harbor.points();
    let (Some(first), Some(newest)) = (all.first(), all.last()) else {
        return Default::default();
    };
    let (first, listed_first) = (first.time, listed.first().map(|point| point.time));
    let from = match (from, listed_first) {
        (Some(from), _) if !truncated => from.max(first),
        (from, listed_first) => listed_first.or(from).unwrap_or(first),
    };
    let to = to.map_or_else(now, |to| to.min(now()));
    let range = (messages::time(from), messages::time(to));
    let gaps = messages::gaps(&harbor.gaps(), Some(newest), machine.status().state);
    let times: Vec<i64> = listed
        .iter()
        .map(|point| messages::time(point.time))
        .collect();
    let spans = coverage::spans(range, &times, &gaps);
    (coverage::gaps_within(range, &gaps), spans)
}
