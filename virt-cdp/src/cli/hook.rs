//! The hidden `hook`: what libvirt's hook script runs in the background.
//!
//! How: one call to the daemon, and a thread that ends the program when it takes too long, whatever hangs.
//! Invariant: nothing is printed, the exit code is 0, and it is over after [`DEADLINE`].

use std::{thread, time::Duration};

use super::{
    client::{Address, Client},
    session::Session,
};
use crate::{api::v1, daemon::config::Config};

/// How long it may take; the script does not wait for it.
const DEADLINE: Duration = Duration::from_secs(2);

/// Tells virtcdpd what libvirt does with a domain
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The domain's name
    #[arg(value_name = "DOMAIN", allow_hyphen_values = true)]
    name: String,

    /// libvirt's operation and sub-operation
    #[arg(value_name = "WHAT", allow_hyphen_values = true)]
    what: Vec<String>,
}

/// Tells the daemon of the configuration, unless the command line named one.
pub(super) fn run(args: Args, session: &mut Session) {
    let watch = thread::Builder::new().spawn(|| {
        thread::sleep(DEADLINE);
        std::process::exit(0);
    });
    if watch.is_err() {
        return;
    }
    if session.client.address().is_usual()
        && let Ok(config) = Config::load(None)
        && let Ok(address) = Address::parse(config.socket.to_str())
    {
        session.client = Client::new(address);
    }
    let hint = v1::DomainHint {
        name: args.name,
        what: args.what.join(" "),
    };
    // Nobody is there to be told.
    let _ = session.client.call(async |api| api.hint_domain(hint).await);
}
