//! Small guests under libvirt, and the channel through which commands run in them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{must, repository, run, wait_for};

const LIBVIRT: &str = "qemu:///system";

/// A libvirt domain of the test's own, removed at the end.
pub struct Guest {
    /// Its name.
    pub name: String,
    dir: Option<PathBuf>,
    /// Whether the domain goes when this handle does.
    owned: bool,
}

impl Guest {
    /// Defines and starts a small guest with one image per entry of `disks` (format, bytes).
    pub fn start(name: &str, disks: &[(&str, u64)]) -> Self {
        Self::start_with(name, disks, &[])
    }

    /// Defines and starts a small guest, with more options of `tests/guest/domain-xml`.
    pub fn start_with(name: &str, disks: &[(&str, u64)], more: &[&str]) -> Self {
        let dir = PathBuf::from("/var/lib/libvirt/images").join(name);
        fs::create_dir_all(&dir).expect("a directory for the guest's disks");
        let mut options = Vec::new();
        for (at, (format, bytes)) in disks.iter().enumerate() {
            let image = dir.join(format!("disk{at}.{format}")).display().to_string();
            must(
                "qemu-img",
                &["create", "-q", "-f", format, &image, &bytes.to_string()],
            );
            options.push("--disk".to_owned());
            options.push(format!("{image}:{format}"));
        }
        let guest = Self {
            name: name.to_owned(),
            dir: Some(dir.clone()),
            owned: true,
        };
        let script = repository().join("tests/guest/domain-xml");
        let mut arguments = vec!["small", name];
        arguments.extend(options.iter().map(String::as_str));
        arguments.extend(more);
        let xml = must(script.to_str().expect("a plain path"), &arguments);
        let file = dir.join("domain.xml");
        fs::write(&file, xml).expect("the domain's XML");
        must(
            "virsh",
            &[
                "-q",
                "-c",
                LIBVIRT,
                "define",
                file.to_str().expect("a plain path"),
            ],
        );
        guest.boot();
        guest
    }

    /// Another handle on a guest; it is not removed by this one.
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: None,
            owned: false,
        }
    }

    /// A guest that the product made, such as a takeover; it is removed should the product not do it.
    pub fn adopted(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: None,
            owned: true,
        }
    }

    /// Starts the domain and waits until commands run in it.
    pub fn boot(&self) {
        self.virsh(&["start", &self.name]);
        self.wait_ready();
    }

    /// Waits until commands run in the guest.
    pub fn wait_ready(&self) {
        wait_for("the guest answers", Duration::from_secs(90), || {
            self.try_run("true", Duration::from_secs(5)).map(|_| ())
        });
    }

    /// Runs a shell script in the guest; it has to go well.
    pub fn sh(&self, script: &str) -> String {
        let (code, out) = self
            .try_run(script, Duration::from_secs(120))
            .unwrap_or_else(|e| panic!("{script}: {e}"));
        assert_eq!(code, 0, "in {}: {script}: {out}", self.name);
        out
    }

    /// Runs a shell script in the guest; returns its exit code and what it printed.
    ///
    /// # Errors
    /// The guest did not answer in time.
    pub fn try_run(&self, script: &str, deadline: Duration) -> Result<(i32, String), String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut channel = UnixStream::connect(self.channel()?).map_err(|e| e.to_string())?;
        channel
            .set_read_timeout(Some(deadline))
            .map_err(|e| e.to_string())?;
        write!(channel, "\nRUN {id} {}\n", base64(script.as_bytes())).map_err(|e| e.to_string())?;
        for line in BufReader::new(channel).split(b'\n') {
            let line =
                String::from_utf8_lossy(&line.map_err(|e| format!("no answer: {e}"))?).into_owned();
            let words: Vec<&str> = line.split(' ').collect();
            if let ["OUT", answered, code, rest @ ..] = words.as_slice()
                && *answered == id
            {
                let out = rest
                    .first()
                    .map(|text| unbase64(text.trim()))
                    .unwrap_or_default();
                let code = code.parse().map_err(|_| line.clone())?;
                return Ok((code, String::from_utf8_lossy(&out).into_owned()));
            }
        }
        Err("the channel ended".into())
    }

    fn channel(&self) -> Result<PathBuf, String> {
        let xml = run("virsh", &["-c", LIBVIRT, "dumpxml", &self.name]);
        let before = xml
            .out
            .split("name='org.virt-cdp.test.0'")
            .next()
            .unwrap_or_default();
        let path = before
            .rsplit("<source mode='bind' path='")
            .next()
            .and_then(|s| s.split('\'').next());
        match path.filter(|p| p.starts_with('/')) {
            Some(path) => Ok(Path::new(path).to_path_buf()),
            None => Err(format!("no control channel: {}", xml.err)),
        }
    }

    /// Has QEMU write out all it holds of the disks, so that the image files can be looked at from outside.
    pub fn flush(&self) {
        self.sh("sync; for disk in /dev/vd?; do dd if=/dev/zero of=$disk count=0 conv=fsync,notrunc 2>/dev/null || exit 1; done");
    }

    /// Runs virsh, which has to go well.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-q", "-c", LIBVIRT];
        all.extend(arguments);
        must("virsh", &all)
    }

    /// The domain's state in virsh's words.
    pub fn state(&self) -> String {
        run("virsh", &["-q", "-c", LIBVIRT, "domstate", &self.name])
            .out
            .trim()
            .to_owned()
    }

    /// Waits until the domain is off.
    pub fn wait_off(&self) {
        wait_for("the guest is off", Duration::from_secs(60), || {
            match self.state() {
                state if state == "shut off" => Ok(()),
                state => Err(state),
            }
        });
    }

    /// Path of its disk number `at`.
    pub fn image(&self, at: usize) -> PathBuf {
        let dir = self.dir.as_ref().expect("a guest of the test's own");
        ["qcow2", "raw"]
            .map(|format| dir.join(format!("disk{at}.{format}")))
            .into_iter()
            .find(|p| p.exists())
            .expect("its image")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        run("virsh", &["-q", "-c", LIBVIRT, "destroy", &self.name]);
        run(
            "virsh",
            &["-q", "-c", LIBVIRT, "undefine", &self.name, "--nvram"],
        );
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |word, b| word << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = (word >> (18 - 6 * at) & 63) as usize;
            text.push(if at <= group.len() {
                char::from(ALPHABET[digit])
            } else {
                '='
            });
        }
    }
    text
}

fn unbase64(text: &str) -> Vec<u8> {
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0u32, 0);
    for digit in text
        .bytes()
        .filter_map(|b| ALPHABET.iter().position(|a| *a == b))
    {
        word = word << 6 | digit as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded), plain.as_bytes());
        }
    }
}
