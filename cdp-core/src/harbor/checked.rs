//! Texts that have their own checksum in them: TOML in its first line, XML in its last.
//!
//! Both are comments there, so whoever does not know of them reads the text as ever. A text without one is from an older
//! version, and is taken as it is.

/// Begins the first line of a TOML text, which holds the CRC-32C of all below it, in hexadecimal.
const TOML: &str = "# crc32c ";
/// Bytes that a checksum adds to a TOML text.
pub(crate) const TOML_MORE: u64 = (TOML.len() + 8 + 1) as u64;
/// Begins the last line of an XML text, which holds the CRC-32C of all before it.
const XML: &str = "\n<!-- crc32c ";
const XML_END: &str = " -->\n";
/// Bytes that a checksum adds to an XML text.
pub(crate) const XML_MORE: u64 = (XML.len() + 8 + XML_END.len()) as u64;

/// Returns a TOML text with its checksum.
pub(crate) fn toml(text: &str) -> String {
    format!("{TOML}{:08x}\n{text}", crc32c::crc32c(text.as_bytes()))
}

/// Returns a TOML text without its checksum, which is right, or is missing.
///
/// # Errors
/// What is wrong.
pub(crate) fn of_toml(text: &str) -> Result<&str, String> {
    match text.strip_prefix('#') {
        Some(_) => of_checked_toml(text),
        None => Ok(text),
    }
}

/// The same of a text that must have one.
///
/// # Errors
/// What is wrong.
pub(crate) fn of_checked_toml(text: &str) -> Result<&str, String> {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let check = first
        .strip_prefix(TOML)
        .and_then(number)
        .ok_or("its first line is not its checksum")?;
    match check == crc32c::crc32c(rest.as_bytes()) {
        true => Ok(rest),
        false => Err("its checksum is wrong".into()),
    }
}

/// Returns an XML text with its checksum.
pub(crate) fn xml(text: &str) -> String {
    format!(
        "{text}{XML}{:08x}{XML_END}",
        crc32c::crc32c(text.as_bytes())
    )
}

/// Returns an XML text without its checksum, which is right, or is missing.
///
/// # Errors
/// What is wrong.
pub(crate) fn of_xml(text: &str) -> Result<&str, String> {
    let Some((text, last)) = text.rsplit_once(XML) else {
        // An older one ends as XML does, and not with the rest of a checksum.
        return match text.ends_with(XML_END) || !text.trim_end().ends_with('>') {
            true => Err("its last line is not its checksum".into()),
            false => Ok(text),
        };
    };
    let check = last.strip_suffix(XML_END).and_then(number);
    match check {
        Some(check) if check == crc32c::crc32c(text.as_bytes()) => Ok(text),
        Some(_) => Err("its checksum is wrong".into()),
        None => Err("its last line is not its checksum".into()),
    }
}

fn number(digits: &str) -> Option<u32> {
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    (digits.len() == 8 && digits.chars().all(is_hex))
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_and_every_changed_bit_is_found() {
        type Row = (
            fn(&str) -> String,
            fn(&str) -> Result<&str, String>,
            &'static str,
        );
        let table: [Row; 2] = [
            (toml, of_toml, "a = 1\n"),
            (xml, of_xml, "<domain type='kvm'>\n</domain>"),
        ];
        for (seal, open, text) in table {
            let sealed = seal(text);
            assert_eq!(open(&sealed), Ok(text));
            for bit in 0..sealed.len() * 8 {
                let mut bytes = sealed.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let found = std::str::from_utf8(&bytes).map(|text| open(text).is_err());
                // Without its checksum it would be an older one: only the checksum's own mark can do that.
                let is_mark = bit < 8 && text.starts_with('a');
                assert!(is_mark || found.unwrap_or(true), "bit {bit} of {sealed:?}");
            }
            assert_eq!(open(text), Ok(text), "an older one");
        }
    }
}
