//! What a capture needs done now and then through the monitor or libvirt, off the supervisor's thread.
//!
//! Both may be slow to answer; points must not wait for them. Each second the machine's definition is
//! looked at (later points carry it), at the bitmap interval the bitmaps are rotated.

use std::{
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use cdp_core::Harbor;

use crate::engine::{capture::Rotation, source::Source};

/// How often the definition is looked at.
const DEFINITION_INTERVAL: Duration = Duration::from_secs(1);

/// The running upkeep of one capture; dropped, it ends.
pub(crate) struct Upkeep {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Starts the upkeep.
    pub(crate) fn start(
        source: Arc<dyn Source>,
        harbor: Harbor,
        rotation: Rotation,
        bitmap_interval: Duration,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || {
                let mut rotate_at = Instant::now() + bitmap_interval;
                while let Err(mpsc::RecvTimeoutError::Timeout) =
                    stopped.recv_timeout(DEFINITION_INTERVAL)
                {
                    keep_definition(&*source, &harbor);
                    if Instant::now() >= rotate_at {
                        if let Err(error) = rotation.rotate() {
                            tracing::warn!(%error, "the bitmaps were not rotated");
                        }
                        rotate_at = Instant::now() + bitmap_interval;
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// Keeps the machine's definition in the harbor as it is now, where there is one.
pub(crate) fn keep_definition(source: &dyn Source, harbor: &Harbor) {
    match source.definition() {
        Ok(Some(xml)) => {
            if let Err(error) = harbor.record_xml(&xml) {
                tracing::warn!(%error, "the domain XML was not kept");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "the domain XML cannot be read now"),
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
