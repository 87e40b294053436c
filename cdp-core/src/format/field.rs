//! One field of a structure: its name and place, and how it is read and written.

/// A field of a structure, placed behind the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name, as in `FORMAT.md`.
    pub name: &'static str,
    /// Offset in the structure, in bytes.
    pub at: usize,
    /// Length in bytes.
    pub len: usize,
}

impl Field {
    /// Places the first field of a structure.
    pub const fn first(name: &'static str, len: usize) -> Field {
        Field { name, at: 0, len }
    }

    /// Places the field that follows this one.
    pub const fn then(&self, name: &'static str, len: usize) -> Field {
        Field {
            name,
            at: self.at + self.len,
            len,
        }
    }

    /// Places a field that fills the structure up to byte `end`.
    pub const fn fill(&self, name: &'static str, end: usize) -> Field {
        let at = self.at + self.len;
        Field {
            name,
            at,
            len: end - at,
        }
    }

    /// Returns the field's bytes; none if the structure is too short.
    pub fn bytes<'a>(&self, structure: &'a [u8]) -> &'a [u8] {
        structure
            .get(self.at..self.at + self.len)
            .unwrap_or_default()
    }

    /// Returns the bytes as an array, zeros where there are none.
    pub fn array<const N: usize>(&self, structure: &[u8]) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.bytes(structure)) {
            *to = *from;
        }
        array
    }

    /// Returns the field as an integer of at most 8 bytes, little endian.
    pub fn get(&self, structure: &[u8]) -> u64 {
        u64::from_le_bytes(self.array(structure))
    }

    /// Returns the field as an integer of at most 4 bytes, little endian.
    pub fn get_u32(&self, structure: &[u8]) -> u32 {
        u32::from_le_bytes(self.array(structure))
    }

    /// Writes an integer, little endian, as many bytes as the field has.
    pub fn put(&self, structure: &mut [u8], value: u64) {
        self.put_bytes(structure, &value.to_le_bytes());
    }

    /// Writes bytes, as many as the field has.
    pub fn put_bytes(&self, structure: &mut [u8], bytes: &[u8]) {
        let field = structure
            .get_mut(self.at..self.at + self.len)
            .unwrap_or_default();
        for (to, from) in field.iter_mut().zip(bytes) {
            *to = *from;
        }
    }
}
