//! A picture of a screen, as it stands in a report; and what was written to a console.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use crate::{
    check::plain_text,
    outcome::{Console, Screenshot},
};

/// The largest PNG file that is taken.
const PNG_MAX: usize = 4 << 20;
/// How much is kept of the beginning and of the end of what was written to a console.
const CONSOLE_HEAD: u64 = 64 << 10;
const CONSOLE_TAIL: u64 = 192 << 10;

/// Makes a picture of a PNG file; none if it is no such file, or too large.
pub(super) fn picture(png: &[u8], at_ms: u64, what: &str) -> Option<Screenshot> {
    let header = png.get(..24)?;
    let is_png = header.starts_with(b"\x89PNG\r\n\x1a\n") && png.len() <= PNG_MAX;
    let number = |at: usize| {
        let bytes = header.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    is_png.then_some(())?;
    Some(Screenshot {
        at_ms,
        what: what.to_owned(),
        sha256: format!("{:x}", Sha256::digest(png)),
        width: number(16)?,
        height: number(20)?,
        png: STANDARD.encode(png),
    })
}

/// Reads what was written to a console: its beginning and its end.
pub(super) fn console(path: &Path) -> Console {
    let read = || {
        // Where it became too long it was begun anew, and what was before is beside it.
        let oldest = (0..3).rev().map(|n| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            name.into()
        });
        let mut parts: Vec<std::path::PathBuf> = oldest.collect();
        parts.push(path.to_owned());
        parts.retain(|part| part.exists());
        let mut lengths = parts
            .iter()
            .map(|part| std::fs::metadata(part).map_or(0, |m| m.len()));
        let bytes: u64 = lengths.by_ref().sum();
        if bytes <= CONSOLE_HEAD + CONSOLE_TAIL {
            let mut all = Vec::new();
            for part in &parts {
                File::open(part)?
                    .take(CONSOLE_HEAD + CONSOLE_TAIL)
                    .read_to_end(&mut all)?;
            }
            return Ok(Console {
                bytes,
                head: plain_text(&all),
                tail: String::new(),
            });
        }
        let first = parts.first().map_or(path, |part| part.as_path());
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        File::open(first)?
            .take(CONSOLE_HEAD)
            .read_to_end(&mut head)?;
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(CONSOLE_TAIL)))?;
        file.take(CONSOLE_TAIL).read_to_end(&mut tail)?;
        Ok::<_, std::io::Error>(Console {
            bytes,
            head: plain_text(&head),
            tail: plain_text(&tail),
        })
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_console_is_its_beginning_and_its_end() {
        let home = tempfile::TempDir::new().unwrap();
        let path = home.path().join("console.log");
        assert_eq!(console(&path), Console::default());
        std::fs::write(&path, "short").unwrap();
        assert_eq!(
            (console(&path).head.as_str(), console(&path).bytes),
            ("short", 5)
        );
        let line = "0123456789abcde\n";
        std::fs::write(&path, format!("first\n{}last", line.repeat(40_000))).unwrap();
        let long = console(&path);
        assert!(long.head.starts_with("first\n") && long.tail.ends_with("last"));
        assert_eq!(long.bytes, 6 + 16 * 40_000 + 4);
        assert!(long.head.len() as u64 == CONSOLE_HEAD && long.tail.len() as u64 == CONSOLE_TAIL);
        std::fs::write(home.path().join("console.log.0"), "older").unwrap();
        assert!(console(&path).head.starts_with("older"));
    }

    #[test]
    fn only_a_png_file_is_a_picture() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\xd0\0\0\x01\x90".to_vec();
        let made = picture(&png, 7, "boot").unwrap();
        assert_eq!((made.width, made.height, made.at_ms), (720, 400, 7));
        assert_eq!(made.sha256.len(), 64);
        png[0] = b'P';
        assert_eq!(picture(&png, 7, "boot"), None);
        assert_eq!(picture(b"", 7, "boot"), None);
    }
}
