//! Prometheus' text format, read strictly: what is not as it must be is refused with the line.
//!
//! Stricter than Prometheus itself: HELP and TYPE come first, once for each family, families do not mix, no series comes
//! twice, counters end in `_total`, and the buckets of a histogram rise to its count.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// What the endpoint at a port answers, head and page.
pub fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A page of metrics.
#[derive(Debug, Default)]
pub struct Page {
    /// Kind of each family: `counter`, `gauge`, `histogram`.
    pub kinds: BTreeMap<String, String>,
    /// Value of each series, by its name with its labels as they stand.
    pub series: BTreeMap<String, f64>,
}

impl Page {
    /// Reads a page.
    ///
    /// # Errors
    /// What is wrong with it, and the line.
    pub fn read(text: &str) -> Result<Self, String> {
        if !text.ends_with('\n') {
            return Err("the last line is not ended".into());
        }
        let mut page = Self::default();
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            let wrong = |what: &str| Err(format!("{what}: {line}"));
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap_or((help, ""));
                if words.is_empty() || !helped.insert(name.to_owned()) {
                    return wrong("help that says nothing, or comes twice");
                }
                family = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap_or((kind, ""));
                let known = matches!(kind, "counter" | "gauge" | "histogram");
                if !known || name != family || page.kinds.contains_key(name) {
                    return wrong("a type that is not known, not in place, or comes twice");
                }
                if (kind == "counter") != name.ends_with("_total") {
                    return wrong("counters end in _total, and nothing else does");
                }
                page.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                page.sample(&family, line)
                    .map_err(|what| format!("{what}: {line}"))?;
            }
        }
        page.check_histograms()?;
        Ok(page)
    }

    fn sample(&mut self, family: &str, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
        let value: f64 = value.parse().map_err(|e| format!("{e}"))?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').ok_or("no end of labels")?),
            None => (series, ""),
        };
        let word = |text: &str| {
            let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
            starts
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        if !word(name) || !labels_of(labels)?.iter().all(|label| word(label)) {
            return Err("a name that is none".into());
        }
        let kind = self.kinds.get(family).ok_or("no type")?;
        let parts = ["_bucket", "_sum", "_count"];
        let belongs = match kind.as_str() {
            "histogram" => {
                let part = name.strip_prefix(family);
                part.is_some_and(|part| parts.contains(&part))
            }
            _ => name == family,
        };
        if !belongs {
            return Err(format!("it is not of {family}"));
        }
        if kind != "gauge" && (value < 0.0 || !value.is_finite()) {
            return Err("a count below zero".into());
        }
        match self.series.insert(series.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err("it comes twice".into()),
        }
    }

    /// The buckets of each histogram rise, and the endless one is the count.
    fn check_histograms(&self) -> Result<(), String> {
        let histograms = self.kinds.iter().filter(|(_, kind)| *kind == "histogram");
        for (family, _) in histograms {
            let counts = self.of(&format!("{family}_count"));
            if counts.is_empty() {
                return Err(format!("{family} has no counts"));
            }
            for (count, total) in counts {
                let labels = count.trim_start_matches(&format!("{family}_count"));
                let labels = labels.trim_matches(['{', '}']);
                let of_it = self.of(&format!("{family}_bucket"));
                let mut buckets: Vec<(f64, f64)> = Vec::new();
                for (bucket, below) in of_it {
                    let (others, bound) = bucket
                        .rsplit_once("le=\"")
                        .ok_or("a bucket without a bound")?;
                    if !others.contains(labels) {
                        continue;
                    }
                    let bound = bound.trim_end_matches("\"}");
                    let bound = bound.parse().map_err(|e| format!("{bound}: {e}"))?;
                    buckets.push((bound, below));
                }
                buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
                let rise = buckets.windows(2).all(|two| two[0].1 <= two[1].1);
                let last = buckets.last().copied();
                if !rise || last != Some((f64::INFINITY, total)) {
                    return Err(format!("the buckets of {count} do not rise to {total}"));
                }
            }
        }
        Ok(())
    }

    /// The series of a name, with their values.
    #[must_use]
    pub fn of(&self, name: &str) -> Vec<(&str, f64)> {
        let of = |series: &str| series.split('{').next() == Some(name);
        let all = self.series.iter().filter(|(series, _)| of(series));
        all.map(|(series, value)| (series.as_str(), *value))
            .collect()
    }

    /// The value of one series, named as it stands.
    #[must_use]
    pub fn value(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// Says which counter has fallen since `before`, or is gone; none if all is well.
    #[must_use]
    pub fn fallen_since(&self, before: &Page) -> Option<String> {
        let is_count = |series: &str| {
            let name = series.split('{').next().unwrap_or_default();
            let parts = ["_bucket", "_sum", "_count"];
            let of = |part: &str| name.strip_suffix(part).and_then(|f| before.kinds.get(f));
            name.ends_with("_total")
                || parts
                    .iter()
                    .any(|part| of(part).is_some_and(|kind| kind == "histogram"))
        };
        let counts = before.series.iter().filter(|(series, _)| is_count(series));
        let fell = |(series, was): (&String, &f64)| {
            let now = self.series.get(series);
            let fell = now.is_none_or(|now| now < was);
            fell.then(|| format!("{series} was {was}, and is {now:?}"))
        };
        counts.into_iter().find_map(fell)
    }
}

/// The names of labels: `a="1",b="x\"y"`.
fn labels_of(text: &str) -> Result<Vec<String>, String> {
    let (mut names, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").ok_or("a label without a value")?;
        let mut escaped = false;
        let end = value.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let (end, _) = end.ok_or("a value without an end")?;
        if names.iter().any(|known| known == name) {
            return Err(format!("the label {name} comes twice"));
        }
        names.push(name.to_owned());
        rest = &value[end + 1..];
        rest = match rest.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            None if rest.is_empty() => rest,
            _ => return Err("something behind a label".into()),
        };
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{m=\"x\\\"},\",n=\"\"} 3\na_total 4\n\
        # HELP h Of h.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 5\nh_sum 7\nh_count 5\n";

    #[test]
    fn a_page_that_is_as_it_must_be_is_read_and_any_other_is_not() {
        let page = Page::read(GOOD).expect("it is good");
        assert_eq!(page.value("a_total"), Some(4.0));
        assert_eq!(page.of("a_total").len(), 2);
        assert_eq!(page.fallen_since(&page), None);
        let fallen = Page::read(&GOOD.replace("a_total 4", "a_total 3.5")).expect("good too");
        assert!(fallen.fallen_since(&page).is_some());
        assert!(page.fallen_since(&fallen).is_none());
        for (from, to) in [
            ("a_total 4\n", "a_total 4"),
            ("a_total 4", "a_total 4\na_total 4"),
            ("a_total 4", "a_total -1"),
            ("a_total 4", "a_total four"),
            ("a_total 4", "b_total 4"),
            ("# HELP a_total Of a.\n", ""),
            ("# TYPE a_total counter\n", ""),
            ("a_total counter", "a_total gauge"),
            ("Of h.", ""),
            ("h_bucket{le=\"1\"} 2", "h_bucket{le=\"1\"} 6"),
            ("h_bucket{le=\"+Inf\"} 5", "h_bucket{le=\"+Inf\"} 6"),
            ("h_bucket{le=\"+Inf\"} 5\n", ""),
            ("n=\"\"", "m=\"\""),
            ("n=\"\"", "n=\""),
            ("h_count 5\n", "h_count 5\na_total{m=\"2\"} 1\n"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            // The last place of it.
            let at = GOOD.rfind(from).expect("it is there");
            let text = format!("{}{to}{}", &GOOD[..at], &GOOD[at + from.len()..]);
            let read = Page::read(&text);
            assert!(read.is_err(), "{from:?} as {to:?} is taken");
        }
    }
}
