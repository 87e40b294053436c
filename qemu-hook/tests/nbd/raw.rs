//! A client that speaks NBD byte by byte, with numbers written down here on their own: it checks
//! our wire structures, and it can lie.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const GO: u32 = 7;
pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;

pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let timeout = Some(Duration::from_secs(20));
        stream.set_read_timeout(timeout).unwrap();
        stream.set_write_timeout(timeout).unwrap();
        Self(stream)
    }

    pub(crate) fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    /// Connects, greets, and opens the export with `GO`, without structured replies.
    pub(crate) fn open(stream: UnixStream, name: &str) -> Self {
        let mut raw = Self::new(stream);
        raw.greet();
        raw.option(GO, &go_data(name));
        loop {
            match raw.reply(GO).0 {
                1 => return raw,
                3 => {}
                other => panic!("GO was answered with {other:#x}"),
            }
        }
    }

    pub(crate) fn greet(&mut self) {
        let greeting = self.take(18);
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
        self.send(&3u32.to_be_bytes());
    }

    pub(crate) fn option(&mut self, option: u32, data: &[u8]) {
        let mut out = b"IHAVEOPT".to_vec();
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.send(&out);
    }

    /// One reply to an option: its kind and data.
    pub(crate) fn reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], 0x3e889045565a9u64.to_be_bytes());
        assert_eq!(head[8..12], option.to_be_bytes());
        let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(head[16..20].try_into().unwrap());
        (kind, self.take(len as usize))
    }

    pub(crate) fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        let mut out = 0x25609513u32.to_be_bytes().to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&command.to_be_bytes());
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        self.send(&out);
    }

    /// The error number of a simple reply.
    pub(crate) fn simple(&mut self, cookie: u64) -> u32 {
        let head = self.take(16);
        assert_eq!(head[..4], 0x67446698u32.to_be_bytes());
        assert_eq!(head[8..], cookie.to_be_bytes());
        u32::from_be_bytes(head[4..8].try_into().unwrap())
    }

    /// One chunk of a structured reply: whether it is the last, its type, its payload.
    pub(crate) fn chunk(&mut self, cookie: u64) -> (bool, u16, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..4], 0x668e33efu32.to_be_bytes());
        assert_eq!(head[8..16], cookie.to_be_bytes());
        let kind = u16::from_be_bytes([head[6], head[7]]);
        let len = u32::from_be_bytes(head[16..].try_into().unwrap());
        (head[5] & 1 != 0, kind, self.take(len as usize))
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.0.read_exact(&mut buf).unwrap();
        buf
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Waits for the other end to hang up; whatever else it sends is dropped.
    pub(crate) fn expect_end(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the other end did not hang up: {error}"),
        }
    }
}

/// A string with its length before it.
pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

pub(crate) fn go_data(name: &str) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&[0, 0]);
    out
}

pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        out.extend_from_slice(&string(query));
    }
    out
}
