//! Whether AppArmor confines QEMU on this host: views and overlays then need the rules in `plugins/host/apparmor`.

use std::path::Path;

/// Where the rules for QEMU are included from.
pub const LOCAL_ABSTRACTION: &str = "/etc/apparmor.d/local/abstractions/libvirt-qemu";

/// Tells whether AppArmor is enabled in the kernel.
pub fn apparmor_active() -> bool {
    is_enabled(Path::new("/sys/module/apparmor/parameters/enabled"))
}

/// Tells whether the rules for view sockets are in the file libvirt's QEMU profiles include.
pub fn apparmor_rules_installed() -> bool {
    std::fs::read_to_string(LOCAL_ABSTRACTION).is_ok_and(|rules| has_rules(&rules))
}

fn is_enabled(parameter: &Path) -> bool {
    std::fs::read_to_string(parameter).is_ok_and(|text| text.trim() == "Y")
}

fn has_rules(rules: &str) -> bool {
    rules
        .lines()
        .any(|line| !line.trim_start().starts_with('#') && line.contains("run/virt-cdp/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_enabled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("enabled");
        assert!(!is_enabled(&file));
        for (text, expected) in [("Y\n", true), ("N\n", false), ("", false)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(is_enabled(&file), expected, "{text:?}");
        }
    }

    #[test]
    fn the_shipped_rules_are_recognised() {
        assert!(has_rules(include_str!(
            "../../plugins/host/apparmor/libvirt-qemu"
        )));
        assert!(!has_rules("# /run/virt-cdp/** rw,\n"));
    }
}
