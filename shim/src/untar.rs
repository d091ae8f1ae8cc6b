// SPDX-License-Identifier: Apache-2.0
//! Brings back what was in a tmpfs. CRIU runs `tar` for each, which runs a shell, which runs gzip: that takes some 5 ms,
//! and every container has two or three. This program does the same in one; asked for anything else, it becomes the real
//! one.
//!
//! Source: CRIU 4.2 criu/filesystems.c, tmpfs_restore.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::path::Path;

use ::checkpoint::layer::fill_tmpfs;
use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};

use crate::error::full;
use crate::stand_in;

/// What CRIU runs.
pub(crate) const PROGRAM: &str = "tar";
/// How, without the directory at the end. The archive is its standard input.
const ARGUMENTS: [&str; 5] = ["--extract", "--gzip", "--no-unquote", "--no-wildcards", "--directory"];

/// Does as `tar` would. Returns only why nobody could.
pub(crate) fn run() -> Result<(), io::Error> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.split_last() {
        // Whatever fails in the middle stays failed: in what it has left the real one could follow links to anywhere.
        Some((dir, rest)) if rest == ARGUMENTS => unpack(dir.as_ref()).map_err(io::Error::other),
        _ => Err(stand_in::become_real(PROGRAM, arguments)),
    }
}

fn unpack(dir: &Path) -> Result<(), String> {
    let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let archive = io::stdin().as_fd().try_clone_to_owned().map_err(|e| full(&e))?;
    let tar = MultiGzDecoder::new(BufReader::new(File::from(archive)));
    fill_tmpfs(dir.map_err(|e| full(&e))?.as_fd(), tar).map(drop).map_err(|e| full(&e))
}
