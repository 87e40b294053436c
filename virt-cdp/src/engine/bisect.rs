//! Bisection: finds the newest point of a machine at which given checks pass, by drills or by a script on views.
//!
//! A job makes one round of probes after the other; `drill-runner` says which points are next. What was found is kept on
//! stable storage after each round, so that a search that was broken off goes on where it was: an answer is known by the
//! machine, the checks (and the script's content), and the point. It is forgotten when the search has come to its end.
//!
//! A point that could not be looked at, as a drill of it could not be held or the script does not run, is neither good nor bad:
//! it is passed over. Where that is so of many in a row, the search ends with the cause.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
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
use rustix::fs::OFlags;
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
    units::format_size,
};

/// How many probes there may be at once.
const PARALLEL_MAX: u32 = 16;

/// How many points in a row may be passed over: whatever is in the way of so many is in the way of all.
const SKIPPED_MAX: u32 = 8;

/// The largest script, bytes.
const SCRIPT_MAX: u64 = 16 << 20;

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

/// How far a search has come.
struct Progress {
    search: Search,
    state: v1::BisectState,
    /// How many points were passed over since one was looked at.
    skipped: u32,
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
        add(request.script.as_bytes());
        add(digest(Path::new(&request.script))?.as_bytes());
    }
    Ok(hash
        .finalize()
        .to_hex()
        .get(..32)
        .unwrap_or_default()
        .to_owned())
}

/// The hash of a script's content.
///
/// Whoever may use the socket names the file, and it is read as root: a pipe or a device is not waited for, and nothing that is
/// too large is read.
fn digest(path: &Path) -> ApiResult<blake3::Hash> {
    let invalid = |what: String| {
        ApiError::new(ApiErrorKind::InvalidArgument, what).hint("give the path of a program")
    };
    let unread = |error: io::Error| {
        invalid(format!(
            "the script {} cannot be read: {error}",
            path.display()
        ))
    };
    let file = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let file = fs::File::from(file.map_err(|error| unread(error.into()))?);
    let about = file.metadata().map_err(unread)?;
    if !about.is_file() {
        return Err(invalid(format!(
            "the script {} is no regular file",
            path.display()
        )));
    }
    let mut hash = blake3::Hasher::new();
    // It may grow while it is read.
    hash.update_reader(file.take(SCRIPT_MAX + 1))
        .map_err(unread)?;
    match hash.count() > SCRIPT_MAX {
        true => Err(invalid(format!(
            "the script {} has more than {}",
            path.display(),
            format_size(SCRIPT_MAX)
        ))),
        false => Ok(hash.finalize()),
    }
}

impl Progress {
    /// Begins with what an earlier run has found.
    fn of(points: &[Point], notes: BTreeMap<u64, Found>) -> Self {
        let mut progress = Self {
            search: Search::new(points.len()),
            state: v1::BisectState {
                points: points.len() as u64,
                ..Default::default()
            },
            skipped: 0,
        };
        for (id, found) in notes {
            if let Ok(at) = points.binary_search_by_key(&id, |point| point.id.0)
                && let Some(point) = points.get(at)
            {
                progress.search.note(at, found.passed);
                progress.state.probes.push(told(point, &found, 0, true));
            }
        }
        progress
    }

    /// Notes what was found at a point.
    fn found(&mut self, at: usize, point: &Point, found: &Found, took_ms: u64) {
        self.skipped = 0;
        self.search.note(at, found.passed);
        self.state.probes.push(told(point, found, took_ms, false));
    }

    /// Notes that a point could not be looked at: another beside it is.
    ///
    /// # Errors
    /// So many in a row could not.
    fn skip(&mut self, at: usize, point: &Point, why: &str, took_ms: u64) -> ApiResult<()> {
        self.skipped += 1;
        self.search.skip(at);
        self.state.probes.push(v1::BisectProbe {
            point: Some(messages::point(point)),
            why: why.to_owned(),
            took_ms,
            skipped: true,
            ..Default::default()
        });
        match self.skipped < SKIPPED_MAX {
            true => Ok(()),
            false => Err(unseen(
                &format!("{SKIPPED_MAX} points in a row could not be looked at"),
                why,
            )),
        }
    }

    /// Whether anything was found at all; an error tells why not.
    fn verdict(&self) -> ApiResult<()> {
        let mut probes = self.state.probes.iter();
        match probes.next_back() {
            Some(last) if last.skipped && probes.all(|one| one.skipped) => {
                Err(unseen("no point could be looked at", &last.why))
            }
            _ => Ok(()),
        }
    }

    /// The state for clients, with the answer as far as it is known.
    fn told(&mut self, points: &[Point]) -> v1::BisectState {
        let point = |at: Option<usize>| at.and_then(|at| points.get(at)).map(messages::point);
        self.state.left_most = u64::from(self.search.left_most());
        self.state.newest_good = point(self.search.newest_good());
        self.state.oldest_bad = point(self.search.oldest_bad());
        self.state.clone()
    }
}

/// A search that cannot go on, as points cannot be looked at.
fn unseen(what: &str, why: &str) -> ApiError {
    ApiError::new(
        ApiErrorKind::FailedPrecondition,
        format!("{what}, the last because: {why}"),
    )
    .hint("put that right; the same command goes on where it was")
}

impl Bisection {
    fn run(&self, points: &[Point], parallel: usize, job: &JobHandle) -> ApiResult<()> {
        let mut progress = Progress::of(points, read_notes(&self.notes));
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
                    add_note(&self.notes, point, &found).map_err(|error| self.not_kept(&error))?;
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
        let taken = vec![Taken::new(Arc::clone(&self.machine), point.clone())?];
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
            dir: Path::new("/nonexistent"),
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
        skipped: false,
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

#[cfg(test)]
mod tests {
    use cdp_core::{Grade, PointId, Seq, Timestamp};

    use super::*;

    fn points(count: u64) -> Vec<Point> {
        let point = |id| Point {
            id: PointId(id),
            time: Timestamp(id),
            seq: Seq(id),
            grade: Grade::Crash,
            label: None,
            xml: None,
            locked: false,
            damaged: false,
        };
        (1..=count).map(point).collect()
    }

    #[test]
    fn points_that_cannot_be_looked_at_are_neither_good_nor_bad() {
        let points = points(100);
        let mut progress = Progress::of(&points, BTreeMap::new());
        for round in 1..SKIPPED_MAX {
            let at = progress.search.next(1)[0];
            progress.skip(at, &points[at], "no room", 1).unwrap();
            assert_eq!(progress.skipped, round);
        }
        let state = progress.told(&points);
        assert!(
            state
                .probes
                .iter()
                .all(|probe| probe.skipped && !probe.passed)
        );
        assert_eq!((state.newest_good, state.oldest_bad), (None, None));
        let found = Found {
            passed: true,
            why: String::new(),
            drill: String::new(),
        };
        progress.found(10, &points[10], &found, 1);
        assert_eq!(progress.skipped, 0, "one in between was looked at");
        progress.verdict().unwrap();
        for _ in 1..SKIPPED_MAX {
            let at = progress.search.next(1)[0];
            progress.skip(at, &points[at], "no room", 1).unwrap();
        }
        let at = progress.search.next(1)[0];
        let error = progress.skip(at, &points[at], "no room", 1).unwrap_err();
        assert!(error.what.contains("8 points in a row") && error.what.contains("no room"));
    }

    #[test]
    fn a_search_that_could_look_at_nothing_has_no_answer() {
        let points = points(2);
        let mut progress = Progress::of(&points, BTreeMap::new());
        while let Some(at) = progress.search.next(1).first().copied() {
            progress.skip(at, &points[at], "it cannot run", 1).unwrap();
        }
        let error = progress.verdict().unwrap_err();
        assert!(error.what.contains("it cannot run"), "{}", error.what);
    }

    #[test]
    fn a_script_is_a_regular_file_of_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("one"), "#!/bin/sh\n").unwrap();
        fs::write(path("other"), "#!/bin/sh\nfalse\n").unwrap();
        let digest_of = |name: &str| digest(&path(name)).map_err(|error| error.what);
        assert_eq!(digest_of("one"), digest_of("one"));
        assert_ne!(digest_of("one"), digest_of("other"));
        let fifo = path("fifo");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        );
        made.unwrap();
        let large = fs::File::create(path("large")).unwrap();
        large.set_len(SCRIPT_MAX + 1).unwrap();
        for (name, why) in [
            ("fifo", "is no regular file"),
            (".", "is no regular file"),
            ("large", "more than 16 MiB"),
            ("missing", "cannot be read"),
        ] {
            let what = digest_of(name).unwrap_err();
            assert!(what.contains(why), "{name}: {what}");
        }
    }
}
