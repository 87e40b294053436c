//! The isolated network of a drill: a network namespace with a bridge for each network of the originals, and nothing else.
//!
//! How: a process that does nothing holds the namespace. In it are the bridges, each with the address the guests know as
//! their gateway, and dnsmasq, which gives those that ask by DHCP the addresses they have in production. The devices of the
//! guests' network cards are moved into it before their CPUs run for the first time. Checks run on threads that have
//! [entered](Isolation::enter) it, and so do the programs they start.
//!
//! Nothing of it is in the host's own namespace: no bridge, no address, no rule. So the host does not answer for its addresses,
//! nothing is forwarded, and any number of drills, and production, have the same addresses side by side.
//!
//! Invariant: no device in the namespace leads out of it. Every process that was started for a drill has its marker in the
//! environment, or is in its namespace: that is how [`leftover`] finds all of them, also after a crash.

mod dhcp;
pub mod leftover;
mod namespace;
mod neighbours;
pub mod subnet;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use namespace::Namespace;
use neighbours::Ear;
use subnet::Subnet;

/// The environment variable that marks what was started for a drill; its value is the drill's number.
pub const MARKER: &str = "VIRT_CDP_DRILL";
/// The one that marks what holds a drill's namespace, besides.
const HOLDER: &str = "VIRT_CDP_DRILL_HOLDER";

/// A network of the originals that the drill stands in for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// Its name, as in the originals' XML.
    pub name: String,
    /// Addresses of the host's side; none where they are not known.
    pub gateways: Vec<(IpAddr, u8)>,
    /// Addresses of guests: MAC address in lower case, IP address.
    pub guests: Vec<(String, IpAddr)>,
}

/// Says why a network could not be made, in a sentence without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// A program of the host that is needed is not there, or failed.
    #[error("{program} failed: {what}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        what: String,
    },
    /// Something of the host failed.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was to be done.
        what: String,
        /// Why it was not.
        source: io::Error,
    },
    /// A guest's subnet has no other address.
    #[error("there is no address for the drill beside {0} in its subnet")]
    NoRoom(IpAddr),
    /// There is no segment of that name.
    #[error("the drill has no network '{0}'")]
    NoSegment(String),
}

type Result<T> = std::result::Result<T, IsolationError>;

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> IsolationError {
    let what = what.into();
    move |source| IsolationError::Host { what, source }
}

/// The network of one drill; gone when it is dropped.
#[derive(Debug)]
pub struct Isolation {
    id: String,
    dir: PathBuf,
    namespace: Namespace,
    dhcp: Option<Child>,
    ear: Ear,
    segments: Mutex<Vec<Placed>>,
}

/// A segment with its bridge.
#[derive(Debug)]
struct Placed {
    segment: Segment,
    bridge: String,
    subnets: Vec<Subnet>,
    /// Addresses that guests have, as far as they are known.
    guests: Vec<IpAddr>,
}

impl Isolation {
    /// Makes the network of drill `id`; `dir` is an empty directory for its files, which are gone when it is.
    ///
    /// # Errors
    /// `unshare`, `ip` or `dnsmasq` are missing or fail; no permission to make a namespace. Nothing is left then.
    pub fn make(id: &str, dir: &Path, segments: &[Segment]) -> Result<Self> {
        let namespace = Namespace::make(id)?;
        let ear = namespace.run(Ear::open)?;
        let ear = ear.map_err(host("listen in the drill's network"))?;
        let mut placed = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            let guests: Vec<IpAddr> = segment.guests.iter().map(|(_, ip)| *ip).collect();
            // What a guest has is not ours, its networks' gateway neither.
            let given = segment
                .gateways
                .iter()
                .filter_map(|(ip, len)| match guests.contains(ip) {
                    true => Subnet::beside(*ip, *len, &guests),
                    false => Some(Subnet::new(*ip, *len)),
                });
            let mut subnets: Vec<Subnet> =
                given.filter(|one| one.is_ipv4() || has_ipv6()).collect();
            if subnets.iter().all(|subnet| !subnet.is_ipv4()) {
                subnets.push(Subnet::stand_in(number));
            }
            placed.push(Placed {
                segment: segment.clone(),
                bridge: format!("br{number}"),
                subnets,
                guests,
            });
        }
        let mut isolation = Self {
            id: id.to_owned(),
            dir: dir.to_owned(),
            namespace,
            dhcp: None,
            ear,
            segments: Mutex::new(placed),
        };
        isolation.set_up()?;
        Ok(isolation)
    }

    fn set_up(&mut self) -> Result<()> {
        let segments = std::mem::take(&mut *self.lock());
        let mut batch = String::from("link set lo up\n");
        for placed in &segments {
            let bridge = &placed.bridge;
            batch +=
                &format!("link add {bridge} type bridge mcast_snooping 0\nlink set {bridge} up\n");
            for subnet in &placed.subnets {
                let nodad = if subnet.is_ipv4() { "" } else { " nodad" };
                batch += &format!("addr add {subnet} dev {bridge}{nodad}\n");
            }
        }
        self.namespace.run(|| {
            // So that guests are known by what they announce of themselves.
            set("ipv4/conf/all/arp_accept", "1")?;
            ip(&batch)?;
            for placed in &segments {
                // So that a guest that is not there yet is looked for again at once.
                for family in ["ipv4", "ipv6"]
                    .into_iter()
                    .filter(|one| *one == "ipv4" || has_ipv6())
                {
                    let key = format!("{family}/neigh/{}/retrans_time_ms", placed.bridge);
                    set(&key, "200")?;
                }
            }
            Ok::<_, IsolationError>(())
        })??;
        let has_guests = !segments.is_empty();
        if has_guests {
            let arguments = dhcp::arguments(&self.dir, segments.iter().map(Placed::dhcp));
            let child = self.namespace.run(|| dhcp::start(&self.id, arguments))??;
            self.dhcp = Some(child);
        }
        *self.lock() = segments;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Placed>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the calling thread into the namespace, for the rest of its life.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self) -> io::Result<()> {
        self.namespace.enter()
    }

    /// A path under which the namespace can be entered while the drill lasts.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.namespace.path()
    }

    /// Moves a device of the host, that of a network card, into a segment's bridge.
    ///
    /// # Errors
    /// There is no such segment or device.
    pub fn plug(&self, device: &str, segment: &str) -> Result<()> {
        let bridge = self.bridge(segment)?;
        ip(&format!(
            "link set {device} netns {}\n",
            self.namespace.pid()
        ))?;
        self.namespace.run(|| {
            ip(&format!(
                "link set {device} master {bridge}\nlink set {device} up\n"
            ))
        })?
    }

    fn bridge(&self, segment: &str) -> Result<String> {
        let segments = self.lock();
        let found = segments.iter().find(|one| one.segment.name == segment);
        found
            .map(|one| one.bridge.clone())
            .ok_or_else(|| IsolationError::NoSegment(segment.to_owned()))
    }

    /// Makes a guest's address reachable: where the segment has no subnet that holds it, one is added; where it is ours, we
    /// have another one from now on, so that nothing of ours answers for the guest.
    ///
    /// # Errors
    /// There is no such segment, the address cannot be set, or there is no other address in the guest's subnet.
    pub fn reach(&self, segment: &str, address: IpAddr, prefix: u8) -> Result<()> {
        // Held until it is done: who comes second finds it done.
        let mut segments = self.lock();
        let placed = segments.iter_mut().find(|one| one.segment.name == segment);
        let placed = placed.ok_or_else(|| IsolationError::NoSegment(segment.to_owned()))?;
        let batch = placed.make_room(address, prefix)?;
        match batch.is_empty() {
            true => Ok(()),
            false => self.namespace.run(|| ip(&batch))?,
        }
    }

    /// The addresses of guests that have shown themselves: by lease or by what they sent. MAC address and IP address, and
    /// how it came to be known.
    #[must_use]
    pub fn seen(&self) -> Vec<(String, IpAddr, &'static str)> {
        let mut seen: Vec<_> = dhcp::leases(&self.dir)
            .into_iter()
            .map(|(mac, ip)| (mac, ip, "lease"))
            .collect();
        let neighbours = self.namespace.run(neighbours::read).unwrap_or_default();
        for (mac, ip) in neighbours.into_iter().chain(self.ear.heard()) {
            if !seen.iter().any(|(_, known, _)| *known == ip) {
                seen.push((mac, ip, "neighbour"));
            }
        }
        seen
    }

    /// Removes it all: every process in it is killed; the namespace goes with the last of them.
    pub fn remove(self) {
        drop(self);
    }
}

impl Drop for Isolation {
    fn drop(&mut self) {
        leftover::kill(&self.id);
        if let Some(child) = &mut self.dhcp {
            let _ = child.wait();
        }
        self.namespace.reap();
        dhcp::remove_files(&self.dir);
    }
}

impl Placed {
    /// Notes a guest's address; returns what `ip` is to do so that it can be reached.
    fn make_room(&mut self, address: IpAddr, prefix: u8) -> Result<String> {
        if !self.guests.contains(&address) {
            self.guests.push(address);
        }
        let bridge = &self.bridge;
        let mut batch = String::new();
        let mut prefix = prefix;
        if let Some(at) = self.subnets.iter().position(|one| one.own() == address) {
            let ours = self.subnets.remove(at);
            prefix = ours.prefix();
            batch += &format!("addr del {ours} dev {bridge}\n");
        }
        if !self.subnets.iter().any(|subnet| subnet.holds(address)) {
            match Subnet::beside(address, prefix, &self.guests) {
                Some(subnet) => {
                    batch += &format!("addr add {subnet} dev {bridge}\n");
                    self.subnets.push(subnet);
                }
                None if batch.is_empty() => return Err(IsolationError::NoRoom(address)),
                None => {}
            }
        }
        Ok(batch)
    }

    fn dhcp(&self) -> dhcp::Range<'_> {
        dhcp::Range {
            bridge: &self.bridge,
            subnets: &self.subnets,
            guests: &self.segment.guests,
        }
    }
}

/// Tells whether the host's kernel speaks IPv6.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Sets something of the network of the calling thread's namespace.
fn set(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::write(&path, value).map_err(host(format!("set {}", path.display())))
}

/// Has `ip` do what a batch says, in the namespace of the calling thread.
fn ip(batch: &str) -> Result<()> {
    use std::io::Write;
    let failed = |what: String| IsolationError::Program {
        program: "ip",
        what,
    };
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("{error}; is iproute2 installed?")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(batch.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
            Err(failed(said.trim_end_matches("; ").to_owned()))
        }
    }
}
