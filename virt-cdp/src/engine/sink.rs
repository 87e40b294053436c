//! The seam between the tap and the harbor: a volume's recorder as the tap's sink.

use std::sync::Arc;

use cdp_core::{IoBuf, Refused, VolumeRecorder, bounds};
use qemu_hook::sink::{Ack, KeptCall, SinkClosed, WriteSink};

use crate::engine::{errors::sentence, marking::LastWrite};

/// Hands one volume's writes to its recorder, and notes when the last one was.
pub struct RecorderSink {
    pub(crate) recorder: VolumeRecorder,
    pub(crate) last_write: Arc<LastWrite>,
}

impl RecorderSink {
    /// Makes the sink of a tap behind which nobody asks when the last write was.
    pub fn new(recorder: VolumeRecorder) -> RecorderSink {
        let last_write = Arc::default();
        RecorderSink {
            recorder,
            last_write,
        }
    }

    /// What the recorder says of a write, in the tap's words.
    fn taken(&self, outcome: Result<cdp_core::Ack, Refused>) -> Result<Ack, SinkClosed> {
        let ack = outcome.map_err(|refused| closed(&refused))?;
        self.last_write.touch();
        Ok(match ack {
            cdp_core::Ack::Now => Ack::Now,
            cdp_core::Ack::Durable(seq) => Ack::Later(seq.0),
        })
    }
}

fn closed(refused: &Refused) -> SinkClosed {
    SinkClosed(sentence(refused))
}

impl WriteSink for RecorderSink {
    type Buffer = IoBuf;

    const COPY_BELOW: usize = bounds::STAGED_BELOW;

    fn buffer(&self, len: usize) -> Result<IoBuf, SinkClosed> {
        self.recorder.buffer(len).map_err(|e| closed(&e))
    }

    fn has_room(&self, len: usize) -> bool {
        self.recorder.has_room(len)
    }

    fn write(&self, offset: u64, data: IoBuf) -> Result<Ack, SinkClosed> {
        self.taken(self.recorder.write(offset, data))
    }

    fn write_copy(&self, offset: u64, data: &[u8]) -> Result<Ack, SinkClosed> {
        self.taken(self.recorder.write_copy(offset, data))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<Ack, SinkClosed> {
        self.taken(self.recorder.zero(offset, len))
    }

    fn on_kept(&self, call: KeptCall) {
        self.recorder
            .on_durable(move |seq| call(seq.map(|seq| seq.0)));
    }
}
