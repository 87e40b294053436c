//! Servers that lie, as our client sees them: an error, never a panic, never wrong bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use qemu_hook::nbd::{ConnectOptions, NbdClient, NbdError, Piece, ReadError};

use crate::device::Numbers;

/// What the lying server says after the handshake, given the first request's cookie.
type Lie = Box<dyn FnOnce([u8; 8]) -> Vec<u8> + Send>;

/// A good handshake for 1 MiB, then whatever `lie` says in answer to the first request.
fn lying_server(lie: Lie) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        // When the client hangs up in the middle, the lie was found out.
        let _ = tell(theirs, lie);
    });
    (ours, thread)
}

fn tell(mut stream: UnixStream, lie: Lie) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let option: [u8; 4] = head[8..12].try_into().unwrap();
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        stream.read_exact(&mut vec![0; len as usize])?;
        match option[3] {
            10 => reply(&mut stream, option, 4, b"\0\0\0\x05base:allocation")?,
            7 => reply(&mut stream, option, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\x01")?,
            _ => {}
        }
        reply(&mut stream, option, 1, b"")?;
        if option[3] == 7 {
            break;
        }
    }
    let mut request = [0; 28];
    stream.read_exact(&mut request)?;
    stream.write_all(&lie(request[8..16].try_into().unwrap()))
}

fn reply(stream: &mut UnixStream, option: [u8; 4], kind: u32, data: &[u8]) -> std::io::Result<()> {
    let mut out = 0x3e889045565a9u64.to_be_bytes().to_vec();
    out.extend_from_slice(&option);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    stream.write_all(&out)
}

fn chunk(flags: u16, kind: u16, cookie: [u8; 8], payload: &[u8]) -> Vec<u8> {
    let mut out = 0x668e33efu32.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie);
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn data_at(offset: u64, len: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &vec![7; len]].concat()
}

fn hole_at(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

fn connect(stream: UnixStream) -> Result<NbdClient, NbdError> {
    let options = ConnectOptions {
        timeout: Duration::from_secs(2),
        handshake_deadline: Duration::from_secs(2),
        ..ConnectOptions::default()
    };
    NbdClient::connect_with(stream, "vda", &options)
}

#[test]
fn answers_to_a_read_that_do_not_fit_it_are_protocol_errors() {
    let lies: Vec<(&str, Lie)> = vec![
        (
            "outside",
            Box::new(|c| chunk(1, 1, c, &data_at(4096, 4096))),
        ),
        ("too long", Box::new(|c| chunk(1, 1, c, &data_at(0, 4097)))),
        ("empty", Box::new(|c| chunk(1, 1, c, &data_at(0, 0)))),
        ("no offset", Box::new(|c| chunk(1, 1, c, b"1234"))),
        ("missing", Box::new(|c| chunk(1, 1, c, &data_at(0, 4095)))),
        ("nothing", Box::new(|c| chunk(1, 0, c, b""))),
        (
            "huge hole",
            Box::new(|c| chunk(1, 2, c, &hole_at(0, u32::MAX))),
        ),
        (
            "hole at the end of numbers",
            Box::new(|c| chunk(1, 2, c, &hole_at(u64::MAX, 4096))),
        ),
        ("odd hole", Box::new(|c| chunk(1, 2, c, &[0; 13]))),
        (
            "twice",
            Box::new(|c| {
                [
                    chunk(0, 1, c, &data_at(0, 9)),
                    chunk(1, 2, c, &hole_at(8, 4088)),
                ]
                .concat()
            }),
        ),
        (
            "another's cookie",
            Box::new(|_| chunk(1, 1, [9; 8], &data_at(0, 4096))),
        ),
        (
            "no structure",
            Box::new(|c| [&0x67446698u32.to_be_bytes()[..], &[0; 4], &c, &[7; 4096]].concat()),
        ),
        ("unknown kind", Box::new(|c| chunk(1, 99, c, b"x"))),
        ("short error", Box::new(|c| chunk(1, 0x8001, c, b"x"))),
        (
            "long error",
            Box::new(|c| chunk(1, 0x8001, c, &vec![0; 70_000])),
        ),
        ("no magic", Box::new(|_| vec![7; 64])),
    ];
    for (what, lie) in lies {
        let (stream, thread) = lying_server(lie);
        let mut client = connect(stream).unwrap();
        let answer = client.read_at(&mut [0; 4096], 0);
        assert!(
            matches!(answer, Err(NbdError::Protocol { .. })),
            "{what}: {answer:?}"
        );
        // Out of step: no second try on this connection.
        let again = client.read_at(&mut [0; 1], 0);
        let doing = "using a connection";
        assert!(matches!(again, Err(NbdError::Protocol { doing: found, .. }) if found == doing));
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn an_answer_in_pieces_and_out_of_order_is_put_together() {
    let lie: Lie = Box::new(|c| {
        let last = chunk(0, 1, c, &data_at(3000, 1096));
        let middle = chunk(0, 2, c, &hole_at(1000, 2000));
        [last, middle, chunk(1, 1, c, &data_at(0, 1000))].concat()
    });
    let (stream, thread) = lying_server(lie);
    let mut client = connect(stream).unwrap();
    let mut pieces = Vec::new();
    let read = client.read_ranges::<NbdError>(&[0..4096], 4096, 1, &mut |offset, piece| {
        let is_zero = matches!(piece, Piece::Zero(_));
        pieces.push((offset, is_zero));
        Ok(())
    });
    assert!(read.is_ok());
    assert_eq!(pieces, [(3000, false), (1000, true), (0, false)]);
    drop(client);
    thread.join().unwrap();
}

#[test]
fn answers_to_block_status_that_do_not_fit_it_are_protocol_errors() {
    let lies: Vec<(&str, Lie)> = vec![
        ("no extent", Box::new(|c| chunk(1, 5, c, &[0, 0, 0, 5]))),
        (
            "an empty extent",
            Box::new(|c| chunk(1, 5, c, &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0])),
        ),
        ("odd length", Box::new(|c| chunk(1, 5, c, &[0; 9]))),
        (
            "another context",
            Box::new(|c| chunk(1, 5, c, &[0, 0, 0, 6, 0, 0x10, 0, 0, 0, 0, 0, 0])),
        ),
        ("nothing", Box::new(|c| chunk(1, 0, c, b""))),
        ("data", Box::new(|c| chunk(1, 1, c, &data_at(0, 9)))),
    ];
    for (what, lie) in lies {
        let (stream, thread) = lying_server(lie);
        let mut client = connect(stream).unwrap();
        let answer = client.block_status(0, 1 << 20);
        assert!(
            matches!(answer, Err(NbdError::Protocol { .. })),
            "{what}: {answer:?}"
        );
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn noise_at_any_place_is_an_error() {
    for seed in 1..=60u64 {
        let mut numbers = Numbers(seed << 32 | 0x51_7c_c1_b7);
        let mut noise = vec![0; 1 + numbers.below(400) as usize];
        numbers.fill(&mut noise);
        if seed % 2 == 0 {
            let (stream, thread) = lying_server(Box::new(move |cookie| {
                let mut out = chunk(0, seed as u16 % 6, cookie, b"");
                out.truncate(16);
                out.extend_from_slice(&noise);
                out
            }));
            let mut client = connect(stream).unwrap();
            let read = client.read_ranges::<NbdError>(&[0..1 << 20], 65_536, 4, &mut |_, _| Ok(()));
            assert!(matches!(read, Err(ReadError::Nbd(_))), "seed {seed}");
            drop(client);
            thread.join().unwrap();
        } else {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            if seed % 4 == 1 {
                theirs.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
            }
            theirs.write_all(&noise).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(connect(ours).is_err(), "seed {seed}");
        }
    }
}
