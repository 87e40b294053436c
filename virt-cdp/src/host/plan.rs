//! What is to be done with an item, by what is there and what the manifest says of it.

use super::{
    Done, Host, HostError, block,
    files::{Content, Item},
    manifest::{Entry, Kind, Manifest, hash},
    write,
};

/// An item, and what is to be done with it.
pub(super) struct Planned<'a> {
    pub(super) item: &'a Item,
    pub(super) kind: Kind,
    /// Of what is to be there.
    pub(super) hash: String,
    pub(super) done: Done,
}

/// Looks at the host and decides about an item.
pub(super) fn plan<'a>(
    host: &Host,
    manifest: &Manifest,
    item: &'a Item,
) -> Result<Planned<'a>, HostError> {
    let there = write::found(&host.at(&item.path))?;
    let entry = manifest.entry(&item.path);
    let (kind, wanted, found) = match &item.content {
        Content::File(bytes, _) => (Kind::File, hash(bytes), there.as_deref().map(hash)),
        Content::Link(target) => (
            Kind::Link,
            hash(&write::link_bytes(target)),
            there.as_deref().map(hash),
        ),
        Content::Block(lines) => {
            let kind = match (entry, &there) {
                (Some(entry), _) => entry.kind,
                (None, Some(_)) => Kind::Block,
                (None, None) => Kind::BlockFile,
            };
            let text = there.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let text = text.unwrap_or_default();
            let lines_there = match block::find(&text) {
                Some(cut) => Some(hash(cut.lines.as_bytes())),
                // Without markers they are somebody's own copy.
                None if text.contains(lines.trim_end()) => Some(hash(lines.as_bytes())),
                None => None,
            };
            (kind, hash(lines.as_bytes()), lines_there)
        }
    };
    let done = decide(entry, &wanted, found.as_deref());
    Ok(Planned {
        item,
        kind,
        hash: wanted,
        done,
    })
}

/// Decides by hashes: what is wanted, what is there, and what the manifest knows as ours.
fn decide(entry: Option<&Entry>, wanted: &str, found: Option<&str>) -> Done {
    let ours = |hash: &str| entry.is_some_and(|entry| entry.hashes.iter().any(|h| h == hash));
    match found {
        None => Done::Made,
        Some(found) if found == wanted && ours(found) => Done::Kept,
        Some(found) if found == wanted => Done::Left("it was there already, as it should be"),
        Some(found) if ours(found) => Done::Updated,
        Some(_) if entry.is_some() => Done::Left("it was changed since it was laid down"),
        Some(_) => Done::Left("something else was there already"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_or_is_not_ours_is_left() {
        let entry = |hashes: &[&str]| Entry {
            path: "/x".into(),
            kind: Kind::File,
            hashes: hashes.iter().map(|h| (*h).to_owned()).collect(),
        };
        let there = Done::Left("it was there already, as it should be");
        let changed = Done::Left("it was changed since it was laid down");
        let foreign = Done::Left("something else was there already");
        let table = [
            (None, None, Done::Made),
            (None, Some("new"), there),
            (None, Some("odd"), foreign),
            (Some(entry(&["new"])), None, Done::Made),
            (Some(entry(&["new"])), Some("new"), Done::Kept),
            (Some(entry(&["old"])), Some("old"), Done::Updated),
            (Some(entry(&["old", "new"])), Some("old"), Done::Updated),
            (Some(entry(&["old", "new"])), Some("new"), Done::Kept),
            (Some(entry(&["old"])), Some("odd"), changed),
        ];
        for (entry, found, expected) in table {
            assert_eq!(
                decide(entry.as_ref(), "new", found),
                expected,
                "{entry:?} {found:?}"
            );
        }
    }
}
