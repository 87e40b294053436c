//! Checks as they are written on a command line.

use super::{CheckKind, CheckPlan, FileSum, Pattern, Ready};

/// The short forms, for help texts and errors.
pub const FORMS: &str = "ping, agent, boot, tcp:PORT[:PATTERN], http:PORT[/PATH], https:PORT[/PATH], script:PATH, exec:COMMAND, \
     fsck[:DISK], files:PATH=SHA256, plugin:NAME[:KEY=VALUE,...]";

pub(super) fn parse(text: &str) -> Result<CheckPlan, (String, String)> {
    let bad = |what: String| (what, format!("give one of {FORMS}"));
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (text, None),
    };
    let needs = |what: &str| {
        rest.filter(|rest| !rest.is_empty())
            .ok_or_else(|| bad(format!("the check `{text}` has no {what}")))
    };
    let none = |made: CheckKind| match rest {
        None => Ok(made),
        Some(_) => Err(bad(format!("the check `{kind}` takes nothing behind it"))),
    };
    let made = match kind {
        "ping" => none(CheckKind::Ping)?,
        "agent" => none(CheckKind::Agent)?,
        "boot" => none(CheckKind::Boot(Ready::Auto))?,
        "tcp" => {
            let rest = needs("port")?;
            let (number, banner) = match rest.split_once(':') {
                Some((number, banner)) => (number, Some(banner)),
                None => (rest, None),
            };
            CheckKind::Tcp {
                port: port(number).map_err(bad)?,
                banner: banner.map(Pattern::new).transpose().map_err(bad)?,
            }
        }
        "http" | "https" => {
            let rest = needs("port")?;
            let at = rest.find('/').unwrap_or(rest.len());
            let (number, path) = rest.split_at(at);
            let path = if path.is_empty() { "/" } else { path };
            CheckKind::Http {
                tls: kind == "https",
                port: port(number).map_err(bad)?,
                path: path.to_owned(),
                host: None,
                status: None,
                body: None,
            }
        }
        "script" => CheckKind::Script {
            path: needs("path")?.into(),
            args: Vec::new(),
            exit_code: 0,
            output: None,
        },
        "exec" => CheckKind::Exec {
            command: needs("command")?.to_owned(),
            exit_code: 0,
            output: None,
        },
        "fsck" => CheckKind::Fsck {
            disks: rest
                .map(|disks| disks.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
        },
        "files" => {
            let rest = needs("file")?;
            let (path, sum) = rest
                .rsplit_once('=')
                .ok_or_else(|| bad(format!("`{rest}` is not PATH=SHA256")))?;
            CheckKind::Files(vec![FileSum {
                path: path.to_owned(),
                sha256: sha256(sum).map_err(bad)?,
            }])
        }
        "plugin" => {
            let rest = needs("name")?;
            let (name, settings) = rest.split_once(':').unwrap_or((rest, ""));
            let mut map = serde_json::Map::new();
            for pair in settings.split(',').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair
                    .split_once('=')
                    .ok_or_else(|| bad(format!("`{pair}` is not KEY=VALUE")))?;
                map.insert(key.to_owned(), value.into());
            }
            CheckKind::Plugin {
                name: plugin_name(name).map_err(bad)?,
                settings: map,
            }
        }
        other => return Err(bad(format!("there is no check `{other}`"))),
    };
    Ok(CheckPlan::of(made))
}

pub(super) fn write(kind: &CheckKind) -> String {
    match kind {
        CheckKind::Agent | CheckKind::Ping => kind.name().to_owned(),
        CheckKind::Boot(_) => "boot".to_owned(),
        CheckKind::Tcp { port, .. } => format!("tcp:{port}"),
        CheckKind::Http {
            tls, port, path, ..
        } => format!("http{}:{port}{path}", if *tls { "s" } else { "" }),
        CheckKind::Script { path, .. } => format!("script:{}", path.display()),
        CheckKind::Exec { command, .. } => format!("exec:{command}"),
        CheckKind::Fsck { disks } if disks.is_empty() => "fsck".to_owned(),
        CheckKind::Fsck { disks } => format!("fsck:{}", disks.join(",")),
        CheckKind::Files(files) => match files.as_slice() {
            [one] => format!("files:{}", one.path),
            all => format!("files:{} files", all.len()),
        },
        CheckKind::Plugin { name, .. } => format!("plugin:{name}"),
    }
}

/// A port from its digits.
pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is no port, which is 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

/// A SHA-256 from its digits, in lower case.
pub(super) fn sha256(text: &str) -> Result<String, String> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_hex && text.len() == 64 {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!(
            "`{text}` is no SHA-256, which is 64 hexadecimal digits"
        )),
    }
}

/// The name of a plugin: a file name without surprises.
pub(super) fn plugin_name(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(is_plain) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{text}` is no name of a plugin: letters, digits, - and _"
        )),
    }
}
