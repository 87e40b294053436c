//! The hidden `completions` and `man`: what the packages install, generated from the commands themselves.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::error::{CliError, CliResult};
use crate::{daemon, host::files::Page};

/// Prints the completion script of a shell
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes the man pages to a directory
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// The directory; made where it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(args: &Completions) {
    let script = completion(args.shell);
    super::session::put(String::from_utf8_lossy(&script).trim_end());
}

/// Makes the completion script of a shell.
pub(super) fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "virt-cdp", &mut script);
    script
}

pub(super) fn man(args: &Man) -> CliResult {
    write_pages(&args.dir).map_err(|error| {
        CliError::failure(format!(
            "cannot write man pages to {}: {error}",
            args.dir.display()
        ))
    })
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    pages()?
        .into_iter()
        .try_for_each(|(name, text)| std::fs::write(dir.join(name), text))
}

/// Makes the manual: a page for each command, and one for the daemon.
pub(super) fn pages() -> io::Result<Vec<Page>> {
    let mut command = super::command();
    command.build();
    let mut pages = vec![page(&command, "virt-cdp", "1")?];
    for verb in command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
    {
        pages.push(page(verb, &format!("virt-cdp-{}", verb.get_name()), "1")?);
    }
    pages.push(page(&daemon::args::Args::command(), "virtcdpd", "8")?);
    Ok(pages)
}

fn page(command: &clap::Command, name: &str, section: &str) -> io::Result<Page> {
    let mut text = Vec::new();
    let command = command.clone().display_name(name.to_owned());
    clap_mangen::Man::new(command)
        .section(section)
        .source(concat!("virt-cdp ", env!("CARGO_PKG_VERSION")))
        .render(&mut text)?;
    Ok((format!("{name}.{section}"), text))
}
