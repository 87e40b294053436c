//! The connection to libvirt: opened once, found dead at its next use, and opened again.
//!
//! How: one thread per process runs libvirt's event loop, which carries keepalive and events. When the
//! connection ends (libvirtd restarted or killed, or five keepalives of 5 s unanswered) the close callback marks it
//! lost. The next use opens a new one and registers the events again; a watcher thread does the same every second
//! while there are subscribers, so that one who only listens hears of `ConnectionBack`.
//!
//! Invariant: a call never runs on a connection known to be lost, and no call is repeated by itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::Duration;

use virt::connect::Connect;

use crate::domain::Domain;
use crate::error::{ErrorKind, LibvirtError, Result};
use crate::events::{DomainEvent, DomainEventKind, Subscribers, translate};
use crate::ffi;

const KEEPALIVE_INTERVAL_S: i32 = 5;
const KEEPALIVE_COUNT: u32 = 5;
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// libvirt at one URI; clones share the connection.
#[derive(Clone)]
pub struct Hypervisor(Arc<Inner>);

struct Inner {
    uri: String,
    link: Mutex<Option<Link>>,
    subscribers: Arc<Subscribers>,
    watched: Once,
}

/// One open connection with its registrations.
struct Link {
    connect: Connect,
    lost: Arc<AtomicBool>,
    registrations: Option<ffi::Registrations>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(registrations) = self.registrations.take() {
            ffi::unregister(&self.connect, registrations);
        }
    }
}

impl fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hypervisor").field(&self.0.uri).finish()
    }
}

impl Hypervisor {
    /// Connects to libvirt at `uri`, such as `qemu:///system`.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`] when nobody answers there; [`ErrorKind::Denied`].
    pub fn connect(uri: &str) -> Result<Self> {
        start_event_loop()?;
        let inner = Arc::new(Inner {
            uri: uri.to_owned(),
            link: Mutex::new(None),
            subscribers: Arc::new(Subscribers::default()),
            watched: Once::new(),
        });
        inner.connect()?;
        Ok(Self(inner))
    }

    /// The URI this was connected with.
    pub fn uri(&self) -> &str {
        &self.0.uri
    }

    /// Returns the versions of libvirt and of the hypervisor, as `11.3.0`; empty where they cannot be had.
    pub fn versions(&self) -> (String, String) {
        let text = |number: u32| {
            let (major, minor, release) = (number / 1_000_000, number / 1000 % 1000, number % 1000);
            format!("{major}.{minor}.{release}")
        };
        let Ok(connect) = self.connection() else {
            return Default::default();
        };
        let libvirt = connect.lib_version().map(text).unwrap_or_default();
        let hypervisor = connect.hyp_version().map(text).unwrap_or_default();
        (libvirt, hypervisor)
    }

    /// Subscribes to what happens to all domains of this hypervisor from now on.
    ///
    /// The receiver gets everything in order and without a bound: read it. Drop it to unsubscribe.
    pub fn subscribe(&self) -> Receiver<DomainEvent> {
        let receiver = self.0.subscribers.subscribe();
        self.0.watched.call_once(|| watch(Arc::downgrade(&self.0)));
        receiver
    }

    /// Finds a domain by its name or its UUID.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDomain`], [`ErrorKind::NotConnected`].
    pub fn lookup(&self, name_or_uuid: &str) -> Result<Domain> {
        Domain::lookup(self, name_or_uuid)
    }

    /// Lists all domains, running or not, sorted by name.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`].
    pub fn domains(&self) -> Result<Vec<Domain>> {
        Domain::list(self)
    }

    /// Returns a live connection, opening a new one where the last was lost.
    pub(crate) fn connection(&self) -> Result<Connect> {
        self.0.connect()
    }

    /// Wraps libvirt's error; marks the connection lost where that is what the error says.
    pub(crate) fn error(&self, what: impl Into<String>, error: virt::error::Error) -> LibvirtError {
        let error = LibvirtError::libvirt(what, error);
        if error.kind == ErrorKind::NotConnected
            && let Some(link) = self.0.lock().as_ref()
            && !link.connect.is_alive().unwrap_or(false)
        {
            self.0.mark_lost(&link.lost);
        }
        error
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark_lost(&self, lost: &AtomicBool) {
        mark_lost(lost, &self.subscribers);
    }

    /// Returns the connection, opened again if it was lost.
    fn connect(&self) -> Result<Connect> {
        let mut link = self.lock();
        if let Some(open) = link.as_ref() {
            if !open.lost.load(Ordering::Acquire) && open.connect.is_alive().unwrap_or(false) {
                return Ok(open.connect.clone());
            }
            self.mark_lost(&open.lost);
        }
        let again = link.is_some();
        let opened = self.open()?;
        let connect = opened.connect.clone();
        *link = Some(opened);
        if again {
            tracing::info!(uri = self.uri, "libvirt answers again");
            self.subscribers
                .publish_connection(DomainEventKind::ConnectionBack);
        }
        Ok(connect)
    }

    fn open(&self) -> Result<Link> {
        let what = || format!("connect to libvirt at {}", self.uri);
        let connect =
            Connect::open(Some(&self.uri)).map_err(|error| LibvirtError::libvirt(what(), error))?;
        // Refused by the test driver and by very old daemons: the connection works without.
        if let Err(error) = connect.set_keep_alive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT) {
            tracing::debug!(%error, "no keepalive");
        }
        let lost = Arc::new(AtomicBool::new(false));
        let make_event = || -> ffi::EventClosure {
            let subscribers = Arc::clone(&self.subscribers);
            Box::new(move |uuid, name, event| {
                if let Some((kind, detail)) = translate(event) {
                    let (uuid, name, detail) =
                        (uuid.to_owned(), name.to_owned(), detail.to_owned());
                    subscribers.publish(DomainEvent {
                        uuid,
                        name,
                        kind,
                        detail,
                    });
                }
            })
        };
        let on_close: ffi::CloseClosure = {
            let (subscribers, lost) = (Arc::clone(&self.subscribers), Arc::clone(&lost));
            Box::new(move || mark_lost(&lost, &subscribers))
        };
        let registrations = ffi::register(&connect, make_event, on_close)
            .map_err(|error| LibvirtError::libvirt("register for libvirt's events", error))?;
        Ok(Link {
            connect,
            lost,
            registrations: Some(registrations),
        })
    }
}

/// Marks a connection lost, and says so the first time.
fn mark_lost(lost: &AtomicBool, subscribers: &Subscribers) {
    if !lost.swap(true, Ordering::AcqRel) {
        tracing::warn!("lost the connection to libvirt");
        subscribers.publish_connection(DomainEventKind::ConnectionLost);
    }
}

/// Opens a lost connection again, until the last clone of the hypervisor is dropped.
fn watch(inner: Weak<Inner>) {
    let run = move || {
        loop {
            std::thread::sleep(WATCH_INTERVAL);
            let Some(inner) = inner.upgrade() else { return };
            if let Err(error) = inner.connect() {
                tracing::debug!(%error, "libvirt is still away");
            }
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("libvirt-watch".into())
        .spawn(run)
    {
        tracing::error!(%error, "no watcher thread: a lost connection is found at its next use only");
    }
}

/// Starts libvirt's event loop in its own thread, once per process.
fn start_event_loop() -> Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    // libvirt prints every error to stderr by default; we return them.
    virt::error::clear_error_callback();
    virt::event::event_register_default_impl()
        .map_err(|error| LibvirtError::libvirt("start libvirt's event loop", error))?;
    let run = || {
        loop {
            if let Err(error) = virt::event::event_run_default_impl() {
                tracing::error!(%error, "libvirt's event loop stumbled");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    };
    std::thread::Builder::new()
        .name("libvirt-events".into())
        .spawn(run)
        .map_err(|error| LibvirtError::io("start the thread of libvirt's event loop", error))?;
    *started = true;
    Ok(())
}
