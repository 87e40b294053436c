//! Lines of ours in a file of somebody else's, between two markers. Pure functions of the file's text.

const BEGIN: &str = "# >>> virt-cdp: laid down by host-install, taken away by host-uninstall\n";
const END: &str = "# <<< virt-cdp\n";

/// The file's text cut into what is before our lines, our lines, and what is after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut<'a> {
    pub(super) before: &'a str,
    pub(super) lines: &'a str,
    pub(super) after: &'a str,
}

/// Finds our lines; none if there is no begin, or no end after it.
pub(super) fn find(text: &str) -> Option<Cut<'_>> {
    let begin = line_start(text, BEGIN)?;
    let inner = begin + BEGIN.len();
    let rest = text.get(inner..)?;
    let end = line_start(rest, END)?;
    Some(Cut {
        before: text.get(..begin)?,
        lines: rest.get(..end)?,
        after: rest.get(end + END.len()..)?,
    })
}

fn line_start(text: &str, line: &str) -> Option<usize> {
    let mut starts = text.match_indices(line).map(|(at, _)| at);
    starts.find(|at| *at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n'))
}

/// Puts `lines` between the markers: in place of those that are there, else at the end.
pub(super) fn put(text: &str, lines: &str) -> String {
    match find(text) {
        Some(cut) => format!("{}{BEGIN}{lines}{END}{}", cut.before, cut.after),
        None if text.is_empty() || text.ends_with('\n') => format!("{text}{BEGIN}{lines}{END}"),
        None => format!("{text}\n{BEGIN}{lines}{END}"),
    }
}

/// Takes our lines and the markers out.
pub(super) fn take_out(text: &str) -> String {
    match find(text) {
        Some(cut) => format!("{}{}", cut.before, cut.after),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_in_and_out_and_the_rest_stays() {
        for text in ["", "a\n", "a\nb\n", "# <<< virt-cdp\nodd\n"] {
            let with = put(text, "ours\n");
            assert_eq!(with, format!("{text}{BEGIN}ours\n{END}"));
            assert_eq!(put(&with, "ours\n"), with, "twice is once");
            let other = put(&format!("{with}theirs\n"), "newer\n");
            assert_eq!(other, format!("{text}{BEGIN}newer\n{END}theirs\n"));
            assert_eq!(find(&other).map(|cut| cut.lines), Some("newer\n"));
            assert_eq!(take_out(&other), format!("{text}theirs\n"));
            assert_eq!(take_out(&with), text);
        }
        assert_eq!(put("no end", "x\n"), format!("no end\n{BEGIN}x\n{END}"));
        for none in [
            "",
            END,
            &format!("{BEGIN}open\n"),
            &format!("x{BEGIN}y\n{END}"),
        ] {
            assert_eq!(find(none), None, "{none:?}");
            assert_eq!(take_out(none), none);
        }
    }
}
