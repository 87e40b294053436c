//! The seam between the tap and the harbor: a volume's recorder as the tap's sink.

use cdp_core::{IoBuf, VolumeRecorder};
use qemu_hook::sink::{SinkClosed, WriteSink};

use crate::engine::errors::sentence;

/// Hands one volume's writes to its recorder.
pub(crate) struct RecorderSink(pub(crate) VolumeRecorder);

impl WriteSink for RecorderSink {
    type Buffer = IoBuf;

    fn buffer(&self, len: usize) -> Result<IoBuf, SinkClosed> {
        self.0.buffer(len).map_err(|e| SinkClosed(sentence(&e)))
    }

    fn write(&self, offset: u64, data: IoBuf) -> Result<(), SinkClosed> {
        self.0
            .write(offset, data)
            .map(|_| ())
            .map_err(|e| SinkClosed(sentence(&e)))
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), SinkClosed> {
        self.0
            .zero(offset, len)
            .map(|_| ())
            .map_err(|e| SinkClosed(sentence(&e)))
    }
}
