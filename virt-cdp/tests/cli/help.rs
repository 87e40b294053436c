//! Help texts are kept as files in `tests/help/`; `UPDATE_HELP=1 cargo test` writes them anew.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use virt_cdp::{cli, daemon::args};

fn programs() -> Vec<(String, Command)> {
    let mut command = cli::command().term_width(100);
    command.build();
    let mut all = vec![("virt-cdp".to_owned(), command.clone())];
    for verb in command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
    {
        all.push((format!("virt-cdp-{}", verb.get_name()), verb.clone()));
    }
    all.push(("virtcdpd".to_owned(), args::Args::command().term_width(100)));
    all
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/help")
        .join(name)
        .with_extension("txt")
}

#[test]
fn help_texts_are_as_they_were_agreed() {
    for (name, command) in programs() {
        let text = command
            .clone()
            .term_width(100)
            .render_long_help()
            .to_string();
        if std::env::var_os("UPDATE_HELP").is_some() {
            std::fs::write(file(&name), &text).unwrap();
        }
        let kept = std::fs::read_to_string(file(&name)).unwrap_or_default();
        assert_eq!(
            text, kept,
            "the help of {name} changed; if it should: UPDATE_HELP=1 cargo test -p virt-cdp"
        );
    }
}

#[test]
fn every_kept_help_text_is_of_a_command() {
    let known: Vec<_> = programs()
        .into_iter()
        .map(|(name, _)| file(&name))
        .collect();
    for entry in std::fs::read_dir(file("x").parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        assert!(
            known.contains(&path),
            "{} belongs to no command",
            path.display()
        );
    }
}

#[test]
fn the_command_line_is_sound() {
    cli::command().debug_assert();
    args::Args::command().debug_assert();
}

#[test]
fn every_verb_has_a_man_page_and_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man");
    let run = |words: &[&str]| {
        crate::stage::Ran::from(
            crate::stage::program("virt-cdp", dir.path())
                .args(words)
                .output()
                .unwrap(),
        )
        .good()
    };
    assert_eq!(run(&["man", pages.to_str().unwrap()]), "");
    for (name, _) in programs() {
        let page = pages.join(format!("{name}.{}", if name == "virtcdpd" { 8 } else { 1 }));
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(
            text.contains(&format!(".TH {name} ")),
            "{}: {text}",
            page.display()
        );
        assert!(!text.contains("hint-bin"));
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(script.contains("takeover-commit"), "{shell}");
    }
}
