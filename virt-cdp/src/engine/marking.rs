//! What marks the writes of a machine while nobody captures them, and how far that is trusted.
//!
//! In order: before the taps, the bitmaps found in QEMU are judged by what the harbor knows of them, and get a
//! new epoch that the harbor knows alone (an older copy of an image has an older one). Behind the taps they are
//! renewed once more: from here on B_prev holds all that is in doubt. When the resync's barrier is durable, the
//! doubt is over ([`Marking::settle`]). Then they are rotated now and then, so that what is in doubt after
//! the loss of a tap is little.
//!
//! A raw image has no bitmap once its QEMU has ended. There the file itself tells: it was not changed since
//! the last write that was captured, and QEMU has written nothing since it started.
//!
//! Invariant: at any moment a bitmap named in the harbor marks everything that the journal lacks. What a crash
//! leaves are two epochs in the harbor of which one is found, or none: then the whole disk is read.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cdp_core::{Harbor, Marks, Recorder, Timestamp, VolumeId, VolumeMarks};
use qemu_hook::{
    attach::Names,
    bitmap::{self, BitmapNames, Distrust, Renewal},
    end_mark::{self, EndMark},
    monitor::{Monitor, MonitorError},
    node::{self, Node},
};

use crate::{
    api::ApiResult,
    engine::{
        errors::{from_harbor, from_libvirt, from_monitor},
        guard,
        machine::{Doubt, now},
    },
};

/// When the last write of a volume was captured; shared with what takes its writes.
#[derive(Debug, Default)]
pub(crate) struct LastWrite(AtomicU64);

impl LastWrite {
    /// A write was captured just now.
    pub(crate) fn touch(&self) {
        self.0.store(now().0, Ordering::Relaxed);
    }

    fn get(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// The bitmaps of a machine's volumes during one capture.
pub(crate) struct Marking {
    monitor: Arc<dyn Monitor>,
    harbor: Harbor,
    tag: String,
    names: BitmapNames,
    volumes: Vec<Volume>,
    state: Mutex<State>,
}

#[derive(Clone)]
struct Volume {
    id: VolumeId,
    node: Node,
    last_write: Arc<LastWrite>,
    /// What its image was like when QEMU ended, with everything in the journal.
    rest: Option<String>,
}

/// How the bitmaps stand.
#[derive(Clone)]
struct State {
    /// The one in force, in QEMU.
    epoch: String,
    /// What is in doubt, until it is settled.
    doubts: BTreeMap<VolumeId, Doubt>,
    /// The barrier was durable: nothing is in doubt but what B and B_prev mark.
    settled: bool,
    /// B_prev is on stable storage, provided that the mirrors stood.
    to_drop: bool,
}

/// What is to be read of a volume.
#[derive(Debug, Clone)]
pub(crate) struct ToRead {
    pub(crate) id: VolumeId,
    pub(crate) doubt: Doubt,
    /// The bitmap that marks it.
    pub(crate) bitmap: String,
    /// At most so many bytes.
    pub(crate) bytes: u64,
}

impl Marking {
    /// Judges the bitmaps of a machine that is about to be tapped, and begins an epoch of its own.
    pub(crate) fn start(
        monitor: Arc<dyn Monitor>,
        harbor: Harbor,
        tag: &str,
        nodes: &[(VolumeId, Node)],
    ) -> ApiResult<Self> {
        let names = BitmapNames::new(tag);
        let marks = harbor.marks();
        let (mut volumes, mut doubts, mut from) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (id, node) in nodes {
            let known = marks.volume(*id);
            let judged = judge(&*monitor, node, &names, known)?;
            let doubt = match judged {
                Ok(epoch) => {
                    from.insert(*id, epoch);
                    Doubt::Marked
                }
                Err(reason) => Doubt::Whole(reason),
            };
            doubts.insert(*id, doubt);
            volumes.push(Volume {
                id: *id,
                node: node.clone(),
                last_write: Arc::default(),
                rest: known.and_then(|known| known.rest.clone()),
            });
        }
        let state = State {
            epoch: String::new(),
            doubts,
            settled: false,
            to_drop: false,
        };
        let marking = Self {
            monitor,
            harbor,
            tag: tag.to_owned(),
            names,
            volumes,
            state: Mutex::new(state),
        };
        marking.renew(&mut guard(&marking.state), &from)?;
        Ok(marking)
    }

    /// Goes on with the bitmaps of a capture that was taken over in its steady state.
    ///
    /// Where they are not as they should be they are left as they are, and judged at the next attach.
    pub(crate) fn inherit(
        monitor: Arc<dyn Monitor>,
        harbor: Harbor,
        tag: &str,
        nodes: Vec<(VolumeId, Node, Arc<LastWrite>)>,
    ) -> ApiResult<Self> {
        let names = BitmapNames::new(tag);
        let marks = harbor.marks();
        let (mut volumes, mut doubts, mut found) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (id, node, last_write) in nodes {
            found.push(judge(&*monitor, &node, &names, marks.volume(id))?.ok());
            doubts.insert(id, Doubt::Marked);
            volumes.push(Volume {
                id,
                node,
                last_write,
                rest: None,
            });
        }
        let first = found.first().cloned().flatten();
        let alike = found.iter().all(|epoch| *epoch == first);
        let state = State {
            settled: alike && first.is_some(),
            epoch: first.unwrap_or_default(),
            doubts,
            to_drop: false,
        };
        Ok(Self {
            monitor,
            harbor,
            tag: tag.to_owned(),
            names,
            volumes,
            state: Mutex::new(state),
        })
    }

    /// The same without the volumes `gone`, whose nodes are no longer there; nothing of them is known afterwards.
    pub(crate) fn without(&self, gone: &[VolumeId]) -> Self {
        let stays = |v: &&Volume| !gone.contains(&v.id);
        Self {
            monitor: Arc::clone(&self.monitor),
            harbor: self.harbor.clone(),
            tag: self.tag.clone(),
            names: self.names.clone(),
            volumes: self.volumes.iter().filter(stays).cloned().collect(),
            state: Mutex::new(guard(&self.state).clone()),
        }
    }

    /// What has to be told of each captured write of a volume.
    pub(crate) fn last_write(&self, id: VolumeId) -> Arc<LastWrite> {
        let found = self.volumes.iter().find(|v| v.id == id);
        found.map(|v| Arc::clone(&v.last_write)).unwrap_or_default()
    }

    /// All volumes are tapped: says what has to be read of them.
    pub(crate) fn tapped(
        &self,
        taps: impl Iterator<Item = (VolumeId, Names)>,
    ) -> ApiResult<Vec<ToRead>> {
        let mut state = guard(&self.state);
        let from = self.in_force(&state);
        // It drains: a write that no tap has seen is marked in what becomes B_prev.
        self.renew(&mut state, &from)?;
        // The mirrors keep the disks as large as they are.
        for volume in &self.volumes {
            self.look_at_end(&mut state, volume)?;
        }
        for (id, names) in taps {
            let volume = self.volumes.iter().find(|v| v.id == id);
            let whole = matches!(state.doubts.get(&id), Some(Doubt::Whole(_)));
            let Some((volume, rest)) = volume.and_then(|v| Some((v, v.rest.as_ref()?))) else {
                continue;
            };
            if whole {
                let doubt = self.since_rest(volume, rest, &names)?;
                state.doubts.insert(id, doubt);
            }
        }
        // What cannot have changed is as good as marked.
        self.remember(&state, &[&state.epoch], |_, _| None)?;
        let to_read = self.volumes.iter().map(|volume| {
            let (id, node) = (volume.id, &volume.node);
            let doubt = state.doubts.get(&id).cloned();
            let doubt = doubt.unwrap_or_else(|| Doubt::Whole(String::new()));
            let bytes = match doubt {
                Doubt::Marked => {
                    bitmap::doubtful(&*self.monitor, &node.name, &self.names, &state.epoch)
                        .map_err(|e| from_monitor(&e))?
                }
                Doubt::Whole(_) => node.size,
                Doubt::Nothing(_) => 0,
            };
            let bitmap = self.names.previous(&state.epoch);
            Ok(ToRead {
                id,
                doubt,
                bitmap,
                bytes,
            })
        });
        to_read.collect()
    }

    /// Finds out whether a disk was cut until it was tapped, and has its end marked from now on.
    fn look_at_end(&self, state: &mut State, volume: &Volume) -> ApiResult<()> {
        let node = &volume.node;
        let end = end_mark::find(&*self.monitor, &node.name, &self.names)
            .map_err(|e| from_monitor(&e))?;
        let doubt = state.doubts.entry(volume.id).or_insert(Doubt::Marked);
        if let (Doubt::Marked, Some(reason)) = (&doubt, cut(end)) {
            *doubt = Doubt::Whole(reason.into());
        }
        // One that stands may be of another size.
        if matches!(doubt, Doubt::Whole(_)) {
            let disk = (&*node.name, node.size, node.persistent_bitmaps);
            if let Err(error) = end_mark::put(&*self.monitor, disk, &self.tag, &self.names) {
                tracing::warn!(node = node.name, %error, "its end is not marked: it is read whole next time");
            }
        }
        Ok(())
    }

    /// What may have changed of a volume whose image was complete when QEMU last ended.
    fn since_rest(&self, volume: &Volume, rest: &str, names: &Names) -> ApiResult<Doubt> {
        let node = &volume.node;
        if image_state(&node.image).is_none_or(|(state, _)| state != rest) {
            return Ok(Doubt::Whole(
                "its image was changed while it was off".into(),
            ));
        }
        let never = node::never_written(&*self.monitor, &node.name, &names.filter)
            .map_err(|e| from_monitor(&e))?;
        Ok(match never {
            true => Doubt::Nothing("its image is as QEMU left it".into()),
            false => {
                Doubt::Whole("it has no bitmap, and was written to before it was captured".into())
            }
        })
    }

    /// The barrier is durable: the journal has everything, nothing is in doubt any more.
    pub(crate) fn settle(&self) -> ApiResult<()> {
        let mut state = guard(&self.state);
        for volume in &self.volumes {
            volume.last_write.touch();
            state.doubts.insert(volume.id, Doubt::Marked);
        }
        self.remember(&state, &[&state.epoch], |_, _| None)?;
        state.settled = true;
        self.drop_previous(&state).map_err(|e| from_monitor(&e))
    }

    /// Begins a new epoch where something is marked: at the end, all that was marked by then is in the journal, on
    /// stable storage, if it came through the taps. [`Self::confirm`] says that it did.
    pub(crate) fn rotate(&self, recorder: &Recorder) -> ApiResult<()> {
        let mut state = guard(&self.state);
        if !state.settled || !self.has_marks(&state).map_err(|e| from_monitor(&e))? {
            return Ok(());
        }
        let from = self.in_force(&state);
        state.to_drop = false;
        self.renew(&mut state, &from)?;
        recorder.sync().map_err(from_harbor)?;
        state.to_drop = true;
        Ok(())
    }

    /// The mirrors were seen to stand behind a rotation, with nothing missed: what it took aside is no longer in doubt.
    pub(crate) fn confirm(&self) -> ApiResult<()> {
        let mut state = guard(&self.state);
        if state.to_drop {
            state.to_drop = false;
            self.drop_previous(&state).map_err(|e| from_monitor(&e))?;
        }
        Ok(())
    }

    /// QEMU has ended in good order, and the journal has everything it sent: notes what the images are like now.
    ///
    /// An image that was changed after the last captured write is not complete, whoever changed it.
    pub(crate) fn rest(&self) -> ApiResult<()> {
        let state = guard(&self.state);
        if !state.settled {
            return Ok(());
        }
        self.remember(&state, &[&state.epoch], |volume, _| {
            let (image, changed) = image_state(&volume.node.image)?;
            let last = volume.last_write.get();
            (changed <= last && last <= now()).then_some(image)
        })
    }

    /// Removes the bitmaps of a machine that is not captured after all.
    pub(crate) fn remove(&self) {
        for volume in &self.volumes {
            let node = &volume.node.name;
            if let Err(error) = bitmap::remove(&*self.monitor, node, &self.names) {
                tracing::warn!(node, %error, "the bitmaps stay");
            }
        }
    }

    /// The epoch in force, of every volume.
    fn in_force(&self, state: &State) -> BTreeMap<VolumeId, String> {
        let ids = self.volumes.iter().map(|v| v.id);
        ids.map(|id| (id, state.epoch.clone())).collect()
    }

    /// Begins an epoch that takes over the marks of `from`; afterwards the harbor trusts it alone.
    fn renew(&self, state: &mut State, from: &BTreeMap<VolumeId, String>) -> ApiResult<()> {
        let next = new_epoch()?;
        let renewal = |v: &Volume| Renewal {
            node: v.node.name.clone(),
            persistent: v.node.persistent_bitmaps,
            from: from.get(&v.id).cloned(),
        };
        let renewals: Vec<Renewal> = self.volumes.iter().map(renewal).collect();
        let marks = self.volumes.iter().map(|v| {
            let before = from.get(&v.id).map(String::as_str);
            let both: Vec<&str> = before.into_iter().chain([next.as_str()]).collect();
            self.marks_of(state, v, &both, None)
        });
        self.write(marks.collect())?;
        bitmap::renew(&*self.monitor, &renewals, &self.names, &next)
            .map_err(|e| from_monitor(&e))?;
        state.epoch = next;
        self.remember(state, &[&state.epoch], |_, _| None)
    }

    /// Has the harbor trust `epochs` where nothing but what is marked is in doubt, and know the images' rest.
    fn remember(
        &self,
        state: &State,
        epochs: &[&str],
        rest: impl Fn(&Volume, &State) -> Option<String>,
    ) -> ApiResult<()> {
        let marks = self.volumes.iter();
        let marks = marks.map(|v| self.marks_of(state, v, epochs, rest(v, state)));
        self.write(marks.collect())
    }

    fn marks_of(
        &self,
        state: &State,
        volume: &Volume,
        epochs: &[&str],
        rest: Option<String>,
    ) -> VolumeMarks {
        let trusted = !matches!(state.doubts.get(&volume.id), None | Some(Doubt::Whole(_)));
        let epochs = epochs.iter().filter(|_| trusted);
        VolumeMarks {
            id: volume.id,
            image: volume.node.image.clone(),
            size: volume.node.size,
            epochs: epochs.map(|e| (*e).to_owned()).collect(),
            rest,
        }
    }

    fn write(&self, volumes: Vec<VolumeMarks>) -> ApiResult<()> {
        self.harbor
            .set_marks(&Marks { volumes })
            .map_err(from_harbor)
    }

    fn has_marks(&self, state: &State) -> Result<bool, MonitorError> {
        for v in &self.volumes {
            if bitmap::marked(&*self.monitor, &v.node.name, &self.names, &state.epoch)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn drop_previous(&self, state: &State) -> Result<(), MonitorError> {
        self.volumes.iter().try_for_each(|v| {
            bitmap::drop_previous(&*self.monitor, &v.node.name, &self.names, &state.epoch)
        })
    }
}

/// The epoch whose bitmaps are trusted on a node, or why there is none.
fn judge(
    monitor: &dyn Monitor,
    node: &Node,
    names: &BitmapNames,
    known: Option<&VolumeMarks>,
) -> ApiResult<Result<String, String>> {
    let Some(known) = known else {
        return Ok(Err("nothing is known of its bitmaps yet".into()));
    };
    if known.image != node.image {
        let before = &known.image;
        return Ok(Err(format!(
            "its image is another one now, it was {before}"
        )));
    }
    if known.size != node.size {
        return Ok(Err("its size has changed".into()));
    }
    if known.epochs.is_empty() {
        return Ok(Err("it was not read to its end last time".into()));
    }
    let judged = bitmap::judge(monitor, &node.name, names, &known.epochs);
    let judged = judged.map_err(|e| from_monitor(&e))?;
    if judged.is_ok() {
        let end = end_mark::find(monitor, &node.name, names).map_err(|e| from_monitor(&e))?;
        if let Some(reason) = cut(end) {
            return Ok(Err(reason.into()));
        }
    }
    Ok(judged.map_err(|distrust| match distrust {
        Distrust::Missing if !node.persistent_bitmaps => {
            format!("a {} image keeps no bitmap when QEMU ends", node.format)
        }
        distrust => distrust.to_string(),
    }))
}

/// Why the end of a disk says that its bitmaps do not know everything; none: it does not.
fn cut(end: EndMark) -> Option<&'static str> {
    match end {
        EndMark::Stands => None,
        EndMark::Gone => Some("it was made smaller and larger again"),
        EndMark::Missing => Some("its end is not marked"),
    }
}

/// What tells whether an image's file was changed, and when it last was; none for what is no file.
fn image_state(image: &str) -> Option<(String, Timestamp)> {
    let file = std::fs::metadata(image).ok().filter(|m| m.is_file())?;
    let seconds = u64::try_from(file.mtime()).ok()?;
    let changed = seconds * 1_000_000_000 + u64::try_from(file.mtime_nsec()).ok()?;
    let state = format!("{}:{}:{}:{changed}", file.dev(), file.ino(), file.len());
    Some((state, Timestamp(changed)))
}

/// A name that was never used before.
fn new_epoch() -> ApiResult<String> {
    let uuid = libvirt_driver::takeover::new_uuid().map_err(from_libvirt)?;
    Ok(uuid.chars().filter(|c| *c != '-').collect())
}
