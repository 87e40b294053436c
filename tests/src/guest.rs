//! Small guests under libvirt, and the channel through which commands run in them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{Ran, must, repository, run, wait_for};

const LIBVIRT: &str = "qemu:///system";
/// Where libvirt's sockets are, as it sees it itself.
const RUN_DIR: &str = "/run/libvirt";

/// A libvirt domain of the test's own, removed at the end.
pub struct Guest {
    /// Its name.
    pub name: String,
    dir: Option<PathBuf>,
    /// Whether the domain goes when this handle does.
    owned: bool,
    /// The libvirt it is at, and the directory of its sockets.
    at: (String, PathBuf),
}

/// The machine's own libvirt.
fn system() -> (String, PathBuf) {
    (LIBVIRT.to_owned(), PathBuf::from(RUN_DIR))
}

impl Guest {
    /// Defines and starts a small guest with one image per entry of `disks` (format, bytes).
    pub fn start(name: &str, disks: &[(&str, u64)]) -> Self {
        Self::start_at(system(), name, disks, &[])
    }

    /// Defines and starts a small guest, with more options of `tests/guest/domain-xml`.
    pub fn start_with(name: &str, disks: &[(&str, u64)], more: &[&str]) -> Self {
        Self::start_at(system(), name, disks, more)
    }

    /// As [`start_with`](Self::start_with), at the libvirt of that URI, whose sockets are in that directory.
    pub fn start_at(
        at: (String, PathBuf),
        name: &str,
        disks: &[(&str, u64)],
        more: &[&str],
    ) -> Self {
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
            at,
        };
        let script = repository().join("tests/guest/domain-xml");
        let mut arguments = vec!["small", name];
        arguments.extend(options.iter().map(String::as_str));
        arguments.extend(more);
        let xml = must(script.to_str().expect("a plain path"), &arguments);
        let file = dir.join("domain.xml");
        fs::write(&file, xml).expect("the domain's XML");
        guest.virsh(&["define", file.to_str().expect("a plain path")]);
        guest.boot();
        guest
    }

    /// Another handle on a guest; it is not removed by this one.
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: None,
            owned: false,
            at: system(),
        }
    }

    /// The same guest at another libvirt; it is ended and undefined there when this handle is dropped.
    pub fn moved(&self, at: (String, PathBuf)) -> Self {
        Self {
            name: self.name.clone(),
            dir: None,
            owned: true,
            at,
        }
    }

    /// A guest that the product made, such as a takeover; it is removed should the product not do it.
    pub fn adopted(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: None,
            owned: true,
            at: system(),
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
        let xml = run("virsh", &["-c", &self.at.0, "dumpxml", &self.name]);
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
            Some(path) => Ok(match Path::new(path).strip_prefix(RUN_DIR) {
                Ok(below) => self.at.1.join(below),
                Err(_) => PathBuf::from(path),
            }),
            None => Err(format!("no control channel: {}", xml.err)),
        }
    }

    /// Has QEMU write out all it holds of the disks, so that the image files can be looked at from outside.
    pub fn flush(&self) {
        self.sh("sync; for disk in /dev/vd?; do dd if=/dev/zero of=$disk count=0 conv=fsync,notrunc 2>/dev/null || exit 1; done");
    }

    /// Runs virsh, which has to go well.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let ran = self.try_virsh(arguments);
        assert!(ran.ok, "virsh {arguments:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs virsh.
    pub fn try_virsh(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["-q", "-c", &self.at.0];
        all.extend(arguments);
        run("virsh", &all)
    }

    /// Its disks as libvirt has them: target and image.
    pub fn disks(&self) -> Vec<(String, String)> {
        let list = self.virsh(&["domblklist", &self.name]);
        let disk = |line: &str| {
            let (target, image) = line.trim().split_once(' ')?;
            Some((target.to_owned(), image.trim().to_owned()))
        };
        list.lines().filter_map(disk).collect()
    }

    /// The process id of its QEMU.
    pub fn qemu_pid(&self) -> String {
        let file = self.at.1.join("qemu").join(format!("{}.pid", self.name));
        let pid = fs::read_to_string(file).expect("the pid file of a running domain");
        pid.trim().to_owned()
    }

    /// Has QEMU execute a QMP command; returns its answer as text.
    pub fn qmp(&self, command: &str) -> String {
        self.virsh(&["qemu-monitor-command", &self.name, command])
    }

    /// Starts a load on a disk in the guest, to be [ended](Self::end_load).
    pub fn begin_load(&self, disk: &str, mib: u32) {
        self.sh(&format!(
            "(wload {disk} --seconds 600 --size-mib {mib} >/tmp/load 2>&1; echo $? >/tmp/load.code) >/dev/null 2>&1 & echo $! >/tmp/load.pid"
        ));
    }

    /// Ends the load, which must still be running: a write that failed would have ended it.
    pub fn end_load(&self) {
        self.sh("test ! -e /tmp/load.code || { cat /tmp/load; exit 1; }; killall wload; for i in $(seq 50); do test -e /tmp/load.code && break; sleep 0.1; done; rm /tmp/load.code; dmesg | grep -i 'I/O error' && exit 1; true");
    }

    /// The domain's state in virsh's words.
    pub fn state(&self) -> String {
        self.try_virsh(&["domstate", &self.name])
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
        self.try_virsh(&["destroy", &self.name]);
        let undefine = [
            "undefine",
            &self.name,
            "--nvram",
            "--managed-save",
            "--checkpoints-metadata",
            "--snapshots-metadata",
        ];
        self.try_virsh(&undefine);
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
