//! The process is killed in the middle of what is done with what is kept: on real files, with SIGKILL.
//!
//! This program starts itself again as a child ([`child`]), which opens a harbor, writes, makes points, and runs policies,
//! deletions, locks, base points, merges, compactions and verifications in an order from a seed. It says in a pipe what it is about to do, and
//! what it has done. The parent ([`oracle`]) kills it in the middle of something it said it had begun, opens the harbor, and
//! compares: every point that was said to be there and not let go of is there and exact; of what was under way either
//! all is done or nothing; nothing else is offered. Then the next child goes on with the same harbor.
//!
//! `cargo test` kills for `KILL_SECONDS` (15 where nothing is said), 30 times at least; `SEEDS=n` plays n harbors from
//! front to back, `SEED=n` that one. The same seed does the same things, but when the kill comes is the machine's to say.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod child;
mod oracle;

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cdp_core::chance::Chance;

use oracle::Oracle;

const SECONDS: u64 = 15;
/// So often at least, where no number of seeds is given.
const KILLS: u64 = 30;
/// Children of one harbor, one after the other.
const LIVES: u64 = 10;
/// What a child says in a life, at most, before it is killed anyway.
const LINES: usize = 400;

/// How often a child was killed in the middle of what.
type Kills = BTreeMap<String, u64>;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, word, dir, seed] = &arguments[..]
        && word == "--child"
    {
        return child::live(Path::new(dir), seed.parse().unwrap());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let one = number("SEED");
    let count = one.map(|_| 1).or(number("SEEDS"));
    let first = one.unwrap_or(now.as_secs() % 1_000_000 * 1_000);
    let limit = Duration::from_secs(number("KILL_SECONDS").unwrap_or(SECONDS));
    let begin = Instant::now();
    let (mut done, mut kills) = (0, Kills::new());
    let goes_on = |done: u64, kills: &Kills| match count {
        Some(count) => done < count,
        None => begin.elapsed() < limit || kills.values().sum::<u64>() < KILLS,
    };
    println!("killed: seeds from {first}");
    while goes_on(done, &kills) {
        let seed = first + done;
        println!("killed: seed {seed}; again: SEED={seed} cargo test -p cdp-core --test killed");
        play(seed, &mut kills);
        done += 1;
    }
    let all: u64 = kills.values().sum();
    println!(
        "killed: {all} times, in {:.1?}, in the middle of {kills:?}: nothing wrong",
        begin.elapsed()
    );
}

/// Plays one harbor through many lives.
fn play(seed: u64, kills: &mut Kills) {
    // In memory if there is room for files: what a process has written outlives it there as well.
    let home = match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm"),
        false => tempfile::tempdir(),
    };
    let home = home.unwrap();
    let dir = home.path().join("harbor");
    let mut chance = Chance::new(seed);
    let mut oracle = Oracle::new();
    child::create(&dir);
    for life in 0..LIVES {
        let mut child = start(&dir, chance.number());
        let during = let_live(&mut child, &mut oracle, &mut chance);
        child.wait().unwrap();
        *kills.entry(during).or_default() += 1;
        oracle.check(&dir, &format!("seed {seed}, life {life}"));
    }
}

fn start(dir: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .arg("--child")
        .arg(dir)
        .arg(seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets a child live until it is killed; says in the middle of what that was.
fn let_live(child: &mut Child, oracle: &mut Oracle, chance: &mut Chance) -> String {
    let what = [
        "policy", "delete", "lock", "build", "merge", "compact", "verify", "remove",
    ];
    let target = format!("begin {}", chance.pick(&what).unwrap());
    let mut skip = chance.below(6);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = 0;
    for line in lines.by_ref() {
        let line = line.unwrap();
        oracle.hear(&line);
        told += 1;
        if line.starts_with(&target) || told > LINES {
            if skip == 0 || told > LINES {
                // Most of it is over in a few milliseconds, or sooner.
                let most = [1, 300, 1_500, 5_000][chance.below(4) as usize];
                std::thread::sleep(Duration::from_micros(chance.below(most)));
                child.kill().unwrap();
                break;
            }
            skip -= 1;
        }
    }
    // What it had said before it was killed; its last line may lack its end.
    for line in lines.map_while(Result::ok) {
        oracle.hear(&line);
    }
    oracle.during()
}
