//! Bisection: finds the newest point of a machine at which given checks pass, by drills or by a script on views.
//!
//! A job makes one round of probes after the other; `drill-runner` says which points are next. What was found is kept on
//! stable storage after each round, so that a search that was broken off goes on where it was: an answer is known by the
//! machine, the checks (and the script's content), and the point. It is forgotten when the search has come to its end.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Instant,
};

use cdp_core::Point;
use drill_runner::{
    bisect::Search,
    check::{self, Clock, Facts, Place},
    isolation::{MARKER, leftover},
    outcome::{BISECT, Verdict},
    plan::{CheckKind, CheckPlan, MachinePlan, Plan, PointChoice},
    stage::{Guest, Life, StageError, Volume},
};
use serde_json::Value;

use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    daemon::peer::Peer,
    engine::{
        Engine,
        drills::{Moment, Taken, Wish},
        errors::from_harbor,
        export::view_of,
        jobs::JobHandle,
        machine::Machine,
        messages, moments,
        views::{Access, Holder},
    },
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

/// What was found at a point.
#[derive(Debug, Clone)]
struct Found {
    passed: bool,
    why: String,
    drill: String,
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
            ([], script) if Path::new(script).is_file() => Probe::Script(CheckPlan {
                attempts: Some(1),
                ..CheckPlan::of(CheckKind::Script {
                    path: script.into(),
                    args: Vec::new(),
                    exit_code: 0,
                    output: None,
                })
            }),
            ([], script) => {
                return invalid(
                    &format!("{script:?} is no file"),
                    "give the path of a program",
                );
            }
            _ => {
                return invalid(
                    "--check and --script exclude each other",
                    "give one of them",
                );
            }
        };
        let notes = self.config.state_dir.join("drills/bisect");
        super::make_dir(&notes, 0o700)?;
        // It is there as long as a script may run: that is how one is found that outlives us.
        let notes = notes.join(key(&harbor.description().machine_id, &request)?);
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

/// What a search is known by: the machine, and what is looked for.
fn key(machine_id: &str, request: &v1::BisectRequest) -> ApiResult<String> {
    let mut hash = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(machine_id.as_bytes());
    request
        .checks
        .iter()
        .for_each(|check| add(check.as_bytes()));
    if !request.script.is_empty() {
        let content = fs::read(&request.script).map_err(|error| {
            let what = format!("cannot read {}: {error}", request.script);
            ApiError::new(ApiErrorKind::InvalidArgument, what)
        })?;
        add(request.script.as_bytes());
        add(&content);
    }
    Ok(hash
        .finalize()
        .to_hex()
        .get(..32)
        .unwrap_or_default()
        .to_owned())
}

impl Bisection {
    fn run(&self, points: &[Point], parallel: usize, job: &JobHandle) -> ApiResult<()> {
        let mut search = Search::new(points.len());
        let mut state = v1::BisectState {
            points: points.len() as u64,
            ..Default::default()
        };
        for (id, found) in read_notes(&self.notes) {
            if let Ok(at) = points.binary_search_by_key(&id, |point| point.id.0) {
                search.note(at, found.passed);
                if let Some(point) = points.get(at) {
                    state.probes.push(told(point, &found, 0, true));
                }
            }
        }
        loop {
            state.left_most = u64::from(search.left_most());
            state.newest_good = search
                .newest_good()
                .and_then(|at| points.get(at))
                .map(messages::point);
            state.oldest_bad = search
                .oldest_bad()
                .and_then(|at| points.get(at))
                .map(messages::point);
            job.bisected(state.clone());
            let next = search.next(parallel);
            if next.is_empty() {
                break;
            }
            let round: Vec<(usize, &Point)> = next
                .into_iter()
                .filter_map(|at| Some((at, points.get(at)?)))
                .collect();
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
            for ((at, point), outcome) in round.into_iter().zip(outcomes) {
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
                        search.note(at, found.passed);
                        add_note(&self.notes, point, &found)
                            .map_err(|error| self.not_kept(&error))?;
                        state.probes.push(told(point, &found, took_ms, false));
                    }
                    Err(error) => {
                        // It says nothing about the point: another beside it is looked at.
                        search.skip(at);
                        let found = Found {
                            passed: false,
                            why: format!("not looked at: {}", error.what),
                            drill: String::new(),
                        };
                        state.probes.push(told(point, &found, took_ms, false));
                    }
                }
            }
        }
        state.done = true;
        job.bisected(state);
        fs::remove_file(&self.notes).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(self.not_kept(&error)),
        })
    }

    fn not_kept(&self, error: &io::Error) -> ApiError {
        let what = format!(
            "what was found cannot be kept in {}: {error}",
            self.notes.display()
        );
        ApiError::new(ApiErrorKind::Internal, what)
    }

    fn probe(&self, point: &Point, job: &JobHandle) -> ApiResult<Found> {
        match &self.probe {
            Probe::Drill(checks) => self.drill(point, checks, job),
            Probe::Script(check) => self.script(point, check, job),
        }
    }

    fn drill(&self, point: &Point, checks: &[CheckPlan], job: &JobHandle) -> ApiResult<Found> {
        let machine = MachinePlan {
            checks: checks.to_vec(),
            ..MachinePlan::of(&self.machine.name)
        };
        let at = v1::At {
            at: Some(v1::at::At::Point(point.id.0)),
        };
        view_of(&self.machine.harbor(), point, false)?;
        let wish = Wish {
            plan: Plan::of_one(machine, PointChoice::At(vec![point.id.to_string()])),
            moment: Moment::At(at),
            reason: BISECT.into(),
            asker: Some(self.peer),
        };
        let taken = vec![Taken {
            machine: Arc::clone(&self.machine),
            point: point.clone(),
        }];
        let report = self.engine.hold(wish, taken, job)?;
        match report.verdict {
            Verdict::Proved => Ok(Found {
                passed: true,
                why: String::new(),
                drill: report.id,
            }),
            Verdict::Failed => Ok(Found {
                passed: false,
                why: report.why,
                drill: report.id,
            }),
            _ => Err(ApiError::new(ApiErrorKind::Unavailable, report.why)),
        }
    }

    fn script(&self, point: &Point, check: &CheckPlan, job: &JobHandle) -> ApiResult<Found> {
        let (harbor, views) = (self.machine.harbor(), &self.engine.views);
        let description = harbor.description();
        let run_as = (self.peer.uid != 0).then_some((self.peer.uid, self.peer.gid));
        let view = harbor.view(point.id).map_err(from_harbor)?;
        let access = Access {
            mode: 0o600,
            owner: run_as,
        };
        let view = views.open(&description, view, Holder::User, None, access)?;
        let volumes = view.volumes.iter().map(|volume| Volume {
            target: volume.target.clone(),
            size_bytes: volume.size_bytes,
            uri: volume.uri.clone(),
        });
        let guest = Shown(volumes.collect());
        let facts = Facts {
            drill: String::new(),
            machine: self.machine.name.clone(),
            point: point.id.to_string(),
            point_time: point.time.to_string(),
            ..Facts::default()
        };
        let is_cancelled = || job.is_cancelled();
        let place = Place {
            guest: &guest,
            facts: &facts,
            run_as,
            plugins: Path::new("/nonexistent"),
            clock: Clock {
                began: Instant::now(),
            },
            is_cancelled: &is_cancelled,
            marker: &(MARKER.to_owned(), marker(&self.notes)),
        };
        let report = check::run(check, &place, &mut |_| {});
        // It may have been closed from outside.
        let _ = views.close(&view.id);
        match report.verdict {
            Verdict::Proved => Ok(Found {
                passed: true,
                why: String::new(),
                drill: String::new(),
            }),
            Verdict::Failed => Ok(Found {
                passed: false,
                why: report.why,
                drill: String::new(),
            }),
            _ => Err(ApiError::new(ApiErrorKind::Unavailable, report.why)),
        }
    }
}

fn told(point: &Point, found: &Found, took_ms: u64, remembered: bool) -> v1::BisectProbe {
    v1::BisectProbe {
        point: Some(messages::point(point)),
        passed: found.passed,
        why: found.why.clone(),
        took_ms,
        drill: found.drill.clone(),
        remembered,
    }
}

/// What an earlier run found, by point; a line that is torn is left out.
fn read_notes(path: &Path) -> BTreeMap<u64, Found> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (point, passed, drill, why): (u64, bool, String, String) =
            serde_json::from_str(line).ok()?;
        Some((point, Found { passed, why, drill }))
    };
    text.lines().filter_map(line).collect()
}

fn add_note(path: &Path, point: &Point, found: &Found) -> io::Result<()> {
    let line = serde_json::to_string(&(point.id.0, found.passed, &found.drill, &found.why))?;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_all()
}

/// A view without a machine, as a script's check sees it.
struct Shown(Vec<Volume>);

impl Guest for Shown {
    fn life(&self) -> Life {
        Life::Running
    }

    fn agent(&self, _: &Value, _: std::time::Duration) -> Result<Value, StageError> {
        Err(StageError::Off(
            "there is no machine, only its disks".into(),
        ))
    }

    fn screenshot(&self) -> Result<Vec<u8>, StageError> {
        Err(StageError::Off(
            "there is no machine, only its disks".into(),
        ))
    }

    fn console(&self) -> Option<PathBuf> {
        None
    }

    fn volumes(&self) -> Vec<Volume> {
        self.0.clone()
    }

    fn addresses(&self) -> Vec<std::net::IpAddr> {
        Vec::new()
    }
}
