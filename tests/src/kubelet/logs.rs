// SPDX-License-Identifier: Apache-2.0
//! Container logs in CRI's format: `<time> <stdout|stderr> <F|P> <text>`.

use std::fs;

use super::Kubelet;
use super::error::KubeletError;
use super::state::PodState;

/// One line that the container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When its first part reached the runtime, in the form of RFC 3339.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line without its end.
    pub text: String,
}

impl Kubelet {
    /// The log of the newest instance of a container. An empty name means the only container.
    ///
    /// # Errors
    /// [`KubeletError::NoContainer`]; [`KubeletError::File`].
    pub fn logs(&self, state: &PodState, container: &str) -> Result<Vec<LogLine>, KubeletError> {
        let log = &state.container(container)?.log;
        let mut text = fs::read(log).map_err(|source| KubeletError::file("read", log, source))?;
        // The last one may be being written.
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        Ok(parse(&String::from_utf8_lossy(&text)))
    }
}

/// Reads a log; parts of one line are put together, stream by stream, and what is no log line is shown as it is.
#[must_use]
pub fn parse(text: &str) -> Vec<LogLine> {
    let mut lines = Vec::new();
    let mut partial: Vec<LogLine> = Vec::new();
    for raw in text.lines() {
        let mut fields = raw.splitn(4, ' ');
        let (Some(time), Some(stream), Some(tag)) = (fields.next(), fields.next(), fields.next()) else {
            lines.push(LogLine { time: String::new(), stream: String::new(), text: raw.to_owned() });
            continue;
        };
        let part = fields.next().unwrap_or_default();
        let begun = partial.iter().position(|line| line.stream == stream).map(|at| partial.remove(at));
        let mut line = begun.unwrap_or_else(|| LogLine {
            time: time.to_owned(),
            stream: stream.to_owned(),
            text: String::new(),
        });
        line.text.push_str(part);
        if tag == "P" { partial.push(line) } else { lines.push(line) }
    }
    lines.extend(partial);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_line_come_together_though_the_other_stream_stands_between() {
        let lines = parse("t1 stdout P one \nt2 stderr F other\nt3 stdout F line\n");
        let shown: Vec<_> = lines.iter().map(|line| (line.stream.as_str(), line.text.as_str())).collect();
        assert_eq!(shown, [("stderr", "other"), ("stdout", "one line")]);
        assert_eq!(lines[1].time, "t1");
    }

    #[test]
    fn an_empty_line_and_a_last_part_are_kept() {
        let lines = parse("t stdout F \nt stdout P end");
        assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["", "end"]);
    }
}
