//! End to end, on real QEMU, real libvirt and real guests. One binary; a module is a group of behaviours.

mod architecture;

mod bad_input;
mod bypass;

mod bitmaps;

mod demo;

mod bisect;
mod disks;
mod drills;
mod drills_asked;
mod drills_auto;
mod drills_debian;
mod drills_isolation;
mod drills_trouble;

mod exactness;

mod hook;

mod lifecycle;

mod lifecycle_disks;

mod lifecycle_ends;

mod lifecycle_hosts;

mod pace;
mod quiesce;

mod marks;

mod memory;

mod metrics;

mod restart;

mod room;

mod resync;

mod retention;

mod soak;

mod takeover;

mod tools;

mod verify;
