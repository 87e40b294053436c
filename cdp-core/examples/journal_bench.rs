//! Measures the journal: 4 KiB writes per second of one thread, and how long a view takes to open.
//!
//! Usage: `journal_bench [DIRECTORY [WRITES]]`; the directory is filled with a harbor.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use cdp_core::machine::{FORMAT_VERSION_OLDEST, Mode};
use cdp_core::{
    Grade, Harbor, MachineDescription, MachineSource, Options, Timestamp, VolumeDescription,
    VolumeId,
};

const SIZE: u64 = 64 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments
        .next()
        .map_or_else(|| std::env::temp_dir().join("journal-bench"), PathBuf::from);
    let writes: u64 = arguments
        .next()
        .map_or(Ok(200_000), |count| count.parse())?;
    let harbor = Harbor::create(&dir, &description(), Options::default())?;
    let recorder = harbor.record()?;
    let seed = harbor.seed(VolumeId(0))?;
    seed.finish(recorder.sync()?)?;
    let volume = recorder.volume(VolumeId(0))?;

    let begin = Instant::now();
    let mut state = 1_u64;
    let mut slowest = 0;
    for number in 0..writes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695);
        let offset = (state >> 20) % (SIZE / 4096) * 4096;
        let took = Instant::now();
        let mut buf = volume.buffer(4096)?;
        buf.as_mut().fill(number as u8);
        volume.write(offset, buf)?;
        slowest = slowest.max(took.elapsed().as_micros());
    }
    recorder.sync()?;
    let seconds = begin.elapsed().as_secs_f64();
    let stats = recorder.stats();
    println!(
        "{writes} writes of 4 KiB in {seconds:.2} s: {:.0}/s",
        writes as f64 / seconds
    );
    println!(
        "slowest write {slowest} us, slowest sync {:?}",
        stats.sync_max
    );
    println!(
        "journal bytes per payload byte: {:.3}",
        stats.journal_bytes as f64 / stats.write_bytes as f64
    );

    let point = recorder.point(Grade::Crash, None)?;
    for round in ["first", "second"] {
        let begin = Instant::now();
        let view = harbor.view(point.id)?;
        println!(
            "view over {writes} records opened in {:?} ({round})",
            begin.elapsed()
        );
        let begin = Instant::now();
        let mut buf = vec![0; 4096];
        for number in 0..10_000 {
            view.read_at(VolumeId(0), &mut buf, number * 6_553_600 % SIZE)?;
        }
        println!("10000 reads of 4 KiB in {:?}", begin.elapsed());
    }
    recorder.close()?;
    drop((recorder, volume, harbor));
    let begin = Instant::now();
    let (_harbor, report) = Harbor::open(&dir, Options::default())?;
    println!(
        "harbor of {} segments opened in {:?}",
        report.segments,
        begin.elapsed()
    );
    Ok(())
}

fn description() -> MachineDescription {
    MachineDescription {
        format_version: FORMAT_VERSION_OLDEST,
        name: "bench".into(),
        machine_id: "bench".into(),
        point_interval_ms: 1000,
        created: Timestamp(0),
        mode: Mode::Active,
        ack: None,
        flush_interval_ms: None,
        policy: None,
        source: MachineSource::Qmp {
            socket: "/nowhere".into(),
        },
        volumes: vec![VolumeDescription::new(VolumeId(0), "vda", SIZE)],
    }
}
