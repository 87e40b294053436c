//! Makes the corpus of the fuzz targets anew, from real exchanges: QEMU's NBD client with our server and tap,
//! qemu-nbd with our client, a recording and a seed of ours, what is said of points and found by verifications, QEMU's
//! monitor.
//!
//! `cargo run -p virt-cdp-fuzz --example make_corpus`; needs qemu-io, qemu-img, qemu-nbd, qemu-storage-daemon and
//! nbdinfo.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cdp_core::machine::{FORMAT_VERSION, Mode};
use cdp_core::storage::{OpenMode, SimulatedStorage, Storage};
use cdp_core::{
    Clusters, GapReason, Grade, Harbor, MachineDescription, MachineSource, Options, Seq, Timestamp,
    VolumeDescription, VolumeId,
};
use qemu_hook::nbd::{ConnectOptions, NbdClient, Piece};
use virt_cdp_fuzz::pack;

#[path = "corpus/kept.rs"]
mod kept;

type Done<T = ()> = Result<T, Box<dyn Error>>;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn keep(target: &str, name: &str, bytes: &[u8]) -> Done {
    let dir = corpus().join(target);
    fs::create_dir_all(&dir)?;
    println!("{target}/{name}: {} bytes", bytes.len());
    Ok(fs::write(dir.join(name), bytes)?)
}

/// Carries bytes one way and keeps them.
fn carry(mut from: UnixStream, mut to: UnixStream) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(got) = from.read(&mut piece) {
            if got == 0 || to.write_all(&piece[..got]).is_err() {
                break;
            }
            all.extend_from_slice(&piece[..got]);
        }
        let _ = to.shutdown(Shutdown::Write);
        all
    })
}

/// Stands between a client that connects to `front` and a server at `back`; returns what each of them said.
fn between(front: &Path, back: PathBuf) -> Done<JoinHandle<(Vec<u8>, Vec<u8>)>> {
    let listener = UnixListener::bind(front)?;
    Ok(thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        let server = UnixStream::connect(back).expect("a server");
        let copy = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
        let up = carry(copy(&client), copy(&server));
        let down = carry(server, client);
        (
            up.join().expect("the client's bytes"),
            down.join().expect("the server's bytes"),
        )
    }))
}

fn run(program: &str, arguments: &[&str]) -> Done {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("{program} {arguments:?}: {output:?}").into());
    }
    Ok(())
}

fn start(program: &str, arguments: &[&str], socket: &Path) -> Done<Child> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()?;
    for _ in 0..200 {
        if socket.exists() {
            return Ok(child);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{program} makes no socket").into())
}

fn path(dir: &Path, name: &str) -> (PathBuf, String) {
    let path = dir.join(name);
    let text = path.display().to_string();
    (path, text)
}

/// The bytes behind a handshake that ends with the option `GO` or `EXPORT_NAME`.
fn behind_handshake(said: &[u8]) -> &[u8] {
    let mut at = 4;
    loop {
        let option = u32::from_be_bytes(said[at + 8..at + 12].try_into().expect("4 bytes"));
        let len = u32::from_be_bytes(said[at + 12..at + 16].try_into().expect("4 bytes"));
        at += 16 + len as usize;
        if option == 7 || option == 1 {
            return &said[at..];
        }
    }
}

/// QEMU and nbdinfo as clients of an image that qemu-nbd serves: what they say is what a server hears, and what
/// qemu-nbd says to our client is what that hears.
fn nbd(dir: &Path) -> Done {
    let (image, image_text) = path(dir, "image.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &image_text, "307207"],
    )?;
    run(
        "qemu-io",
        &[
            "-c",
            "write -P 3 0 5k",
            "-c",
            "write -P 4 200k 3k",
            &image_text,
        ],
    )?;
    let (back, back_text) = path(dir, "back");
    let serve = [
        "-t",
        "-e",
        "4",
        "-x",
        "vda",
        "-f",
        "qcow2",
        "-k",
        &back_text,
        &image_text,
    ];
    let mut server = start("qemu-nbd", &serve, &back)?;
    let clients: [(&str, &str, &[&str]); 4] = [
        (
            "qemu-read",
            "qemu-io",
            &[
                "-r",
                "-f",
                "raw",
                "-c",
                "read 0 16k",
                "-c",
                "read 70000 9",
                "-c",
                "map",
            ],
        ),
        (
            "qemu-write",
            "qemu-io",
            &[
                "-f",
                "raw",
                "-c",
                "write -P 9 512 1k",
                "-c",
                "write -z 64k 64k",
                "-c",
                "flush",
            ],
        ),
        ("nbdinfo", "nbdinfo", &["--map"]),
        ("nbdinfo-list", "nbdinfo", &["--list"]),
    ];
    for (name, program, arguments) in clients {
        let (front, front_text) = path(dir, name);
        let exchange = between(&front, back.clone())?;
        let export = if name.ends_with("list") { "" } else { "vda" };
        let uri = format!("nbd+unix:///{export}?socket={front_text}");
        run(program, &[arguments, &[&uri]].concat())?;
        let (client, _) = exchange.join().map_err(|_| "nobody came")?;
        keep("view_handshake", name, &client)?;
        keep("tap_handshake", name, &client)?;
        if !name.ends_with("list") {
            let requests = behind_handshake(&client);
            keep("tap_requests", name, requests)?;
            keep("view_requests", name, &[&[0], requests].concat())?;
            keep(
                "view_requests",
                &format!("{name}-simple"),
                &[&[1], requests].concat(),
            )?;
        }
    }
    let (front, _) = path(dir, "ours");
    let exchange = between(&front, back)?;
    let contexts = vec![
        "base:allocation".to_string(),
        "qemu:dirty-bitmap:b".to_string(),
    ];
    let options = ConnectOptions {
        contexts,
        ..ConnectOptions::default()
    };
    let mut client = NbdClient::connect_with(UnixStream::connect(&front)?, "vda", &options)?;
    let end = client.size();
    // As the target asks.
    let _ = client.context_extents("base:allocation", 0, end)?;
    let ranges = [0..end / 3, end / 2..end];
    let mut take = |_: u64, _: Piece<'_>| -> Result<(), std::convert::Infallible> { Ok(()) };
    client
        .read_ranges(&ranges, 64 << 10, 4, &mut take)
        .map_err(|error| error.to_string())?;
    client.disconnect();
    let (_, said) = exchange.join().map_err(|_| "nobody came")?;
    server.kill()?;
    server.wait()?;
    fs::remove_file(&image)?;
    keep("client", "qemu-nbd", &said[..said.len().min(20_000)])
}

/// What a storage daemon says over QMP, as the target asks.
fn qmp(dir: &Path) -> Done {
    let (image, image_text) = path(dir, "disk.raw");
    fs::write(&image, [0; 4096])?;
    let (back, back_text) = path(dir, "qmp");
    let node = format!("driver=file,node-name=vda,filename={image_text}");
    let chardev = format!("socket,id=m,path={back_text},server=on,wait=off");
    let daemon = [
        "--blockdev",
        &node,
        "--chardev",
        &chardev,
        "--monitor",
        "chardev=m",
    ];
    let mut daemon = start("qemu-storage-daemon", &daemon, &back)?;
    let (front, _) = path(dir, "qmp-front");
    let exchange = between(&front, back)?;
    let monitor = qemu_hook::qmp::QmpSocket::over(UnixStream::connect(&front)?, "corpus")?;
    let _ = qemu_hook::node::devices(&monitor);
    let _ = qemu_hook::node::inspect(&monitor, "vda");
    let _ = qemu_hook::node::names(&monitor);
    drop(monitor);
    let (_, said) = exchange.join().map_err(|_| "nobody came")?;
    daemon.kill()?;
    daemon.wait()?;
    keep("qmp", "storage-daemon", &said)?;
    // As a QEMU with a disk, a CD-ROM drive and an event says it.
    let disk = r#"{"device":"drive0","qdev":"/machine/peripheral/vda/virtio-backend","removable":false,"locked":false,"type":"unknown","inserted":{"node-name":"vda","file":"/a.qcow2","drv":"qcow2","image":{"virtual-size":1048576,"filename":"/a.qcow2","format":"qcow2","actual-size":200704,"format-specific":{"type":"qcow2","data":{"compat":"1.1"}}}}}"#;
    let node = r#"{"node-name":"vda","drv":"qcow2","ro":false,"file":"/a.qcow2","image":{"virtual-size":1048576,"filename":"/a.qcow2","format":"qcow2","actual-size":200704,"format-specific":{"type":"qcow2","data":{"compat":"1.1"}}}}"#;
    let lines = [
        r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10}},"capabilities":["oob"]}}"#
            .to_string(),
        r#"{"return":{},"id":1}"#.into(),
        r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"}"#.into(),
        format!(
            r#"{{"return":[{disk},{{"device":"ide1-cd0","tray_open":false,"removable":true}}],"id":2}}"#
        ),
        format!(r#"{{"return":[{node}],"id":3}}"#),
        format!(r#"{{"return":[{node}],"id":4}}"#),
        r#"{"error":{"class":"GenericError","desc":"no"},"id":5}"#.into(),
    ];
    keep("qmp", "qemu", (lines.join("\r\n") + "\r\n").as_bytes())
}

/// A recording of every kind of record in two segments, closed and torn; the base point of a seed; descriptions.
fn harbor() -> Done {
    const DIR: &str = "/harbor";
    let storage = SimulatedStorage::new(7);
    let volume = VolumeDescription::new(VolumeId(0), "vda", 256 * 1024);
    let description = MachineDescription {
        format_version: FORMAT_VERSION,
        name: "fuzz".into(),
        machine_id: "fuzz".into(),
        point_interval_ms: 1000,
        created: Timestamp(1_767_225_600_000_000_000),
        mode: Mode::Active,
        ack: None,
        flush_interval_ms: None,
        policy: None,
        source: MachineSource::Qmp {
            socket: "/run/qmp".into(),
        },
        volumes: vec![volume.clone()],
    };
    let options = Options {
        storage: Arc::new(storage.clone()),
        ..Options::default()
    };
    let harbor = Harbor::create(Path::new(DIR), &description, options)?;
    let mut packed = Vec::new();
    for round in 0..2 {
        let recorder = harbor.record()?;
        let volume = recorder.volume(VolumeId(0))?;
        for number in 0..4_u8 {
            let mut buf = volume.buffer(600 + usize::from(number))?;
            buf.as_mut().fill(round * 16 + number + 1);
            volume.write(u64::from(number) * 1000, buf)?;
            volume.zero(64 * 1024, 4096)?;
            recorder.point(Grade::Quiesced, (number == 1).then_some("label"))?;
        }
        recorder.open_gap(GapReason::TapLost, Timestamp(1))?;
        recorder.open_gap(GapReason::Resync, Timestamp(1))?;
        volume.announce(0..256 * 1024);
        volume.resync_data(128 * 1024, &[7; 700])?;
        volume.resync_zero(0, 512)?;
        recorder.close_gap()?;
        recorder.point(Grade::Crash, None)?;
        if round == 0 {
            let mut seed = harbor.seed(VolumeId(0))?;
            seed.data(0, &[3; 500])?;
            seed.data(150_000, &[4; 700])?;
            seed.finish(recorder.sync()?)?;
        } else {
            let torn = storage
                .content(&Path::new(DIR).join("journal/000000000002.seg"))
                .ok_or("no segment")?;
            packed.push(pack(&torn));
        }
        recorder.close()?;
        let name = format!("journal/{:012}.seg", round + 1);
        packed.push(pack(
            &storage
                .content(&Path::new(DIR).join(name))
                .ok_or("no segment")?,
        ));
    }
    let [first, torn, second] = &packed[..] else {
        return Err("three segments".into());
    };
    for (name, behind) in [("one", &Vec::new()), ("sealed", second), ("torn", torn)] {
        for checks in [0, 1] {
            let mut all = vec![checks];
            all.extend_from_slice(&(first.len() as u16).to_le_bytes());
            all.extend_from_slice(first);
            all.extend_from_slice(behind);
            keep("segment", &format!("{name}-{checks}"), &all)?;
        }
    }
    let base = harbor.base_points(VolumeId(0));
    let base = base.first().ok_or("no base point")?;
    keep(
        "qcow2",
        "base",
        &pack(&storage.content(&base.path).ok_or("no base point")?),
    )?;
    layers(&storage, &harbor)?;
    let empty = Path::new("/empty");
    let file = storage.open(empty, OpenMode::New)?;
    cdp_core::qcow2::Qcow2Writer::new(file, 1 << 40).finish()?;
    keep(
        "qcow2",
        "empty-1-tib",
        &pack(&storage.content(empty).ok_or("no image")?),
    )?;
    let text = |storage: &SimulatedStorage| storage.content(&Path::new(DIR).join("machine.toml"));
    keep(
        "description",
        "qmp",
        &text(&storage).ok_or("no description")?,
    )?;
    let mut second = volume.clone();
    second.id = VolumeId(3);
    second.node = Some("node".into());
    second.original_format = Some("raw".into());
    second.original_path = Some("/a.raw".into());
    harbor.set_description(MachineDescription {
        mode: Mode::Suspended,
        source: MachineSource::Libvirt {
            uri: "qemu:///system".into(),
            uuid: "u".into(),
        },
        volumes: vec![volume, second],
        ..description
    })?;
    keep(
        "description",
        "libvirt",
        &text(&storage).ok_or("no description")?,
    )
}

/// An increment and a compressed one, over the image that the target has for them.
fn layers(storage: &SimulatedStorage, harbor: &Harbor) -> Done {
    let recorder = harbor.record()?;
    let volume = recorder.volume(VolumeId(0))?;
    for number in 1..10_u8 {
        let mut buf = volume.buffer(4096)?;
        buf.as_mut().fill(number);
        volume.write(u64::from(number % 2) * 65_536, buf)?;
        volume.zero(128 * 1024, 64 * 1024)?;
        let point = recorder.point(Grade::Crash, None)?;
        harbor.build_base(point.id, &mut |_| ControlFlow::Continue(()))?;
    }
    recorder.close()?;
    harbor.merge_bases(Seq(0), Clusters::Compressed, &mut |_| {
        ControlFlow::Continue(())
    })?;
    let layers = harbor.base_points(VolumeId(0));
    for (name, layer) in [("packed", layers.get(1)), ("layer", layers.get(7))] {
        let layer = layer.ok_or("a layer too few")?;
        let mut bytes = storage.content(&layer.path).ok_or("no layer")?;
        let place = u64::from_be_bytes(*bytes[8..].first_chunk().ok_or("no header")?) as usize;
        bytes[16..20].copy_from_slice(&5_u32.to_be_bytes());
        bytes[place..place + 5].copy_from_slice(b"below");
        keep("qcow2", name, &pack(&bytes))?;
        bytes[place..place + 5].copy_from_slice(b"image");
        keep("qcow2", &format!("{name}-on-itself"), &pack(&bytes))?;
    }
    Ok(())
}

fn main() -> Done {
    let dir = std::env::temp_dir().join(format!("make-corpus-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let done = kept::make()
        .and_then(|()| harbor())
        .and_then(|()| nbd(&dir))
        .and_then(|()| qmp(&dir));
    fs::remove_dir_all(&dir)?;
    done
}
