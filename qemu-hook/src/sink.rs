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

/// Takes one volume's writes, in the order in which they are received.
///
/// A write is numbered by the call of [`write`](Self::write) or [`zero`](Self::zero); when the call
/// returns, the write may be acknowledged to the guest.
pub trait WriteSink: Send + 'static {
    /// Memory into which a payload is read from the socket; kept without another copy.
    type Buffer: AsMut<[u8]> + Send;

    /// Returns memory for exactly `len` bytes, waiting until there is room (back-pressure).
    ///
    /// # Errors
    /// [`SinkClosed`] when nothing is taken any more.
    fn buffer(&self, len: usize) -> Result<Self::Buffer, SinkClosed>;

    /// Takes a write of the whole `data` at byte `offset`.
    ///
    /// # Errors
    /// [`SinkClosed`] when nothing is taken any more; the write was not taken.
    fn write(&self, offset: u64, data: Self::Buffer) -> Result<(), SinkClosed>;

    /// Takes a write of `len` zero bytes at byte `offset`.
    ///
    /// # Errors
    /// [`SinkClosed`] when nothing is taken any more; the write was not taken.
    fn zero(&self, offset: u64, len: u64) -> Result<(), SinkClosed>;
}
