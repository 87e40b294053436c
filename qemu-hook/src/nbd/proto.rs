//! The NBD protocol's numbers and fixed structures, in the order of a connection.
//!
//! All numbers are big-endian on the wire. A structure is encoded to, and decoded from, an array
//! of exactly its size, so nothing here can run past an end. Source: the NBD project's `proto.md`.

use super::error::NbdError;
use super::wire::Cursor;

/// Magic numbers: what comes next.
pub(crate) mod magic {
    pub(crate) const SERVER: u64 = 0x4e42_444d_4147_4943;
    pub(crate) const OPTION: u64 = 0x4948_4156_454f_5054;
    pub(crate) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    pub(crate) const REQUEST: u32 = 0x2560_9513;
    pub(crate) const SIMPLE: u32 = 0x6744_6698;
    pub(crate) const STRUCTURED: u32 = 0x668e_33ef;
}

/// Handshake flags; the client answers with the same bits, 32 wide.
pub(crate) mod hello {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1;
    pub(crate) const NO_ZEROES: u16 = 2;
}

/// Options of the handshake.
pub(crate) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options; errors have the top bit set.
pub(crate) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR | 1;
    pub(crate) const ERR_INVALID: u32 = ERROR | 3;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR | 6;

    /// The name of an error reply.
    pub(crate) fn error_name(code: u32) -> &'static str {
        match code & !ERROR {
            1 => "not supported",
            2 => "forbidden by the server's policy",
            3 => "invalid",
            4 => "not supported on the server's platform",
            5 => "TLS is required",
            6 => "no such export",
            7 => "the server is shutting down",
            8 => "block size must be negotiated",
            9 => "too big",
            _ => "unknown error",
        }
    }
}

/// Kinds of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub(crate) mod flag {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
}

/// Commands, and the flags a command can carry.
pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;

    pub(crate) const FLAG_FUA: u16 = 1;
    pub(crate) const FLAG_NO_HOLE: u16 = 1 << 1;
    pub(crate) const FLAG_DF: u16 = 1 << 2;
    pub(crate) const FLAG_REQ_ONE: u16 = 1 << 3;
}

/// Error numbers on the wire.
pub(crate) mod errno {
    pub(crate) const EPERM: u32 = 1;
    pub(crate) const EIO: u32 = 5;
    pub(crate) const EINVAL: u32 = 22;
    pub(crate) const EOVERFLOW: u32 = 75;
    pub(crate) const ENOTSUP: u32 = 95;
}

/// Structured reply chunks.
pub(crate) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    /// Set in the type of every chunk that is an error.
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = ERROR_BIT | 1;
}

/// The meta context of allocation, and its extents' flags.
pub(crate) mod allocation {
    pub(crate) const NAME: &str = "base:allocation";
    pub(crate) const NAMESPACE: &str = "base:";
    pub(crate) const HOLE: u32 = 1;
    pub(crate) const ZERO: u32 = 2;
    /// The id under which our server knows the context.
    pub(crate) const ID: u32 = 1;
}

/// One request of the transmission phase; a write's payload follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    pub(crate) const SIZE: usize = 28;

    pub(crate) fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, NbdError> {
        let mut at = Cursor::new(bytes, "reading a request");
        let found = at.u32()?;
        if found != magic::REQUEST {
            let found = format!("magic {found:#010x}");
            return Err(NbdError::protocol("reading a request", found));
        }
        Ok(Self {
            flags: at.u16()?,
            command: at.u16()?,
            cookie: at.u64()?,
            offset: at.u64()?,
            len: at.u32()?,
        })
    }

    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&magic::REQUEST.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
    }

    /// Tells whether the request lies within a device of `size` bytes.
    pub(crate) fn is_within(&self, size: u64) -> bool {
        self.offset
            .checked_add(u64::from(self.len))
            .is_some_and(|end| end <= size)
    }
}

/// A reply without structure: an error number, and for a successful read its data after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SimpleReply {
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

impl SimpleReply {
    pub(crate) const SIZE: usize = 16;

    pub(crate) fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        let (magic, rest) = out.split_at_mut(4);
        let (error, cookie) = rest.split_at_mut(4);
        magic.copy_from_slice(&magic::SIMPLE.to_be_bytes());
        error.copy_from_slice(&self.error.to_be_bytes());
        cookie.copy_from_slice(&self.cookie.to_be_bytes());
        out
    }
}

/// The head of one chunk of a structured reply; `len` bytes of payload follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkHead {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) len: u32,
}

impl ChunkHead {
    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&magic::STRUCTURED.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
    }

    pub(crate) fn is_done(&self) -> bool {
        self.flags & chunk::FLAG_DONE != 0
    }

    pub(crate) fn is_error(&self) -> bool {
        self.kind & chunk::ERROR_BIT != 0
    }
}

/// The head of a reply of either shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyHead {
    Simple(SimpleReply),
    Chunk(ChunkHead),
}

impl ReplyHead {
    /// Both shapes begin with this many bytes; a chunk has 4 more.
    pub(crate) const COMMON: usize = SimpleReply::SIZE;

    /// Decodes a head; `more` gives the 4 further bytes of a chunk.
    pub(crate) fn decode(
        common: &[u8; Self::COMMON],
        more: impl FnOnce() -> Result<[u8; 4], NbdError>,
    ) -> Result<Self, NbdError> {
        let mut at = Cursor::new(common, "reading a reply");
        match at.u32()? {
            magic::SIMPLE => Ok(Self::Simple(SimpleReply {
                error: at.u32()?,
                cookie: at.u64()?,
            })),
            magic::STRUCTURED => Ok(Self::Chunk(ChunkHead {
                flags: at.u16()?,
                kind: at.u16()?,
                cookie: at.u64()?,
                len: u32::from_be_bytes(more()?),
            })),
            found => {
                let found = format!("magic {found:#010x}");
                Err(NbdError::protocol("reading a reply", found))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_28_bytes_and_comes_back() {
        let request = Request {
            flags: cmd::FLAG_FUA,
            command: cmd::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 1 << 40,
            len: 4096,
        };
        let mut bytes = Vec::new();
        request.encode_to(&mut bytes);
        let bytes: [u8; Request::SIZE] = bytes.try_into().unwrap();
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]);
        assert_eq!(Request::decode(&bytes).unwrap(), request);
        assert!(Request::decode(&[0; Request::SIZE]).is_err());
    }

    #[test]
    fn a_request_at_the_end_of_the_numbers_is_outside() {
        let mut request = Request {
            flags: 0,
            command: cmd::READ,
            cookie: 0,
            offset: u64::MAX,
            len: 1,
        };
        assert!(!request.is_within(u64::MAX));
        request.offset = 100;
        assert!(request.is_within(101) && !request.is_within(100));
    }

    #[test]
    fn replies_of_both_shapes_come_back() {
        let simple = SimpleReply {
            error: errno::EIO,
            cookie: 77,
        };
        let found = ReplyHead::decode(&simple.encode(), || panic!("no more bytes are needed"));
        assert_eq!(found.unwrap(), ReplyHead::Simple(simple));

        let head = ChunkHead {
            flags: chunk::FLAG_DONE,
            kind: chunk::OFFSET_HOLE,
            cookie: 78,
            len: 12,
        };
        let mut bytes = Vec::new();
        head.encode_to(&mut bytes);
        let (common, more) = bytes.split_at(ReplyHead::COMMON);
        let more = more.try_into().unwrap();
        let found = ReplyHead::decode(common.try_into().unwrap(), || Ok(more)).unwrap();
        assert_eq!(found, ReplyHead::Chunk(head));
        assert!(ReplyHead::decode(&[9; 16], || Ok([0; 4])).is_err());
    }
}
