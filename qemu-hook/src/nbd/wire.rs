//! Big-endian numbers and strings out of foreign bytes, with every length checked.

use super::bounds;
use super::error::NbdError;

/// Reads a message from its front; a message that is too short is a protocol error.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    doing: &'static str,
}

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`; `doing` names the message in errors.
    pub(crate) fn new(bytes: &'a [u8], doing: &'static str) -> Self {
        Self { rest: bytes, doing }
    }

    /// Takes the next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], NbdError> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.short(len));
        };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NbdError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.short(N));
        };
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, NbdError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, NbdError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, NbdError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a string that is preceded by its length as 32 bits.
    pub(crate) fn string(&mut self) -> Result<&'a str, NbdError> {
        let len = self.u32()? as usize;
        if len > bounds::NAME_MAX {
            return Err(NbdError::protocol(
                self.doing,
                format!("a name of {len} bytes"),
            ));
        }
        let bytes = self.bytes(len)?;
        std::str::from_utf8(bytes)
            .map_err(|_| NbdError::protocol(self.doing, "a name that is not UTF-8"))
    }

    /// Takes all that is left.
    pub(crate) fn remainder(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), NbdError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let found = format!("{} bytes too many", self.rest.len());
        Err(NbdError::protocol(self.doing, found))
    }

    fn short(&self, wanted: usize) -> NbdError {
        let found = format!("{} bytes left where {wanted} belong", self.rest.len());
        NbdError::protocol(self.doing, found)
    }
}

/// Appends a string preceded by its length as 32 bits.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_come_back() {
        let mut out = 7u16.to_be_bytes().to_vec();
        put_string(&mut out, "disk ü");
        out.extend_from_slice(&9u64.to_be_bytes());
        let mut cursor = Cursor::new(&out, "testing");
        assert_eq!(cursor.u16().unwrap(), 7);
        assert_eq!(cursor.string().unwrap(), "disk ü");
        assert_eq!(cursor.u64().unwrap(), 9);
        cursor.end().unwrap();
    }

    #[test]
    fn short_messages_and_false_lengths_are_refused() {
        assert!(Cursor::new(&[1, 2, 3], "testing").u32().is_err());
        let mut lying = 100u32.to_be_bytes().to_vec();
        lying.extend_from_slice(b"short");
        assert!(Cursor::new(&lying, "testing").string().is_err());
        let huge = u32::MAX.to_be_bytes();
        assert!(Cursor::new(&huge, "testing").string().is_err());
        let not_utf8 = [0, 0, 0, 1, 0xff];
        assert!(Cursor::new(&not_utf8, "testing").string().is_err());
        assert!(Cursor::new(&[0], "testing").end().is_err());
    }
}
