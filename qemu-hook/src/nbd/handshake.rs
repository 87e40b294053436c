//! The server's half of the handshake, from the first byte to the first request.
//!
//! Fixed newstyle only. The client sends options, each is answered, until one of them (`GO`,
//! `EXPORT_NAME`) names the export or `ABORT` ends it. Both the view server and the tap come
//! through here; what they offer is behind [`Catalogue`].
//!
//! Invariant: an option's data is at most [`bounds::OPTION_MAX`] long and is read whole before it is
//! looked at, so an option that is refused leaves the connection in step.

use std::io::{Read, Write};
use std::time::Instant;

use super::bounds;
use super::error::NbdError;
use super::proto::{allocation, flag, hello, info, magic, opt, rep};
use super::stream::{Deadline, Stream, read_full_or_end};
use super::wire::{Cursor, put_string};

const DOING: &str = "shaking hands with a client";

/// What can be connected to.
pub(crate) trait Catalogue {
    /// Names and descriptions of all exports, in order.
    fn list(&self) -> Vec<(&str, &str)>;

    /// The export a client means by `name`.
    fn offer(&self, name: &str) -> Option<Offer>;

    /// Whether reads and block status can be answered in structured chunks.
    fn has_structured_replies(&self) -> bool {
        true
    }
}

/// One export, as the handshake tells of it.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The export's own name, also where the client named it by the empty string.
    pub(crate) name: String,
    pub(crate) description: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Transmission flags; `SEND_DF` is added where structured replies were agreed on.
    pub(crate) flags: u16,
    /// Whether `base:allocation` can be asked for.
    pub(crate) allocation: bool,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agreed {
    /// The export's own name.
    pub(crate) export: String,
    /// Reads and block status are answered in structured chunks.
    pub(crate) structured: bool,
    /// Block status answers `base:allocation`.
    pub(crate) allocation: bool,
}

/// Shakes hands until `deadline`; `None` when the client left in good order.
///
/// The stream's time-outs are off afterwards.
pub(crate) fn negotiate<S: Stream>(
    stream: &mut S,
    catalogue: &dyn Catalogue,
    deadline: Instant,
) -> Result<Option<Agreed>, NbdError> {
    let agreed = Handshake {
        stream: Deadline::new(stream, deadline),
        catalogue,
        zeroes: true,
        structured: false,
        allocation_of: None,
    }
    .run()?;
    stream.set_timeouts(None).map_err(NbdError::io(DOING))?;
    Ok(agreed)
}

/// Whether the handshake goes on after an option.
enum Next {
    Option,
    Over(Option<Agreed>),
}

struct Handshake<'a, S> {
    stream: Deadline<'a, S>,
    catalogue: &'a dyn Catalogue,
    /// The client expects 124 zeroes after the reply to `EXPORT_NAME`.
    zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was agreed on.
    allocation_of: Option<String>,
}

impl<S: Stream> Handshake<'_, S> {
    fn run(mut self) -> Result<Option<Agreed>, NbdError> {
        let flags = hello::FIXED_NEWSTYLE | hello::NO_ZEROES;
        let mut greeting = magic::SERVER.to_be_bytes().to_vec();
        greeting.extend_from_slice(&magic::OPTION.to_be_bytes());
        greeting.extend_from_slice(&flags.to_be_bytes());
        self.send(&greeting)?;

        let mut answer = [0; 4];
        if !read_full_or_end(&mut self.stream, &mut answer).map_err(NbdError::io(DOING))? {
            return Ok(None);
        }
        let answer = u32::from_be_bytes(answer);
        if answer & !u32::from(flags) != 0 || answer & u32::from(hello::FIXED_NEWSTYLE) == 0 {
            let found = format!("client flags {answer:#x}");
            return Err(NbdError::protocol(DOING, found));
        }
        self.zeroes = answer & u32::from(hello::NO_ZEROES) == 0;

        while let Some((option, data)) = self.receive()? {
            if let Next::Over(agreed) = self.answer(option, &data)? {
                return Ok(agreed);
            }
        }
        Ok(None)
    }

    /// Receives one option with its data; `None` at the end of the stream.
    fn receive(&mut self) -> Result<Option<(u32, Vec<u8>)>, NbdError> {
        let mut head = [0; 16];
        if !read_full_or_end(&mut self.stream, &mut head).map_err(NbdError::io(DOING))? {
            return Ok(None);
        }
        let mut at = Cursor::new(&head, DOING);
        let (found, option, len) = (at.u64()?, at.u32()?, at.u32()?);
        if found != magic::OPTION {
            let found = format!("option magic {found:#018x}");
            return Err(NbdError::protocol(DOING, found));
        }
        if len > bounds::OPTION_MAX {
            let found = format!("an option of {len} bytes");
            return Err(NbdError::protocol(DOING, found));
        }
        let mut data = vec![0; len as usize];
        self.stream
            .read_exact(&mut data)
            .map_err(NbdError::io(DOING))?;
        Ok(Some((option, data)))
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Result<Next, NbdError> {
        match option {
            opt::EXPORT_NAME => return self.export_name(data),
            opt::GO | opt::INFO => return self.go(option, data),
            opt::ABORT => {
                // The client may be gone already: the acknowledgement is a courtesy.
                let _ = self.reply(option, rep::ACK, &[]);
                return Ok(Next::Over(None));
            }
            opt::LIST if data.is_empty() => self.list()?,
            opt::STRUCTURED_REPLY if !self.catalogue.has_structured_replies() => {
                self.refuse(option, rep::ERR_UNSUP, "there is nothing to read here")?;
            }
            opt::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, rep::ACK, &[])?;
            }
            opt::LIST | opt::STRUCTURED_REPLY => {
                self.refuse(option, rep::ERR_INVALID, "this option has no data")?;
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.contexts(option, data)?,
            _ => self.refuse(option, rep::ERR_UNSUP, "this option is not known")?,
        }
        Ok(Next::Option)
    }

    /// `EXPORT_NAME` has no error reply: an unknown name ends the connection.
    fn export_name(&mut self, data: &[u8]) -> Result<Next, NbdError> {
        let name = std::str::from_utf8(data).ok();
        let Some(offer) = name.and_then(|name| self.catalogue.offer(name)) else {
            return Err(NbdError::protocol(DOING, "the name of no export"));
        };
        let mut reply = offer.size.to_be_bytes().to_vec();
        reply.extend_from_slice(&self.flags_of(&offer).to_be_bytes());
        if self.zeroes {
            reply.resize(reply.len() + 124, 0);
        }
        self.send(&reply)?;
        Ok(Next::Over(Some(self.agreed_on(offer))))
    }

    /// `GO` and `INFO`: what an export is like, and with `GO` the end of the handshake.
    fn go(&mut self, option: u32, data: &[u8]) -> Result<Next, NbdError> {
        let Ok((name, wanted)) = parse_go(data) else {
            self.refuse(option, rep::ERR_INVALID, "the option is malformed")?;
            return Ok(Next::Option);
        };
        let Some(offer) = self.catalogue.offer(name) else {
            self.refuse(option, rep::ERR_UNKNOWN, "there is no export of this name")?;
            return Ok(Next::Option);
        };
        for data in self.facts(&offer, &wanted) {
            self.reply(option, rep::INFO, &data)?;
        }
        self.reply(option, rep::ACK, &[])?;
        if option == opt::INFO {
            return Ok(Next::Option);
        }
        Ok(Next::Over(Some(self.agreed_on(offer))))
    }

    /// The data of every `INFO` reply: size and flags and block sizes always, texts where wanted.
    fn facts(&self, offer: &Offer, wanted: &[u16]) -> Vec<Vec<u8>> {
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&offer.size.to_be_bytes());
        export.extend_from_slice(&self.flags_of(offer).to_be_bytes());

        let mut blocks = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, bounds::BLOCK_PREFERRED, bounds::REQUEST_MAX] {
            blocks.extend_from_slice(&size.to_be_bytes());
        }

        let mut facts = vec![export, blocks];
        let texts = [
            (info::NAME, &offer.name),
            (info::DESCRIPTION, &offer.description),
        ];
        for (kind, text) in texts {
            if wanted.contains(&kind) && !(kind == info::DESCRIPTION && text.is_empty()) {
                let mut data = kind.to_be_bytes().to_vec();
                data.extend_from_slice(text.as_bytes());
                facts.push(data);
            }
        }
        facts
    }

    fn list(&mut self) -> Result<(), NbdError> {
        for (name, description) in self.catalogue.list() {
            let mut data = Vec::new();
            put_string(&mut data, name);
            data.extend_from_slice(description.as_bytes());
            self.reply(opt::LIST, rep::SERVER, &data)?;
        }
        self.reply(opt::LIST, rep::ACK, &[])
    }

    /// `LIST_META_CONTEXT` and `SET_META_CONTEXT`: `base:allocation` is the only one there is.
    fn contexts(&mut self, option: u32, data: &[u8]) -> Result<(), NbdError> {
        let setting = option == opt::SET_META_CONTEXT;
        if setting {
            self.allocation_of = None;
        }
        if !self.structured {
            let why = "structured replies come first";
            return self.refuse(option, rep::ERR_INVALID, why);
        }
        let Ok((name, queries)) = parse_contexts(data) else {
            return self.refuse(option, rep::ERR_INVALID, "the option is malformed");
        };
        let Some(offer) = self.catalogue.offer(name) else {
            return self.refuse(option, rep::ERR_UNKNOWN, "there is no export of this name");
        };
        let asked = if setting {
            queries.contains(&allocation::NAME)
        } else {
            let matching = [allocation::NAME, allocation::NAMESPACE];
            queries.is_empty() || queries.iter().any(|query| matching.contains(query))
        };
        if asked && offer.allocation {
            let id = if setting { allocation::ID } else { 0 };
            let mut data = id.to_be_bytes().to_vec();
            data.extend_from_slice(allocation::NAME.as_bytes());
            self.reply(option, rep::META_CONTEXT, &data)?;
            if setting {
                self.allocation_of = Some(offer.name);
            }
        }
        self.reply(option, rep::ACK, &[])
    }

    fn flags_of(&self, offer: &Offer) -> u16 {
        let df = if self.structured && offer.flags & flag::READ_ONLY != 0 {
            flag::SEND_DF
        } else {
            0
        };
        flag::HAS_FLAGS | offer.flags | df
    }

    fn agreed_on(&self, offer: Offer) -> Agreed {
        Agreed {
            allocation: self.allocation_of.as_deref() == Some(offer.name.as_str()),
            export: offer.name,
            structured: self.structured,
        }
    }

    fn refuse(&mut self, option: u32, code: u32, why: &str) -> Result<(), NbdError> {
        self.reply(option, code, why.as_bytes())
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), NbdError> {
        let mut out = magic::OPTION_REPLY.to_be_bytes().to_vec();
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.send(&out)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        self.stream.write_all(bytes).map_err(NbdError::io(DOING))
    }
}

/// Takes apart the data of `GO` and `INFO`: the name and the kinds of information asked for.
fn parse_go(data: &[u8]) -> Result<(&str, Vec<u16>), NbdError> {
    let mut at = Cursor::new(data, DOING);
    let name = at.string()?;
    let count = at.u16()?;
    let wanted = (0..count).map(|_| at.u16()).collect::<Result<_, _>>()?;
    at.end()?;
    Ok((name, wanted))
}

/// Takes apart the data of the meta context options: the export's name and the queries.
fn parse_contexts(data: &[u8]) -> Result<(&str, Vec<&str>), NbdError> {
    let mut at = Cursor::new(data, DOING);
    let name = at.string()?;
    let count = at.u32()?;
    // Collecting into a Result never reserves by `count`, which is the client's word only.
    let queries = (0..count).map(|_| at.string()).collect::<Result<_, _>>()?;
    at.end()?;
    Ok((name, queries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_options_are_errors() {
        let mut good = Vec::new();
        put_string(&mut good, "vda");
        good.extend_from_slice(&[0, 1, 0, 3]);
        assert_eq!(parse_go(&good).unwrap(), ("vda", vec![3]));
        assert!(parse_go(&good[..good.len() - 1]).is_err());
        good.push(0);
        assert!(parse_go(&good).is_err());
        assert!(parse_go(&[0xff; 6]).is_err());

        let mut queries = Vec::new();
        put_string(&mut queries, "vda");
        queries.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(parse_contexts(&queries).is_err());
    }
}
