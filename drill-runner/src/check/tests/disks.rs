//! File systems on disks, made and broken with real tools.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::*;
use crate::outcome::Verdict;

const MIB: u64 = 1 << 20;

/// Whether all that is needed is here; else it is said what is not.
fn has_tools() -> bool {
    let is_there = |tool: &&str| {
        crate::check::process::PATH
            .split(':')
            .any(|folder| Path::new(folder).join(tool).exists())
    };
    let tools = [
        "qemu-img",
        "qemu-storage-daemon",
        "qemu-nbd",
        "sfdisk",
        "blkid",
        "e2fsck",
        "mkfs.ext4",
        "debugfs",
        "mkswap",
    ];
    let missing: Vec<_> = tools.iter().filter(|tool| !is_there(tool)).collect();
    let is_ready = missing.is_empty() && is_root() && Path::new("/dev/fuse").exists();
    if !is_ready {
        eprintln!("SKIPPED: needs root, /dev/fuse and {tools:?}; missing: {missing:?}");
    }
    is_ready
}

fn tool(name: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{name} {arguments:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// A disk that is served read-only, as a view is.
struct Disk {
    folder: TempDir,
    server: Option<Child>,
}

impl Disk {
    /// An empty disk with these partitions, in lines of sfdisk; none: no table.
    fn new(size: u64, table: &str) -> Self {
        let disk = Self {
            folder: tempfile::tempdir().unwrap(),
            server: None,
        };
        File::create(disk.image()).unwrap().set_len(size).unwrap();
        if !table.is_empty() {
            tool("sfdisk", &["-q", disk.image().to_str().unwrap()], table);
        }
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Makes a file system in a file of its own, and puts it there.
    fn ext4(&self, at: u64, size: u64, change: impl Fn(&str)) {
        let part = self.folder.path().join("part");
        let name = part.to_str().unwrap().to_owned();
        File::create(&part).unwrap().set_len(size).unwrap();
        tool("mkfs.ext4", &["-q", "-F", "-b", "1024", &name], "");
        change(&name);
        let mut image = File::options().write(true).open(self.image()).unwrap();
        image.seek(SeekFrom::Start(at)).unwrap();
        image.write_all(&fs::read(&part).unwrap()).unwrap();
    }

    fn serve(mut self) -> (Self, Volume) {
        let socket = self.folder.path().join("socket");
        let server = Command::new("qemu-nbd")
            .args([
                "--read-only",
                "--persistent",
                "--shared=4",
                "-f",
                "raw",
                "-x",
                "view",
                "-t",
                "-k",
            ])
            .arg(&socket)
            .arg(self.image())
            .spawn()
            .unwrap();
        self.server = Some(server);
        for _ in 0..500 {
            if socket.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let volume = Volume {
            target: "vda".into(),
            size_bytes: fs::metadata(self.image()).unwrap().len(),
            uri: format!("nbd+unix:///view?socket={}", socket.display()),
        };
        (self, volume)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Runs the check; nothing of it may be left afterwards.
fn check(volume: Volume, plan: &CheckPlan) -> CheckReport {
    let mut scene = Scene::new();
    scene.machine.volumes = vec![volume];
    // Such a check does not need a machine that is on.
    *scene.machine.life.lock().unwrap() = Life::Off("not started".into());
    let report = scene.run(plan);
    let dir = scene.dir.path();
    let is_ours = |text: &str| text.contains(dir.to_str().unwrap());
    let left: Vec<_> = fs::read_dir(dir).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!is_ours(&fs::read_to_string("/proc/mounts").unwrap()));
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!is_ours(&String::from_utf8_lossy(&line)), "{entry:?}");
    }
    report
}

fn fsck() -> CheckPlan {
    let mut plan = once(CheckKind::Fsck { disks: Vec::new() }, 60_000);
    plan.attempts = None;
    plan
}

const TABLE: &str =
    "label: gpt\nstart=1MiB,size=32MiB\nstart=40MiB,size=8MiB,type=S\nstart=50MiB,size=8MiB\n";

#[test]
fn file_systems_in_order_pass_and_the_view_is_not_written_to() {
    if !has_tools() {
        return;
    }
    let disk = Disk::new(64 * MIB, TABLE);
    disk.ext4(MIB, 32 * MIB, |_| {});
    let swap = disk.folder.path().join("swap");
    File::create(&swap).unwrap().set_len(8 * MIB).unwrap();
    tool("mkswap", &["-q", swap.to_str().unwrap()], "");
    let mut image = File::options().write(true).open(disk.image()).unwrap();
    image.seek(SeekFrom::Start(40 * MIB)).unwrap();
    image.write_all(&fs::read(&swap).unwrap()).unwrap();
    drop(image);
    let before = fs::read(disk.image()).unwrap();
    let (disk, volume) = disk.serve();
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Proved, "{report:#?}");
    assert_eq!(
        report.attempts[0].saw,
        "looked at in part: in order: vda1 (ext4); not looked at: vda2 (swap has no checker here), vda3 (nothing that is known)"
    );
    assert!(report.attempts[0].output.contains("Pass 5"));
    assert!(fs::read(disk.image()).unwrap() == before);
}

#[test]
fn a_file_system_that_is_not_in_order_fails() {
    if !has_tools() {
        return;
    }
    let disk = Disk::new(64 * MIB, TABLE);
    disk.ext4(MIB, 32 * MIB, |part| {
        // The root folder is said to have no link.
        tool(
            "debugfs",
            &["-w", "-R", "set_inode_field <2> links_count 77", part],
            "",
        );
    });
    let (_disk, volume) = disk.serve();
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.attempts_total, 1, "it would be the same again");
    assert!(
        report.why.starts_with("not in order: vda1 (ext4): \""),
        "{}",
        report.why
    );
    assert!(report.attempts[0].output.contains("77"), "{report:#?}");
}

#[test]
fn what_only_the_journal_has_is_no_fault() {
    if !has_tools() {
        return;
    }
    // Without a partition table. The root folder's block is in the journal, and not yet in its place.
    let disk = Disk::new(32 * MIB, "");
    disk.ext4(0, 32 * MIB, |part| {
        let shown = tool("debugfs", &["-R", "blocks <2>", part], "");
        let number: u64 = shown.trim().parse().unwrap();
        let mut file = File::options().read(true).write(true).open(part).unwrap();
        let mut block = [0; 1024];
        file.read_exact_at(&mut block, number * 1024).unwrap();
        let kept = Path::new(part).with_file_name("block");
        fs::write(&kept, block).unwrap();
        let commands = format!("jo\njw -b {number} {}\njc\n", kept.display());
        tool("debugfs", &["-w", "-f", "-", part], &commands);
        file.seek(SeekFrom::Start(number * 1024)).unwrap();
        file.write_all(&[0; 1024]).unwrap();
    });
    let (_disk, volume) = disk.serve();
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Proved, "{report:#?}");
}

#[test]
fn a_file_that_was_deleted_while_it_was_open_is_no_fault() {
    if !has_tools() {
        return;
    }
    let disk = Disk::new(32 * MIB, "");
    disk.ext4(0, 32 * MIB, |part| {
        let commands = "write /etc/hostname orphan\nunlink orphan\nset_inode_field <12> links_count 0\n\
             set_inode_field <12> dtime 0\nset_super_value last_orphan 12\n";
        tool("debugfs", &["-w", "-f", "-", part], commands);
    });
    let (_disk, volume) = disk.serve();
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Proved, "{report:#?}");
    let output = report.attempts[0].output.to_lowercase();
    assert!(output.contains("orphaned inode"), "{output}");
}

#[test]
fn a_disk_with_nothing_to_look_at_fails() {
    if !has_tools() {
        return;
    }
    let (_disk, volume) = Disk::new(4 * MIB, "").serve();
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(
        report.why,
        "there was no file system to look at: vda (nothing that is known)"
    );
}

#[test]
fn a_disk_with_nothing_that_can_be_looked_at_says_nothing_about_the_copy() {
    if !has_tools() {
        return;
    }
    let disk = Disk::new(8 * MIB, "");
    tool("mkswap", &["-q", disk.image().to_str().unwrap()], "");
    let (_disk, volume) = disk.serve();
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Error, "{report:#?}");
    assert!(
        report
            .why
            .starts_with("nothing on vda could be looked at: vda (swap has no checker here)"),
        "{}",
        report.why
    );
}

#[test]
fn a_disk_that_is_not_there_is_told() {
    let plan = once(
        CheckKind::Fsck {
            disks: vec!["vdz".into()],
        },
        5000,
    );
    let report = Scene::new().run(&plan);
    assert_eq!(report.verdict, Verdict::Error);
    assert_eq!(report.why, "the machine has no disk vdz");
    if !has_tools() {
        return;
    }
    let volume = Volume {
        target: "vda".into(),
        size_bytes: MIB,
        uri: "nbd+unix:///view?socket=/nowhere".into(),
    };
    let report = check(volume, &fsck());
    assert_eq!(report.verdict, Verdict::Error);
    assert!(
        report.why.contains("no overlay could be made"),
        "{}",
        report.why
    );
}

#[test]
fn a_deadline_in_the_middle_leaves_nothing_behind() {
    if !has_tools() {
        return;
    }
    let disk = Disk::new(64 * MIB, TABLE);
    disk.ext4(MIB, 32 * MIB, |_| {});
    let (_disk, volume) = disk.serve();
    for ms in (20..260).step_by(30) {
        let mut plan = fsck();
        plan.deadline = Duration::from_millis(ms);
        let began = Instant::now();
        let report = check(volume.clone(), &plan);
        assert!(began.elapsed() < Duration::from_millis(ms + 1000));
        if report.verdict != Verdict::Proved {
            assert!(
                report.why.starts_with("it did not come to its end within"),
                "{}",
                report.why
            );
        }
    }
}

#[test]
fn a_disk_that_stops_answering_does_not_keep_the_check() {
    if !has_tools() {
        return;
    }
    let disk = Disk::new(64 * MIB, TABLE);
    disk.ext4(MIB, 32 * MIB, |_| {});
    let (disk, volume) = disk.serve();
    let pid = i32::try_from(disk.server.as_ref().unwrap().id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    let mut stopped = 0;
    for ms in (0..=200).step_by(40) {
        let mut plan = fsck();
        plan.deadline = Duration::from_millis(700);
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(ms));
                signal(rustix::process::Signal::STOP);
            });
            check(volume.clone(), &plan)
        });
        stopped += u32::from(report.verdict == Verdict::Failed);
        signal(rustix::process::Signal::CONT);
    }
    assert!(stopped > 0, "it was stopped too late each time");
}
