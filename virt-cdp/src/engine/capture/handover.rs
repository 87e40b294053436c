//! A capture changes hands: the taps are parked, the recording is sealed, and the daemon's successor goes on with both.
//!
//! Invariant: the successor's recording begins where this one ended, or it does not take the taps.

use std::{sync::Arc, time::Instant};

use cdp_core::Harbor;
use qemu_hook::attach::{Attachment, Names};

use super::{Capture, PARK_DEADLINE, Tapped, from_attach};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    engine::{
        errors::{from_harbor, sentence},
        marking::{LastWrite, Marking},
        reading::ReadProgress,
        sink::RecorderSink,
        source::Source,
        upkeep::Confirmed,
        watch::{Disks, Inherited, Legacy, TapWatch},
    },
};

impl Capture {
    /// Parks all taps and leaves them, with the recording sealed, to a successor; false when that failed, and
    /// then the taps are closed.
    pub(crate) fn bequeath(mut self, run: &str, confirmed: Confirmed, seen: &Disks) -> bool {
        self.stop_reader();
        // What can be written before the guest has to wait is written before.
        let synced = self.recorder.sync();
        let give_up = Instant::now() + PARK_DEADLINE;
        self.taps.iter().for_each(|t| t.tap.park());
        let volumes = self.volumes();
        let mut parked = synced.is_ok();
        let mut left = Vec::new();
        for Tapped { id, tap, held } in self.taps.drain(..) {
            let node = tap.node.clone();
            parked &= tap.parked(give_up);
            left.push((id, node, held));
        }
        let closed = self.recorder.close();
        if let Err(error) = &closed {
            let error = sentence(error);
            tracing::warn!(error, "the recording was not closed in good order");
        }
        let head = self.recorder.head();
        parked
            && closed.is_ok()
            && left.into_iter().all(|(_, node, held)| {
                let legacy = Legacy::new(run, &volumes, head, confirmed, seen, &node);
                serde_json::to_string(&legacy)
                    .map_err(std::io::Error::from)
                    .and_then(|legacy| held.bequeath(legacy))
                    .is_ok()
            })
    }

    /// Goes on with the taps that an earlier daemon has parked: the guest, who may be waiting, comes first.
    pub(crate) fn inherit(
        harbor: &Harbor,
        inherited: Vec<Inherited>,
        source: &dyn Source,
        tag: &str,
        watch: &TapWatch,
    ) -> ApiResult<Self> {
        let recorder = harbor.record().map_err(from_harbor)?;
        let machine = harbor.description().machine_id;
        let (mut taps, mut nodes) = (Vec::new(), Vec::new());
        let mut resume = |left: Inherited| -> ApiResult<()> {
            let (id, node) = (left.volume, left.legacy.node());
            let last_write = Arc::<LastWrite>::default();
            nodes.push((id, node.clone(), Arc::clone(&last_write)));
            let sink = RecorderSink {
                recorder: recorder.volume(id).map_err(from_harbor)?,
                last_write,
            };
            let name = node.name.clone();
            let failed = |what: String| ApiError::new(ApiErrorKind::Internal, what);
            let tap = Attachment::resume(node, Names::new(tag, id.0), left.socket, sink)
                .map_err(|e| from_attach(&e, &name))?;
            let held = watch
                .hold(&machine, id, tap.tap())
                .map_err(|e| failed(format!("cannot have the tap watched: {e}")));
            match held {
                Ok(held) => taps.push(Tapped { id, tap, held }),
                Err(e) => {
                    tap.abandon();
                    return Err(e);
                }
            }
            Ok(())
        };
        let resumed = inherited.into_iter().try_for_each(&mut resume);
        let monitor = resumed.and_then(|()| source.monitor());
        let inherited = monitor.and_then(|monitor| {
            let marking = Marking::inherit(Arc::clone(&monitor), harbor.clone(), tag, nodes)?;
            Ok((monitor, Arc::new(marking)))
        });
        let (monitor, marking) = match inherited {
            Ok(both) => both,
            Err(e) => {
                for Tapped { tap, held, .. } in taps {
                    tap.abandon();
                    drop(held);
                }
                let _ = recorder.close();
                return Err(e);
            }
        };
        Ok(Self {
            recorder,
            monitor,
            taps,
            marking,
            doubts: Vec::new(),
            reader: None,
            progress: Arc::new(ReadProgress::default()),
        })
    }
}
