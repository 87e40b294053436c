//! What comes to a tap: a client's handshake, and its requests.
//!
//! Held against: what the sink took lies within the volume; as many writes were answered as it took,
//! or one less where the connection ended in between.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qemu_hook::sink::{Ack, SinkClosed, WriteSink};
use qemu_hook::tap::{TapConfig, TapEnd, spawn_tap};

const SIZE: u64 = 8 << 20;
/// What the socket takes before anybody reads.
const INPUT_MAX: usize = 48 << 10;
/// A handshake that is good: flags, and the export by its name.
const HANDSHAKE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vda";

/// Counts the bytes of what it takes, and forgets them.
#[derive(Clone, Default)]
struct Counting(Arc<Mutex<u64>>);

impl Counting {
    fn take(&self, offset: u64, len: u64) {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= SIZE), "{len} at {offset}");
        *self.0.lock().expect("nobody panics with it") += 1;
    }
}

impl WriteSink for Counting {
    type Buffer = Vec<u8>;

    const COPY_BELOW: usize = 4096;

    fn buffer(&self, len: usize) -> Result<Vec<u8>, SinkClosed> {
        assert!(len as u64 <= SIZE, "memory for a write beyond the volume");
        Ok(vec![0; len])
    }

    fn write(&self, offset: u64, data: Vec<u8>) -> Result<Ack, SinkClosed> {
        self.take(offset, data.len() as u64);
        Ok(Ack::Now)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<Ack, SinkClosed> {
        self.take(offset, len);
        Ok(Ack::Now)
    }
}

/// Everything a client says, from its first byte.
pub(crate) fn handshake(input: &[u8]) {
    serve(&[input]);
}

/// What a client says after a good handshake.
pub(crate) fn requests(input: &[u8]) {
    let (answers, taken) = serve(&[HANDSHAKE, input]);
    // The greeting, then size and flags, then nothing but answers.
    let answers = answers.get(28..).unwrap_or_default();
    assert!(answers.len().is_multiple_of(16), "half an answer");
    for answer in answers.chunks(16) {
        assert_eq!(answer[..4], [0x67, 0x44, 0x66, 0x98]);
    }
    // Each request is 28 bytes at least; a write that was taken and not answered ends the tap.
    assert!(taken <= input.len() as u64 / 28);
    assert!(
        taken <= answers.len() as u64 / 16 + 1,
        "taken, not answered"
    );
}

fn serve(input: &[&[u8]]) -> (Vec<u8>, u64) {
    let (mut client, ours) = UnixStream::pair().expect("a pair of sockets");
    let mut left = INPUT_MAX;
    for part in input {
        let part = &part[..part.len().min(left)];
        left -= part.len();
        client.write_all(part).expect("room in the socket");
    }
    client
        .shutdown(Shutdown::Write)
        .expect("a socket that is connected");
    let sink = Counting::default();
    let mut config = TapConfig::new("vda", SIZE);
    config.handshake_deadline = Duration::from_secs(5);
    let tap = spawn_tap(ours, config, sink.clone()).expect("a thread");
    let mut answers = Vec::new();
    // An end in the middle is an end, too.
    let _ = client.read_to_end(&mut answers);
    if let TapEnd::Io(error) = tap.join() {
        panic!("{error}");
    }
    let taken = *sink.0.lock().expect("nobody panics with it");
    (answers, taken)
}
