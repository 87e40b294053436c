//! The seam between the tap and the harbor: a volume's recorder as the tap's sink.

use std::sync::Arc;

use cdp_core::{IoBuf, VolumeRecorder};
use qemu_hook::sink::{SinkClosed, WriteSink};

use crate::engine::{errors::sentence, marking::LastWrite};

/// Hands one volume's writes to its recorder, and notes when the last one was.
pub(crate) struct RecorderSink {
    pub(crate) recorder: VolumeRecorder,
    pub(crate) last_write: Arc<LastWrite>,
}

impl WriteSink for RecorderSink {
    type Buffer = IoBuf;

    fn buffer(&self, len: usize) -> Result<IoBuf, SinkClosed> {
        self.recorder
            .buffer(len)
            .map_err(|e| SinkClosed(sentence(&e)))
    }

    fn write(&self, offset: u64, data: IoBuf) -> Result<(), SinkClosed> {
        self.recorder
            .write(offset, data)
            .map(|_| self.last_write.touch())
            .map_err(|e| SinkClosed(sentence(&e)))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), SinkClosed> {
        self.recorder
            .zero(offset, len)
            .map(|_| self.last_write.touch())
            .map_err(|e| SinkClosed(sentence(&e)))
    }
}
