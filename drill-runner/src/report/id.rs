//! The number of a report: `20261127-031500-4f2a`, safe as a file's name.

/// Tells whether a text is a report's number: eight digits, six digits, and 4 to 16 hexadecimal digits, joined by `-`.
#[must_use]
pub fn is_id(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(day), Some(time), Some(chance), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_digits = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|letter| letter.is_ascii_digit())
    };
    let is_chance = (4..=16).contains(&chance.len())
        && chance
            .bytes()
            .all(|letter| matches!(letter, b'0'..=b'9' | b'a'..=b'f'));
    is_digits(day, 8) && is_digits(time, 6) && is_chance
}

#[cfg(test)]
mod tests {
    use super::is_id;

    #[test]
    fn only_numbers_of_reports_are_taken() {
        assert!(is_id("20261127-031500-4f2a"));
        assert!(is_id("20261127-031500-0123456789abcdef"));
        for wrong in [
            "",
            "..",
            "/etc/passwd",
            "../20261127-031500-4f2a",
            "20261127-031500-4f2a/..",
            "20261127-031500-4f2a.json",
            "20261127-031500-4F2A",
            "20261127-031500-4f2",
            "20261127-031500-0123456789abcdef0",
            "20261127-031500",
            "20261127-031500-4f2a-",
            "2026112٣-031500-4f2a",
            "20261127-031500-4f2a\n",
            "20261127-031500-4f2a\0",
        ] {
            assert!(!is_id(wrong), "{wrong:?}");
        }
    }
}
