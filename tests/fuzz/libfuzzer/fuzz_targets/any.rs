//! Every target: which one it is, the program's name says.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use virt_cdp_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    let program = std::env::current_exe().expect("a path of this program");
    let named = |(name, _): &Target| program.ends_with(name);
    TARGETS.into_iter().find(named).expect("a target of that name")
}

fuzz_target!(|data: &[u8]| TARGET.get_or_init(target).1(data));
