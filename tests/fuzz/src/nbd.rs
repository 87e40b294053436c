//! What comes to the server of views, and what comes to the client that reads QEMU's disks.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qemu_hook::nbd::server::serve_stream;
use qemu_hook::nbd::stream::Stream;
use qemu_hook::nbd::{ConnectOptions, Export, Exports, Extent, ExtentKind, NbdClient, Piece};

/// Bytes of the exports, on either side.
const SIZE: u64 = 300 * 1024 + 7;
/// Bytes of answers behind which a client goes away.
const ANSWERS_MAX: usize = 32 << 20;
const INPUT_MAX: usize = 64 << 10;
/// Good beginnings of a client: flags, then structured replies, contexts and the export, or its name.
const STRUCTURED: &[u8] = b"\0\0\0\x03\
    IHAVEOPT\0\0\0\x08\0\0\0\0\
    IHAVEOPT\0\0\0\x0a\0\0\0\x1e\0\0\0\x03vda\0\0\0\x01\0\0\0\x0fbase:allocation\
    IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vda\0\0";
const SIMPLE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vda";

/// A device whose byte n is n, with a hole.
#[derive(Debug)]
struct Device;

impl Export for Device {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= SIZE, "read beyond the end");
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = if is_hole(at) { 0 } else { at as u8 };
        }
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, _: usize) -> io::Result<Vec<Extent>> {
        assert!(offset + len <= SIZE, "asked beyond the end");
        let mut extents: Vec<Extent> = Vec::new();
        for at in (offset..offset + len).step_by(512) {
            let len = (offset + len - at).min(512);
            let kind = if is_hole(at) && is_hole(at + len - 1) {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.len += len,
                _ => extents.push(Extent { len, kind }),
            }
        }
        Ok(extents)
    }
}

fn is_hole(at: u64) -> bool {
    (64 * 1024..128 * 1024).contains(&at)
}

/// A client that has said everything already.
struct Said<'a> {
    left: &'a [u8],
    answers: Arc<Mutex<Vec<u8>>>,
}

impl Read for Said<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.left.read(buf)
    }
}

impl Write for Said<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut answers = self.answers.lock().expect("nobody panics with it");
        if answers.len() > ANSWERS_MAX {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        answers.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Said<'_> {
    fn set_timeouts(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shut(&self) -> io::Result<()> {
        Ok(())
    }

    fn second(&self) -> io::Result<Self> {
        Ok(Said {
            left: self.left,
            answers: Arc::clone(&self.answers),
        })
    }
}

fn serve(said: &[u8]) -> Vec<u8> {
    let mut exports = Exports::default();
    exports
        .insert("vda", "a disk", Arc::new(Device))
        .expect("a name that is good");
    let answers = Arc::default();
    let mut client = Said {
        left: said,
        answers: Arc::clone(&answers),
    };
    // How it ends is the client's affair.
    let _ = serve_stream(&mut client, &exports);
    let mut answers = answers.lock().expect("nobody panics with it");
    std::mem::take(&mut *answers)
}

/// Everything a client says to the server of views, from its first byte.
pub(crate) fn view_handshake(input: &[u8]) {
    serve(&input[..input.len().min(INPUT_MAX)]);
}

/// What a client says after a good handshake; the first byte chooses which.
pub(crate) fn view_requests(input: &[u8]) {
    let Some((choice, requests)) = input.split_first() else {
        return;
    };
    let requests = &requests[..requests.len().min(INPUT_MAX)];
    let (hello, is_structured) = if choice % 2 == 0 {
        (STRUCTURED, true)
    } else {
        (SIMPLE, false)
    };
    let greeted = serve(hello).len();
    let answers = serve(&[hello, requests].concat());
    // Simple answers do not say how long they are.
    if is_structured && answers.len() <= ANSWERS_MAX {
        check_answers(&answers[greeted..], requests);
    }
}

/// Every answer is whole, to a request that there was, and has the bytes of the device.
fn check_answers(mut answers: &[u8], requests: &[u8]) {
    let asked = |cookie: &[u8]| requests.windows(8).any(|window| window == cookie);
    while !answers.is_empty() {
        let kind = be(answers, 0, 4);
        if kind == 0x668e_33ef {
            let (chunk, len) = (be(answers, 6, 2), be(answers, 16, 4) as usize);
            assert!(asked(&answers[8..16]), "an answer to nobody");
            let payload = &answers[20..20 + len];
            if chunk == 1 {
                check_bytes(&payload[8..], be(payload, 0, 8));
            }
            answers = &answers[20 + len..];
            continue;
        }
        assert_eq!(kind, 0x6744_6698, "what is this?");
        assert!(asked(&answers[8..16]), "an answer to nobody");
        answers = &answers[16..];
    }
}

fn check_bytes(bytes: &[u8], offset: u64) {
    let expected = |at: u64| if is_hole(at) { 0 } else { at as u8 };
    assert!(
        bytes
            .iter()
            .zip(offset..)
            .all(|(byte, at)| *byte == expected(at))
    );
}

fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Everything a server says to the client, which asks for what it asks for in a resync.
pub(crate) fn client(input: &[u8]) {
    let (ours, mut server) = UnixStream::pair().expect("a pair of sockets");
    let input = &input[..input.len().min(INPUT_MAX)];
    server.write_all(input).expect("room in the socket");
    server
        .shutdown(Shutdown::Write)
        .expect("a socket that is connected");
    let options = ConnectOptions {
        contexts: vec!["base:allocation".into(), "qemu:dirty-bitmap:b".into()],
        timeout: Duration::from_secs(5),
        handshake_deadline: Duration::from_secs(5),
    };
    let Ok(mut client) = NbdClient::connect_with(ours, "vda", &options) else {
        return;
    };
    let end = client.size().min(SIZE);
    for context in ["base:allocation", "qemu:dirty-bitmap:b"] {
        if let Ok(extents) = client.context_extents(context, 0, end) {
            assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), end);
        }
    }
    let mut seen = vec![false; end as usize];
    let mut take = |offset: u64, piece: Piece<'_>| -> Result<(), Infallible> {
        let len = match piece {
            Piece::Data(data) => data.len(),
            Piece::Zero(len) => len as usize,
        };
        for byte in &mut seen[offset as usize..offset as usize + len] {
            assert!(!std::mem::replace(byte, true), "a byte twice");
        }
        Ok(())
    };
    let ranges = [0..end / 3, end / 2..end];
    if client.read_ranges(&ranges, 64 << 10, 4, &mut take).is_ok() {
        let all =
            (0..end).all(|at| seen[at as usize] == ranges.iter().any(|range| range.contains(&at)));
        assert!(all, "an answer with bytes missing");
    }
    client.disconnect();
}
