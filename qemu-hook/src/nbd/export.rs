//! What the server offers: named, read-only devices.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::bounds;
use super::error::NbdError;

/// One named, read-only device. It never changes while it is offered.
pub trait Export: Send + Sync {
    /// Size of the device in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` with the device's bytes from byte `offset` on; all of it lies within the device.
    ///
    /// # Errors
    /// Any error is answered to the client as an input/output error; the connection goes on.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Describes `[offset, offset + len)`, which lies within the device and is not empty.
    ///
    /// The extents follow one another from `offset` on; there is at least one, none is empty, and
    /// neighbours of the same kind are merged. They may stop before the end (the client asks
    /// again) and the last may reach beyond it. More than `most` are of no use.
    ///
    /// # Errors
    /// Any error is answered to the client as an input/output error; the connection goes on.
    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>>;
}

/// A run of bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// What the bytes are.
    pub kind: ExtentKind,
}

/// What is known about a run of bytes without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that must be read.
    Data,
    /// Bytes that read as zeroes, and for which nothing is stored.
    Zero,
}

impl Extent {
    /// Appends a run to `extents`, merged with the last one where the kinds are the same.
    pub fn push_merged(extents: &mut Vec<Extent>, len: u64, kind: ExtentKind) {
        match extents.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.kind == kind => last.len = last.len.saturating_add(len),
            _ => extents.push(Extent { len, kind }),
        }
    }
}

/// The devices of one server, by name; listed in the names' order.
#[derive(Clone, Default)]
pub struct Exports {
    by_name: BTreeMap<String, Named>,
}

/// One entry of [`Exports`].
#[derive(Clone)]
pub(crate) struct Named {
    pub(crate) description: String,
    pub(crate) device: Arc<dyn Export>,
}

impl Exports {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device under `name` (any UTF-8, at most 4096 bytes; the same for `description`,
    /// which is shown to clients that ask for it).
    ///
    /// # Errors
    /// [`NbdError::BadExport`]: the name is taken, a text is too long, or the device is larger than
    /// 2^63 - 1 bytes.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        description: impl Into<String>,
        device: Arc<dyn Export>,
    ) -> Result<(), NbdError> {
        let (name, description) = (name.into(), description.into());
        let reason = if self.by_name.contains_key(&name) {
            Some("the name is taken")
        } else if name.len() > bounds::NAME_MAX || description.len() > bounds::NAME_MAX {
            Some("the name or the description is longer than 4096 bytes")
        } else if i64::try_from(device.size()).is_err() {
            Some("the device is larger than 2^63 - 1 bytes")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(NbdError::BadExport { name, reason });
        }
        let named = Named {
            description,
            device,
        };
        self.by_name.insert(name, named);
        Ok(())
    }

    /// The names in the order in which they are listed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Named)> {
        self.by_name
            .iter()
            .map(|(name, named)| (name.as_str(), named))
    }

    /// Finds the device a client means by `name`; the empty name means the only one.
    pub(crate) fn find(&self, name: &str) -> Option<(&str, &Named)> {
        if let Some((name, named)) = self.by_name.get_key_value(name) {
            return Some((name, named));
        }
        let mut all = self.iter();
        match (name.is_empty(), all.next(), all.next()) {
            (true, Some(only), None) => Some(only),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Blank(u64);

    impl Export for Blank {
        fn size(&self) -> u64 {
            self.0
        }
        fn read_at(&self, buf: &mut [u8], _offset: u64) -> io::Result<()> {
            buf.fill(0);
            Ok(())
        }
        fn extents(&self, _offset: u64, len: u64, _most: usize) -> io::Result<Vec<Extent>> {
            let kind = ExtentKind::Zero;
            Ok(vec![Extent { len, kind }])
        }
    }

    #[test]
    fn the_empty_name_means_the_only_export() {
        let mut exports = Exports::new();
        assert!(exports.find("").is_none());
        exports.insert("vda", "", Arc::new(Blank(1))).unwrap();
        assert_eq!(exports.find("").unwrap().0, "vda");
        exports.insert("vdb", "", Arc::new(Blank(1))).unwrap();
        assert!(exports.find("").is_none());
        exports.insert("", "", Arc::new(Blank(1))).unwrap();
        assert_eq!(exports.find("").unwrap().0, "");
    }

    #[test]
    fn exports_that_cannot_be_offered_are_refused() {
        let mut exports = Exports::new();
        exports.insert("vda", "", Arc::new(Blank(1))).unwrap();
        assert!(exports.insert("vda", "", Arc::new(Blank(1))).is_err());
        let long = "x".repeat(4097);
        assert!(exports.insert(long, "", Arc::new(Blank(1))).is_err());
        assert!(exports.insert("vdb", "", Arc::new(Blank(1 << 63))).is_err());
        assert_eq!(exports.names().collect::<Vec<_>>(), ["vda"]);
    }

    #[test]
    fn neighbours_of_one_kind_become_one_extent() {
        let mut extents = Vec::new();
        Extent::push_merged(&mut extents, 5, ExtentKind::Data);
        Extent::push_merged(&mut extents, 0, ExtentKind::Zero);
        Extent::push_merged(&mut extents, 6, ExtentKind::Data);
        Extent::push_merged(&mut extents, 7, ExtentKind::Zero);
        let lengths: Vec<u64> = extents.iter().map(|extent| extent.len).collect();
        assert_eq!(lengths, [11, 7]);
    }
}
