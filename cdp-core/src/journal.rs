//! The journal: segments of records, in order.
//!
//! A record is numbered by the [`sequencer`], written in a frame by the [`writer`]'s thread, put on stable storage by the
//! [`keeper`]'s, and belongs to a [`segment`] for good. [`recovery`] reads what an earlier process left, [`scan`]s
//! the frames of an unsealed segment and [`seal`]s it. Behind the newest base point segments are made [`cold`]. Records are found again by the [`fences`] of a segment's index,
//! kept as [`lookup`] says. The [`catalog`] is what is known of all of it in memory.
//!
//! Invariant: numbers in the journal rise by one; what is listed in the catalog as a point is on
//! stable storage, and so is everything before it.

pub(crate) mod age;
pub(crate) mod draft;
pub(crate) mod sequencer;
pub(crate) mod touched;

pub(crate) mod writer;

pub(crate) mod keeper;

pub(crate) mod seal;
pub(crate) mod segment;

pub(crate) mod cold;
pub(crate) mod fences;
pub(crate) mod lookup;

pub(crate) mod catalog;
pub(crate) mod recovery;
pub(crate) mod scan;
