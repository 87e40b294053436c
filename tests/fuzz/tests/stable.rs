//! Runs the fuzz targets on any toolchain: the corpus, then mutations of it from a seed.
//!
//! Each target gets `FUZZ_SECONDS` (5 where nothing is said); `FUZZ_TARGET` chooses one, `FUZZ_SEED` repeats a run.
//! An input on which a target panics or does not come to an end is kept in `target/fuzz`, and named.
//! A file that is given by `FUZZ_INPUT` is run alone. `make fuzz` is guided by coverage, where the machine has what that
//! needs.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cdp_core::chance::Chance;
use virt_cdp_fuzz::{TARGETS, Target};

/// How long each target runs where nothing is said.
const SECONDS: u64 = 5;
/// How long one input may take: far longer than any should, as machines may be slow.
const HANG: Duration = Duration::from_secs(30);
/// Most memory that the process may come to, in KiB.
const MEMORY_MAX_KIB: u64 = 1 << 20;
/// Longest input that is made.
const INPUT_MAX: usize = 48 << 10;
/// Numbers at which programs stumble.
const MAGIC: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];

/// Set when any thread panics, also one that nobody waits for.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// What runs now: target, input, since when.
type Now = Arc<Mutex<Option<(String, Vec<u8>, Instant)>>>;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Keeps an input that failed; returns where.
fn keep(target: &str, input: &[u8]) -> PathBuf {
    let dir = here().join("../../target/fuzz");
    let path = dir.join(format!("{target}-{:08x}", crc32c::crc32c(input)));
    if let Err(error) = fs::create_dir_all(&dir).and_then(|()| fs::write(&path, input)) {
        println!("fuzz: {}: {error}", path.display());
    }
    path
}

/// Ends the process when an input does not come to its end.
fn watch(now: Now) {
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            let Ok(running) = now.lock().map(|now| now.clone()) else {
                return;
            };
            if let Some((target, input, since)) = running
                && since.elapsed() > HANG
            {
                println!(
                    "fuzz: {target} HANGS with {}",
                    keep(&target, &input).display()
                );
                process::exit(1);
            }
        }
    });
}

/// Runs one input; false if it panics.
fn run(target: Target, input: &[u8], now: &Now) -> bool {
    let set = |what| {
        if let Ok(mut now) = now.lock() {
            *now = what;
        }
    };
    set(Some((target.0.to_string(), input.to_vec(), Instant::now())));
    let done = panic::catch_unwind(AssertUnwindSafe(|| target.1(input)));
    set(None);
    let is_good = done.is_ok() && !PANICKED.swap(false, Ordering::SeqCst);
    if !is_good {
        println!(
            "fuzz: {} FAILED with {}",
            target.0,
            keep(target.0, input).display()
        );
    }
    is_good
}

/// The corpus of a target, by file name.
fn corpus(target: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = here().join("corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = entries.map(|entry| entry.expect("an entry of the corpus").path());
    paths
        .map(|path| {
            let bytes = fs::read(&path).expect("a file of the corpus");
            (path, bytes)
        })
        .collect()
}

/// Changes an input, in one way or several.
fn mutate(chance: &mut Chance, inputs: &[Vec<u8>]) -> Vec<u8> {
    let any = |chance: &mut Chance| chance.pick(inputs).cloned().unwrap_or_default();
    let mut input = any(chance);
    for _ in 0..1 + chance.below(4) {
        let len = input.len();
        let at = chance.below(len as u64 + 1) as usize;
        match chance.below(9) {
            0 | 1 if at < len => input[at] ^= 1 << chance.below(8),
            2 if at < len => input[at] = chance.below(256) as u8,
            3 => put_number(chance, &mut input, at),
            4 => input.truncate(at),
            5 => {
                let end = at + chance.below((len - at).min(64) as u64 + 1) as usize;
                input.drain(at..end);
            }
            6 => {
                let mut bytes = vec![0; chance.below(40) as usize];
                chance.fill(&mut bytes);
                input.splice(at..at, bytes);
            }
            7 => {
                // A part of another input, or of the same once more.
                let other = any(chance);
                let from = chance.below(other.len() as u64 + 1) as usize;
                let most = (other.len() - from) as u64;
                let part = &other[from..from + chance.below(most + 1) as usize];
                let replaced = if chance.once_in(2) {
                    (at + part.len()).min(len)
                } else {
                    at
                };
                input.splice(at..replaced, part.iter().copied());
            }
            _ => {}
        }
    }
    input.truncate(INPUT_MAX);
    input
}

/// Puts a number over the bytes at `at`: one at which programs stumble, or one that is there, changed a little.
fn put_number(chance: &mut Chance, input: &mut [u8], at: usize) {
    let width = 1 << chance.below(4);
    let Some(place) = input.get_mut(at..at + width) else {
        return;
    };
    let is_big = chance.once_in(2);
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(place);
    if is_big {
        bytes[..width].reverse();
    }
    let value = match chance.pick(&MAGIC) {
        Some(magic) if chance.once_in(2) => magic.wrapping_sub(chance.below(2)),
        _ => u64::from_le_bytes(bytes)
            .wrapping_add(chance.below(9))
            .wrapping_sub(4),
    };
    bytes = value.to_le_bytes();
    if is_big {
        bytes[..width].reverse();
    }
    place.copy_from_slice(&bytes[..width]);
}

/// Most memory this process has had, in KiB.
fn memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let words = line.and_then(|line| line.split_whitespace().nth(1));
    words.and_then(|kib| kib.parse().ok()).unwrap_or_default()
}

fn fuzz(target: Target, seed: u64, time: Duration, now: &Now) -> bool {
    let begin = Instant::now();
    let corpus = corpus(target.0);
    assert!(!corpus.is_empty(), "{} has no corpus", target.0);
    for (path, input) in &corpus {
        if !run(target, input, now) {
            println!("fuzz: that is {}", path.display());
            return false;
        }
    }
    let mut inputs: Vec<Vec<u8>> = corpus.into_values().collect();
    inputs.push(Vec::new());
    let mut chance = Chance::new(seed);
    let mut count = 0;
    while begin.elapsed() < time {
        if !run(target, &mutate(&mut chance, &inputs), now) {
            return false;
        }
        count += 1;
    }
    println!(
        "fuzz: {:15} {count} mutations of {} inputs",
        target.0,
        inputs.len()
    );
    let memory = memory_kib();
    if memory > MEMORY_MAX_KIB {
        println!("fuzz: {} FAILED: it came to {memory} KiB", target.0);
    }
    memory <= MEMORY_MAX_KIB
}

fn main() -> ExitCode {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::SeqCst);
        usual(info);
    }));
    let now = Now::default();
    watch(Arc::clone(&now));
    let wanted = env::var("FUZZ_TARGET").unwrap_or_default();
    let targets: Vec<Target> = TARGETS
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || *name == wanted)
        .collect();
    assert!(!targets.is_empty(), "there is no target {wanted}");
    if let Some(path) = env::var_os("FUZZ_INPUT") {
        let input = fs::read(&path).expect("the file of FUZZ_INPUT");
        return ExitCode::from(u8::from(!run(targets[0], &input, &now)));
    }
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seed = number("FUZZ_SEED").unwrap_or(since_1970.as_secs());
    let time = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(SECONDS));
    println!("fuzz: seed {seed}, {time:?} for each target");
    for target in targets {
        if !fuzz(target, seed, time, &now) {
            println!(
                "fuzz: again: FUZZ_TARGET={} FUZZ_SEED={seed} cargo test -p virt-cdp-fuzz",
                target.0
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
