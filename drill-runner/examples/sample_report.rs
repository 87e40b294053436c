//! Writes reports of drills that never were, in all three forms, so that they can be looked at.

#[path = "../src/report/sample.rs"]
mod sample;

use std::{error::Error, path::PathBuf};

use drill_runner::report::Store;

/// The path by which the sample names the types of reports, here as in the crate.
mod outcome {
    pub(crate) use drill_runner::outcome::*;
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args()
        .nth(1)
        .ok_or("usage: sample_report DIRECTORY")?;
    let dir = PathBuf::from(dir);
    std::fs::create_dir_all(&dir)?;
    let store = Store::open(&dir, &dir.join("report.key"))?;
    for report in sample::row_of_drills(12) {
        store.add(report)?;
    }
    for report in [sample::failed(), sample::passed()] {
        println!("{}", dir.join(store.add(report)?.id + ".html").display());
    }
    println!("{}", dir.join("index.html").display());
    Ok(())
}
