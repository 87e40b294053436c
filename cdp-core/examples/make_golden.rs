//! Writes the golden harbor of the present format version to a directory given as argument.
//!
//! What it writes is checked by `tests/core/golden.rs`. Run once per format version.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use cdp_core::clock::HandClock;
use cdp_core::machine::{FORMAT_VERSION_OLDEST, Mode};
use cdp_core::{
    Clock, GapReason, Grade, Harbor, MachineDescription, MachineSource, Options, PointId,
    Timestamp, VolumeDescription, VolumeId,
};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os()
        .nth(1)
        .ok_or("usage: make_golden DIRECTORY")?;
    let now = Timestamp(1_700_000_000_000_000_001);
    let description = MachineDescription {
        format_version: FORMAT_VERSION_OLDEST,
        name: "golden".into(),
        machine_id: "0b1d7f4e-0000-4000-8000-00000000d01d".into(),
        point_interval_ms: 1000,
        created: now,
        mode: Mode::Active,
        ack: None,
        flush_interval_ms: None,
        policy: None,
        source: MachineSource::Libvirt {
            uri: "qemu:///system".into(),
            uuid: "0b1d7f4e-0000-4000-8000-000000000002".into(),
        },
        volumes: vec![VolumeDescription {
            original_format: Some("raw".into()),
            original_path: Some("/dev/vg/lv".into()),
            ..VolumeDescription::new(VolumeId(7), "vda", 128 * 1024)
        }],
    };
    let clock = Arc::new(HandClock::new(now));
    let options = Options {
        clock: Arc::clone(&clock) as _,
        ..Options::default()
    };
    let harbor = Harbor::create(&PathBuf::from(dir), &description, options)?;
    let recorder = harbor.record()?;
    let volume = recorder.volume(VolumeId(7))?;
    let write = |offset, data: &[u8]| -> Result<(), Box<dyn Error>> {
        let mut buf = volume.buffer(data.len())?;
        buf.as_mut().copy_from_slice(data);
        volume.write(offset, buf)?;
        Ok(())
    };
    let mut seed = harbor.seed(VolumeId(7))?;
    seed.data(512, &[0x33; 512])?;
    write(512, &[0x11; 512])?;
    write(70_000, b"cdp")?;
    let point = recorder.point(Grade::Crash, Some("seeded"))?;
    seed.finish(point.seq)?;

    harbor.record_xml("<domain/>\n")?;
    recorder.open_gap(GapReason::TapLost, Timestamp(1_700_000_000_000_000_003))?;
    volume.zero(600, 100)?;
    volume.announce(0..131_072);
    volume.resync_data(65_536, &[0x22; 512])?;
    volume.resync_zero(66_048, 512)?;
    recorder.close_gap()?;
    recorder.point(Grade::Quiesced, None)?;
    recorder.close()?;

    // From version 3 on: layers with hashes, a cold segment, and what was said of points.
    let go_on = &mut |_| ControlFlow::Continue(());
    for byte in [0x44, 0x55] {
        clock.set(Timestamp(clock.now().0 + 3_600_000_000_000));
        let recorder = harbor.record()?;
        let volume = recorder.volume(VolumeId(7))?;
        volume.write_copy(4096 * u64::from(byte % 16), &[byte; 4096])?;
        let point = recorder.point(Grade::Crash, None)?;
        recorder.close()?;
        harbor.build_base(point.id, go_on)?;
    }
    harbor.lock_point(PointId(2))?;
    harbor.delete_points(&[PointId(1)])?;
    clock.set(Timestamp(clock.now().0 + 3_600_000_000_000));
    while harbor
        .compact(&mut |_| ControlFlow::Continue(()))?
        .is_some()
    {}
    Ok(())
}
