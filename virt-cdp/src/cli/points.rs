//! Points of a machine that are to be changed, and how people are told of it.

use super::{
    at::{self, At},
    error::CliError,
};
use crate::api::v1;

// No doc comment: it would stand in the help of each command instead of its own.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The points, each as --at of other commands takes it; may be several
    #[arg(value_name = "POINT", required = true)]
    points: Vec<String>,
}

impl Which {
    pub(super) fn request(self) -> Result<v1::PointsRequest, CliError> {
        let at = at::parse_all(&self.points)?;
        Ok(v1::PointsRequest {
            name: self.name,
            at: at.into_iter().map(At::newest).collect(),
        })
    }
}

/// Names each point, and what was done to it: `point 123, 2026-11-22 05:12:01.123: locked`.
pub(super) fn each(changes: &v1::PointChanges, done: &str) -> String {
    let name = |point: &v1::Point| super::text::plain(&At::Latest.picked(point));
    let lines = changes
        .points
        .iter()
        .map(|point| format!("{}: {done}\n", name(point)));
    lines.collect()
}
