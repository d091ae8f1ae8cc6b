// SPDX-License-Identifier: Apache-2.0
//! What a container had logged before it was frozen: the runtime's log, taken apart into what the program wrote.
//!
//! Each line is `TIME STREAM TAGS TEXT`; the tag `P` says that the line goes on in the next one of its stream. Source:
//! Kubernetes pkg/kubelet/kuberuntime/logs, containerd internal/cri/io/logger.go.
//!
//! Invariant: the log is a stranger's. No more than [`LIMIT_BYTES`] of it are read, and what is not of that form is left
//! out.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How much of a log is read, from its end, in bytes. Source: the kubelet's default of `containerLogMaxSize`.
pub const LIMIT_BYTES: u64 = 10 * 1024 * 1024;

/// What a program had written, stream by stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// To its standard output, or to its terminal.
    pub stdout: Vec<u8>,
    /// To its standard error.
    pub stderr: Vec<u8>,
    /// How many lines were left out because they are no log lines.
    pub unreadable: usize,
    /// Whether the log was too long, so that its beginning is missing.
    pub cut: bool,
}

/// Reads `log`. What it has of a time after `frozen` was not yet written then: the container went on.
///
/// # Errors
/// When it cannot be read.
pub fn read(log: impl Read + Seek, frozen: Option<OffsetDateTime>) -> io::Result<Written> {
    let (mut end, cut) = end(log)?;
    let mut text = Vec::new();
    end.read_to_end(&mut text)?;
    // A line without an end was being written when the log was copied.
    text.truncate(text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0));
    let mut written = Written { cut, ..Written::default() };
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        written.add(line, frozen);
    }
    Ok(written)
}

/// The whole lines at the end of `log` that are no more than [`LIMIT_BYTES`] together, and whether others are left out.
///
/// # Errors
/// When it cannot be read.
pub fn end(mut log: impl Read + Seek) -> io::Result<(impl Read, bool)> {
    let length = log.seek(SeekFrom::End(0))?;
    let skipped = length.saturating_sub(LIMIT_BYTES);
    log.seek(SeekFrom::Start(skipped))?;
    let mut end = BufReader::new(log.take(LIMIT_BYTES));
    if skipped > 0 {
        // It was cut somewhere within.
        end.skip_until(b'\n')?;
    }
    Ok((end, skipped > 0))
}

impl Written {
    fn add(&mut self, line: &[u8], frozen: Option<OffsetDateTime>) {
        let Some((time, to_stdout, partial, text)) = taken_apart(line) else {
            self.unreadable = self.unreadable.saturating_add(1);
            return;
        };
        if frozen.is_some_and(|frozen| time > frozen) {
            return;
        }
        let stream = if to_stdout { &mut self.stdout } else { &mut self.stderr };
        stream.extend_from_slice(text);
        if !partial {
            stream.push(b'\n');
        }
    }
}

/// Time, whether it is of the standard output, whether it goes on, and the text.
fn taken_apart(line: &[u8]) -> Option<(OffsetDateTime, bool, bool, &[u8])> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (fields.next()?, fields.next()?, fields.next()?);
    let time = OffsetDateTime::parse(std::str::from_utf8(time).ok()?, &Rfc3339).ok()?;
    let to_stdout = match stream {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    // Further tags may follow the first one after a colon.
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some((time, to_stdout, partial, fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    fn of(text: &str, frozen: Option<OffsetDateTime>) -> Written {
        read(Cursor::new(text), frozen).unwrap()
    }

    #[test]
    fn each_stream_is_as_the_program_wrote_it() {
        let log = "2026-01-01T00:00:00.1Z stdout P one \n2026-01-01T00:00:00.2Z stderr F  other\n\
                   2026-01-01T00:00:00.3+00:00 stdout F line\n2026-01-01T00:00:01Z stdout F \n\
                   2026-01-01T00:00:02Z stdout P prompt> \n2026-01-01T00:00:03Z stdout F cut of";
        let written = of(log, None);
        assert_eq!(written.stdout, b"one line\n\nprompt> ");
        assert_eq!(written.stderr, b" other\n");
        assert_eq!((written.unreadable, written.cut), (0, false));
    }

    #[test]
    fn what_was_written_after_the_freeze_is_left_out() {
        let log = "2026-01-01T00:00:01Z stdout F before\n2026-01-01T01:00:03+01:00 stdout F after\n";
        assert_eq!(of(log, Some(datetime!(2026-01-01 00:00:02 UTC))).stdout, b"before\n");
        assert_eq!(of(log, None).stdout, b"before\nafter\n");
    }

    #[test]
    fn what_is_no_log_line_is_left_out_and_counted() {
        let log = "text\nyesterday stdout F x\n2026-01-01T00:00:00Z stdin F x\n\
                   2026-01-01T00:00:00Z stdout X x\n2026-01-01T00:00:00Z stdout F:a kept\n";
        let written = of(log, None);
        assert_eq!((written.stdout.as_slice(), written.unreadable), (&b"kept\n"[..], 4));
    }

    #[test]
    fn of_a_long_log_only_whole_lines_of_its_end_are_read() {
        let line = format!("2026-01-01T00:00:00Z stdout F {}\n", "x".repeat(1000));
        let lines = usize::try_from(LIMIT_BYTES).unwrap() / line.len();
        let written = of(&line.repeat(lines + 10), None);
        assert!(written.cut && written.unreadable == 0);
        assert_eq!(written.stdout.len(), lines * 1001);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, line in "[-0-9TZ:. stdoutrFP\n]{0,80}") {
            let _ = read(Cursor::new(bytes), None);
            let _ = read(Cursor::new(line), Some(datetime!(2026-01-01 00:00 UTC)));
        }
    }
}
