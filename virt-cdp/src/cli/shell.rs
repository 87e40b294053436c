//! The shell: what `virt-cdp` does when it is called bare.
//!
//! What: on a terminal lines with history and completion; from a file or pipe one command a line, as
//! virsh does, exiting 1 if the last one failed. How: a line is split into words and parsed by the same
//! parser as the program's own command line.
//! Invariant: a command does in the shell what it does outside; one that fails does not end the shell.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{FromArgMatches as _, parser::ValueSource};
use rustyline::{Editor, error::ReadlineError, history::FileHistory};

use super::{
    Cli, Command,
    client::{Address, Client},
    complete::LineHelper,
    error::{CliError, CliResult, Fault},
    session::{Reader, Session},
    words,
};

const PROMPT: &str = "virt-cdp # ";

/// What comes after a line.
enum Next {
    Line,
    End,
}

/// Reads and runs commands until the end of stdin, `quit` or `exit`.
pub(super) fn run(session: &mut Session) -> ExitCode {
    let mut last = Ok(());
    let read = match io::stdin().is_terminal() {
        true => read_terminal(session, &mut last),
        false => read_lines(session, &mut last),
    };
    if let Err(error) = &read {
        error.print();
    }
    if read.is_err() || last.is_err() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn read_lines(session: &mut Session, last: &mut Result<(), Fault>) -> CliResult {
    for line in io::stdin().lock().lines() {
        let line =
            line.map_err(|error| CliError::failure(format!("cannot read commands: {error}")))?;
        if matches!(execute(&line, session, last), Next::End) || *last == Err(Fault::Interrupted) {
            break;
        }
    }
    Ok(())
}

fn read_terminal(session: &mut Session, last: &mut Result<(), Fault>) -> CliResult {
    session.client.heed_interrupts()?;
    let terminal =
        |error: ReadlineError| CliError::failure(format!("cannot use the terminal: {error}"));
    let config = rustyline::Config::builder()
        .completion_type(rustyline::CompletionType::List)
        .auto_add_history(true)
        .build();
    let mut editor: Editor<LineHelper, FileHistory> =
        Editor::with_config(config).map_err(terminal)?;
    editor.set_helper(Some(LineHelper::new(
        super::command(),
        session.client.address().clone(),
    )));
    let history = history_file();
    if let Some(history) = &history {
        let _ = editor.load_history(history);
    }
    super::session::put("virt-cdp: `help` lists the commands, `quit` leaves.\n");
    loop {
        match editor.readline(PROMPT) {
            Ok(line) => {
                session.client.heed_interrupts()?;
                if matches!(execute(&line, session, last), Next::End) {
                    break;
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(terminal(error)),
        }
    }
    if let Some(history) = &history {
        let _ = history.parent().map(std::fs::create_dir_all);
        let _ = editor.save_history(history);
    }
    // Leaving by hand is no failure, whatever the last command was.
    *last = Ok(());
    Ok(())
}

/// Returns `$XDG_STATE_HOME/virt-cdp/history`, or the same below `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("virt-cdp/history"))
}

/// Runs one line; an empty one or a comment leaves the last result as it was.
fn execute(line: &str, session: &mut Session, last: &mut Result<(), Fault>) -> Next {
    let words = match words::split(line) {
        Ok(words) => words,
        Err(unfinished) => {
            *last = failed(&CliError::usage(unfinished.to_string()).hint("close it, or quote it"));
            return Next::Line;
        }
    };
    let words: Vec<String> = words.into_iter().map(|word| word.text).collect();
    match words.first().map(String::as_str) {
        None => return Next::Line,
        Some("quit" | "exit") => return Next::End,
        Some(_) => {}
    }
    *last = parse_and_run(words, session);
    Next::Line
}

fn parse_and_run(words: Vec<String>, session: &mut Session) -> Result<(), Fault> {
    let words = std::iter::once("virt-cdp".to_owned()).chain(words);
    let parsed = super::command()
        .try_get_matches_from(words)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Err(Fault::Usage)
            } else {
                Ok(())
            };
        }
    };
    let Some(command) = cli.command else {
        return Ok(());
    };
    if matches!(command, Command::Daemon(_)) {
        return failed(&CliError::usage("the daemon is not started from the shell"));
    }
    let reader = if cli.json {
        Reader::Programs
    } else {
        session.reader
    };
    let elsewhere = cli
        .connect
        .filter(|_| matches.value_source("connect") == Some(ValueSource::CommandLine));
    let result = match elsewhere {
        Some(uri) => Address::parse(Some(&uri)).and_then(|address| {
            command.run(&mut Session {
                client: Client::new(address),
                reader,
            })
        }),
        None => {
            let usual = std::mem::replace(&mut session.reader, reader);
            let result = command.run(session);
            session.reader = usual;
            result
        }
    };
    result.or_else(|error| failed(&error))
}

fn failed(error: &CliError) -> Result<(), Fault> {
    error.print();
    Err(error.fault)
}
