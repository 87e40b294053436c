//! Which recovery point a user means.

use cdp_core::{Harbor, Point, PointId, Timestamp};

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::messages::timestamp,
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
