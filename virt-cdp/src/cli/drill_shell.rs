//! `drill-shell`: into the network of a drill.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::Command,
    sync::Arc,
    thread,
};

use drill_runner::isolation::{MARKER, leftover};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    error::{CliError, CliResult},
    session::Session,
};

/// Runs a command, or a shell, in the network of a drill that runs or was kept; or forwards ports into it
///
/// Only root can, on the host of the drill. What it reaches there are the machines of the drill under their own addresses; it
/// reaches nothing else, and ends with the drill. A forwarded port listens on 127.0.0.1 unless BIND says otherwise.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The drill's number
    #[arg(value_name = "ID")]
    id: String,

    /// Listens on the host, and forwards what connects to a port of a machine, until Ctrl-C
    #[arg(
        long = "forward",
        value_name = "[BIND:]PORT:ADDRESS:PORT",
        conflicts_with = "command"
    )]
    forwards: Vec<String>,

    /// The command [default: a shell]
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
}

/// A port of the host, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forward {
    from: SocketAddr,
    to: SocketAddr,
}

pub(super) fn run(args: Args, _: &mut Session) -> CliResult {
    let forwards = args.forwards.iter().map(|text| {
        parse(text).ok_or_else(|| {
            CliError::usage(format!("`{text}` is no forward"))
                .hint("write it like 8080:192.168.122.10:80")
        })
    });
    let forwards = forwards.collect::<CliResult<Vec<Forward>>>()?;
    let none = || {
        CliError::failure(format!("drill {} does not run here", args.id))
            .hint("see drill-list; a drill that fails stays with drill-run --keep-on-failure")
    };
    let pid = leftover::holder(&args.id).ok_or_else(none)?;
    let space = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| {
        CliError::failure(format!(
            "cannot enter the network of drill {}: {error}",
            args.id
        ))
        .hint("only root can")
    })?;
    match forwards.is_empty() {
        true => command(&args, &space),
        false => forward(&forwards, space),
    }
}

fn enter(space: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(
        space.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

fn command(args: &Args, space: &File) -> CliResult {
    enter(space).map_err(|error| {
        CliError::failure(format!("cannot enter the network of the drill: {error}"))
            .hint("only root can")
    })?;
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    let (program, rest) = match args.command.split_first() {
        Some((program, rest)) => (program.clone(), rest),
        None => (shell, [].as_slice()),
    };
    let error = Command::new(&program)
        .args(rest)
        .env(MARKER, &args.id)
        .exec();
    Err(CliError::failure(format!("cannot run {program}: {error}"))
        .hint("it is a program of this host, not of the guest"))
}

fn parse(text: &str) -> Option<Forward> {
    let (from, to_port) = text.rsplit_once(':')?;
    // An IPv6 address stands in brackets.
    let at = match from.strip_suffix(']') {
        Some(head) => head.rfind('[')?,
        None => from.rfind(':')? + 1,
    };
    let (from, address) = from.split_at(at);
    let from = from.strip_suffix(':')?;
    let to = format!("{address}:{to_port}").parse().ok()?;
    let from = match from.parse::<u16>() {
        Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
        Err(_) => from.parse().ok()?,
    };
    Some(Forward { from, to })
}

fn forward(forwards: &[Forward], space: File) -> CliResult {
    let space = Arc::new(space);
    let mut threads = Vec::new();
    for forward in forwards.iter().copied() {
        let listener = TcpListener::bind(forward.from).map_err(|error| {
            CliError::failure(format!("cannot listen on {}: {error}", forward.from))
                .hint("choose another port")
        })?;
        eprintln!(
            "{} leads to {} of the drill; Ctrl-C ends it",
            listener.local_addr().unwrap_or(forward.from),
            forward.to
        );
        let space = Arc::clone(&space);
        threads.push(thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let space = Arc::clone(&space);
                thread::spawn(move || {
                    if let Err(error) = join(client, forward.to, &space) {
                        eprintln!("{}: {error}", forward.to);
                    }
                });
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// Joins a client with a port in the drill, until both have ended.
fn join(client: TcpStream, to: SocketAddr, space: &File) -> io::Result<()> {
    enter(space)?;
    let server = TcpStream::connect(to)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let there = thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let (mut server, mut client) = (server, client);
    let _ = io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Write);
    let _ = there.join();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read() {
        let told = |text: &str| parse(text).map(|one| format!("{} {}", one.from, one.to));
        for (text, read) in [
            ("8080:10.0.0.5:80", Some("127.0.0.1:8080 10.0.0.5:80")),
            ("0.0.0.0:8080:10.0.0.5:80", Some("0.0.0.0:8080 10.0.0.5:80")),
            ("8080:[fd00::5]:80", Some("127.0.0.1:8080 [fd00::5]:80")),
            ("[::1]:8080:[fd00::5]:80", Some("[::1]:8080 [fd00::5]:80")),
            ("8080:80", None),
            ("8080:name:80", None),
            ("", None),
        ] {
            assert_eq!(told(text).as_deref(), read, "{text}");
        }
    }
}
