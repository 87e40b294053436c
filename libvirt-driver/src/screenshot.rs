//! A picture of the guest's first screen.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use virt::stream::Stream;

use crate::domain::Domain;
use crate::error::{LibvirtError, Result};

impl Domain {
    /// Takes a screenshot into `stem` with the ending of the format QEMU gives (`.ppm`, `.png`); returns that path.
    ///
    /// # Errors
    /// [`crate::ErrorKind::DomainOff`], [`crate::ErrorKind::Refused`] (no screen), [`crate::ErrorKind::Host`].
    pub fn screenshot(&self, stem: &Path) -> Result<PathBuf> {
        let error = |error| self.error("take a screenshot of", error);
        let domain = self.virt()?;
        let connect = self.hypervisor().connection()?;
        let stream = Stream::new(&connect, 0).map_err(error)?;
        let mime = domain.screenshot(&stream, 0, 0).map_err(error)?;
        let path = with_ending(stem, ending(&mime));
        let io =
            |error| LibvirtError::io(format!("write the screenshot {}", path.display()), error);
        let mut file = File::create(&path).map_err(io)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let got = usize::try_from(stream.recv(&mut buffer).map_err(error)?).unwrap_or(0);
            match buffer.get(..got) {
                None | Some([]) => break,
                Some(part) => file.write_all(part).map_err(io)?,
            }
        }
        stream.finish().map_err(error)?;
        Ok(path)
    }
}

fn ending(mime: &str) -> &str {
    match mime {
        "image/png" => "png",
        "image/x-portable-pixmap" => "ppm",
        other => other.rsplit(['/', '-']).next().unwrap_or("image"),
    }
}

/// Appends the ending; a dot in the stem is part of the name.
fn with_ending(stem: &Path, ending: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_follows_the_format() {
        let table = [
            ("image/png", "a/web.1.png"),
            ("image/x-portable-pixmap", "a/web.1.ppm"),
            ("image/webp", "a/web.1.webp"),
        ];
        for (mime, expected) in table {
            assert_eq!(
                with_ending(Path::new("a/web.1"), ending(mime)),
                Path::new(expected)
            );
        }
    }
}
