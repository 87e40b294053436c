//! An export is a standalone qcow2 image that holds what the view holds.

use std::fs;
use std::ops::ControlFlow;

use cdp_core::{Grade, HarborError, Options, VolumeId};

use crate::harness::{Chance, KIB, Model, machine, qemu_img_check, qemu_img_raw};

#[test]
fn an_export_equals_the_view() {
    let sizes = [3 * 1024 * KIB + 512, 64 * KIB, 4096];
    let mut chance = Chance::new(9);
    let mut model = Model::new(&sizes);
    let machine = machine(&sizes, Options::default());
    for _ in 0..100 {
        model.step(&machine.recorder, &mut chance);
    }
    let point = machine.recorder.point(Grade::Crash, None).unwrap();
    let view = machine.harbor.view(point.id).unwrap();
    for (number, expected) in model.volumes.iter().enumerate() {
        let path = machine.home.path().join(format!("export-{number}.qcow2"));
        let mut last = 0;
        view.export(VolumeId(number as u16), &path, &mut |done| {
            assert!(done > last);
            last = done;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(last, expected.len() as u64);
        qemu_img_check(&path);
        if let Some(raw) = qemu_img_raw(&path) {
            assert!(raw == *expected, "volume {number}");
        }
        let again = view.export(VolumeId(number as u16), &path, &mut |_| {
            ControlFlow::Continue(())
        });
        assert!(matches!(again, Err(HarborError::AlreadyExists { .. })));
    }
}

#[test]
fn a_cancelled_export_leaves_nothing() {
    let machine = machine(&[3 * 1024 * KIB], Options::default());
    machine.write(0, 0, &[1; 4096]);
    let point = machine.recorder.point(Grade::Crash, None).unwrap();
    let view = machine.harbor.view(point.id).unwrap();
    let folder = machine.home.path().join("out");
    fs::create_dir(&folder).unwrap();
    let done = view.export(VolumeId(0), &folder.join("x"), &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(done, Err(HarborError::Cancelled)));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
