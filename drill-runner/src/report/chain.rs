//! The chain of a store's reports: each names the one before it, and its hash.
//!
//! All of the chain is read from the signed reports themselves. Its beginning may have been pruned: that is told, and is no
//! break. What the files alone cannot show is that the newest reports were removed; whoever must know that keeps
//! [`Chain::head`] somewhere else.

use std::collections::{BTreeMap, BTreeSet};

use super::verify::{Verified, VerifyError};
use crate::outcome::Link;

/// What going over all reports of a store has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// How many reports there are.
    pub reports: usize,
    /// The report that the oldest one names but that is not there any more: what came before was pruned.
    pub begins_after: Option<Link>,
    /// The newest report; none where there is none, or where the chain is broken.
    pub head: Option<Link>,
    /// The first break; none where every report is what was signed and follows the one it names.
    pub broken: Option<Break>,
}

/// A break of the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("report {id}: {fault}")]
pub struct Break {
    /// The report at which it was found.
    pub id: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What can be wrong with a report of a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not what was signed, or not signed by the store's key.
    #[error("{0}")]
    Untrusted(VerifyError),
    /// Its file has the name of another report.
    #[error("its file holds the report {0}")]
    OtherReport(String),
    /// It names a report before it that is not there, and it is not the oldest.
    #[error("the report before it, {0}, is missing")]
    Missing(String),
    /// The report before it is another one than when it was added.
    #[error("the report before it, {0}, is not the one it was added to")]
    WrongLink(String),
    /// Another report names the same one before it.
    #[error("the report before it, {0}, is named by another one, too")]
    Fork(String),
    /// It says that it is the first, and so does another.
    #[error("it says that it is the first report, but there is another first one")]
    SecondFirst,
}

impl Chain {
    /// Judges reports by what verifying each came to; the map is from the files' numbers.
    pub(super) fn of(reports: &BTreeMap<String, Result<Verified, VerifyError>>) -> Self {
        match Self::links(reports) {
            Ok((begins_after, head)) => Self {
                reports: reports.len(),
                begins_after,
                head,
                broken: None,
            },
            Err(broken) => Self {
                reports: reports.len(),
                begins_after: None,
                head: None,
                broken: Some(broken),
            },
        }
    }

    /// The link before the oldest report, and that to the newest.
    fn links(
        reports: &BTreeMap<String, Result<Verified, VerifyError>>,
    ) -> Result<(Option<Link>, Option<Link>), Break> {
        let broken = |id: &str, fault| Break {
            id: id.to_owned(),
            fault,
        };
        let mut sound: BTreeMap<&str, &Verified> = BTreeMap::new();
        for (id, verified) in reports {
            let verified = verified
                .as_ref()
                .map_err(|error| broken(id, Fault::Untrusted(error.clone())))?;
            if verified.id.as_ref() != Some(id) {
                let other = verified.id.clone().unwrap_or_default();
                return Err(broken(id, Fault::OtherReport(other)));
            }
            sound.insert(id, verified);
        }
        let mut named = BTreeSet::new();
        // Reports that no other one of the store comes before.
        let mut begins: Vec<(&str, Option<&Link>)> = Vec::new();
        for (id, verified) in &sound {
            let Some(link) = &verified.previous else {
                begins.push((id, None));
                continue;
            };
            match sound.get(link.id.as_str()) {
                None => begins.push((id, Some(link))),
                Some(before) if before.sha256 != link.sha256 => {
                    return Err(broken(id, Fault::WrongLink(link.id.clone())));
                }
                Some(_) => {}
            }
            if !named.insert(link.id.as_str()) {
                return Err(broken(id, Fault::Fork(link.id.clone())));
            }
        }
        // The first of all is the beginning, else the oldest; any other follows something that is missing.
        begins.sort_by_key(|(id, link)| (link.is_some(), *id));
        if let Some((id, link)) = begins.get(1) {
            let fault = match link {
                Some(link) => Fault::Missing(link.id.clone()),
                None => Fault::SecondFirst,
            };
            return Err(broken(id, fault));
        }
        let begins_after = begins.first().and_then(|(_, link)| link.cloned());
        let newest = sound.iter().find(|(id, _)| !named.contains(*id));
        let head = newest.map(|(id, verified)| Link {
            id: (*id).to_owned(),
            sha256: verified.sha256.clone(),
        });
        Ok((begins_after, head))
    }
}
