//! Acknowledged while one segment follows on the other: whatever fails then, and wherever the power is cut, what was
//! acknowledged is there.
//!
//! Each thread writes its own place again and again, several writes before it waits for the last of them. What the place
//! shows afterwards must be one of its writes, none older than the last acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use cdp_core::storage::{Left, Operation, SimulatedStorage, Trouble};
use cdp_core::{Ack, AckRule, Grade, Harbor, Options, Recorder, VolumeId, bounds};

use crate::harness::{KIB, description};

const EIO: i32 = 5;
const DIR: &str = "/harbor";
const THREADS: u64 = 4;
const BURSTS: u64 = 8;
/// Writes before the last of them is waited for.
const BURST: u64 = 4;
/// Eight writes fill a segment, no burst of all threads fits into one.
const LEN: u64 = 8 * KIB;

/// How far one thread came.
#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    acknowledged: u64,
    sent: u64,
}

fn options(storage: &SimulatedStorage) -> Options {
    Options {
        storage: Arc::new(storage.clone()),
        ack_rule: AckRule::Durable,
        segment_bytes: bounds::SEGMENT_MIN,
        ..Options::default()
    }
}

fn seeded(storage: &SimulatedStorage) -> (Harbor, Recorder) {
    let described = description(&[THREADS * LEN]);
    let harbor = Harbor::create(Path::new(DIR), &described, options(storage)).unwrap();
    let recorder = harbor.record().unwrap();
    let seed = harbor.seed(VolumeId(0)).unwrap();
    seed.finish(recorder.sync().unwrap()).unwrap();
    (harbor, recorder)
}

/// What write `number` of a thread consists of.
fn payload(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(LEN as usize / 8)
}

/// Has all threads write until they are done, or refused.
fn load(recorder: &Recorder) -> Vec<Reached> {
    let write = |place: u64| {
        let volume = recorder.volume(VolumeId(0)).unwrap();
        let mut reached = Reached::default();
        for _ in 0..BURSTS {
            let mut last = Ack::Now;
            for _ in 0..BURST {
                let Ok(mut buf) = volume.buffer(LEN as usize) else {
                    return reached;
                };
                reached.sent += 1;
                buf.as_mut().copy_from_slice(&payload(reached.sent));
                match volume.write(place * LEN, buf) {
                    Ok(ack) => last = ack,
                    Err(_) => return reached,
                }
            }
            assert_ne!(last, Ack::Now, "acknowledged before it is durable");
            if volume.wait(last).is_err() {
                return reached;
            }
            reached.acknowledged = reached.sent;
        }
        reached
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|place| scope.spawn(move || write(place)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Looks what a harbor shows of what was reached.
fn check(harbor: &Harbor, reached: &[Reached], context: &str) {
    let recorder = harbor.record().unwrap();
    let point = recorder.point(Grade::Crash, None).unwrap();
    let view = harbor.view(point.id).unwrap();
    for (place, reached) in reached.iter().enumerate() {
        let mut found = vec![0; LEN as usize];
        let offset = place as u64 * LEN;
        view.read_at(VolumeId(0), &mut found, offset).unwrap();
        let shown = u64::from_le_bytes(found[..8].try_into().unwrap());
        let context = format!("{context}: place {place} shows {shown}, {reached:?}");
        assert!(found == payload(shown), "{context}: not whole");
        assert!(
            (reached.acknowledged..=reached.sent).contains(&shown),
            "{context}"
        );
    }
}

fn open(storage: &SimulatedStorage, context: &str) -> Harbor {
    let (harbor, report) = Harbor::open(Path::new(DIR), options(storage)).unwrap();
    assert!(report.damage.is_empty(), "{context}: {report:?}");
    harbor
}

#[test]
fn a_power_cut_at_any_place_of_many_turns_leaves_all_that_was_acknowledged() {
    let (mut turned, mut acknowledged) = (0, 0);
    for after in (0..240).step_by(2) {
        let context = format!("cut after {after} changes");
        let storage = SimulatedStorage::new(after);
        let (harbor, recorder) = seeded(&storage);
        storage.ask_for(Trouble::PowerCut { after });
        let reached = load(&recorder);
        drop((recorder, harbor));
        storage.cut_power();
        let left = [Left::ByChance, Left::Nothing][after as usize / 2 % 2];
        storage.power_up(left);
        let is_segment = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "seg");
        turned = turned.max(storage.files().iter().filter(is_segment).count());
        acknowledged = acknowledged.max(reached.iter().map(|one| one.acknowledged).sum());
        check(&open(&storage, &context), &reached, &context);
    }
    assert!(turned > 4, "only {turned} segments at the most");
    assert!(acknowledged > 0);
}

#[test]
fn a_failure_at_any_place_of_a_turn_leaves_all_that_was_acknowledged() {
    let (mut failed, mut went_well) = (0, 0);
    let syncs = (0..60).map(|after| (Operation::Sync, after));
    let names = (0..24).map(|after| (Operation::Name, after));
    for (number, (operation, after)) in syncs.chain(names).enumerate() {
        for in_place in [true, false] {
            let context = format!("{operation:?} {after}, in place {in_place}");
            let storage = SimulatedStorage::new(number as u64);
            let (harbor, recorder) = seeded(&storage);
            let losing = operation == Operation::Sync && number % 2 == 1;
            storage.ask_for(match losing {
                true => Trouble::LosingSync { after, errno: EIO },
                false => Trouble::Error {
                    operation,
                    after,
                    errno: EIO,
                },
            });
            let reached = load(&recorder);
            storage.forget_troubles();
            match recorder.close() {
                Ok(()) => went_well += 1,
                Err(_) => failed += 1,
            }
            drop(recorder);
            if in_place && harbor.failure().is_some() {
                harbor.recover().unwrap();
                check(&harbor, &reached, &context);
                continue;
            }
            drop(harbor);
            storage.cut_power();
            storage.power_up(Left::Nothing);
            check(&open(&storage, &context), &reached, &context);
        }
    }
    assert!(failed > 40, "{failed} failed, {went_well} did not");
}
