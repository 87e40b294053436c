//! Every point is a legal cut of what was written: over time, within every write, over both volumes.
//!
//! The judge knows only what the writers saw: when a write was sent, when its reply came. It never looks at
//! the journal. Two writes that were in flight together may have happened in either order; otherwise
//! the one whose reply came before the other was sent is the older one.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use virt_cdp_tests::{
    daemon::Daemon,
    nbd::{self, Writer, Written},
    needs,
    random::Random,
    storage_daemon::StorageDaemon,
    unique,
};

const SECTOR: u64 = 512;
const VOLUME: u64 = 24 << 20;
const VOLUMES: usize = 2;
const DEPTH: usize = 16;
const POINTS: usize = 100;
/// Long enough for one point a second.
const RUN: Duration = Duration::from_secs(POINTS as u64 + 6);

/// A sector says which write it belongs to, and where in it.
fn payload(id: u64, len: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(len as usize);
    for sector in 0..len / SECTOR {
        for _ in 0..SECTOR / 16 {
            data.extend(id.to_le_bytes());
            data.extend(sector.to_le_bytes());
        }
    }
    data
}

fn write_load(socket: &Path, volume: usize, seed: u64, stop: &AtomicBool) -> Vec<(u64, Written)> {
    let mut random = Random(seed + volume as u64 + 1);
    let first = 1 + ((volume as u64) << 48);
    let mut writer = Writer::connect(socket, &format!("disk{volume}"), DEPTH, first);
    while !stop.load(Ordering::Relaxed) {
        // Mostly small, some up to 1 MiB; bursts and rests, so that cuts fall into both.
        for _ in 0..random.below(32) {
            let most = [1, 8, 8, 64, 256, 2048][random.below(6) as usize];
            let sectors = 1 + random.below(most);
            let offset = random.below(VOLUME / SECTOR - sectors + 1);
            writer.write(offset * SECTOR, sectors * SECTOR, |id| {
                payload(id, sectors * SECTOR)
            });
        }
        thread::sleep(Duration::from_millis(random.below(120)));
    }
    writer.finish()
}

/// What was written to one volume, ready to be judged by.
struct History {
    writes: Vec<Written>,
    first: u64,
    /// By sector: the numbers (in `writes`) of those that cover it.
    covering: Vec<Vec<u32>>,
}

impl History {
    fn new(volume: usize, mut all: Vec<(u64, Written)>) -> Self {
        all.sort_by_key(|(id, _)| *id);
        let first = 1 + ((volume as u64) << 48);
        assert!(
            all.iter()
                .enumerate()
                .all(|(at, (id, _))| *id == first + at as u64),
            "every write was answered"
        );
        let writes: Vec<Written> = all.into_iter().map(|(_, w)| w).collect();
        let mut covering = vec![Vec::new(); (VOLUME / SECTOR) as usize];
        for (number, write) in writes.iter().enumerate() {
            for sector in write.offset / SECTOR..(write.offset + write.len) / SECTOR {
                covering[sector as usize].push(number as u32);
            }
        }
        Self {
            writes,
            first,
            covering,
        }
    }

    /// By sector, which write shows (none: never written); every sector is whole and in its place.
    fn shown(&self, image: &[u8]) -> Result<Vec<Option<u32>>, String> {
        let mut shown = Vec::with_capacity(self.covering.len());
        for (sector, data) in image.chunks(SECTOR as usize).enumerate() {
            let stamp = &data[..16];
            if data.chunks(16).any(|part| part != stamp) {
                return Err(format!("sector {sector} is torn"));
            }
            let word =
                |at: usize| u64::from_le_bytes(stamp[at..at + 8].try_into().expect("8 bytes"));
            let (id, place) = (word(0), word(8));
            if id == 0 {
                shown.push(None);
                continue;
            }
            let number = id
                .checked_sub(self.first)
                .filter(|n| *n < self.writes.len() as u64);
            let number =
                number.ok_or_else(|| format!("sector {sector} shows {id:#x}, never written"))?;
            let write = &self.writes[number as usize];
            if write.offset / SECTOR + place != sector as u64 {
                return Err(format!(
                    "sector {sector} shows sector {place} of write {number}"
                ));
            }
            shown.push(Some(number as u32));
        }
        Ok(shown)
    }
}

/// Judges one point: the images of all volumes against their histories.
fn judge(histories: &[History], images: &[Vec<u8>], taken: i64) -> Result<(), String> {
    let shown: Vec<_> = histories
        .iter()
        .zip(images)
        .map(|(h, i)| h.shown(i))
        .collect::<Result<_, _>>()?;
    // The cut lies behind the sending of everything that shows, over all volumes.
    let mut cut = taken;
    for (history, shown) in histories.iter().zip(&shown) {
        for number in shown.iter().flatten() {
            let write = &history.writes[*number as usize];
            if write.submitted > taken {
                return Err(format!(
                    "write {number} was sent {} ns after the point and shows",
                    write.submitted - taken
                ));
            }
            cut = cut.max(write.submitted);
        }
    }
    for (volume, (history, shown)) in histories.iter().zip(&shown).enumerate() {
        let mut visible = vec![false; history.writes.len()];
        shown
            .iter()
            .flatten()
            .for_each(|n| visible[*n as usize] = true);
        for (sector, covering) in history.covering.iter().enumerate() {
            // None shows: older than all.
            let shows_until =
                shown[sector].map_or(i64::MIN, |n| history.writes[n as usize].acknowledged);
            for number in covering {
                let write = &history.writes[*number as usize];
                let included = visible[*number as usize] || write.acknowledged < cut;
                if included && shows_until < write.submitted {
                    return Err(format!(
                        "volume {volume}: sector {sector} shows {:?}, though write {number} is later and belongs to the cut",
                        shown[sector]
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_hundred_points_over_two_volumes_are_legal_cuts() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let seed = seed();
    let storage = StorageDaemon::start(&[("qcow2", VOLUME), ("raw", VOLUME)]);
    let daemon = Daemon::start();
    let name = unique("exact");
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&[
        "protect", &name, "--qmp", &qmp, "--node", "disk0", "--node", "disk1",
    ]);

    let began = Instant::now();
    let load = Load::start(&storage, seed);
    thread::sleep(RUN.saturating_sub(began.elapsed()));
    let histories = load.end(&storage);

    let points = daemon.json(&["point-list", &name]);
    let points = points["points"].as_array().expect("points");
    assert!(points.len() >= POINTS, "{} points in {RUN:?}", points.len());
    let last = points.len() - 1;
    let mut images = Vec::new();
    for chosen in 0..POINTS {
        let point = &points[chosen * last / (POINTS - 1)];
        let id = point["id"].to_string();
        let taken = point_time_ns(point);
        images = self::images(&daemon, &name, point);
        judge(&histories, &images, taken)
            .unwrap_or_else(|e| panic!("point {id}: {e}; SEED={seed}"));
    }

    // The judge can fail: what the last point shows is no state of an earlier time, nor with a write undone.
    let early = point_time_ns(&points[last / 2]);
    assert!(
        judge(&histories, &images, early).is_err(),
        "the judge sees writes from the future"
    );
    let undone = histories[0]
        .covering
        .iter()
        .rposition(|c| c.len() > 1)
        .expect("a sector written twice");
    images[0][undone * SECTOR as usize..][..SECTOR as usize].fill(0);
    assert!(
        judge(&histories, &images, i64::MAX).is_err(),
        "the judge sees a write undone"
    );

    last_is_the_disk(&daemon, &name, storage);
}

/// The last point is the disk itself, as it lies there once nobody has it open.
fn last_is_the_disk(daemon: &Daemon, name: &str, mut storage: StorageDaemon) {
    storage.quit();
    daemon.wait_state(name, "off", Duration::from_secs(20));
    let view = daemon.json(&["view-open", name, "--at", "latest"]);
    for volume in view["volumes"].as_array().expect("volumes") {
        let number: usize = volume["target"].as_str().expect("a target")[4..]
            .parse()
            .expect("its number");
        let live = storage.image(number).display().to_string();
        let uri = volume["uri"].as_str().expect("a URI");
        let format = if number == 0 { "qcow2" } else { "raw" };
        virt_cdp_tests::must(
            "qemu-img",
            &["compare", "-f", format, "-F", "raw", &live, uri],
        );
    }
}

/// The daemon is upgraded again and again while writes wait for the journal's sync: a write that was answered twice, or
/// in vain, or not at all, is found out.
#[test]
fn upgrades_under_group_commit_answer_each_write_once_and_every_point_is_a_legal_cut() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let seed = seed();
    let storage = StorageDaemon::start(&[("qcow2", VOLUME), ("raw", VOLUME)]);
    let daemon = Daemon::start_with("[capture]\nack = 'durable'\n");
    let name = unique("commit");
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&[
        "protect", &name, "--qmp", &qmp, "--node", "disk0", "--node", "disk1",
    ]);
    let gaps = || daemon.json(&["info", &name])["gaps"].to_string();
    let gaps_before = gaps();
    let load = Load::start(&storage, seed);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(1500));
        let started = || daemon.cli(&["--json", "status"]);
        let before = daemon.json(&["status"])["started"].to_string();
        virt_cdp_tests::must("kill", &["-HUP", &daemon.pid().to_string()]);
        virt_cdp_tests::wait_for("the daemon serves anew", Duration::from_secs(20), || {
            let ran = started();
            match ran.ok && !ran.out.contains(&before) {
                true => Ok(()),
                false => Err(ran.err),
            }
        });
        daemon.wait_state(&name, "protected", Duration::from_secs(5));
    }
    let histories = load.end(&storage);
    assert_eq!(gaps(), gaps_before, "taken over, not attached again");
    let points = daemon.json(&["point-list", &name]);
    let points = points["points"].as_array().expect("points");
    assert!(points.len() >= 5, "{} points", points.len());
    for point in points {
        let images = images(&daemon, &name, point);
        judge(&histories, &images, point_time_ns(point))
            .unwrap_or_else(|e| panic!("point {}: {e}; SEED={seed}", point["id"]));
    }
    last_is_the_disk(&daemon, &name, storage);
}

/// Writers on all volumes.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<thread::JoinHandle<Vec<(u64, Written)>>>,
}

impl Load {
    fn start(storage: &StorageDaemon, seed: u64) -> Self {
        let socket = storage.serve(VOLUMES);
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..VOLUMES).map(|volume| {
            let (socket, stop) = (socket.clone(), Arc::clone(&stop));
            thread::spawn(move || write_load(&socket, volume, seed, &stop))
        });
        let writers = writers.collect();
        Self { stop, writers }
    }

    /// Ends them; every write has to be answered.
    fn end(self, storage: &StorageDaemon) -> Vec<History> {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.writers.into_iter().map(|w| w.join());
        let histories: Vec<History> = written
            .enumerate()
            .map(|(volume, w)| History::new(volume, w.expect("the writer went well")))
            .collect();
        let counts: Vec<usize> = histories.iter().map(|h| h.writes.len()).collect();
        eprintln!("{counts:?} writes");
        storage.stop_serving();
        histories
    }
}

/// What all volumes hold at a point.
fn images(daemon: &Daemon, name: &str, point: &serde_json::Value) -> Vec<Vec<u8>> {
    let view = daemon.json(&["view-open", name, "--at", &point["id"].to_string()]);
    let images = (0..VOLUMES)
        .map(|v| nbd::read_all(&view_socket(&view), &format!("disk{v}")))
        .collect();
    daemon.ok(&["view-close", view["id"].as_str().expect("an id")]);
    images
}

/// The socket of a view, out of its first volume's URI.
fn view_socket(view: &serde_json::Value) -> std::path::PathBuf {
    let uri = view["volumes"][0]["uri"].as_str().expect("a URI");
    uri.split("socket=").nth(1).expect("a socket").into()
}

/// RFC 3339 with nanoseconds, UTC, to ns since the epoch.
fn point_time_ns(point: &serde_json::Value) -> i64 {
    let text = point["time"].as_str().expect("a time");
    let seconds = virt_cdp_tests::must("date", &["-u", "-d", &format!("{}Z", &text[..19]), "+%s"]);
    let fraction: i64 = text[20..]
        .trim_end_matches('Z')
        .parse()
        .expect("nanoseconds");
    assert_eq!(text.len(), 30, "nine digits of nanoseconds: {text}");
    seconds.trim().parse::<i64>().expect("seconds") * 1_000_000_000 + fraction
}

fn seed() -> u64 {
    let asked = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed = asked.unwrap_or(virt_cdp_tests::now_ns() as u64);
    eprintln!("replay with SEED={seed}");
    seed
}
