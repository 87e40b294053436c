//! Bisection: finds the newest point of a machine at which given checks pass, by drills or by a script on views.
//!
//! A job makes one round of probes after the other; `drill-runner` says which points are next. What was found is kept on
//! stable storage after each round, so that a search that was broken off goes on where it was: an answer is known by the
//! machine, the checks (and the script's content), and the point. It is forgotten when the search has come to its end.
//!
//! A point that could not be looked at, as a drill of it could not be held or the script does not run, is neither good nor bad:
//! it is passed over. Where that is so of many in a row, the search ends with the cause.

mod notes;
mod probe;
mod progress;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Instant,
};

use cdp_core::Point;
use drill_runner::{
    isolation::leftover,
    plan::{CheckKind, CheckPlan},
};

use self::progress::Progress;
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    daemon::peer::Peer,
    engine::{Engine, jobs::JobHandle, machine::Machine, moments},
};

/// How many probes there may be at once.
const PARALLEL_MAX: u32 = 16;

/// What is looked for at each point.
enum Probe {
    /// A drill with these checks.
    Drill(Vec<CheckPlan>),
    /// A program of the host, on a view.
    Script(CheckPlan),
}

struct Bisection {
    engine: Arc<Engine>,
    machine: Arc<Machine>,
    probe: Probe,
    peer: Peer,
    /// Where what was found is kept.
    notes: PathBuf,
}

impl Engine {
    /// Starts a bisection; what can be refused is refused before it starts.
    pub(crate) fn bisect(
        self: &Arc<Self>,
        request: v1::BisectRequest,
        peer: Peer,
    ) -> ApiResult<v1::Job> {
        let invalid = |what: &str, hint: &str| {
            Err(ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint))
        };
        let machine = self.machine(&request.name)?;
        let harbor = machine.harbor();
        let from = moments::bound(&harbor, request.from.as_ref())?;
        let to = moments::bound(&harbor, request.to.as_ref())?;
        let points = harbor.points_between(from, to, usize::MAX);
        if points.is_empty() {
            let what = format!("'{}' has no recovery point in that span", request.name);
            return Err(ApiError::new(ApiErrorKind::NotFound, what)
                .hint("see 'virt-cdp point-list'; give --from before --to"));
        }
        if request.parallel > PARALLEL_MAX {
            return invalid("that are too many probes at once", "give at most 16");
        }
        let probe = match (request.checks.as_slice(), request.script.as_str()) {
            ([], "") => return invalid("there is nothing to look for", "give --check or --script"),
            (checks, "") => {
                let parsed = checks.iter().map(|text| {
                    CheckPlan::parse_short(text).map_err(|(what, hint)| {
                        ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint)
                    })
                });
                Probe::Drill(parsed.collect::<ApiResult<_>>()?)
            }
            ([], script) => Probe::Script(CheckPlan {
                attempts: Some(1),
                ..CheckPlan::of(CheckKind::Script {
                    path: script.into(),
                    args: Vec::new(),
                    exit_code: 0,
                    output: None,
                })
            }),
            _ => {
                return invalid(
                    "--check and --script exclude each other",
                    "give one of them",
                );
            }
        };
        if let Probe::Drill(checks) = &probe {
            checks
                .iter()
                .try_for_each(|check| self.require_plugin(check))?;
        }
        let notes = self.config.state_dir.join("drills/bisect");
        crate::engine::make_dir(&notes, 0o700)?;
        // It is there as long as a script may run: that is how one is found that outlives us.
        let notes = notes.join(notes::key(&harbor.description().machine_id, &request)?);
        if request.restart {
            let _ = fs::remove_file(&notes);
        }
        let made = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&notes);
        made.map_err(|error| {
            let what = format!("cannot write {}: {error}", notes.display());
            ApiError::new(ApiErrorKind::Internal, what)
        })?;
        let search = Bisection {
            engine: Arc::clone(self),
            machine,
            probe,
            peer,
            notes,
        };
        let parallel = request.parallel.max(1) as usize;
        self.jobs.start("bisect", &request.name, None, move |job| {
            search.run(&points, parallel, job)
        })
    }
}

/// What marks the programs of a search.
fn marker(notes: &Path) -> String {
    let key = notes.file_name().unwrap_or_default().to_string_lossy();
    format!("bisect-{key}")
}

/// Ends the programs of searches that an earlier daemon has left.
pub(super) fn recycle(state_dir: &Path) {
    let entries = fs::read_dir(state_dir.join("drills/bisect"));
    for notes in entries.into_iter().flatten().flatten() {
        let left = leftover::kill(&marker(&notes.path()));
        if !left.is_empty() {
            tracing::warn!(?left, "programs of a bisection cannot be ended");
        }
    }
}

impl Bisection {
    fn run(&self, points: &[Point], parallel: usize, job: &JobHandle) -> ApiResult<()> {
        let mut progress = Progress::of(points, notes::read(&self.notes));
        loop {
            job.bisected(progress.told(points));
            let next = progress.search.next(parallel);
            if next.is_empty() {
                break;
            }
            let round: Vec<(usize, &Point)> = next
                .into_iter()
                .filter_map(|at| Some((at, points.get(at)?)))
                .collect();
            let done = self.round(&round, &mut progress, job);
            if done.is_err() {
                job.bisected(progress.told(points));
            }
            done?;
        }
        progress.verdict()?;
        let mut state = progress.told(points);
        state.done = true;
        job.bisected(state);
        fs::remove_file(&self.notes).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(self.not_kept(&error)),
        })
    }

    /// Looks at some points at once, and notes what was found.
    fn round(
        &self,
        round: &[(usize, &Point)],
        progress: &mut Progress,
        job: &JobHandle,
    ) -> ApiResult<()> {
        let outcomes: Vec<_> = thread::scope(|scope| {
            let probes: Vec<_> = round
                .iter()
                .map(|(_, point)| {
                    scope.spawn(|| {
                        let began = Instant::now();
                        (self.probe(point, job), began.elapsed())
                    })
                })
                .collect();
            probes.into_iter().map(|probe| probe.join()).collect()
        });
        for ((at, point), outcome) in round.iter().zip(outcomes) {
            let Ok((outcome, took)) = outcome else {
                return Err(ApiError::new(
                    ApiErrorKind::Internal,
                    "a probe ended by a defect",
                ));
            };
            if job.is_cancelled() {
                return Err(ApiError::new(ApiErrorKind::Unavailable, "cancelled"));
            }
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            match outcome {
                Ok(found) => {
                    notes::add(&self.notes, point, &found)
                        .map_err(|error| self.not_kept(&error))?;
                    progress.found(*at, point, &found, took_ms);
                }
                Err(error) => progress.skip(*at, point, &error.what, took_ms)?,
            }
        }
        Ok(())
    }

    fn not_kept(&self, error: &io::Error) -> ApiError {
        let what = format!(
            "what was found cannot be kept in {}: {error}",
            self.notes.display()
        );
        ApiError::new(ApiErrorKind::Internal, what)
    }
}
