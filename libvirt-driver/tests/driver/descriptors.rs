//! A socket passed to QEMU through libvirt works as an NBD connection.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;

use libvirt_driver::DomainMonitor;
use qemu_hook::monitor::Monitor;
use serde_json::json;

use crate::host::{TestDomain, hypervisor};

const SIZE: u64 = 1 << 20;

/// Serves zeros to one NBD client and tells where it read; ends with the connection.
fn serve(mut client: UnixStream, mut tell: impl FnMut(u64)) -> std::io::Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    client.read_exact(&mut [0; 4])?;
    loop {
        let mut option = [0; 16];
        client.read_exact(&mut option)?;
        let length = u32::from_be_bytes(option[12..].try_into().unwrap());
        client.read_exact(&mut vec![0; length as usize])?;
        if option[8..12] == [0, 0, 0, 1] {
            break;
        }
        // Any other option is unsupported: the client falls back to NBD_OPT_EXPORT_NAME.
        client.write_all(&0x0003_e889_0455_65a9_u64.to_be_bytes())?;
        client.write_all(&option[8..12])?;
        client.write_all(b"\x80\x00\x00\x01\x00\x00\x00\x00")?;
    }
    client.write_all(&SIZE.to_be_bytes())?;
    client.write_all(b"\x00\x03")?;
    loop {
        let mut request = [0; 28];
        client.read_exact(&mut request)?;
        client.write_all(b"\x67\x44\x66\x98\x00\x00\x00\x00")?;
        client.write_all(&request[8..16])?;
        if request[6..8] == [0, 0] {
            tell(u64::from_be_bytes(request[16..24].try_into().unwrap()));
            let length = u32::from_be_bytes(request[24..].try_into().unwrap());
            client.write_all(&vec![0; length as usize])?;
        }
    }
}

#[test]
fn a_passed_socket_carries_nbd() {
    let Some(hypervisor) = hypervisor() else {
        return;
    };
    let test = TestDomain::named("fd");
    let domain = test.start(&hypervisor, "");
    let monitor = DomainMonitor::open(&domain).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, reads) = channel();
    let server = std::thread::spawn(move || serve(ours, |offset| sender.send(offset).unwrap()));
    monitor.send_fd("lvd-tap", theirs.as_fd()).unwrap();
    drop(theirs);
    let node = json!({"driver": "nbd", "node-name": "tap", "server": {"type": "fd", "str": "lvd-tap"},
        "export": "", "read-only": true});
    monitor.execute("blockdev-add", node).unwrap();
    let read = json!({"command-line": "qemu-io tap \"read 65536 512\""});
    monitor.execute("human-monitor-command", read).unwrap();
    let offsets: Vec<_> = reads.try_iter().collect();
    assert!(offsets.contains(&65536), "{offsets:?}");
    monitor
        .execute("blockdev-del", json!({"node-name": "tap"}))
        .unwrap();
    // QEMU closed its end: nobody else holds the passed descriptor.
    assert!(server.join().unwrap().is_err());
}
