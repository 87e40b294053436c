//! The documents say what the program is: commands, configuration, code map, links, dependencies, tests.
//!
//! How: the tables of README.md and ARCHITECTURE.md are read as they stand and compared with the program's
//! help, the shipped configuration, the source folders and the manifest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

type Set = BTreeSet<String>;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The lines below a heading, up to the next heading of the same or a higher level.
fn section<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let level = heading.split(' ').next().unwrap().len();
    let ends = |line: &str| {
        let marks = line.bytes().take_while(|b| *b == b'#').count();
        (1..=level).contains(&marks)
    };
    let mut lines = document.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no heading {heading:?}");
    lines.take_while(|line| !ends(line)).collect()
}

/// The rows of the tables among some lines, cell by cell, without head and rule.
fn rows<'a>(lines: &[&'a str]) -> Vec<Vec<&'a str>> {
    let mut rows = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let is_row = |line: &str| line.starts_with('|') && !line.starts_with("|--");
        let is_head = lines.get(at + 1).is_some_and(|l| l.starts_with("|--"));
        if is_row(line) && !is_head {
            let cells = line.trim_matches('|').split('|').map(str::trim);
            rows.push(cells.collect());
        }
    }
    assert!(!rows.is_empty(), "no table");
    rows
}

fn plain(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

fn first_cells(lines: &[&str]) -> Set {
    rows(lines).iter().map(|row| plain(row[0])).collect()
}

/// Everything between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn the_readme_has_exactly_the_commands_there_are() {
    let help = Command::new(env!("CARGO_BIN_EXE_virt-cdp"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let listed = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let names = listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned());
    let there_are: Set = names.filter(|name| name != "help").collect();
    assert!(there_are.contains("protect"), "{help}");
    let readme = text("README.md");
    assert_eq!(first_cells(&section(&readme, "## Commands")), there_are);
}

/// Key to default, of a table and the tables below it.
fn flatten(table: &toml::Table, above: &str, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = format!("{above}{key}");
        match value {
            toml::Value::Table(below) => flatten(below, &format!("{key}."), into),
            toml::Value::String(text) => {
                into.insert(key, text.clone());
            }
            other => {
                into.insert(key, other.to_string());
            }
        }
    }
}

#[test]
fn the_readme_has_the_configurations_keys_and_defaults() {
    let shipped = text("plugins/host/virtcdpd.toml");
    // A key that is commented out has no space behind the `#`.
    let uncommented = shipped.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
        _ => line,
    });
    let uncommented: Vec<&str> = uncommented.collect();
    let mut there_are = BTreeMap::new();
    flatten(
        &toml::from_str(&uncommented.join("\n")).unwrap(),
        "",
        &mut there_are,
    );
    let readme = text("README.md");
    let said: BTreeMap<String, String> = rows(&section(&readme, "## Configuration"))
        .iter()
        .map(|row| (plain(row[0]), plain(row[1])))
        .collect();
    assert_eq!(said, there_are);
}

/// The crates of the workspace, by folder.
fn crates() -> Vec<String> {
    let manifest: toml::Table = toml::from_str(&text("Cargo.toml")).unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members
        .iter()
        .map(|m| m.as_str().unwrap().to_owned())
        .collect()
}

/// The top-level modules of a crate: files and folders below `src`, but for the crate's roots and unit tests.
fn modules(folder: &str) -> Set {
    let src = repository().join(folder).join("src");
    let names = fs::read_dir(src).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_owned()
    });
    names
        .filter(|name| name != "lib" && name != "main" && !name.ends_with("_tests"))
        .collect()
}

#[test]
fn the_code_map_has_exactly_the_modules_there_are() {
    let document = text("ARCHITECTURE.md");
    let map = section(&document, "## Code map").join("\n");
    let headings: Set = map
        .lines()
        .filter_map(|line| line.strip_prefix("### ").map(plain))
        .collect();
    assert_eq!(headings, crates().into_iter().collect(), "crates");
    for folder in crates() {
        let said = first_cells(&section(&map, &format!("### `{folder}`")));
        assert_eq!(said, modules(&folder), "modules of {folder}");
    }
}

/// All Markdown files that belong to the repository.
fn documents(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The lines of a document that are no code.
fn prose(document: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    document.lines().filter(move |line| {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        !fenced && !line.starts_with("    ")
    })
}

/// What a heading is linked by.
fn anchors(document: &str) -> Set {
    let headings = prose(document).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut files = Vec::new();
    documents(repository(), &mut files);
    let mut broken = Vec::new();
    let mut links = 0;
    for file in &files {
        let document = fs::read_to_string(file).unwrap();
        for line in prose(&document) {
            for link in line.split("](").skip(1) {
                let link = link.split(')').next().unwrap();
                if link.contains("://") || link.starts_with("mailto:") {
                    continue;
                }
                links += 1;
                let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match path {
                    "" => file.clone(),
                    path => file.parent().unwrap().join(path),
                };
                let there = target.exists()
                    && (anchor.is_empty()
                        || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
                if !there {
                    broken.push(format!("{}: {link}", file.display()));
                }
            }
        }
    }
    assert!(files.len() >= 4 && links > 10, "the test sees the links");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The crates whose use, or absence, has to be explained.
const EXPLAINED: [&str; 10] = [
    "virt", "qapi", "tokio", "serde", "qcow2-rs", "bitvec", "reqwest", "tonic", "clap", "tracing",
];

#[test]
fn the_dependencies_are_explained_as_they_are() {
    let document = text("ARCHITECTURE.md");
    let manifest: toml::Table = toml::from_str(&text("Cargo.toml")).unwrap();
    let used = manifest["workspace"]["dependencies"].as_table().unwrap();
    let table = rows(&section(&document, "## Dependencies"));
    for name in EXPLAINED {
        let row = table.iter().find(|row| plain(row[0]) == name);
        let row = row.unwrap_or_else(|| panic!("{name} is not explained"));
        let said = if used.contains_key(name) {
            "used"
        } else {
            "left out"
        };
        assert_eq!(row[1], said, "{name}");
        assert!(!row[2].is_empty(), "{name} has a reason");
    }
}

/// All Rust sources below a folder, in one text.
fn sources(dir: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.push_str(&sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    all
}

#[test]
fn the_life_cycle_names_tests_that_there_are() {
    let document = text("ARCHITECTURE.md");
    let tests = sources(&repository().join("tests/tests"))
        + &sources(&repository().join("libvirt-driver/tests"));
    let mut named = 0;
    for row in rows(&section(&document, "## Life cycle")) {
        let (event, outcome, test) = (row[0], row[1], row[2]);
        assert!(!outcome.is_empty(), "{event} has an outcome");
        let names = quoted(test).filter(|name| !crates().iter().any(|c| c == name));
        for name in names {
            named += 1;
            assert!(tests.contains(&format!("fn {name}()")), "{event}: {name}");
        }
    }
    assert!(named > 10, "the test sees the names");
}

#[test]
fn the_states_are_the_programs() {
    let document = text("ARCHITECTURE.md");
    let states = section(&document, "## States of a machine").join("\n");
    let source = text("virt-cdp/src/engine/machine.rs");
    let names: Vec<&str> = source
        .lines()
        .filter(|line| line.trim_start().starts_with("Self::") && line.contains(" => \""))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert!(
        names.len() >= 8,
        "the test sees the states' names: {names:?}"
    );
    for name in names {
        assert!(states.contains(name), "{name}");
    }
}
