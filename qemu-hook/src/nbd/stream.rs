//! The sockets NBD runs over, and the few ways in which they are read and written.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A connected socket.
pub trait Stream: Read + Write + Send {
    /// Bounds every single read and write; `None` waits for ever.
    ///
    /// # Errors
    /// What the system says; a zero duration is refused.
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Ends both directions at once; a thread that waits on the socket wakes up.
    ///
    /// # Errors
    /// What the system says, for example that the socket is not connected any more.
    fn shut(&self) -> io::Result<()>;

    /// Returns another handle on the same connection, for another thread.
    ///
    /// # Errors
    /// What the system says.
    fn second(&self) -> io::Result<Self>
    where
        Self: Sized;
}

impl Stream for UnixStream {
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)?;
        self.set_write_timeout(timeout)
    }

    fn shut(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Both)
    }

    fn second(&self) -> io::Result<Self> {
        self.try_clone()
    }
}

impl Stream for TcpStream {
    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)?;
        self.set_write_timeout(timeout)
    }

    fn shut(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Both)
    }

    fn second(&self) -> io::Result<Self> {
        self.try_clone()
    }
}

/// A stream whose every read and write must be over at one moment, however little comes at a time.
pub(crate) struct Deadline<'a, S> {
    stream: &'a mut S,
    at: Instant,
}

impl<'a, S: Stream> Deadline<'a, S> {
    pub(crate) fn new(stream: &'a mut S, at: Instant) -> Self {
        Self { stream, at }
    }

    fn arm(&self) -> io::Result<()> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream
            .set_timeouts(Some(left.max(Duration::from_millis(1))))
    }
}

impl<S: Stream> Read for Deadline<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        self.stream.read(buf)
    }
}

impl<S: Stream> Write for Deadline<'_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.arm()?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Fills `buf`; false when the stream had ended before its first byte.
pub(crate) fn read_full_or_end(stream: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    let first = loop {
        match stream.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    match buf.get_mut(first..) {
        _ if first == 0 => Ok(false),
        Some(rest) => stream.read_exact(rest).map(|()| true),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Reads `len` bytes and drops them.
pub(crate) fn drain(stream: &mut impl Read, len: u64) -> io::Result<()> {
    let dropped = io::copy(&mut stream.take(len), &mut io::sink())?;
    if dropped < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most three bytes at a time.
    struct Narrow(Vec<u8>);

    impl Read for Narrow {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = buf.len().min(3).min(self.0.len());
            buf[..len].copy_from_slice(&self.0[..len]);
            self.0.drain(..len);
            Ok(len)
        }
    }

    #[test]
    fn narrow_streams_are_filled() {
        let mut out = Narrow(b"0123456789".to_vec());
        let mut buf = [0; 4];
        assert!(read_full_or_end(&mut out, &mut buf).unwrap());
        assert_eq!(&buf, b"0123");
        drain(&mut out, 6).unwrap();
        assert!(!read_full_or_end(&mut out, &mut buf).unwrap());
        assert!(drain(&mut out, 1).is_err());
    }

    #[test]
    fn a_trickle_does_not_outlast_the_deadline() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let trickle = std::thread::spawn(move || {
            for _ in 0..40 {
                if theirs.write_all(b"x").is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let started = Instant::now();
        let mut bounded = Deadline::new(&mut ours, started + Duration::from_millis(100));
        let failed = bounded.read_exact(&mut [0; 4096]).unwrap_err();
        assert!(matches!(
            failed.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
        ));
        assert!(started.elapsed() < Duration::from_millis(300));
        drop(ours);
        trickle.join().unwrap();
    }
}
