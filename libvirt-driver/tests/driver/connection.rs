//! Events, and a connection that is cut and comes back.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libvirt_driver::{DomainEvent, DomainEventKind, ErrorKind, Hypervisor};

use crate::host::{TestDomain, hypervisor};

const LIBVIRT_SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];

/// Waits for an event of that kind about that domain; others are passed over.
fn expect(events: &Receiver<DomainEvent>, name: &str, kind: DomainEventKind) -> DomainEvent {
    loop {
        let event = events
            .recv_timeout(Duration::from_secs(20))
            .unwrap_or_else(|_| panic!("no {kind:?} of {name:?}"));
        if event.name == name && event.kind == kind {
            return event;
        }
    }
}

#[test]
fn events_tell_a_domains_life() {
    use DomainEventKind as Kind;
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let test = TestDomain::named("events");
    let (events, others) = (hypervisor.subscribe(), hypervisor.subscribe());
    let domain = test.start(&hypervisor, "");
    assert_eq!(expect(&events, &test.name, Kind::Defined).detail, "added");
    let started = expect(&events, &test.name, Kind::Started);
    assert_eq!(
        (started.detail.as_str(), started.uuid.as_str()),
        ("booted", domain.uuid())
    );
    domain.pause().unwrap();
    domain.pause().unwrap();
    expect(&events, &test.name, Kind::Suspended);
    domain.resume().unwrap();
    expect(&events, &test.name, Kind::Resumed);
    test.virsh(&["reset", &test.name]);
    expect(&events, &test.name, Kind::Rebooted);
    test.virsh(&["destroy", &test.name]);
    assert_eq!(
        expect(&events, &test.name, Kind::Stopped).detail,
        "destroyed"
    );
    test.virsh(&["undefine", &test.name]);
    expect(&events, &test.name, Kind::Undefined);
    expect(&others, &test.name, Kind::Undefined);
}

/// Carries connections from its own socket to libvirt's; can be cut and taken up again.
struct Proxy {
    path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn start(path: &Path, libvirt: &'static str) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let open = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&open);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = UnixStream::connect(libvirt).unwrap();
                for stream in [&client, &server] {
                    all.lock().unwrap().push(stream.try_clone().unwrap());
                }
                carry(client.try_clone().unwrap(), server.try_clone().unwrap());
                carry(server, client);
            }
        });
        Self {
            path: path.to_owned(),
            open,
        }
    }

    /// Ends all connections and takes no new ones.
    fn cut(&self) {
        std::fs::remove_file(&self.path).unwrap();
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn carry(mut from: UnixStream, mut to: UnixStream) {
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..got]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_lost_connection_is_opened_again() {
    use DomainEventKind as Kind;
    if hypervisor().is_none() {
        return;
    }
    let Some(libvirt) = LIBVIRT_SOCKETS
        .into_iter()
        .find(|path| Path::new(path).exists())
    else {
        drop(writeln!(
            std::io::stderr(),
            "SKIPPED: needs libvirt's socket in /run/libvirt"
        ));
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("libvirt.sock");
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    assert_eq!(
        Hypervisor::connect(&uri).unwrap_err().kind,
        ErrorKind::NotConnected
    );

    let proxy = Proxy::start(&socket, libvirt);
    let hypervisor = Hypervisor::connect(&uri).unwrap();
    let test = TestDomain::named("lost");
    let domain = test.start(&hypervisor, "");
    let events = hypervisor.subscribe();
    proxy.cut();
    expect(&events, "", Kind::ConnectionLost);
    assert_eq!(domain.state().unwrap_err().kind, ErrorKind::NotConnected);

    let _proxy = Proxy::start(&socket, libvirt);
    expect(&events, "", Kind::ConnectionBack);
    assert!(domain.state().unwrap().id().is_some());
    test.virsh(&["destroy", &test.name]);
    expect(&events, &test.name, Kind::Stopped);
}
