// SPDX-License-Identifier: Apache-2.0
//! The mounts of this process, from `/proc/self/mountinfo`.

use std::path::{Path, PathBuf};

/// One mount. Source: proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The directory within the file system that is the root of this mount.
    pub root: PathBuf,
    /// The type of its file system.
    pub fs_type: String,
    /// The options of its file system, among them the controllers of a cgroup hierarchy.
    pub super_options: String,
}

/// All mounts, in the order in which they were made.
///
/// # Errors
/// When the file cannot be read.
pub fn mounts() -> std::io::Result<Vec<Mount>> {
    Ok(std::fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse).collect())
}

/// The mount points at and beneath `dir`, the deepest first.
///
/// # Errors
/// When the mounts cannot be read.
pub fn mount_points_beneath(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut points: Vec<PathBuf> =
        mounts()?.into_iter().map(|mount| mount.mount_point).filter(|point| point.starts_with(dir)).collect();
    points.reverse();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(points)
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let root = unescape(before.next()?);
    let mount_point = unescape(before.next()?);
    let mut after = after.split(' ');
    let fs_type = after.next()?.to_owned();
    let super_options = after.nth(1).unwrap_or_default().to_owned();
    Some(Mount { mount_point, root, fs_type, super_options })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, plain);
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_and_escapes_are_understood() {
        let line =
            "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:2 - cgroup cgroup rw,cpu,cpuacct";
        let mount = parse(line).unwrap();
        assert_eq!(mount.mount_point, Path::new("/mnt two"));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!((mount.fs_type.as_str(), mount.super_options.as_str()), ("cgroup", "rw,cpu,cpuacct"));
    }
}
