//! Where captured writes go: the seam between the tap and whoever keeps the data.

use std::fmt;

/// The keeper of the data takes no more writes; the tap is to be closed, the guest goes on.
#[derive(Debug, Clone)]
pub struct SinkClosed(pub String);

impl fmt::Display for SinkClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no more writes are taken: {}", self.0)
    }
}

impl std::error::Error for SinkClosed {}

/// Tells when a write that was taken may be acknowledged to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// At once.
    Now,
    /// When the sink says that everything up to this number is kept ([`WriteSink::on_kept`]). Numbers rise from one write
    /// to the next.
    Later(u64),
}

/// Called with the number up to which everything is kept, or none when nothing further ever will be; false when it is
/// not to be called any more.
pub type KeptCall = Box<dyn Fn(Option<u64>) -> bool + Send>;

/// Takes one volume's writes, in the order in which they are received.
///
/// A write is numbered by the call of [`write`](Self::write), [`write_copy`](Self::write_copy) or
/// [`zero`](Self::zero); the answer says when it may be acknowledged to the guest.
pub trait WriteSink: Send + 'static {
    /// Memory into which a payload is read from the socket; kept without another copy.
    type Buffer: AsMut<[u8]> + Send;

    /// Payloads shorter than this many bytes are given to [`write_copy`](Self::write_copy).
    const COPY_BELOW: usize = 0;

    /// Returns memory for exactly `len` bytes, waiting until there is room (back-pressure).
    ///
    /// # Errors
    /// [`SinkClosed`] when nothing is taken any more.
    fn buffer(&self, len: usize) -> Result<Self::Buffer, SinkClosed>;

    /// Tells whether a write of `len` bytes would be taken without waiting for room.
    fn has_room(&self, len: usize) -> bool {
        let _ = len;
        true
    }

    /// Takes a write of the whole `data` at byte `offset`.
    ///
    /// # Errors
    /// [`SinkClosed`] when nothing is taken any more; the write was not taken.
    fn write(&self, offset: u64, data: Self::Buffer) -> Result<Ack, SinkClosed>;

    /// Takes a write of a few bytes, which the sink copies, waiting until there is room.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer) and [`write`](Self::write).
    fn write_copy(&self, offset: u64, data: &[u8]) -> Result<Ack, SinkClosed> {
        let mut buffer = self.buffer(data.len())?;
        buffer.as_mut().copy_from_slice(data);
        self.write(offset, buffer)
    }

    /// Takes a write of `len` zero bytes at byte `offset`.
    ///
    /// # Errors
    /// [`SinkClosed`] when nothing is taken any more; the write was not taken.
    fn zero(&self, offset: u64, len: u64) -> Result<Ack, SinkClosed>;

    /// Has `call` called whenever more is kept; it may be called from any thread, and does not wait. A sink whose answer
    /// always is [`Ack::Now`] need not.
    fn on_kept(&self, call: KeptCall) {
        drop(call);
    }
}
