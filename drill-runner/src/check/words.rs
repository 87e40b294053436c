//! What a check expects, in words for people.

use std::fmt::Write as _;

use crate::plan::{CheckKind, Pattern, Ready};

/// What is expected, in a sentence without a full stop.
#[must_use]
pub fn expects(kind: &CheckKind) -> String {
    match kind {
        CheckKind::Agent => "the guest agent answers".into(),
        CheckKind::Boot(ready) => boot(ready),
        CheckKind::Ping => "it answers a ping".into(),
        CheckKind::Tcp { port, banner } => match banner {
            None => format!("TCP port {port} takes a connection"),
            Some(banner) => format!(
                "TCP port {port} takes a connection and says something with {}",
                pattern(banner)
            ),
        },
        CheckKind::Http {
            tls,
            port,
            path,
            host,
            status,
            body,
        } => {
            let scheme = if *tls { "HTTPS" } else { "HTTP" };
            let mut said = format!("{scheme} port {port} answers for {path}");
            if let Some(host) = host {
                let _ = write!(said, " of {host}");
            }
            match status {
                Some(status) => {
                    let _ = write!(said, " with status {status}");
                }
                None => said.push_str(" with a status from 200 to 399"),
            }
            if let Some(body) = body {
                let _ = write!(said, " and a body with {}", pattern(body));
            }
            said
        }
        CheckKind::Script {
            path,
            exit_code,
            output,
            ..
        } => program(&path.display().to_string(), *exit_code, output.as_ref()),
        CheckKind::Exec {
            command,
            exit_code,
            output,
        } => program(
            &format!("`{command}` in the guest"),
            *exit_code,
            output.as_ref(),
        ),
        CheckKind::Fsck { disks } if disks.is_empty() => {
            "the file systems on all disks are in order".into()
        }
        CheckKind::Fsck { disks } => {
            format!("the file systems on {} are in order", disks.join(", "))
        }
        CheckKind::Files(files) => match files.as_slice() {
            [one] => format!("{} in the guest has the SHA-256 of the plan", one.path),
            all => format!(
                "{} files in the guest have the SHA-256 of the plan",
                all.len()
            ),
        },
        CheckKind::Plugin { name, .. } => format!("the plugin {name} says that it is in order"),
    }
}

fn boot(ready: &Ready) -> String {
    match ready {
        Ready::Auto => "the guest agent answers, or the screen stands still".into(),
        Ready::Agent => "the guest agent answers".into(),
        Ready::Ping => "it answers a ping".into(),
        Ready::Console(shown) => format!("its console shows {}", pattern(shown)),
        Ready::Screen => "its screen stands still".into(),
        Ready::Running => "its CPUs run".into(),
    }
}

fn program(name: &str, exit_code: i32, output: Option<&Pattern>) -> String {
    let mut said = format!("{name} ends with exit code {exit_code}");
    if let Some(output) = output {
        let _ = write!(said, " and prints {}", pattern(output));
    }
    said
}

/// A pattern as it is quoted in a sentence.
pub(super) fn pattern(pattern: &Pattern) -> String {
    format!("/{}/", pattern.text())
}
