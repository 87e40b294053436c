//! A disk that may be written to, as its base is left as it is: a qcow2 overlay, and windows onto it as files.
//!
//! A window is an export of `qemu-storage-daemon` over FUSE. One at a time: the daemon locks the overlay.
//!
//! Invariant: a [`Window`] that is dropped is unmounted and its daemon is gone; an [`Overlay`] that is dropped takes its
//! folder along.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::Trouble;
use crate::{
    check::{
        Place,
        bound::Bound,
        process::{Program, Running},
        seen::quote,
        sockets::cause,
    },
    stage::Volume,
};

/// How long a daemon may take to end by itself, which unmounts its file.
const PATIENCE: Duration = Duration::from_millis(300);

/// A disk over the view of a volume.
pub(super) struct Overlay<'a> {
    folder: TempDir,
    place: &'a Place<'a>,
}

/// A part of a disk, as a file, for as long as this is held.
pub(super) struct Window {
    file: PathBuf,
    log: PathBuf,
    pid: PathBuf,
    daemon: Option<Running>,
}

impl<'a> Overlay<'a> {
    /// Makes one, empty.
    pub(super) fn make(
        volume: &Volume,
        place: &'a Place<'a>,
        bound: &Bound<'_>,
    ) -> Result<Self, Trouble> {
        if !Path::new("/dev/fuse").exists() {
            return Err(
                "there is no /dev/fuse on this host; load the kernel module fuse"
                    .to_owned()
                    .into(),
            );
        }
        let folder = tempfile::Builder::new()
            .prefix("fsck-")
            .tempdir_in(place.dir)
            .map_err(|error| format!("there is no folder for an overlay: {}", cause(&error)))?;
        let made = Self { folder, place };
        let program = Program::new("qemu-img", place).with(|command| {
            command
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&volume.uri)
                .arg(made.image());
        });
        let ended = program.run(false, bound)?;
        match ended.code() {
            Some(0) => Ok(made),
            Some(_) => Err(format!("no overlay could be made: {}", quote(&ended.output)).into()),
            None => Err(Trouble::Stopped),
        }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("overlay.qcow2")
    }

    /// Shows a part of the disk as a file.
    pub(super) fn show(
        &self,
        offset: u64,
        size: u64,
        writable: bool,
        bound: &Bound<'_>,
    ) -> Result<Window, Trouble> {
        let folder = self.folder.path();
        let window = Window {
            file: folder.join("window"),
            log: folder.join("log"),
            pid: folder.join("pid"),
            daemon: None,
        };
        let trouble = |error: std::io::Error| format!("no file for a window: {}", cause(&error));
        fs::write(&window.file, []).map_err(trouble)?;
        let log = fs::File::create(&window.log).map_err(trouble)?;
        let errors = log.try_clone().map_err(trouble)?;
        // A comma ends an option there, and two are one comma.
        let quoted = |path: &Path| path.display().to_string().replace(',', ",,");
        let base = format!(
            "driver=file,node-name=file,filename={}",
            quoted(&self.image())
        );
        let part = format!("driver=raw,node-name=part,file=disk,offset={offset},size={size}");
        let export = format!(
            "type=fuse,id=window,node-name=part,mountpoint={},writable={}",
            quoted(&window.file),
            if writable { "on" } else { "off" }
        );
        let program = Program::new("qemu-storage-daemon", self.place).with(|command| {
            command
                .args(["--blockdev", &base])
                .args(["--blockdev", "driver=qcow2,node-name=disk,file=file"])
                .args(["--blockdev", &part])
                .args(["--export", &export])
                .arg("--pidfile")
                .arg(&window.pid)
                .stdout(log)
                .stderr(errors);
        });
        let mut window = window;
        window.daemon = Some(program.start()?);
        window.wait(bound)?;
        Ok(window)
    }
}

impl Window {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.file
    }

    /// Waits until the daemon is ready: it writes its number then.
    fn wait(&self, bound: &Bound<'_>) -> Result<(), Trouble> {
        loop {
            let has_ended = self.daemon.as_ref().is_none_or(Running::has_ended);
            if has_ended {
                let log = fs::read(&self.log).unwrap_or_default();
                let log = String::from_utf8_lossy(&log).into_owned();
                return Err(format!("the disk cannot be shown: {}", quote(&log)).into());
            }
            if fs::read(&self.pid).is_ok_and(|text| !text.is_empty()) && self.is_mounted() {
                return Ok(());
            }
            if !bound.nap(Duration::from_millis(10)) {
                return Err(Trouble::Stopped);
            }
        }
    }

    /// Whether the file is that of the daemon: it lies on another device than its folder then, or is dead.
    fn is_mounted(&self) -> bool {
        let folder = self.file.parent().map(fs::metadata);
        match (folder, fs::metadata(&self.file)) {
            (Some(Ok(folder)), Ok(file)) => folder.dev() != file.dev(),
            (_, Err(_)) => true,
            (_, Ok(_)) => false,
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.ask_to_end(PATIENCE);
            drop(daemon);
        }
        if self.is_mounted() {
            // The daemon was killed. Without it the mount is of no use to anybody.
            let _ = unmount(&self.file, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(&self.pid);
    }
}
