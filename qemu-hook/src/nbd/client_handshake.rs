//! The client's half of the handshake: names the export, agrees on structured replies and contexts.
//!
//! Invariant: no reply of the server makes us hold more than [`bounds::OPTION_MAX`] bytes, and the whole
//! handshake is over at its deadline.

use std::io::{Read, Write};

use super::bounds;
use super::error::NbdError;
use super::proto::{flag, hello, info, magic, opt, rep};
use super::stream::{Deadline, Stream};
use super::wire::{Cursor, put_string};

const DOING: &str = "shaking hands with a server";

/// What the server told and agreed to.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Bytes.
    pub(crate) size: u64,
    /// The largest read, in bytes.
    pub(crate) request_max: u32,
    pub(crate) structured: bool,
    /// The meta contexts that were agreed on, by the server's ids.
    pub(crate) contexts: Vec<(u32, String)>,
}

/// Opens `export`, asking for the meta contexts `wanted`.
pub(crate) fn open<S: Stream>(
    stream: Deadline<'_, S>,
    export: &str,
    wanted: &[String],
) -> Result<Opened, NbdError> {
    let mut hands = Handshake { stream, export };
    hands.greet()?;
    let structured = hands.agree_on_structure()?;
    let contexts = if structured && !wanted.is_empty() {
        hands.agree_on_contexts(wanted)?
    } else {
        Vec::new()
    };
    let (size, request_max) = hands.go()?;
    Ok(Opened {
        size,
        request_max,
        structured,
        contexts,
    })
}

struct Handshake<'a, S> {
    stream: Deadline<'a, S>,
    export: &'a str,
}

/// One reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl<S: Stream> Handshake<'_, S> {
    fn greet(&mut self) -> Result<(), NbdError> {
        let mut greeting = [0; 18];
        self.fill(&mut greeting)?;
        let mut at = Cursor::new(&greeting, DOING);
        let (server, option, flags) = (at.u64()?, at.u64()?, at.u16()?);
        if server != magic::SERVER || option != magic::OPTION {
            let found = "a greeting that is not NBD's newstyle";
            return Err(NbdError::protocol(DOING, found));
        }
        if flags & hello::FIXED_NEWSTYLE == 0 {
            return Err(NbdError::protocol(DOING, "a server without fixed newstyle"));
        }
        let answer = flags & (hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
        self.send(&u32::from(answer).to_be_bytes())
    }

    fn agree_on_structure(&mut self) -> Result<bool, NbdError> {
        self.ask(opt::STRUCTURED_REPLY, &[])?;
        let reply = self.reply(opt::STRUCTURED_REPLY)?;
        Ok(reply.kind == rep::ACK)
    }

    fn agree_on_contexts(&mut self, wanted: &[String]) -> Result<Vec<(u32, String)>, NbdError> {
        let mut data = Vec::new();
        put_string(&mut data, self.export);
        data.extend_from_slice(&(wanted.len() as u32).to_be_bytes());
        for name in wanted {
            put_string(&mut data, name);
        }
        self.ask(opt::SET_META_CONTEXT, &data)?;
        let mut agreed = Vec::new();
        loop {
            let reply = self.reply(opt::SET_META_CONTEXT)?;
            match reply.kind {
                rep::ACK => return Ok(agreed),
                rep::META_CONTEXT if agreed.len() < wanted.len() => {
                    let mut at = Cursor::new(&reply.data, DOING);
                    let id = at.u32()?;
                    let name = String::from_utf8_lossy(at.remainder()).into_owned();
                    agreed.push((id, name));
                }
                // A server that knows no contexts at all still has data to read.
                rep::ERR_UNSUP => return Ok(agreed),
                _ => return Err(self.refusal("SET_META_CONTEXT", &reply)),
            }
        }
    }

    /// Ends the handshake; returns the size in bytes and the largest request in bytes.
    fn go(&mut self) -> Result<(u64, u32), NbdError> {
        // Block sizes are not asked for: a server that is asked may insist on an alignment.
        let mut data = Vec::new();
        put_string(&mut data, self.export);
        data.extend_from_slice(&0u16.to_be_bytes());
        self.ask(opt::GO, &data)?;
        let mut size = None;
        let mut request_max = bounds::REQUEST_MAX;
        loop {
            let reply = self.reply(opt::GO)?;
            match (reply.kind, size) {
                (rep::ACK, Some(size)) => return Ok((size, request_max)),
                (rep::INFO, _) => {
                    let mut at = Cursor::new(&reply.data, DOING);
                    match at.u16()? {
                        info::EXPORT => size = Some(parse_export(at)?),
                        info::BLOCK_SIZE => request_max = parse_request_max(at)?,
                        _ => {}
                    }
                }
                _ => return Err(self.refusal("GO", &reply)),
            }
        }
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> Result<(), NbdError> {
        let mut out = magic::OPTION.to_be_bytes().to_vec();
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.send(&out)
    }

    fn reply(&mut self, option: u32) -> Result<Reply, NbdError> {
        let mut head = [0; 20];
        self.fill(&mut head)?;
        let mut at = Cursor::new(&head, DOING);
        let (found, answered) = (at.u64()?, at.u32()?);
        let (kind, len) = (at.u32()?, at.u32()?);
        if found != magic::OPTION_REPLY || answered != option {
            let found = format!("a reply to option {answered} where {option} was asked");
            return Err(NbdError::protocol(DOING, found));
        }
        if len > bounds::OPTION_MAX {
            let found = format!("an option reply of {len} bytes");
            return Err(NbdError::protocol(DOING, found));
        }
        let mut data = vec![0; len as usize];
        self.fill(&mut data)?;
        Ok(Reply { kind, data })
    }

    fn refusal(&self, option: &'static str, reply: &Reply) -> NbdError {
        if reply.kind & rep::ERROR == 0 {
            let found = format!("reply {} to {option}", reply.kind);
            return NbdError::protocol(DOING, found);
        }
        let mut reason = rep::error_name(reply.kind).to_owned();
        if !reply.data.is_empty() {
            reason.push_str(": ");
            reason.push_str(&String::from_utf8_lossy(&reply.data));
        }
        NbdError::Refused {
            option,
            export: self.export.to_owned(),
            reason,
        }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), NbdError> {
        self.stream.read_exact(buf).map_err(NbdError::io(DOING))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        self.stream.write_all(bytes).map_err(NbdError::io(DOING))
    }
}

fn parse_export(mut at: Cursor<'_>) -> Result<u64, NbdError> {
    let (size, flags) = (at.u64()?, at.u16()?);
    at.end()?;
    if flags & flag::HAS_FLAGS == 0 || i64::try_from(size).is_err() {
        let found = format!("an export of {size} bytes with flags {flags:#x}");
        return Err(NbdError::protocol(DOING, found));
    }
    Ok(size)
}

fn parse_request_max(mut at: Cursor<'_>) -> Result<u32, NbdError> {
    let (_min, preferred, max) = (at.u32()?, at.u32()?, at.u32()?);
    at.end()?;
    if max == 0 || max < preferred {
        let found = format!("a largest block of {max} bytes");
        return Err(NbdError::protocol(DOING, found));
    }
    Ok(max.min(bounds::REQUEST_MAX))
}
