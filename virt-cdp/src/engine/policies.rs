//! The policies in force: those of the configuration, and before them those that were set with `policy-set`.
//!
//! What was set is kept in `policies.toml` in the state directory, replaced as a whole, and goes before what the
//! configuration says of the same name.
//!
//! Invariant: while `policies.toml` cannot be read no policy is known at all. So nothing is removed by one that the
//! user has replaced.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use super::{guard, slot::Slot};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    daemon::policy::{self, Policy},
};

/// Where a policy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody has said anything.
    BuiltIn,
    /// The configuration.
    Configured,
    /// `policy-set`.
    Set,
}

impl Origin {
    /// The origin's stable name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in",
            Self::Configured => "configuration",
            Self::Set => "policy-set",
        }
    }
}

/// A policy in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) policy: Policy,
    pub(crate) origin: Origin,
}

/// All policies.
pub(crate) struct Policies {
    path: PathBuf,
    configured: BTreeMap<String, Policy>,
    /// Those that were set, or why they are not known. Never held while the disk is waited for.
    set: Mutex<Result<BTreeMap<String, Policy>, String>>,
    /// Changes, as somebody asks for them: one after the other.
    pub(crate) asked: Slot,
}

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(default, deserialize_with = "policy::named")]
    policy: BTreeMap<String, Policy>,
}

impl Policies {
    /// Reads what was set; `configured` is what the configuration says.
    pub(crate) fn open(state_dir: &Path, configured: BTreeMap<String, Policy>) -> Self {
        let path = state_dir.join("policies.toml");
        let set = read(&path).map_err(|why| format!("{} cannot be read: {why}", path.display()));
        if let Err(why) = &set {
            tracing::error!(why, "no policy is run");
        }
        Self {
            path,
            configured,
            set: Mutex::new(set),
            asked: Slot::default(),
        }
    }

    /// What is wrong with the policies as a whole.
    pub(crate) fn problem(&self) -> Option<String> {
        let why = guard(&self.set).as_ref().err().cloned()?;
        Some(format!(
            "no policy is run, nothing is removed: {why}; mend the file or remove it, and start virtcdpd again"
        ))
    }

    /// All policies by their names.
    ///
    /// # Errors
    /// What was set cannot be read.
    pub(crate) fn all(&self) -> ApiResult<BTreeMap<String, InForce>> {
        let configured = self.configured.iter().map(|(name, policy)| {
            let is_built_in = name == policy::DEFAULT && *policy == Policy::built_in();
            let origin = match is_built_in {
                true => Origin::BuiltIn,
                false => Origin::Configured,
            };
            let policy = policy.clone();
            (name.clone(), InForce { policy, origin })
        });
        let mut all: BTreeMap<String, InForce> = configured.collect();
        let set = guard(&self.set);
        for (name, policy) in set.as_ref().map_err(|why| unreadable(why))? {
            let (policy, origin) = (policy.clone(), Origin::Set);
            all.insert(name.clone(), InForce { policy, origin });
        }
        Ok(all)
    }

    /// The policy of that name, if it is known.
    pub(crate) fn get(&self, name: &str) -> Option<InForce> {
        self.all().ok()?.get(name).cloned()
    }

    /// The policy of that name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn require(&self, name: &str) -> ApiResult<InForce> {
        let all = self.all()?;
        all.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = all.keys().map(String::as_str).collect();
            let what = format!("there is no policy '{name}'");
            ApiError::new(ApiErrorKind::NotFound, what).hint(format!(
                "there is {}; make it with policy-set, or as [policy.NAME] in the configuration",
                names.join(", ")
            ))
        })
    }

    /// Changes a policy, or makes it; durable on return. To be called in [`asked`](Self::asked).
    ///
    /// # Errors
    /// The name or the policy is not valid; the file cannot be written.
    pub(crate) fn set(&self, name: &str, change: impl FnOnce(&mut Policy)) -> ApiResult<()> {
        let invalid = |what: String, hint: &str| {
            ApiError::new(ApiErrorKind::InvalidArgument, what).hint(hint.to_owned())
        };
        policy::check_name(name).map_err(|(what, hint)| invalid(what, hint))?;
        let now = self.all()?.get(name).map(|now| now.policy.clone());
        let mut policy = now.unwrap_or_else(Policy::blank);
        change(&mut policy);
        policy::check(name, &policy).map_err(|(what, hint)| invalid(what, &hint))?;
        self.change(|set| {
            set.insert(name.to_owned(), policy);
        })
    }

    /// Forgets what was set of a policy: the configuration counts again. As [`set`](Self::set).
    ///
    /// # Errors
    /// Nothing was set; the file cannot be written.
    pub(crate) fn reset(&self, name: &str) -> ApiResult<()> {
        if self.require(name)?.origin != Origin::Set {
            let what = format!("policy '{name}' was not set by policy-set");
            return Err(ApiError::new(ApiErrorKind::FailedPrecondition, what)
                .hint("it is as the configuration says already"));
        }
        self.change(|set| {
            set.remove(name);
        })
    }

    /// Tells whether the configuration has the policy.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.configured.contains_key(name)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Policy>)) -> ApiResult<()> {
        let mut changed = guard(&self.set).clone().map_err(|why| unreadable(&why))?;
        change(&mut changed);
        let kept = Kept { policy: changed };
        write(&self.path, &kept).map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::StorageFull => ApiErrorKind::ResourceExhausted,
                io::ErrorKind::PermissionDenied => ApiErrorKind::PermissionDenied,
                _ => ApiErrorKind::Internal,
            };
            ApiError::new(kind, format!("cannot write {}: {e}", self.path.display()))
        })?;
        *guard(&self.set) = Ok(kept.policy);
        Ok(())
    }
}

fn unreadable(why: &str) -> ApiError {
    ApiError::new(ApiErrorKind::FailedPrecondition, why)
        .hint("mend the file or remove it, and start virtcdpd again; until then nothing is removed")
}

fn read(path: &Path) -> Result<BTreeMap<String, Policy>, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(e.to_string()),
    };
    let kept: Kept = toml::from_str(&text).map_err(|e| {
        // What stands behind the mark is a cure for a configuration.
        let message = e.message().split('\u{1}').next().unwrap_or_default();
        message.replace('\n', "; ")
    })?;
    Ok(kept.policy)
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let text = toml::to_string(kept).map_err(io::Error::other)?;
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn origins(policies: &Policies) -> Vec<(String, &'static str)> {
        let all = policies.all().unwrap();
        all.iter()
            .map(|(name, p)| (name.clone(), p.origin.name()))
            .collect()
    }

    fn text(all: &[(&str, &str)]) -> Vec<(String, &'static str)> {
        let leak = |text: &str| -> &'static str {
            [Origin::BuiltIn, Origin::Configured, Origin::Set]
                .map(Origin::name)
                .into_iter()
                .find(|name| *name == text)
                .unwrap()
        };
        all.iter()
            .map(|(name, origin)| ((*name).to_owned(), leak(origin)))
            .collect()
    }

    #[test]
    fn what_was_set_goes_before_the_configuration_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let mut configured = policy::built_in();
        let mut long = Policy::blank();
        long.keep.monthly = HOUR * 9999;
        configured.insert("long".into(), long);
        let open = || Policies::open(dir.path(), configured.clone());
        let policies = open();
        assert_eq!(policies.problem(), None);
        assert_eq!(
            origins(&policies),
            text(&[("default", "built-in"), ("long", "configuration")])
        );
        policies
            .set("default", |policy| policy.keep.all = HOUR)
            .unwrap();
        policies
            .set("mine", |policy| policy.keep.daily = HOUR * 48)
            .unwrap();
        let policies = open();
        let expected = [
            ("default", "policy-set"),
            ("long", "configuration"),
            ("mine", "policy-set"),
        ];
        assert_eq!(origins(&policies), text(&expected));
        let default = policies.get("default").unwrap().policy.keep;
        // What was not named stays as it was.
        assert_eq!((default.all, default.hourly), (HOUR, HOUR * 24 * 7));
        assert_eq!(
            policies.get("mine").unwrap().policy.keep.all,
            Duration::ZERO
        );
        policies.reset("default").unwrap();
        assert_eq!(policies.get("default").unwrap().policy, Policy::built_in());
        for (name, what) in [
            ("long", "was not set by policy-set"),
            ("other", "there is no policy 'other'"),
        ] {
            let error = policies.reset(name).unwrap_err();
            assert!(
                error.what.contains(what) && error.hint.is_some(),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_policy_that_keeps_nothing_and_a_name_that_is_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let policies = Policies::open(dir.path(), policy::built_in());
        for (name, what) in [
            ("new", "keeps nothing but the newest point"),
            ("a b", "is no name of a policy"),
        ] {
            let error = policies
                .set(name, |policy| policy.size_limit = 7)
                .unwrap_err();
            assert_eq!(error.kind, ApiErrorKind::InvalidArgument);
            assert!(
                error.what.contains(what) && error.hint.is_some(),
                "{error:?}"
            );
        }
        assert!(
            !dir.path().join("policies.toml").exists(),
            "nothing was changed"
        );
    }

    #[test]
    fn where_the_file_cannot_be_read_no_policy_is_known() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "policy = 7",
            "[policy.x]\nall = \"never\"",
            "[policy.x]\n",
            "[polic",
        ] {
            fs::write(dir.path().join("policies.toml"), text).unwrap();
            let policies = Policies::open(dir.path(), policy::built_in());
            assert_eq!(policies.get("default"), None, "{text}");
            assert!(
                policies
                    .problem()
                    .unwrap()
                    .contains("policies.toml cannot be read: "),
                "{text}"
            );
            assert!(
                policies
                    .set("default", |policy| policy.keep.all = HOUR)
                    .is_err()
            );
            assert_eq!(
                fs::read_to_string(dir.path().join("policies.toml")).unwrap(),
                text
            );
        }
    }
}
