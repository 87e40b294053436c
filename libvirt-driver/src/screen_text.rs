//! What a machine's screen says, where it is one of text: the memory of a VGA text screen, read through QEMU's monitor.
//!
//! Firmware, boot loaders and kernels without a graphics driver write there. A screen with graphics leaves anything in that
//! memory, so what is read is worth something only where it is recognized.

use qemu_hook::monitor::Monitor as _;
use serde_json::json;

use crate::{
    domain::Domain,
    error::{ErrorKind, LibvirtError, Result},
    monitor::DomainMonitor,
};

/// Has QEMU print that memory: 32 KiB, of which what is shown is a part that moves.
const COMMAND: &str = "xp /32768xb 0xb8000";

impl Domain {
    /// Returns the letters on its text screen, row after row without line ends; what is no printable ASCII is a blank.
    ///
    /// # Errors
    /// [`ErrorKind::DomainOff`] and those of [`Domain::state`]; [`ErrorKind::Refused`] where QEMU does not tell.
    pub fn screen_text(&self) -> Result<String> {
        let monitor = DomainMonitor::open(self)?;
        let arguments = json!({ "command-line": COMMAND });
        let printed = monitor.execute("human-monitor-command", arguments);
        let printed = printed.map_err(|error| {
            let verb = format!("read the screen of domain {}", self.name());
            LibvirtError::new(ErrorKind::Refused, verb, error.to_string())
        })?;
        Ok(letters(printed.as_str().unwrap_or_default()))
    }
}

/// The letters in what QEMU prints: lines of an address and bytes, of which each second one is a color.
fn letters(printed: &str) -> String {
    let bytes = printed.lines().filter_map(|line| line.split_once(':'));
    let bytes = bytes.flat_map(|(_, bytes)| bytes.split_whitespace());
    let bytes = bytes.map(|byte| {
        byte.strip_prefix("0x")
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
    });
    let letters = bytes.step_by(2).map(|byte| match byte {
        Some(byte) if byte.is_ascii_graphic() => char::from(byte),
        _ => ' ',
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_every_second_byte() {
        let printed = "00000000000b8000: 0x4e 0x07 0x6f 0x07 0x20 0x07 0xff 0x07\r\n00000000000b8008: 0x62 0x07 0x21 0x70\r\n";
        assert_eq!(letters(printed), "No  b!");
        assert_eq!(letters("Cannot access memory"), "");
    }
}
