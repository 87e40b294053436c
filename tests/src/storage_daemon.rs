//! qemu-storage-daemon in the place of a guest: the same block layer, no emulation noise.
//!
//! Two QMP sockets: one is the product's, one the test's. Writers reach the nodes over NBD, which is
//! started after the seed, as QEMU has one NBD server and the seed needs it. An export that is made while a
//! mirror runs has to be put on the mirror's filter: on the node itself it would bypass the mirror, which a
//! guest's disk, being there before, never does.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use qemu_hook::{monitor::Monitor, qmp::QmpSocket};
use serde_json::json;

use crate::{must, unique, wait_for};

/// A running storage daemon; node `diskN` lies on image `diskN`.
pub struct StorageDaemon {
    /// Images and sockets; removed at the end.
    pub dir: PathBuf,
    child: Child,
    told_to_end: bool,
    control: QmpSocket,
}

impl StorageDaemon {
    /// Starts one with a node per entry (format, bytes).
    pub fn start(disks: &[(&str, u64)]) -> Self {
        let dir = PathBuf::from("/var/tmp").join(unique("qsd"));
        fs::create_dir_all(&dir).expect("a directory");
        let at = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new("qemu-storage-daemon");
        // What is freed is given back to the system: whoever uses it still is found out.
        command.env("MALLOC_MMAP_THRESHOLD_", "65536");
        for (socket, id) in [("qmp.sock", "m0"), ("control.sock", "m1")] {
            command.args([
                "--chardev",
                &format!("socket,id={id},path={},server=on,wait=off", at(socket)),
            ]);
            command.args(["--monitor", &format!("chardev={id}")]);
        }
        for (number, (format, bytes)) in disks.iter().enumerate() {
            let image = at(&format!("disk{number}.img"));
            must(
                "qemu-img",
                &["create", "-q", "-f", format, &image, &bytes.to_string()],
            );
            command.args([
                "--blockdev",
                &format!("driver=file,node-name=file{number},filename={image},cache.direct=on"),
            ]);
            command.args([
                "--blockdev",
                &format!("driver={format},node-name=disk{number},file=file{number}"),
            ]);
        }
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon starts");
        let control = wait_for(
            "the storage daemon answers",
            Duration::from_secs(20),
            || QmpSocket::connect(&dir.join("control.sock")).map_err(|e| e.to_string()),
        );
        Self {
            dir,
            child,
            told_to_end: false,
            control,
        }
    }

    /// Path of the QMP socket for the product.
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// The test's own monitor.
    pub fn control(&self) -> &QmpSocket {
        &self.control
    }

    /// Serves the nodes writable over NBD, under their names; returns the socket.
    pub fn serve(&self, disks: usize) -> PathBuf {
        let path = self.dir.join("nbd.sock");
        let addr = json!({"type": "unix", "data": {"path": path}});
        self.control
            .execute("nbd-server-start", json!({"addr": addr}))
            .expect("an NBD server");
        let nodes = self
            .control
            .execute("query-named-block-nodes", json!({"flat": true}))
            .expect("the nodes");
        let nodes = nodes.as_array().expect("a list").iter();
        let mut filters: Vec<&str> = nodes
            .filter(|n| n["drv"] == "mirror_top")
            .filter_map(|n| n["node-name"].as_str())
            .collect();
        filters.sort_unstable();
        for number in 0..disks {
            let name = format!("disk{number}");
            let node = filters.get(number).copied().unwrap_or(&name);
            let export = json!({"type": "nbd", "id": format!("w{number}"), "node-name": node, "name": name, "writable": true});
            self.control
                .execute("block-export-add", export)
                .expect("an export");
        }
        path
    }

    /// Ends the serving of [`serve`](Self::serve).
    pub fn stop_serving(&self) {
        self.control
            .execute("nbd-server-stop", json!(null))
            .expect("the NBD server stops");
    }

    /// Ends the storage daemon in good order: the images are whole afterwards.
    pub fn quit(&mut self) {
        self.told_to_end = true;
        let _ = self.control.execute("quit", json!(null));
        self.child.wait().expect("it ends");
    }

    /// Path of image number `at`.
    pub fn image(&self, at: usize) -> PathBuf {
        self.dir.join(format!("disk{at}.img"))
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        if let (false, Ok(Some(status))) = (self.told_to_end, self.child.try_wait()) {
            eprintln!("qemu-storage-daemon ended before it was told to: {status}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
