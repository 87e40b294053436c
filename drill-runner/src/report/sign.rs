//! The key of a host's reports: Ed25519.
//!
//! A signature covers a prefix that names the form, and then the signed bytes: in HTML and JUnit all bytes before the last
//! comment, in JSON the bytes of the `report` member. The key lies in a file of two words, `virt-cdp-report-key-1` and the
//! 64 hexadecimal digits of its seed, which only its owner may read.
//!
//! Invariant: a key file that others could have read or written, or that is damaged, is refused and never replaced. A crash
//! while the key is made leaves no key, or the whole of it.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use super::{
    form::Form,
    hex::{hex, sha256, unhex},
    whole::{self, Before},
};

const FILE_KIND: &str = "virt-cdp-report-key-1";
const FILE_BYTES_MAX: u64 = 4096;

/// How the signature of an HTML page or of JUnit XML begins.
pub(super) const COMMENT_START: &str = "<!-- virt-cdp-signature: ed25519 ";
/// How it ends.
pub(super) const COMMENT_END: &str = " -->\n";

/// Says why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read or made.
    #[error("the key of the reports, {}, cannot be {doing}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why it did not work.
        source: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error(
        "the key of the reports, {}, has mode {mode:04o}, so that others may know it; if nobody can have read it, \
         `chmod 600` it, else move it away and a new one is made", path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the key of the reports, {}, belongs to user {owner}, not to {user}; `chown` it, or move it away and a new one is \
         made", path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who wants to use it.
        user: u32,
    },
    /// There is something else in it than a key.
    #[error(
        "{} holds no key of reports; put it back from a backup, or move it away and a new one is made", path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
    },
}

/// A key that signs reports.
#[derive(Clone)]
pub struct Key {
    signing: SigningKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.public().fingerprint())
    }
}

impl Key {
    /// Reads the key from its file; makes the file, with a key by chance, where there is none.
    ///
    /// # Errors
    /// A file that others may read or write, that belongs to somebody else, that holds no key, or that cannot be read or
    /// made.
    pub fn open_or_make(path: &Path) -> Result<Self, KeyError> {
        match Self::open(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
        let failed = |source| KeyError::Io {
            path: path.to_owned(),
            doing: "made",
            source,
        };
        let seed = whole::chance::<32>().map_err(failed)?;
        let text = format!("{FILE_KIND} {}\n", hex(&seed));
        match whole::write(path, text.as_bytes(), 0o600, Before::Stays) {
            // Somebody else was faster: theirs is the key.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done.map_err(failed)?,
        }
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io {
            path: path.to_owned(),
            doing: "read",
            source,
        };
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = options.open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        let broken = || KeyError::Broken {
            path: path.to_owned(),
        };
        if !facts.is_file() || facts.len() > FILE_BYTES_MAX {
            return Err(broken());
        }
        let user = rustix::process::geteuid().as_raw();
        if facts.uid() != user {
            return Err(KeyError::Owner {
                path: path.to_owned(),
                owner: facts.uid(),
                user,
            });
        }
        if facts.mode() & 0o7077 != 0 {
            return Err(KeyError::Open {
                path: path.to_owned(),
                mode: facts.mode() & 0o7777,
            });
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|_| broken())?;
        let digits = text
            .strip_prefix(FILE_KIND)
            .and_then(|rest| rest.strip_prefix(' '))
            .and_then(|rest| rest.strip_suffix('\n'))
            .ok_or_else(broken)?;
        let seed = unhex::<32>(digits).ok_or_else(broken)?;
        Ok(Self {
            signing: SigningKey::from_bytes(&seed),
        })
    }

    /// The key that its signatures are checked with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key().to_bytes())
    }

    /// Signs bytes in a form; returns the signature in hexadecimal digits.
    pub(super) fn sign(&self, form: Form, bytes: &[u8]) -> String {
        hex(&self.signing.sign(&message(form, bytes)).to_bytes())
    }

    /// Signs a page by a comment at its end.
    pub(super) fn sign_page(&self, form: Form, page: String) -> Vec<u8> {
        let signature = self.sign(form, page.as_bytes());
        let public = self.public();
        let comment = format!("{COMMENT_START}{public} {signature}{COMMENT_END}");
        (page + &comment).into_bytes()
    }
}

/// A key that signatures of reports are checked with; printed as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads it from its 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }

    /// What people compare: the first 16 digits of its SHA-256, in fours.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = sha256(&self.0);
        let fours = [0..4, 4..8, 8..12, 12..16];
        fours.map(|four| digest.get(four).unwrap_or("")).join(" ")
    }

    /// Tells whether it has signed bytes in a form.
    pub(super) fn has_signed(&self, form: Form, bytes: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0)
            .and_then(|key| key.verify_strict(&message(form, bytes), &signature))
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn message(form: Form, bytes: &[u8]) -> Vec<u8> {
    [form.domain(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.key");
        let made = Key::open_or_make(&path).unwrap().public();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(Key::open_or_make(&path).unwrap().public(), made);
        let other = Key::open_or_make(&dir.path().join("other.key")).unwrap();
        assert_ne!(other.public(), made);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(PublicKey::parse(&made.to_string()), Some(made));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.key");
        let made = Key::open_or_make(&path).unwrap().public();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = Key::open_or_make(&path).unwrap_err();
            assert!(matches!(error, KeyError::Open { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        assert_eq!(Key::open_or_make(&path).unwrap().public(), made);
    }

    #[test]
    fn a_damaged_key_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.key");
        Key::open_or_make(&path).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let short = &good[..good.len() - 2];
        let long = good.clone() + "x";
        for text in [
            "",
            "\n",
            short,
            &long,
            &good.replace('1', "2"),
            &good.to_uppercase(),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Key::open_or_make(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Broken { .. }),
                "{text:?}: {error}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(Key::open_or_make(&path).is_err());
    }

    #[test]
    fn makers_at_once_agree_on_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.key");
        let keys: Vec<PublicKey> = std::thread::scope(|scope| {
            let make = || Key::open_or_make(&path).unwrap().public();
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            makers.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }

    #[test]
    fn a_signature_is_good_for_its_form_and_its_bytes_only() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::open_or_make(&dir.path().join("report.key")).unwrap();
        let signature = unhex(&key.sign(Form::Html, b"page")).unwrap();
        assert!(key.public().has_signed(Form::Html, b"page", &signature));
        assert!(!key.public().has_signed(Form::JUnit, b"page", &signature));
        assert!(!key.public().has_signed(Form::Html, b"pagE", &signature));
    }

    #[test]
    fn nothing_prints_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.key");
        let key = Key::open_or_make(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let secret = text.split_whitespace().nth(1).unwrap();
        let printed = format!("{key:?} {:#?} {}", key, key.public());
        assert!(!printed.contains(secret) && !printed.contains(&secret[..16]));
        let fingerprint = key.public().fingerprint();
        let groups: Vec<usize> = fingerprint.split(' ').map(str::len).collect();
        assert_eq!(groups, [4, 4, 4, 4]);
    }
}
