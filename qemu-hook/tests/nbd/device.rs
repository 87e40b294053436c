//! The device that the tests export: sparse, with known contents, able to fail on purpose.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qemu_hook::nbd::{Export, Exports, Extent, ExtentKind, NbdServer};

/// Numbers that look random and are the same in every run (xorshift).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, buf: &mut [u8]) {
        for part in buf.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }
}

pub(crate) struct Device {
    pub(crate) bytes: Vec<u8>,
    pub(crate) extents: Vec<Extent>,
    pub(crate) broken: Option<Range<u64>>,
    /// Whether it panics where it is broken.
    pub(crate) panics: bool,
    /// How long each read takes.
    pub(crate) delay: Duration,
    pub(crate) bytes_read: AtomicU64,
}

impl Device {
    /// Runs of data and zeroes of all lengths; the size is no multiple of anything.
    pub(crate) fn sparse(size: usize, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let mut bytes = Vec::new();
        let mut extents = Vec::new();
        while bytes.len() < size {
            let longest = [700, 9000, 300_000, 5_000_000][numbers.below(4) as usize];
            let len = (1 + numbers.below(longest) as usize).min(size - bytes.len());
            let kind = if numbers.below(2) == 0 {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            let start = bytes.len();
            bytes.resize(start + len, 0);
            if kind == ExtentKind::Data {
                numbers.fill(&mut bytes[start..]);
            }
            Extent::push_merged(&mut extents, len as u64, kind);
        }
        Self {
            bytes,
            extents,
            broken: None,
            panics: false,
            delay: Duration::ZERO,
            bytes_read: AtomicU64::new(0),
        }
    }
}

impl Export for Device {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        if let Some(broken) = &self.broken
            && offset < broken.end
            && end > broken.start
        {
            assert!(!self.panics, "a device that panics");
            return Err(io::Error::other("a sector that cannot be read"));
        }
        self.bytes_read
            .fetch_add(buf.len() as u64, Ordering::Relaxed);
        buf.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>> {
        let mut found = Vec::new();
        let mut start = 0;
        for extent in &self.extents {
            let end = start + extent.len;
            let (from, to) = (start.max(offset), end.min(offset + len));
            if from < to {
                Extent::push_merged(&mut found, to - from, extent.kind);
            }
            start = end;
        }
        found.truncate(most);
        Ok(found)
    }
}

/// Serves one device under one name on a socket in `dir`.
pub(crate) fn serve(dir: &Path, name: &str, device: Device) -> (NbdServer, Arc<Device>) {
    let device = Arc::new(device);
    let mut exports = Exports::new();
    exports
        .insert(
            name,
            "a test's device",
            Arc::clone(&device) as Arc<dyn Export>,
        )
        .unwrap();
    let server = NbdServer::listen_unix(dir.join("view.sock"), 0o600, None, exports).unwrap();
    (server, device)
}

/// The URI under which tools find an export; the name must need no escaping.
pub(crate) fn uri(server: &NbdServer, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", server.path().display())
}
