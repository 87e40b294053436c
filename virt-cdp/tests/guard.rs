//! The guard closes taps in time, whatever becomes of what it has to say.

use std::{
    io::{Read, pipe},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virt_cdp::guard::{Link, NAME};

#[test]
fn taps_are_closed_in_time_also_when_nobody_reads_the_guards_words() {
    let dir = std::env::temp_dir().join(format!("virt-cdp-guard-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("guard.sock");
    let program = Path::new(env!("CARGO_BIN_EXE_virt-cdp"));
    // Its standard error takes nothing more, as a log on a disk that hangs.
    let (_reader, writer) = pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("its flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("set");
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).expect("set back");
    let mut guard = Command::new(program)
        .arg0(NAME)
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(writer)
        .spawn()
        .expect("a guard");
    let give_up = Instant::now() + Duration::from_secs(5);
    while !path.exists() && Instant::now() < give_up {
        thread::sleep(Duration::from_millis(10));
    }

    let deadline = Duration::from_millis(300);
    let (link, _) = Link::open(&path, program, deadline).expect("it answers");
    // Twice: what was not said the first time is in the way the second.
    for round in 1..=2 {
        let (tap, mut qemu) = UnixStream::pair().expect("a tap");
        link.beat();
        let held = link.hold("machine/0", &tap).expect("held");
        let begun = Instant::now();
        qemu.set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        let read = qemu.read(&mut [0]);
        let took = begun.elapsed();
        assert!(
            matches!(read, Ok(0)),
            "round {round}: {read:?} after {took:?}"
        );
        assert!(
            took >= deadline && took < deadline * 3,
            "round {round}: {took:?}"
        );
        drop(held);
        while link.closed() < round && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(link.closed(), round, "it says so");
    }
    drop(link);
    guard.kill().expect("it is ended");
    guard.wait().expect("it is gone");
    std::fs::remove_dir_all(&dir).expect("cleaned up");
}
