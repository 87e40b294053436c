//! What is done with what is kept: policies, deletions, locks and labels, cold segments, the end of needless ones; and
//! rounds in which the power is cut in the middle of that.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdp_core::HarborError;
use cdp_core::retention::Candidate;
use cdp_core::storage::{Operation, Trouble};
use cdp_core::{Clock, Held, PointId, Policy, Timestamp};

use crate::history::Expected;
use crate::world::{DIR, Step, World, wrong};

const EIO: i32 = 5;
const SECOND: Duration = Duration::from_secs(1);

/// One kind of upkeep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Policy,
    Delete,
    Lock,
    Label,
    Compact,
    Build,
    Merge,
    Remove,
}

/// What is done, as often as it stands here.
const WORKS: [Work; 13] = [
    Work::Policy,
    Work::Policy,
    Work::Delete,
    Work::Lock,
    Work::Label,
    Work::Compact,
    Work::Compact,
    Work::Build,
    Work::Build,
    Work::Merge,
    Work::Merge,
    Work::Remove,
    Work::Remove,
];

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Policy => "policy",
            Work::Delete => "delete",
            Work::Lock => "lock",
            Work::Label => "label",
            Work::Compact => "compact",
            Work::Build => "build",
            Work::Merge => "merge",
            Work::Remove => "remove",
        }
    }

    /// Whether it changes much on the storage.
    fn is_long(self) -> bool {
        matches!(self, Work::Compact | Work::Build | Work::Merge)
    }
}

impl World {
    /// Does one thing by chance with what is kept.
    pub(crate) fn upkeep(&mut self) -> Step {
        let work = *self.chance.pick(&WORKS).unwrap();
        self.work(work)
    }

    fn work(&mut self, work: Work) -> Step {
        let done = match work {
            Work::Policy => self.apply_policy(),
            Work::Delete => self.delete_points(),
            Work::Lock => self.lock_point(),
            Work::Label => self.label_point(),
            Work::Compact => self.compact(),
            Work::Build => self.build_layers(),
            Work::Merge => self.merge_layers(),
            Work::Remove => self.remove_needless(),
        };
        if self.storage.is_cut() && !self.is_cut_counted {
            *self.cuts.entry(work.name()).or_default() += 1;
            self.is_cut_counted = true;
        }
        done
    }

    /// Does this and that, and then has the power cut in the middle of it.
    pub(crate) fn upkeep_under_cut(&mut self) -> Step {
        if !self.is_trouble {
            for _ in 0..self.chance.below(12) {
                self.upkeep()?;
                self.guest_writes()?;
                self.make_point()?;
            }
        }
        let first = *self.chance.pick(&WORKS).unwrap();
        if first == Work::Remove && !self.is_trouble {
            // That there is something to be removed.
            self.let_go_of_all()?;
            self.build_layers()?;
            self.merge_layers()?;
        }
        let trouble = self.trouble_in(first);
        self.tell(format!("{first:?}, with trouble: {trouble:?}"));
        self.is_trouble = true;
        self.is_cut_counted = false;
        self.storage.ask_for(trouble);
        self.work(first)?;
        for _ in 0..40 {
            self.upkeep()?;
        }
        self.is_cut_counted = true;
        Ok(())
    }

    /// Something that is to go wrong in one kind of work or soon after: mostly that the power is cut.
    fn trouble_in(&mut self, work: Work) -> Trouble {
        let after = self.chance.below(if work.is_long() { 60 } else { 10 });
        let operations = [
            Operation::Read,
            Operation::Write,
            Operation::Name,
            Operation::Sync,
        ];
        let operation = operations[self.chance.below(4) as usize];
        match self.chance.below(12) {
            0 => Trouble::Error {
                operation,
                after,
                errno: EIO,
            },
            1 => Trouble::LosingSync {
                after: after / 4,
                errno: EIO,
            },
            2 => Trouble::Full {
                room: self.chance.below(128 * 1024),
            },
            _ => Trouble::PowerCut { after },
        }
    }

    /// The points that must be offered, as retention looks at them; their times are the harbor's to say.
    fn candidates(&self) -> Step<Vec<Candidate>> {
        let points = self.harbor()?.points();
        let said = self.history.sayings.now();
        let candidate = |expected: &Expected<'_>| {
            let id = PointId(expected.id());
            let found = points.iter().find(|point| point.id == id);
            found.map(|point| Candidate {
                id,
                time: point.time,
                locked: said.locked.contains(&id.0),
                pinned: self.views.iter().any(|(view, _)| view.point().id == id),
            })
        };
        let expected = self.history.points();
        let all: Option<Vec<Candidate>> = expected.iter().map(candidate).collect();
        match all.filter(|all| all.len() == points.len()) {
            Some(all) => Ok(all),
            None => wrong(format!(
                "other points than expected are offered: {points:?}"
            )),
        }
    }

    fn any_policy(&mut self) -> Policy {
        if self.chance.once_in(3) {
            // Nothing but the newest, and what is hardly a minute old.
            return Policy::default();
        }
        let mut span = |most: u64| match self.chance.below(2) {
            0 => Duration::ZERO,
            _ => SECOND * self.chance.below(most) as u32,
        };
        Policy {
            all: span(300),
            hourly: span(4 * 3_600),
            daily: span(3 * 24 * 3_600),
            weekly: span(21 * 24 * 3_600),
            monthly: span(93 * 24 * 3_600),
        }
    }

    /// Lets go of all points but the newest.
    fn let_go_of_all(&mut self) -> Step {
        let now = Timestamp(self.clock.now().0 + 90_000_000_000);
        self.run_policy(Policy::default(), now)
    }

    fn apply_policy(&mut self) -> Step {
        let policy = self.any_policy();
        let later = match self.chance.below(3) {
            0 => 0,
            1 => self.chance.below(600),
            _ => self.chance.below(50 * 3_600),
        };
        let now = Timestamp(self.clock.now().0 + later * 1_000_000_000);
        self.run_policy(policy, now)
    }

    fn run_policy(&mut self, policy: Policy, now: Timestamp) -> Step {
        let wanted = policy.needless(&self.candidates()?, now);
        let ids: Vec<u64> = wanted.iter().map(|id| id.0).collect();
        self.tell(format!("{policy:?} at {now} lets go of {ids:?}"));
        let went = self.harbor()?.apply_policy(&policy, now);
        self.history
            .sayings
            .change(went.is_ok(), |said| said.delete(&ids));
        let went = went.map_err(|error| self.failed("a policy", &error))?;
        let found: Vec<PointId> = went.iter().map(|point| point.id).collect();
        self.count("points let go", found.len() as u64);
        match found == wanted {
            true => Ok(()),
            false => wrong(format!("the policy let go of {found:?}, not of {wanted:?}")),
        }
    }

    fn delete_points(&mut self) -> Step {
        let candidates = self.candidates()?;
        let count = 1 + self.chance.below(4);
        let first = self.chance.below(candidates.len() as u64) as usize;
        let chosen: Vec<Candidate> = candidates
            .iter()
            .skip(first)
            .take(count as usize)
            .copied()
            .collect();
        let held = |one: &Candidate| match one {
            one if one.pinned => Some(Held::InUse),
            one if one.locked => Some(Held::Locked),
            one => (candidates.last().map(|last| last.id) == Some(one.id)).then_some(Held::Newest),
        };
        let refused = chosen.iter().find_map(|one| Some((one.id, held(one)?)));
        let ids: Vec<PointId> = chosen.iter().map(|one| one.id).collect();
        self.tell(format!("delete {ids:?}, refused {refused:?}"));
        let done = self.harbor()?.delete_points(&ids);
        if let Some((wanted, why_wanted)) = refused {
            return match done {
                Err(HarborError::PointHeld { point, why })
                    if (point, why) == (wanted, why_wanted) =>
                {
                    Ok(())
                }
                other => wrong(format!("{other:?} is no answer for a point that is held")),
            };
        }
        let ids: Vec<u64> = ids.iter().map(|id| id.0).collect();
        self.history
            .sayings
            .change(done.is_ok(), |said| said.delete(&ids));
        done.map_err(|error| self.failed("deleting", &error))
    }

    fn any_point(&mut self) -> Option<u64> {
        let points = self.history.points();
        let at = self.chance.below(points.len() as u64) as usize;
        points.get(at).map(Expected::id)
    }

    fn lock_point(&mut self) -> Step {
        let Some(id) = self.any_point() else {
            return Ok(());
        };
        let harbor = self.harbor()?;
        // Unlocked more often than locked, or nothing would ever go.
        let locked: Vec<u64> = self.history.sayings.now().locked.iter().copied().collect();
        let done = match self.chance.pick(&locked).copied() {
            Some(id) if locked.len() > 2 || self.chance.once_in(2) => {
                self.tell(format!("unlock {id}"));
                let is_there = self.history.points().iter().any(|point| point.id() == id);
                let done = harbor.unlock_point(PointId(id));
                if !is_there {
                    // A gap has taken it back.
                    return match done {
                        Err(HarborError::NoSuchPoint(_)) => Ok(()),
                        other => wrong(format!("{other:?} is no answer for what is no point")),
                    };
                }
                self.history.sayings.change(done.is_ok(), |said| {
                    said.locked.remove(&id);
                });
                done
            }
            _ => {
                self.tell(format!("lock {id}"));
                let done = harbor.lock_point(PointId(id));
                self.history.sayings.change(done.is_ok(), |said| {
                    said.locked.insert(id);
                });
                done
            }
        };
        done.map_err(|error| self.failed("a lock", &error))
    }

    fn label_point(&mut self) -> Step {
        let Some(id) = self.any_point() else {
            return Ok(());
        };
        let label = match self.chance.below(3) {
            0 => None,
            _ => Some(format!("later {}", self.chance.below(100))),
        };
        self.tell(format!("label {id} {label:?}"));
        let done = self.harbor()?.label_point(PointId(id), label.as_deref());
        self.history.sayings.change(done.is_ok(), |said| {
            said.labels.insert(id, label);
        });
        done.map_err(|error| self.failed("a label", &error))
    }

    /// Makes cold segments, of all that is worth it or of some.
    pub(crate) fn compact(&mut self) -> Step {
        if self.is_hoarder {
            return Ok(());
        }
        let harbor = self.harbor()?;
        for _ in 0..1 + self.chance.below(4) {
            let mut left = self.patience();
            let done = harbor.compact(&mut |_| pass(&mut left));
            match done {
                Ok(Some(done)) => {
                    self.tell(format!("compacted: {done:?}"));
                    self.count("files compacted", done.files as u64);
                    self.count("records dropped", done.dropped);
                }
                Ok(None) => break,
                Err(HarborError::Cancelled) => self.tell("a compaction was called off"),
                Err(error) => return Err(self.failed("a compaction", &error)),
            }
        }
        Ok(())
    }

    pub(crate) fn remove_needless(&mut self) -> Step {
        self.tell("needless segments");
        self.promise_found()?;
        let promised = self.history.bases.iter().filter(|base| base.is_promised);
        let lowest = promised.map(|base| base.seq).min().unwrap_or(0);
        self.history.gone_before = self.history.gone_before.max(lowest);
        let before = self.journal_files();
        self.harbor()?.remove_needless_segments();
        self.count(
            "needless segments",
            before.saturating_sub(self.journal_files()),
        );
        Ok(())
    }

    fn journal_files(&self) -> u64 {
        let files = self.storage.files();
        let is_journal = |path: &&PathBuf| path.starts_with(Path::new(DIR).join("journal"));
        files.iter().filter(is_journal).count() as u64
    }

    /// How many pieces a work may do before it is called off.
    pub(crate) fn patience(&mut self) -> u64 {
        match self.chance.below(4) {
            0 => self.chance.below(12),
            _ => u64::MAX,
        }
    }
}

/// Lets a piece of work pass, as long as there is patience.
pub(crate) fn pass(left: &mut u64) -> ControlFlow<()> {
    if *left == 0 {
        return ControlFlow::Break(());
    }
    *left -= 1;
    ControlFlow::Continue(())
}
