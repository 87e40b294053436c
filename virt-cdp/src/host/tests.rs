//! Laying down and taking away in a directory that stands for a host.

use std::{fs, path::Path};

use super::{files::Generated, manifest::Manifest, *};

fn generated(program: &str) -> Generated {
    Generated {
        program: program.into(),
        pages: vec![
            ("virt-cdp.1".into(), b".TH one".to_vec()),
            ("virtcdpd.8".into(), b".TH eight".to_vec()),
        ],
        completions: ["bash", "zsh", "fish"].map(|shell| shell.into()),
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A host with libvirt's and AppArmor's directories, and a rule of the user's.
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        place.put(
            "/etc/apparmor.d/local/abstractions/libvirt-qemu",
            "# theirs\n",
        );
        place.put("/etc/libvirt/hooks/qemu.d/10-theirs", "#!/bin/sh\n");
        place
    }

    fn host(&self) -> Host {
        Host {
            root: self.dir.path().into(),
            dry_run: false,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.host().at(Path::new(path))
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn install(&self, program: &str) -> Vec<Step> {
        let prefix = Path::new("/usr/local");
        let items = files::items(prefix, true, generated(program));
        install(&self.host(), prefix, &items).unwrap()
    }

    /// Every path below the root, with what is there.
    fn all(&self) -> Vec<String> {
        fn walk(dir: &Path, root: &Path, all: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().display().to_string();
                if path.is_symlink() {
                    all.push(format!(
                        "{name} -> {}",
                        fs::read_link(&path).unwrap().display()
                    ));
                } else if path.is_dir() {
                    all.push(format!("{name}/"));
                    walk(&path, root, all);
                } else {
                    let text = fs::read(&path).unwrap();
                    all.push(format!("{name} {}", String::from_utf8_lossy(&text)));
                }
            }
        }
        let mut all = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut all);
        all.sort();
        all
    }
}

fn done<'a>(steps: &'a [Step], path: &str) -> &'a Done {
    &steps
        .iter()
        .find(|s| s.path == Path::new(path))
        .unwrap()
        .done
}

const PROGRAM: &str = "/usr/local/bin/virt-cdp";
const CONFIG: &str = "/etc/virt-cdp/virtcdpd.toml";
const RULES: &str = "/etc/apparmor.d/local/abstractions/libvirt-qemu";

#[test]
fn what_is_laid_down_is_taken_away_and_nothing_else() {
    let place = Place::new();
    let before = place.all();
    let steps = place.install("one");
    assert!(steps.iter().all(|s| s.done == Done::Made), "{steps:?}");
    let unit = fs::read_to_string(place.at("/etc/systemd/system/virtcdpd.service")).unwrap();
    assert!(
        unit.contains("ExecStart=/usr/local/sbin/virtcdpd\n"),
        "{unit}"
    );
    let hook = fs::read_to_string(place.at("/etc/libvirt/hooks/qemu.d/50-virt-cdp")).unwrap();
    assert!(hook.contains("\"/usr/local/bin/virt-cdp\" hook"), "{hook}");
    let rules = fs::read_to_string(place.at(RULES)).unwrap();
    assert!(rules.starts_with("# theirs\n# >>>"), "{rules}");
    assert_eq!(
        fs::read(place.at("/usr/local/sbin/virtcdpd")).unwrap(),
        b"one",
        "the link leads to the program"
    );
    let laid_down = place.all();
    let steps = place.install("one");
    assert!(steps.iter().all(|s| s.done == Done::Kept), "{steps:?}");
    assert_eq!(place.all(), laid_down, "twice is once");

    place.put("/var/lib/virt-cdp/harbors/web1", "data");
    let gone = uninstall(&place.host()).unwrap();
    assert!(
        gone.steps.iter().all(|s| s.done == Done::Removed),
        "{:?}",
        gone.steps
    );
    assert_eq!(gone.kept.as_deref(), Some(Path::new("/var/lib/virt-cdp")));
    fs::remove_dir_all(place.at("/var")).unwrap();
    assert_eq!(place.all(), before);
    assert!(matches!(
        uninstall(&place.host()),
        Err(HostError::NotInstalled)
    ));
}

#[test]
fn a_new_version_replaces_what_is_ours_and_leaves_what_was_changed() {
    let place = Place::new();
    place.install("one");
    let changed = "socket = '/x'\nstate_dir = '/srv/cdp'\n";
    place.put(CONFIG, changed);
    place.put("/etc/virt-cdp/theirs", "");
    let rules = fs::read_to_string(place.at(RULES)).unwrap();
    place.put(RULES, &format!("{rules}# more of theirs\n"));
    let steps = place.install("two");
    assert_eq!(done(&steps, PROGRAM), &Done::Updated);
    assert!(matches!(done(&steps, CONFIG), Done::Left(_)));
    assert_eq!(done(&steps, RULES), &Done::Kept);
    assert_eq!(fs::read(place.at(PROGRAM)).unwrap(), b"two");
    assert_eq!(fs::read_to_string(place.at(CONFIG)).unwrap(), changed);

    place.put("/srv/cdp/harbors/web1", "data");
    let gone = uninstall(&place.host()).unwrap();
    assert!(matches!(done(&gone.steps, CONFIG), Done::Left(_)));
    assert_eq!(gone.kept.as_deref(), Some(Path::new("/srv/cdp")));
    let rules = fs::read_to_string(place.at(RULES)).unwrap();
    assert_eq!(rules, "# theirs\n# more of theirs\n");
    assert!(place.at(CONFIG).exists() && place.at("/etc/virt-cdp/theirs").exists());
    assert!(!place.at(MANIFEST).exists() && !place.at(PROGRAM).exists());
}

#[test]
fn what_was_there_before_is_neither_replaced_nor_removed() {
    let place = Place::new();
    place.put(PROGRAM, "of a package");
    place.put("/etc/systemd/system/virtcdpd.service", "theirs");
    let items = files::items(Path::new("/usr/local"), true, generated("one"));
    let bash = items
        .iter()
        .find(|i| i.path.ends_with("completions/virt-cdp"))
        .unwrap();
    place.put(bash.path.to_str().unwrap(), "bash");
    let before = place.all();
    let steps = place.install("one");
    for path in [
        PROGRAM,
        "/etc/systemd/system/virtcdpd.service",
        bash.path.to_str().unwrap(),
    ] {
        assert!(matches!(done(&steps, path), Done::Left(_)), "{path}");
    }
    uninstall(&place.host()).unwrap();
    assert_eq!(place.all(), before);
}

#[test]
fn a_crash_at_any_step_is_made_good_by_the_same_again() {
    let whole = Place::new();
    whole.install("one");
    let expected = whole.all();
    let names = |all: &[String]| -> Vec<String> {
        let name = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
        all.iter().map(name).collect()
    };
    let steps = expected.len();
    for cut in 0..steps {
        // As a crash leaves it: the list is whole, what it names is there up to some path, one is half written.
        let place = Place::new();
        place.install("one");
        let mut manifest = Manifest::read(&place.host()).unwrap().unwrap();
        for entry in manifest.entries.iter_mut() {
            entry.hashes.push(super::manifest::hash(b"an older one"));
        }
        manifest.write(&place.host()).unwrap();
        for entry in manifest.entries.iter().skip(cut) {
            let path = place.at(entry.path.to_str().unwrap());
            if path.is_file() && !path.ends_with("libvirt-qemu") {
                fs::remove_file(&path).unwrap();
            }
        }
        if cut % 2 == 0 {
            place.install("one");
            assert_eq!(names(&place.all()), names(&expected), "cut {cut}");
            uninstall(&place.host()).unwrap();
        } else {
            uninstall(&place.host()).unwrap();
        }
        assert_eq!(place.all(), Place::new().all(), "cut {cut}");
    }
}

#[test]
fn a_dry_run_changes_nothing_and_what_is_in_use_stays() {
    let place = Place::new();
    let before = place.all();
    let prefix = Path::new("/usr/local");
    let items = files::items(prefix, true, generated("one"));
    let dry = Host {
        dry_run: true,
        ..place.host()
    };
    let steps = install(&dry, prefix, &items).unwrap();
    assert!(steps.iter().all(|s| s.done == Done::Made));
    assert_eq!(place.all(), before);
    place.install("one");
    let installed = place.all();
    let steps = uninstall(&dry).unwrap().steps;
    assert!(steps.iter().all(|s| s.done == Done::Removed), "{steps:?}");
    assert_eq!(place.all(), installed);

    let other = install(&place.host(), Path::new("/usr"), &items);
    assert!(matches!(other, Err(HostError::OtherPrefix { .. })));
    let enabled = place.at("/etc/systemd/system/multi-user.target.wants/virtcdpd.service");
    fs::create_dir_all(enabled.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/etc/systemd/system/virtcdpd.service", &enabled).unwrap();
    assert!(matches!(uninstall(&place.host()), Err(HostError::InUse(_))));
    fs::remove_file(&enabled).unwrap();
    place.put(
        MANIFEST,
        r#"{"format":1,"prefix":"/usr","entries":[{"path":"/a/../../etc/x","kind":"file"}]}"#,
    );
    assert!(matches!(
        uninstall(&place.host()),
        Err(HostError::Manifest { .. })
    ));
}
