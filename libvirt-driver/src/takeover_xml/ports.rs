//! The takeover's serial ports, channels, screens and sound: nothing that is bound to a path or port of the host.

use std::path::Path;

use xmltree::Element;

use super::spec::TakeoverSpec;
use crate::xml_tree::{Tree, element};

pub(super) fn edit(devices: &mut Element, spec: &TakeoverSpec, notes: &mut Vec<String>) {
    devices.retain(|device| match device.name.as_str() {
        // libvirt shows the first serial port a second time as a console, and adds it by itself.
        "console" => {
            device.child_attr("target", "type") != Some("serial") && keep_port(device, notes)
        }
        "serial" | "parallel" => keep_port(device, notes),
        "channel" => keep_channel(device, notes),
        "graphics" => keep_screen(device, spec.is_isolated(), notes),
        "audio" => {
            silence(device, notes);
            true
        }
        _ => true,
    });
    if let Some(path) = &spec.console_log {
        log_console(devices, path, notes);
    }
}

/// The port by its kind and number, for people.
fn describe(port: &Element) -> String {
    match (
        port.child_attr("target", "name"),
        port.child_attr("target", "port"),
    ) {
        (Some(name), _) => format!("{} {name}", port.name),
        (None, Some(number)) => format!("{} port {number}", port.name),
        (None, None) => format!("{} port", port.name),
    }
}

/// Where the port ends on the host, for people.
fn describe_end(port: &Element) -> String {
    let attr = |name| port.child_attr("source", name);
    let place = attr("path").or(attr("channel")).map(str::to_owned);
    let place = place.or_else(|| {
        Some(format!(
            "{}:{}",
            attr("host").unwrap_or("*"),
            attr("service")?
        ))
    });
    let kind = port.attr("type").unwrap_or("unknown");
    place.map_or_else(|| kind.to_owned(), |place| format!("{kind} {place}"))
}

/// Turns a serial or parallel port or a console into a pty where its end belongs to the host.
fn keep_port(port: &mut Element, notes: &mut Vec<String>) -> bool {
    port.unset("tty");
    drop_log(port, notes);
    match port.attr("type").unwrap_or("pty") {
        "null" | "vc" | "stdio" | "spicevmc" | "spiceport" | "qemu-vdagent" => return true,
        "pty" => {}
        _ => {
            notes.push(format!(
                "{}: was {}, is a pty now",
                describe(port),
                describe_end(port)
            ));
            port.set("type", "pty");
        }
    }
    port.remove_all("source");
    port.remove_all("protocol");
    true
}

/// Lets libvirt choose a channel's socket; what ends in the guest's own devices stays.
fn keep_channel(channel: &mut Element, notes: &mut Vec<String>) -> bool {
    drop_log(channel, notes);
    if let Some(target) = channel.get_mut_child("target") {
        target.unset("state");
    }
    let target = channel.child_attr("target", "type").unwrap_or_default();
    if target == "guestfwd" || channel.attr("type") == Some("dbus") {
        notes.push(format!(
            "{}: was {} to the host, dropped",
            describe(channel),
            describe_end(channel)
        ));
        return false;
    }
    match channel.attr("type").unwrap_or("unix") {
        "spicevmc" | "spiceport" | "qemu-vdagent" | "null" => return true,
        "pty" => {}
        "unix" if is_libvirts_own(channel) => {}
        _ => {
            notes.push(format!(
                "{}: was {}, is a socket libvirt chooses now",
                describe(channel),
                describe_end(channel)
            ));
            channel.set("type", "unix");
        }
    }
    channel.remove_all("source");
    channel.remove_all("protocol");
    true
}

/// True for a socket in a place libvirt chose for this domain.
fn is_libvirts_own(channel: &Element) -> bool {
    channel
        .child_attr("source", "path")
        .is_none_or(|path| path.contains("/libvirt/qemu/"))
}

fn drop_log(port: &mut Element, notes: &mut Vec<String>) {
    let file = port
        .child_attr("log", "file")
        .unwrap_or_default()
        .to_owned();
    if port.remove_all("log") > 0 {
        notes.push(format!(
            "{}: its log {file} stays the original's, dropped",
            describe(port)
        ));
    }
}

/// Gives the first serial port a log; adds a port where there is none.
fn log_console(devices: &mut Element, path: &Path, notes: &mut Vec<String>) {
    if !devices.has("serial") {
        devices.push(element("serial", &[("type", "pty")]));
        notes.push("serial port: added, for the console log".to_owned());
    }
    if let Some(serial) = devices.get_mut_child("serial") {
        serial.push(element(
            "log",
            &[("file", &path.to_string_lossy()), ("append", "off")],
        ));
    }
}

/// Moves a screen to a free port on the loopback address, or, isolated, to where only libvirt leads.
fn keep_screen(screen: &mut Element, is_isolated: bool, notes: &mut Vec<String>) -> bool {
    let kind = screen.attr("type").unwrap_or("unknown").to_owned();
    match kind.as_str() {
        "egl-headless" => return true,
        "vnc" | "spice" => {}
        _ => {
            notes.push(format!(
                "screen {kind}: belongs to the host's desktop or network, dropped"
            ));
            return false;
        }
    }
    if screen.child_attr("listen", "type") == Some("none") {
        return true;
    }
    let was = describe_listen(screen);
    if !was.is_empty() {
        let now = match is_isolated {
            true => "is reached through libvirt only",
            false => "is a free port on 127.0.0.1 without a password now",
        };
        notes.push(format!("screen {kind}: was {was}, {now}"));
    }
    for name in [
        "socket",
        "listen",
        "passwd",
        "passwdValidTo",
        "connected",
        "tlsPort",
        "websocket",
        "sharePolicy",
        "defaultMode",
    ] {
        screen.unset(name);
    }
    screen.remove_all("listen");
    screen.remove_all("channel");
    if is_isolated {
        // No port that any user of the host could open; virt-viewer --attach leads there.
        screen.unset("port");
        screen.unset("autoport");
        screen.push(element("listen", &[("type", "none")]));
        return true;
    }
    screen.set("port", "-1");
    screen.set("autoport", "yes");
    screen.push(element(
        "listen",
        &[("type", "address"), ("address", "127.0.0.1")],
    ));
    true
}

/// What of the screen's place will be another; empty where it was chosen by libvirt on the loopback address.
fn describe_listen(screen: &Element) -> String {
    let mut was = Vec::new();
    if screen.attr("autoport") != Some("yes") {
        was.extend(
            screen
                .attr("port")
                .filter(|port| *port != "-1")
                .map(|port| format!("port {port}")),
        );
    }
    let tls = screen.attr("tlsPort").filter(|port| *port != "-1");
    was.extend(tls.map(|port| format!("TLS port {port}")));
    was.extend(
        screen
            .attr("websocket")
            .map(|port| format!("websocket {port}")),
    );
    was.extend(screen.attr("socket").map(|path| format!("socket {path}")));
    if screen
        .attr("defaultMode")
        .is_some_and(|mode| mode == "secure")
        || screen.has("channel")
    {
        was.push("TLS for some channels".to_owned());
    }
    for listen in screen.elements().filter(|child| child.name == "listen") {
        let place = ["address", "network", "socket"]
            .iter()
            .find_map(|name| listen.attr(name));
        match place {
            None | Some("127.0.0.1" | "::1" | "localhost") => {}
            Some(_) if is_libvirts_socket(listen) => {}
            Some(place) => was.push(format!("on {place}")),
        }
    }
    was.join(", ")
}

fn is_libvirts_socket(listen: &Element) -> bool {
    listen
        .attr("socket")
        .is_some_and(|path| path.contains("/libvirt/qemu/"))
}

/// Sound goes to the screen or nowhere.
fn silence(audio: &mut Element, notes: &mut Vec<String>) {
    let kind = audio.attr("type").unwrap_or("none").to_owned();
    if matches!(kind.as_str(), "none" | "spice") {
        return;
    }
    notes.push(format!(
        "sound: went to the host ({kind}), goes nowhere now"
    ));
    let id = audio.attr("id").unwrap_or("1").to_owned();
    *audio = element("audio", &[("id", &id), ("type", "none")]);
}
