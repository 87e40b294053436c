//! What is done at random while a recording runs.

use std::thread;
use std::time::Duration;

use cdp_core::{Ack, AckRule, Clock, GapReason, Grade, Seq, Timestamp, VolumeRecorder};

use crate::history::Told;
use crate::world::{Step, Stop, World, wrong};

impl World {
    /// Does one thing by chance.
    pub(crate) fn step(&mut self) -> Step {
        self.step_clock();
        match self.chance.below(50) {
            0..=19 => self.guest_writes(),
            20..=22 => self.guest_zeroes(),
            23..=27 => self.make_point(),
            28 => self.point_if_written(),
            29..=30 => self.sync(),
            31 => self.crowd(),
            32 => self.keep_xml(),
            33 => self.gap(),
            34 => self.seed_one(),
            35 => self.open_view(),
            36..=37 => self.read_views(),
            38 => self.describe(),
            39..=42 => self.build_layers(),
            43..=46 => self.upkeep(),
            _ => {
                thread::sleep(Duration::from_micros(self.chance.below(8_000)));
                Ok(())
            }
        }
    }

    fn step_clock(&mut self) {
        let now = self.clock.now().0;
        let by = self.chance.below(3_000_000_000);
        let then = match self.chance.below(20) {
            0 => now.saturating_sub(by * 1_000),
            1 => now + by * 1_000,
            2 => now,
            _ => now + by,
        };
        self.clock.set(Timestamp(then));
    }

    pub(crate) fn guest_writes(&mut self) -> Step {
        let volume = self.any_volume();
        let (offset, len) = self.range(volume);
        let mut bytes = vec![0; len];
        match self.chance.below(3) {
            0 => bytes.fill(self.chance.below(256) as u8),
            _ => self.chance.fill(&mut bytes),
        }
        self.guest_changes(volume, offset, bytes, false)
    }

    fn guest_zeroes(&mut self) -> Step {
        let volume = self.any_volume();
        let (offset, len) = self.range(volume);
        self.guest_changes(volume, offset, vec![0; len], true)
    }

    /// The guest writes to its disk; the recorder is told of it, and may refuse.
    fn guest_changes(&mut self, volume: usize, offset: usize, bytes: Vec<u8>, zero: bool) -> Step {
        let len = bytes.len();
        self.tell(format!(
            "guest: volume {volume}, {len} at {offset}, zeroes {zero}"
        ));
        self.live[volume][offset..offset + len].copy_from_slice(&bytes);
        let (recorder, handle) = match (self.recorder(), self.volume(volume)) {
            (Ok(recorder), Ok(handle)) => (recorder, handle),
            _ => {
                self.is_missing_writes = true;
                return Ok(());
            }
        };
        let before = recorder.head().0;
        let taken = if zero {
            handle.zero(offset as u64, len as u64)
        } else {
            handle.buffer(len).and_then(|mut buf| {
                buf.as_mut().copy_from_slice(&bytes);
                handle.write(offset as u64, buf)
            })
        };
        self.enter(
            before,
            vec![Told::Data {
                volume,
                offset,
                bytes,
            }],
            taken.is_ok(),
        )?;
        match taken {
            Ok(ack) => {
                self.untouchable.mark(volume, offset..offset + len);
                self.acknowledge(&handle, ack)
            }
            Err(refused) => {
                self.is_missing_writes = true;
                Err(self.failed("a write", &refused))
            }
        }
    }

    /// Waits, where the rule says so, until a write may be acknowledged to the guest; then it is promised.
    fn acknowledge(&mut self, handle: &VolumeRecorder, ack: Ack) -> Step {
        match (self.options.ack_rule, ack) {
            (AckRule::Buffered, Ack::Now) => Ok(()),
            (AckRule::Durable, Ack::Durable(seq)) => {
                let kept = handle.wait(ack);
                kept.map_err(|refused| self.failed("an acknowledgement", &refused))?;
                self.history.promise(seq.0);
                Ok(())
            }
            (rule, ack) => wrong(format!("{ack:?} is no answer of {rule:?}")),
        }
    }

    /// Several threads write at once, each to a part of a volume of its own.
    fn crowd(&mut self) -> Step {
        const THREADS: usize = 3;
        if self.is_trouble {
            return Ok(());
        }
        let volume = self.any_volume();
        let part = self.history.sizes[volume] / THREADS;
        self.tell(format!("crowd on volume {volume}"));
        let before = self.recorder()?.head().0;
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let mut chance = self.chance.split();
            let handle = self.volume(volume)?;
            threads.push(thread::spawn(move || {
                let written = (0..8).map(|_| {
                    let offset = chance.below(part as u64) as usize;
                    let mut bytes = vec![0; 1 + chance.below((part - offset) as u64) as usize];
                    chance.fill(&mut bytes);
                    let offset = number * part + offset;
                    let mut buf = handle.buffer(bytes.len()).unwrap();
                    buf.as_mut().copy_from_slice(&bytes);
                    handle.write(offset as u64, buf).map(|_| ()).unwrap();
                    Told::Data {
                        volume,
                        offset,
                        bytes,
                    }
                });
                written.collect::<Vec<_>>()
            }));
        }
        let mut told = Vec::new();
        for thread in threads {
            let Ok(written) = thread.join() else {
                return wrong("one of a crowd was refused without reason");
            };
            told.extend(written);
        }
        for one in &told {
            if let Told::Data {
                volume,
                offset,
                bytes,
            } = one
            {
                self.live[*volume][*offset..offset + bytes.len()].copy_from_slice(bytes);
                self.untouchable
                    .mark(*volume, *offset..offset + bytes.len());
            }
        }
        // In which order the threads came does not show once all of it is kept.
        self.enter(before, told, true)?;
        self.sync()
    }

    pub(crate) fn make_point(&mut self) -> Step {
        let label = match self.chance.below(3) {
            0 => Some(format!("label {}", self.chance.below(1000))),
            1 => Some("é".repeat(self.chance.below(512) as usize)),
            _ => None,
        };
        let grade = if self.chance.once_in(4) {
            Grade::Quiesced
        } else {
            Grade::Crash
        };
        self.tell(format!("point {}", self.history.next_point));
        let recorder = self.recorder()?;
        let before = recorder.head().0;
        let made = recorder.point(grade, label.as_deref());
        let label = label.filter(|label| !label.is_empty());
        self.enter_point(before, grade, label, made.map(Some))
            .map(|_| ())
    }

    fn point_if_written(&mut self) -> Step {
        self.tell("point if written");
        let recorder = self.recorder()?;
        let before = recorder.head().0;
        let made = recorder.point_if_written();
        let is_made = self.enter_point(before, Grade::Crash, None, made)?;
        let again = recorder.point_if_written();
        if is_made && matches!(again, Ok(Some(_))) {
            return wrong("a point was made although nothing was written");
        }
        again
            .map(|_| ())
            .map_err(|error| self.failed("a point", &error))
    }

    /// Enters a point that may have been made; tells whether it was.
    fn enter_point(
        &mut self,
        before: u64,
        grade: Grade,
        label: Option<String>,
        made: cdp_core::error::Result<Option<cdp_core::Point>>,
    ) -> Step<bool> {
        let told = Told::Point {
            id: self.history.next_point,
            grade,
            label,
            xml: (!self.history.xml.is_empty()).then_some(self.history.xml.len() as u32),
            made: None,
            disks: self.snapshot(),
        };
        let wanted = !matches!(made, Ok(None));
        self.enter(
            before,
            if wanted { vec![told] } else { Vec::new() },
            made.is_ok(),
        )?;
        match made {
            Ok(Some(point)) => {
                self.history.made(&point);
                self.promise_all();
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(self.failed("a point", &error)),
        }
    }

    pub(crate) fn sync(&mut self) -> Step {
        self.tell("sync");
        let seq = self
            .recorder()?
            .sync()
            .map_err(|error| self.failed("a sync", &error))?;
        self.history.promise(seq.0);
        Ok(())
    }

    fn keep_xml(&mut self) -> Step {
        let text = format!("<domain>{}</domain>", self.chance.below(4));
        self.tell(format!("xml {text}"));
        let is_new = self
            .history
            .xml
            .last()
            .is_none_or(|(newest, _)| *newest != text);
        let kept = self.harbor()?.record_xml(&text);
        match kept {
            Ok(version) => {
                // The newest one could not be read, and so not be found to be the same.
                let is_doubled = self.is_trouble && version.0 as usize > self.history.xml.len();
                if is_new || is_doubled {
                    self.history.xml.push((text, true));
                }
                if version.0 as usize != self.history.xml.len() {
                    return wrong(format!(
                        "XML {} is kept as {version}",
                        self.history.xml.len()
                    ));
                }
                Ok(())
            }
            Err(error) => Err(self.failed("keeping an XML", &error)),
        }
    }

    fn describe(&mut self) -> Step {
        let mut description = self.description();
        description.name = format!("name {}", self.chance.below(100));
        self.tell("description");
        let done = self.harbor()?.set_description(description);
        done.map_err(|error| self.failed("a description", &error))
    }

    /// A gap: writes are missed, or it only looks so; then everything is made up for.
    fn gap(&mut self) -> Step {
        self.open_gap()?;
        for _ in 0..self.chance.below(4) {
            match self.chance.below(4) {
                0 => self.make_point()?,
                1 => {
                    // The guest writes, and nobody sees it.
                    let volume = self.any_volume();
                    let (offset, len) = self.range(volume);
                    self.tell(format!("unseen: volume {volume}, {len} at {offset}"));
                    self.chance
                        .split()
                        .fill(&mut self.live[volume][offset..offset + len]);
                    self.is_missing_writes = true;
                }
                _ => self.guest_writes()?,
            }
        }
        self.heal()
    }

    pub(crate) fn open_gap(&mut self) -> Step {
        let reasons = [
            GapReason::TapLost,
            GapReason::Crash,
            GapReason::Resync,
            GapReason::Suspended,
        ];
        let reason = *self.chance.pick(&reasons).unwrap();
        self.open_gap_of(reason)?;
        if self.chance.once_in(2) {
            self.open_gap_of(GapReason::Resync)?;
        }
        Ok(())
    }

    fn open_gap_of(&mut self, reason: GapReason) -> Step {
        let recorder = self.recorder()?;
        let before = recorder.head().0;
        let (is_new, is_first) = (
            self.history.is_new_gap(reason),
            self.history.open_gap().is_none(),
        );
        let back = self.chance.below(6);
        let (mut sound, opened) = if self.chance.once_in(2) {
            (before, recorder.open_gap(reason, self.clock.now()))
        } else {
            let sound = before.saturating_sub(back);
            (
                sound,
                recorder.open_gap_since(reason, self.clock.now(), Seq(sound)),
            )
        };
        if !is_first {
            sound = before;
        }
        self.tell(format!("gap {reason:?} since {sound}"));
        let told = Told::GapOpen { sound, reason };
        self.enter(
            before,
            if is_new { vec![told] } else { Vec::new() },
            opened.is_ok(),
        )?;
        opened.map_err(|error| self.failed("opening a gap", &error))?;
        self.promise_all();
        Ok(())
    }

    fn open_view(&mut self) -> Step {
        let harbor = self.harbor()?;
        let points = self.history.points();
        let count = points.len() as u64;
        let Some(expected) = points.get(self.chance.below(count) as usize) else {
            return Ok(());
        };
        let Told::Point { id, .. } = expected.told else {
            return Err(Stop::Wrong("a point that is none".into()));
        };
        let (id, disks) = (*id, expected.disks.clone());
        let view = harbor.view(cdp_core::PointId(id));
        let view = view.map_err(|error| self.failed("a view", &error))?;
        self.tell(format!("view of point {id}"));
        self.views.push((view, disks));
        if self.views.len() > 3 {
            self.views.remove(0);
        }
        Ok(())
    }
}
