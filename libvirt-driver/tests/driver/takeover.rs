//! A takeover over a served view: started, pulled, discarded without a trace.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libvirt_driver::overlay::{create_overlay, image_info};
use libvirt_driver::qemu_user::qemu_identity;
use libvirt_driver::takeover::{StartMode, Traces, new_uuid};
use libvirt_driver::takeover_xml::{MacChoice, NbdBacking, NetworkChoice, TakeoverDisk};
use libvirt_driver::{Domain, DomainState, Edited, ErrorKind, Hypervisor, TakeoverSpec, edit};
use tempfile::TempDir;

use crate::host::{Server, TestDomain, directory, hypervisor, image, run, wait};

const SIZE: u64 = 32 << 20;
const RECONNECT_DELAY_S: u32 = 4;

/// A takeover in the making: an original, its image's view served, and the new domain's parts.
struct Stage {
    hypervisor: Hypervisor,
    base: PathBuf,
    socket: PathBuf,
    server: Option<Server>,
    edited: Edited,
    overlay: PathBuf,
    traces: Traces,
    original: TestDomain,
    name: TestDomain,
    directory: TempDir,
}

impl Stage {
    fn set(hypervisor: Hypervisor, test: &str) -> Self {
        let directory = directory();
        let base = image(&directory, "base.raw", &["-f", "raw"], "32M");
        let filled = format!("write -q -P 0x5a 0 {SIZE}");
        run(
            "qemu-io",
            &["-f", "raw", "-c", &filled, base.to_str().unwrap()],
        );
        let original = TestDomain::named(test);
        let disk = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/><serial>ORIGINAL-1</serial></disk>\
             <interface type='user'><model type='virtio'/></interface>\
             <serial type='unix'><source mode='bind' path='{}'/></serial>",
            base.display(),
            directory.path().join("serial.sock").display()
        );
        original.define(&disk);
        let socket = directory.path().join("view.sock");
        let server = Some(Server::nbd(&base, &socket, "vda"));
        let inside = directory.path().join("takeover");
        std::fs::create_dir(&inside).unwrap();
        let overlay = inside.join("vda.qcow2");
        let backing = NbdBacking {
            socket: socket.clone(),
            export: "vda".to_owned(),
            reconnect_delay_s: RECONNECT_DELAY_S,
        };
        let console = inside.join("console.log");
        let name = TestDomain::named(&format!("{test}-t"));
        let spec = TakeoverSpec {
            name: name.name.clone(),
            uuid: new_uuid().unwrap(),
            vcpus: Some(2),
            memory_kib: Some(96 * 1024),
            network: NetworkChoice::None,
            mac: MacChoice::New,
            disk_bus: Some("scsi".to_owned()),
            disks: vec![TakeoverDisk {
                target: "vda".to_owned(),
                overlay: overlay.clone(),
                backing: Some(backing.clone()),
            }],
            nvram: None,
            console_log: Some(console.clone()),
        };
        let xml = hypervisor
            .lookup(&original.name)
            .unwrap()
            .xml_now()
            .unwrap();
        let edited = edit(&xml, &spec).unwrap();
        create_overlay(&overlay, SIZE, &backing, qemu_identity()).unwrap();
        // Again: kept as it is.
        create_overlay(&overlay, SIZE, &backing, qemu_identity()).unwrap();
        assert_eq!(
            create_overlay(&overlay, SIZE * 2, &backing, None)
                .unwrap_err()
                .kind,
            ErrorKind::Host
        );
        let traces = Traces {
            uuid: spec.uuid,
            files: vec![overlay.clone(), console],
            directories: vec![inside],
        };
        Self {
            hypervisor,
            base,
            socket,
            server,
            edited,
            overlay,
            traces,
            original,
            name,
            directory,
        }
    }

    fn start(&self, mode: StartMode) -> Domain {
        self.hypervisor
            .define_and_start(&self.edited.xml, mode)
            .unwrap()
    }

    fn discard_and_look(&self) {
        self.hypervisor.discard(&self.traces).unwrap();
        let gone = self.hypervisor.lookup(&self.traces.uuid).unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NoSuchDomain);
        assert!(!self.directory.path().join("takeover").exists());
        self.hypervisor.discard(&self.traces).unwrap();
    }
}

fn backing(overlay: &Path) -> Option<String> {
    image_info(overlay).unwrap().backing_filename
}

#[test]
fn a_takeover_runs_is_pulled_and_discarded() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let mut stage = Stage::set(hypervisor, "pull");
    let domain = stage.start(StartMode::Paused);
    assert!(matches!(
        domain.state().unwrap(),
        DomainState::Paused {
            io_error: false,
            ..
        }
    ));
    let id = domain.running_id().unwrap();
    assert_eq!(
        stage.start(StartMode::Running).running_id().unwrap(),
        id,
        "started twice"
    );
    assert!(
        stage
            .edited
            .dropped
            .iter()
            .any(|sentence| sentence.contains("serial.sock")),
        "{:?}",
        stage.edited.dropped
    );
    assert_eq!(stage.edited.targets[0].now, "sda");
    let uri = backing(&stage.overlay).unwrap();
    assert!(uri.starts_with("nbd+unix:///vda?socket="), "{uri}");

    // Cancelled at the first sight, then in one go; the domain stands still all the while.
    let stopped = domain
        .block_pull("sda", &mut |_| ControlFlow::Break(()))
        .unwrap_err();
    assert_eq!(stopped.kind, ErrorKind::Cancelled, "{stopped}");
    assert!(domain.has_backing("sda").unwrap());
    let mut seen = Vec::new();
    let start = Instant::now();
    domain
        .block_pull("sda", &mut |progress| {
            seen.push(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    println!(
        "pulled 32 MiB in {:?}, {} looks, last {:?}",
        start.elapsed(),
        seen.len(),
        seen.last()
    );
    assert!(
        seen.windows(2).all(|pair| pair[0].done <= pair[1].done),
        "{seen:?}"
    );
    assert!(!domain.has_backing("sda").unwrap());
    assert_eq!(backing(&stage.overlay), None);
    // Again: nothing is left to do.
    domain
        .block_pull("sda", &mut |_| panic!("a second pull"))
        .unwrap();

    stage.server = None;
    domain.resume().unwrap();
    assert!(matches!(
        domain.state().unwrap(),
        DomainState::Running { .. }
    ));
    // With QEMU gone all of the image is in its file; it equals the view, and starts again without it.
    run(
        "virsh",
        &["-q", "-c", crate::host::URI, "destroy", &stage.name.name],
    );
    run(
        "qemu-img",
        &[
            "compare",
            "-q",
            "-f",
            "raw",
            "-F",
            "qcow2",
            stage.base.to_str().unwrap(),
            stage.overlay.to_str().unwrap(),
        ],
    );
    let off = domain
        .block_pull("sda", &mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(off.kind, ErrorKind::DomainOff);
    assert!(off.to_string().contains("start the domain first"), "{off}");
    run(
        "virsh",
        &["-q", "-c", crate::host::URI, "start", &stage.name.name],
    );
    stage.discard_and_look();
}

#[test]
fn a_lost_view_pauses_the_takeover_and_a_returned_one_does_not() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let mut stage = Stage::set(hypervisor, "lost-view");
    let domain = stage.start(StartMode::Paused);

    // The firmware's first read waits for the view, which is back in time.
    stage.server = None;
    domain.resume().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    stage.server = Some(Server::nbd(&stage.base, &stage.socket, "vda"));
    std::thread::sleep(Duration::from_secs(2));
    assert!(matches!(
        domain.state().unwrap(),
        DomainState::Running { .. }
    ));

    // It stays away for longer than the delay: the reset guest reads again, and stands still.
    stage.server = None;
    run(
        "virsh",
        &["-q", "-c", crate::host::URI, "reset", &stage.name.name],
    );
    wait("the takeover to stand still", || {
        matches!(
            domain.state(),
            Ok(DomainState::Paused { io_error: true, .. })
        )
    });

    // With the view back the guest goes on, as soon as QEMU's next attempt to connect (at most 16 s apart) has found it.
    stage.server = Some(Server::nbd(&stage.base, &stage.socket, "vda"));
    let start = Instant::now();
    let mut resumes = 0;
    wait("the takeover to go on", || {
        resumes += 1;
        domain.resume().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        matches!(domain.state().unwrap(), DomainState::Running { .. })
    });
    println!("went on after {:?} and {resumes} resumes", start.elapsed());
    stage.server = None;
    stage.discard_and_look();
}

#[test]
fn a_pull_that_fails_says_so_and_can_be_repeated() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let mut stage = Stage::set(hypervisor, "failed-pull");
    let domain = stage.start(StartMode::Paused);
    let mut server = stage.server.take();
    let failed = domain
        .block_pull("sda", &mut |_| {
            server = None;
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert_eq!(failed.kind, ErrorKind::Refused, "{failed}");
    assert!(failed.to_string().contains("pull again"), "{failed}");
    assert!(backing(&stage.overlay).is_some());

    stage.server = Some(Server::nbd(&stage.base, &stage.socket, "vda"));
    wait("a pull to succeed", || {
        domain
            .block_pull("sda", &mut |_| ControlFlow::Continue(()))
            .is_ok()
    });
    assert_eq!(backing(&stage.overlay), None);
    stage.discard_and_look();
}

#[test]
fn a_domain_that_is_no_takeover_is_not_touched() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let stage = Stage::set(hypervisor, "foreign");
    let original = stage.hypervisor.lookup(&stage.original.name).unwrap();
    let traces = Traces {
        uuid: original.uuid().to_owned(),
        files: vec![stage.base.clone()],
        directories: vec![],
    };
    assert_eq!(
        stage.hypervisor.discard(&traces).unwrap_err().kind,
        ErrorKind::DomainExists
    );
    assert!(stage.base.exists());
    let stolen = stage
        .edited
        .xml
        .replace(&stage.traces.uuid, original.uuid());
    let refused = stage
        .hypervisor
        .define_and_start(&stolen, StartMode::Paused)
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::DomainExists);
    let unmarked = original.xml_configured().unwrap();
    let refused = stage
        .hypervisor
        .define_and_start(&unmarked, StartMode::Paused)
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::BadXml);
    let same_name = stage
        .edited
        .xml
        .replace(&stage.name.name, &stage.original.name);
    let refused = stage
        .hypervisor
        .define_and_start(&same_name, StartMode::Paused)
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::DomainExists, "{refused}");
    assert_eq!(original.state().unwrap(), DomainState::Off);
    stage.discard_and_look();
}
