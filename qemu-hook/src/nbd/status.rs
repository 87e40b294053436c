//! Block status: what a meta context says about a range.

use super::bounds;
use super::client::NbdClient;
use super::error::NbdError;
use super::proto::{ChunkHead, ReplyHead, Request, chunk, cmd};
use super::wire::Cursor;

const DOING: &str = "reading block status";

/// A run of bytes that a meta context describes alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextExtent {
    /// Length in bytes.
    pub len: u64,
    /// The context's own flags.
    pub flags: u32,
}

/// Asks context `id` about exactly `[offset, offset + len)`, which lies within the device.
///
/// A server may answer about less than it was asked for: the rest is asked for again.
pub(crate) fn read_status(
    client: &mut NbdClient,
    id: u32,
    offset: u64,
    len: u64,
) -> Result<Vec<ContextExtent>, NbdError> {
    let mut told: Vec<ContextExtent> = Vec::new();
    let mut covered = 0;
    while covered < len {
        let span = (len - covered).min(bounds::STATUS_SPAN);
        let request = client.request(cmd::BLOCK_STATUS, 0, offset + covered, span as u32);
        client.send(&[request])?;
        let mut left = span;
        for extent in receive_status(client, id, &request)? {
            // The last one may reach beyond what was asked for.
            let len = extent.len.min(left);
            left -= len;
            match told.last_mut() {
                _ if len == 0 => {}
                Some(last) if last.flags == extent.flags => last.len += len,
                _ => told.push(ContextExtent { len, ..extent }),
            }
        }
        if left == span {
            return Err(NbdError::protocol(DOING, "an answer about no byte at all"));
        }
        covered += span - left;
    }
    Ok(told)
}

/// Receives the whole answer to one request, and keeps what context `id` says.
fn receive_status(
    client: &mut NbdClient,
    id: u32,
    request: &Request,
) -> Result<Vec<ContextExtent>, NbdError> {
    let mut told = None;
    let mut failed = None;
    loop {
        let head = match client.receive()? {
            ReplyHead::Chunk(head) if head.cookie == request.cookie => head,
            ReplyHead::Simple(reply) if reply.cookie == request.cookie && reply.error != 0 => {
                return Err(failure(request, reply.error));
            }
            other => {
                let found = format!("an answer to something else: {other:?}");
                return Err(NbdError::protocol(DOING, found));
            }
        };
        if head.is_error() {
            failed = Some(client.receive_error(&head)?);
        } else if head.kind == chunk::BLOCK_STATUS {
            let (context, extents) = receive_extents(client, &head)?;
            if context == id && told.replace(extents).is_some() {
                let found = "two answers of one context";
                return Err(NbdError::protocol(DOING, found));
            }
        } else if head.kind != chunk::NONE || head.len != 0 {
            let found = format!("a chunk of kind {}", head.kind);
            return Err(NbdError::protocol(DOING, found));
        }
        if head.is_done() {
            break;
        }
    }
    match (failed, told) {
        (Some(error), _) => Err(failure(request, error)),
        (None, Some(extents)) => Ok(extents),
        (None, None) => Err(NbdError::protocol(DOING, "no answer of the context")),
    }
}

fn receive_extents(
    client: &mut NbdClient,
    head: &ChunkHead,
) -> Result<(u32, Vec<ContextExtent>), NbdError> {
    if head.len > bounds::STATUS_PAYLOAD_MAX || head.len % 8 != 4 {
        let found = format!("a block status of {} bytes", head.len);
        return Err(NbdError::protocol(DOING, found));
    }
    let mut payload = vec![0; head.len as usize];
    client.fill(&mut payload)?;
    let mut at = Cursor::new(&payload, DOING);
    let context = at.u32()?;
    let extents = (0..head.len / 8).map(|_| {
        let len = u64::from(at.u32()?);
        let flags = at.u32()?;
        Ok(ContextExtent { len, flags })
    });
    Ok((context, extents.collect::<Result<_, NbdError>>()?))
}

fn failure(request: &Request, error: u32) -> NbdError {
    NbdError::Failed {
        command: "block status",
        offset: request.offset,
        len: u64::from(request.len),
        source: std::io::Error::from_raw_os_error(error as i32),
    }
}
