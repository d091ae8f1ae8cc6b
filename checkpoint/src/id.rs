// SPDX-License-Identifier: Apache-2.0
//! The name of one checkpoint within its lineage.
//!
//! Invariant: comparing two ids as text compares their times, so `latest` is the greatest name in a directory.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

/// The part of an id before the `-`.
const TIME: &[FormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");

/// `20261122T181500.123Z-7f3a`: UTC time in milliseconds, then four random hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointId {
    text: String,
    time: OffsetDateTime,
}

/// The text is not a checkpoint id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a checkpoint id (one looks like 20261122T181500.123Z-7f3a)")]
pub struct IdError {
    text: String,
}

impl CheckpointId {
    /// The id of a checkpoint taken at `now`; `random` keeps apart what was taken in the same millisecond.
    #[must_use]
    pub fn new(now: OffsetDateTime, random: u16) -> Self {
        let utc = now.to_offset(UtcOffset::UTC);
        let time = utc.replace_millisecond(utc.millisecond()).unwrap_or(utc);
        let text = format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}.{:03}Z-{random:04x}",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        );
        Self { text, time }
    }

    /// The id of a checkpoint taken at `now`, which no other one has.
    ///
    /// # Errors
    /// When the kernel gives no random number.
    pub fn unique(now: OffsetDateTime) -> io::Result<Self> {
        let mut random = [0; 2];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self::new(now, u16::from_ne_bytes(random)))
    }

    /// When the checkpoint was taken, UTC, in whole milliseconds.
    #[must_use]
    pub fn time(&self) -> OffsetDateTime {
        self.time
    }

    /// The id as it stands in a path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for CheckpointId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError { text: crate::reference::shortened(text) };
        let (time, random) = text.split_once('-').ok_or_else(error)?;
        let time = PrimitiveDateTime::parse(time, TIME).map_err(|_| error())?.assume_utc();
        let random = u16::from_str_radix(random, 16).map_err(|_| error())?;
        let id = Self::new(time, random);
        if id.text == text { Ok(id) } else { Err(error()) }
    }
}

impl TryFrom<String> for CheckpointId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<CheckpointId> for String {
    fn from(id: CheckpointId) -> Self {
        id.text
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    #[test]
    fn an_id_is_the_utc_time_and_four_digits() {
        let id = CheckpointId::new(datetime!(2026-11-22 19:15:00.1239 +1), 0x7f3a);
        assert_eq!(id.to_string(), "20261122T181500.123Z-7f3a");
        assert_eq!(id.time(), datetime!(2026-11-22 18:15:00.123 UTC));
    }

    #[test]
    fn what_is_not_exactly_an_id_is_refused() {
        for text in [
            "",
            "latest",
            ".tmp-20261122T181500.123Z-7f3a",
            "20261122T181500.123Z",
            "20261122T181500.123Z-7F3A",
            "20261122T181500.123Z-+f3a",
            "20261122T181500.123Z-7f3a/",
            "20261122T181500.123Z-17f3a",
            "20261322T181500.123Z-7f3a",
            "20261122T181500.1Z-7f3a",
            "../../20261122T181500.123Z-7f3a",
        ] {
            assert!(text.parse::<CheckpointId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn ids_sort_by_time_and_survive_parsing(a in 0i64..4_102_444_800_000, b in 0i64..4_102_444_800_000, r: u16) {
            let id = |ms: i64| {
                let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap();
                CheckpointId::new(at, r)
            };
            prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
            prop_assert_eq!(id(a).as_str().cmp(id(b).as_str()), a.cmp(&b));
            prop_assert_eq!(id(a).to_string().parse::<CheckpointId>().unwrap(), id(a));
        }

        #[test]
        fn any_text_is_parsed_without_panic(text: String) {
            let _ = text.parse::<CheckpointId>();
        }
    }
}
