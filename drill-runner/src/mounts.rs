//! What is mounted below a directory, so that the directory can be removed.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::mount::{UnmountFlags, unmount};

/// Unmounts whatever is mounted below a directory, also what is dead or in use; what was mounted last goes first.
///
/// # Errors
/// The mounts cannot be read, or one of them stays.
pub fn detach_below(dir: &Path) -> io::Result<()> {
    let dir = match fs::canonicalize(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        dir => dir?,
    };
    // A path need not be text.
    let table = fs::read("/proc/self/mountinfo")?;
    for path in below(&table, &dir).into_iter().rev() {
        unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// The mount points below a directory, in the order of the kernel's table, which is that in which they were mounted.
fn below(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let paths = points.map(|point| PathBuf::from(OsString::from_vec(plain(point))));
    paths
        .filter(|path| path != dir && path.starts_with(dir))
        .collect()
}

/// A path as it is, of which the table writes white space as `\\` and three octal digits.
fn plain(mut point: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(point.len());
    while let Some((first, rest)) = point.split_first() {
        let digits = rest
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped.filter(|_| *first == b'\\') {
            Some(byte) => {
                path.push(byte);
                point = rest.get(3..).unwrap_or_default();
            }
            None => {
                path.push(*first);
                point = rest;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn mounts_are_read_from_the_kernels_table() {
        let table = b"22 1 0:20 / /drill/a rw,relatime shared:2 - fuse /dev/fuse rw\n\
            23 1 0:21 / /drill rw - ext4 /dev/vda rw\n\
            24 1 0:22 / /drill/a\\040b/c rw - fuse /dev/fuse rw\n\
            25 1 0:23 / /drills rw - tmpfs none rw\n";
        let found = below(table, Path::new("/drill"));
        assert_eq!(found, [Path::new("/drill/a"), Path::new("/drill/a b/c")]);
    }

    #[test]
    fn a_directory_with_mounts_in_it_can_be_removed_then() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("one folder");
        fs::create_dir(&inner).unwrap();
        let mount = || {
            Command::new("mount")
                .args(["-t", "tmpfs", "none"])
                .arg(&inner)
                .status()
        };
        if !rustix::process::geteuid().is_root() || !mount().is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let file = fs::File::create(inner.join("in use")).unwrap();
        assert!(fs::remove_dir_all(dir.path()).is_err());
        detach_below(dir.path()).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        drop(file);
        detach_below(dir.path()).unwrap();
    }
}
