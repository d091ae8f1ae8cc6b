// SPDX-License-Identifier: Apache-2.0
//! The last error lines of CRIU's own log.
//!
//! The log quotes names out of the checkpoint: what is taken from it is bounded and printable.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::BorrowedFd,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// Only this much of the end of the log is read, in bytes. A log of level 4 has about 150 KB.
const TAIL: u64 = 256 << 10;
/// Error lines that are kept.
const LINES: usize = 8;
/// Characters of a line that are kept.
const LENGTH: usize = 300;

/// The last error lines of the log `name` in `dir`, oldest first, and the line before the first of them.
/// Empty when there is no log or no error in it.
#[must_use]
pub fn last_errors(dir: BorrowedFd<'_>, name: &str) -> Vec<String> {
    read_tail(dir, name).map_or_else(|_| Vec::new(), |tail| error_lines(&tail))
}

fn read_tail(dir: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut file = File::from(openat2(dir, name, flags, Mode::empty(), resolve)?);
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(tail)
}

fn error_lines(tail: &[u8]) -> Vec<String> {
    let lines: Vec<&[u8]> = tail.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let errors: Vec<usize> = (0..lines.len()).filter(|at| is_error(lines.get(*at))).collect();
    let kept = errors.get(errors.len().saturating_sub(LINES)..).unwrap_or_default();
    let before = kept.first().and_then(|first| first.checked_sub(1)).filter(|at| !is_error(lines.get(*at)));
    before.iter().chain(kept).filter_map(|at| lines.get(*at)).map(|line| printable(line)).collect()
}

/// CRIU's mark of an error line. Source: CRIU 4.2 criu/include/log.h, `LOG_ERROR`.
fn is_error(line: Option<&&[u8]>) -> bool {
    line.is_some_and(|line| contains(line, b"Error (") && !is_harmless(line))
}

/// CRIU logs this as an error where it lacks `CAP_SYS_RESOURCE`, and goes on. It is then the first error of
/// every failure. Source: CRIU 4.2 criu/util.c, `rlimit_unlimit_nofile`.
const HARMLESS: &[u8] = b"Can't setup RLIMIT_NOFILE for self";

pub(crate) fn is_harmless(text: &[u8]) -> bool {
    contains(text, HARMLESS)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Text without control characters, of bounded length.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(LENGTH).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_errors_come_with_the_line_before_them() {
        let log = b"(0.1) Restoring 1\n(0.2) Opening x\n(0.3) Error (criu/files.c:1): no x\n(0.4) kill\n\
                    (0.5) Error (criu/cr-restore.c:2): Restoring FAILED.\n";
        assert_eq!(
            error_lines(log),
            [
                "(0.2) Opening x",
                "(0.3) Error (criu/files.c:1): no x",
                "(0.5) Error (criu/cr-restore.c:2): Restoring FAILED."
            ]
        );
    }

    #[test]
    fn an_error_that_criu_shrugs_off_is_none() {
        assert!(
            error_lines(b"Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: no\n")
                .is_empty()
        );
    }

    #[test]
    fn only_the_last_errors_are_kept_and_they_are_short_and_printable() {
        let log: String =
            (0..100).map(|n| format!("Error (a.c:{n}): \x1b[31m{}\n", "x".repeat(1000))).collect();
        let lines = error_lines(log.as_bytes());
        assert_eq!(lines.len(), LINES);
        assert!(lines[0].starts_with("Error (a.c:92): ?[31mxxx"));
        assert!(lines.iter().all(|line| line.chars().count() == LENGTH));
    }

    #[test]
    fn errors_before_the_tail_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let early = "Error (early.c:1): x\n".to_owned();
        let log = early + &"(0.1) nothing\n".repeat(20_000) + "Error (late.c:1): y\n";
        fs::write(dir.path().join("restore.log"), log).unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        assert_eq!(last_errors(fd.as_fd(), "restore.log"), ["(0.1) nothing", "Error (late.c:1): y"]);
    }

    #[test]
    fn a_missing_log_a_link_and_a_fifo_give_no_lines() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let fd = fs::File::open(dir.path()).unwrap();
        for name in ["none", "link", "../x", "."] {
            assert!(last_errors(fd.as_fd(), name).is_empty(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_bounded_number_of_bounded_lines(log: Vec<u8>) {
            let lines = error_lines(&log);
            prop_assert!(lines.len() <= LINES + 1);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= LENGTH));
        }
    }
}
