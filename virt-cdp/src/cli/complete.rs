//! What Tab offers in the shell: verbs, options, their values, and the names the daemon knows.
//!
//! How: the commands themselves tell what may come next; a value called NAME, VIEW, TAKEOVER, POLICY or ID is asked
//! of the daemon. Invariant: without a daemon there is less on offer, and nothing waits.

use std::time::Duration;

use clap::{Arg, Command};
use rustyline::{
    Context, Helper,
    completion::{Completer, Pair},
    highlight::Highlighter,
    hint::Hinter,
    validate::Validator,
};
use tonic::{Response, Status};

use super::{
    client::{Address, Client},
    words,
};
use crate::api::v1;

/// How long the daemon may take to name things.
const NAMES_DEADLINE: Duration = Duration::from_secs(1);
/// The words that are the shell's own.
pub(super) const OWN_WORDS: [&str; 3] = ["help", "quit", "exit"];

/// Names of things the daemon knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// The protected machines.
    Machines,
    /// The open views.
    Views,
    /// The taken-over machines.
    Takeovers,
    /// The policies.
    Policies,
    /// Drills, the newest first.
    Drills,
}

/// Returns what may stand where `partial` stands, after the words `before`; `ask` names things.
pub fn candidates(
    command: &Command,
    before: &[String],
    partial: &str,
    ask: &mut dyn FnMut(Names) -> Vec<String>,
) -> Vec<String> {
    let mut all = possible(command, before, partial, ask);
    all.retain(|candidate| candidate.starts_with(partial));
    all.sort();
    all.dedup();
    all
}

fn possible(
    command: &Command,
    before: &[String],
    partial: &str,
    ask: &mut dyn FnMut(Names) -> Vec<String>,
) -> Vec<String> {
    let verbs = || {
        command
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .map(|verb| verb.get_name().to_owned())
    };
    let Some((verb, after)) = before.split_first() else {
        return verbs().chain(OWN_WORDS.map(str::to_owned)).collect();
    };
    if verb == "help" {
        return verbs().collect();
    }
    let Some(verb) = command.find_subcommand(verb) else {
        return Vec::new();
    };
    let arguments = || {
        verb.get_arguments()
            .chain(command.get_arguments().filter(|arg| arg.is_global_set()))
    };
    let option = |word: &str| {
        let name = word.strip_prefix("--")?;
        arguments().find(|arg| arg.get_long() == Some(name))
    };
    let wants_value = |arg: &Arg| arg.get_action().takes_values();

    let mut positionals_given = 0;
    let mut open = None;
    for word in after {
        if open.take().is_none() {
            open = option(word).filter(|arg| wants_value(arg));
            positionals_given += usize::from(!word.starts_with('-'));
        }
    }
    if let Some(arg) = open {
        return values(arg, ask);
    }
    if partial.starts_with('-') {
        let long = arguments()
            .filter(|arg| !arg.is_hide_set())
            .filter_map(Arg::get_long);
        return long.map(|long| format!("--{long}")).collect();
    }
    verb.get_positionals()
        .nth(positionals_given)
        .map(|arg| values(arg, ask))
        .unwrap_or_default()
}

fn values(arg: &Arg, ask: &mut dyn FnMut(Names) -> Vec<String>) -> Vec<String> {
    let named = arg.get_possible_values();
    if !named.is_empty() {
        return named
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect();
    }
    match arg
        .get_value_names()
        .and_then(|names| names.first())
        .map(|name| name.as_str())
    {
        Some("NAME" | "NAME|PLAN") => ask(Names::Machines),
        Some("ID") => ask(Names::Drills),
        Some("VIEW") => ask(Names::Views),
        Some("TAKEOVER") => ask(Names::Takeovers),
        Some("POLICY") => ask(Names::Policies),
        Some("T" | "POINT") => vec!["latest".into()],
        Some("NET|none") => vec!["none".into()],
        _ => Vec::new(),
    }
}

/// Completes lines of the shell; connects anew for each list of names.
pub(super) struct LineHelper {
    command: Command,
    address: Address,
}

impl LineHelper {
    pub(super) fn new(command: Command, address: Address) -> Self {
        Self { command, address }
    }

    fn ask(&self, names: Names) -> Vec<String> {
        let mut client = Client::new(self.address.clone());
        let named: Result<Vec<String>, _> = match names {
            Names::Machines => client
                .call(async |api| in_time(api.list_machines(v1::Empty {})).await)
                .map(|list| {
                    list.machines
                        .into_iter()
                        .map(|machine| machine.name)
                        .collect()
                }),
            Names::Views => client
                .call(async |api| in_time(api.list_views(v1::Empty {})).await)
                .map(|list| list.views.into_iter().map(|view| view.id).collect()),
            Names::Takeovers => client
                .call(async |api| in_time(api.list_takeovers(v1::Empty {})).await)
                .map(|list| {
                    list.takeovers
                        .into_iter()
                        .map(|takeover| takeover.name)
                        .collect()
                }),
            Names::Drills => client
                .call(async |api| in_time(api.list_drills(v1::ListDrillsRequest::default())).await)
                .map(|list| {
                    list.drills
                        .into_iter()
                        .rev()
                        .map(|drill| drill.id)
                        .collect()
                }),
            Names::Policies => client
                .call(async |api| in_time(api.list_policies(v1::Empty {})).await)
                .map(|list| {
                    list.policies
                        .into_iter()
                        .map(|policy| policy.name)
                        .collect()
                }),
        };
        named.unwrap_or_default()
    }
}

async fn in_time<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let late = |_| Err(Status::deadline_exceeded("too late to be of use"));
    tokio::time::timeout(NAMES_DEADLINE, call)
        .await
        .unwrap_or_else(late)
}

impl Completer for LineHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let line = line.get(..at).unwrap_or(line);
        let (mut words, open) = match words::split(line) {
            Ok(words) => (words, false),
            Err(unfinished) => (unfinished.words, true),
        };
        let at_a_new_word = !open && line.chars().next_back().is_none_or(char::is_whitespace);
        let partial = if at_a_new_word { None } else { words.pop() };
        let (partial, start) =
            partial.map_or((String::new(), line.len()), |word| (word.text, word.start));
        let before: Vec<String> = words.into_iter().map(|word| word.text).collect();
        let found = candidates(&self.command, &before, &partial, &mut |names| {
            self.ask(names)
        });
        let pair = |text: String| Pair {
            replacement: words::quote(&text),
            display: text,
        };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

impl Helper for LineHelper {}
impl Highlighter for LineHelper {}
impl Validator for LineHelper {}
impl Hinter for LineHelper {
    type Hint = String;
}
