//! Drills as clients see them.

use drill_runner::{outcome::Report, report::Form};

use super::{Drills, failed};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    engine::guard,
};

/// How many drills are listed unless more are asked for.
const LISTED: usize = 50;

/// A report in the making, without what is large.
pub(super) fn live(report: &Report) -> String {
    let mut report = report.clone();
    for machine in &mut report.machines {
        machine.screenshots.clear();
        machine.console = Default::default();
        for attempt in machine
            .checks
            .iter_mut()
            .flat_map(|check| &mut check.attempts)
        {
            attempt.output.truncate(0);
        }
    }
    serde_json::to_string(&report).unwrap_or_default()
}

pub(super) fn list(drills: &Drills, request: &v1::ListDrillsRequest) -> ApiResult<v1::DrillList> {
    let limit = match request.limit {
        0 => LISTED,
        limit => limit as usize,
    };
    let mut all: Vec<v1::Drill> = Vec::new();
    for summary in drills.store.list().map_err(|e| failed(&e))? {
        let machines = summary.machines.iter().map(|machine| v1::DrillMachine {
            name: machine.name.clone(),
            verdict: machine.verdict.name().to_owned(),
            point: machine.point,
            point_time: machine.point_time.clone().unwrap_or_default(),
        });
        all.push(v1::Drill {
            machines: machines.collect(),
            state: "ended".into(),
            verdict: summary.verdict.name().to_owned(),
            id: summary.id,
            name: summary.name,
            why: summary.why,
            reason: summary.reason,
            started: summary.started,
            ended: summary.ended,
            rto_ms: summary.rto_ms,
            rpo_ms: summary.rpo_ms,
        });
    }
    for (id, one) in drills.known() {
        let is_kept = guard(&one.kept).is_some();
        let state = if is_kept { "kept" } else { "running" };
        if let Some(listed) = all.iter_mut().find(|listed| listed.id == id) {
            listed.state = state.to_owned();
            continue;
        }
        let Some(report) = guard(&one.live).clone() else {
            continue;
        };
        let machines = report.machines.iter().map(|machine| v1::DrillMachine {
            name: machine.name.clone(),
            verdict: String::new(),
            point: machine.point.as_ref().map(|point| point.id),
            point_time: machine
                .point
                .as_ref()
                .map(|point| point.time.clone())
                .unwrap_or_default(),
        });
        all.push(v1::Drill {
            machines: machines.collect(),
            state: state.to_owned(),
            id,
            name: report.name,
            reason: report.reason,
            started: report.started,
            rpo_ms: report.rpo_ms,
            ..Default::default()
        });
    }
    let is_wanted = |drill: &v1::Drill| {
        request.name.is_empty()
            || drill.name == request.name
            || drill
                .machines
                .iter()
                .any(|machine| machine.name == request.name)
    };
    all.retain(is_wanted);
    let first = all.len().saturating_sub(limit);
    let truncated = first > 0;
    Ok(v1::DrillList {
        drills: all.split_off(first),
        truncated,
    })
}

pub(super) fn document(
    drills: &Drills,
    request: &v1::DrillDocumentRequest,
) -> ApiResult<v1::DrillDocument> {
    let read = match request.form.as_str() {
        "json" => drills.store.read(&request.id, Form::Json),
        "html" => drills.store.read(&request.id, Form::Html),
        "junit" => drills.store.read(&request.id, Form::JUnit),
        "index" => return index(drills),
        other => {
            return Err(ApiError::new(
                ApiErrorKind::InvalidArgument,
                format!("a report has no form {other:?}"),
            )
            .hint("json, html, junit or index"));
        }
    };
    let bytes = read.map_err(|error| {
        let what = error.to_string();
        ApiError::new(ApiErrorKind::NotFound, what).hint("see drill-list")
    })?;
    Ok(v1::DrillDocument { bytes })
}

/// The page over all reports.
fn index(drills: &Drills) -> ApiResult<v1::DrillDocument> {
    let path = drills.dir.join("reports/index.html");
    let bytes = std::fs::read(&path).map_err(|error| {
        let what = format!("{} cannot be read: {error}", path.display());
        ApiError::new(ApiErrorKind::NotFound, what).hint("it is made with the first report")
    })?;
    Ok(v1::DrillDocument { bytes })
}
