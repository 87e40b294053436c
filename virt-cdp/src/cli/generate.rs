//! The hidden `completions` and `man`: what the packages install, generated from the commands themselves.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::error::{CliError, CliResult};
use crate::daemon;

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
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "virt-cdp", &mut script);
    super::session::put(String::from_utf8_lossy(&script).trim_end());
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
    let mut command = super::command();
    command.build();
    page(&command, "virt-cdp", "1", dir)?;
    for verb in command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
    {
        page(verb, &format!("virt-cdp-{}", verb.get_name()), "1", dir)?;
    }
    page(&daemon::args::Args::command(), "virtcdpd", "8", dir)
}

fn page(command: &clap::Command, name: &str, section: &str, dir: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    let command = command.clone().display_name(name.to_owned());
    clap_mangen::Man::new(command)
        .section(section)
        .source(concat!("virt-cdp ", env!("CARGO_PKG_VERSION")))
        .render(&mut text)?;
    std::fs::write(dir.join(format!("{name}.{section}")), text)
}
