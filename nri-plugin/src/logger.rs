// SPDX-License-Identifier: Apache-2.0
//! Logs to standard error: one line a record, with its values as `key=value` at the end.
//!
//! Under systemd a line begins with its priority, which the journal takes off; the journal has the time as well.

use std::error::Error;
use std::io::Write;

use env_logger::fmt::Formatter;
use log::kv::{Key, Value, VisitSource};
use log::{Level, LevelFilter, Record};

/// Begins to log. `RUST_LOG` says what; without it, everything from `info` on.
pub(crate) fn init() {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    env_logger::Builder::new()
        .filter_level(LevelFilter::Info)
        .parse_default_env()
        .format(move |out, record| write_record(out, record, journal))
        .init();
}

fn write_record(out: &mut Formatter, record: &Record<'_>, journal: bool) -> std::io::Result<()> {
    if journal {
        write!(out, "<{}>", priority(record.level()))?;
    } else {
        write!(out, "{:5} ", record.level())?;
    }
    write!(out, "{}", record.args())?;
    // Writing into a formatter is writing into memory: it does not fail.
    record.key_values().visit(&mut Values(out)).ok();
    writeln!(out)
}

/// Source: sd-daemon(3), the priorities of syslog.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

struct Values<'a>(&'a mut Formatter);

impl<'kvs> VisitSource<'kvs> for Values<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        Ok(write!(self.0, " {key}={value}")?)
    }
}

/// An error with its causes, `: ` between them.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
