// SPDX-License-Identifier: Apache-2.0
//! A time namespace: `timens-N.img`.

use std::time::Duration;

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, only, only_entry},
};

// Source of the fields: CRIU 4.2 images/timens.proto, timens_entry and timespec.
const MONOTONIC: Tag = Tag::new(1, "monotonic");
const BOOTTIME: Tag = Tag::new(2, "boottime");
const TV_SEC: Tag = Tag::new(1, "tv_sec");
const TV_NSEC: Tag = Tag::new(2, "tv_nsec");

/// A `timens-N.img`: what the clocks showed at the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timens {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: Duration,
    /// `CLOCK_BOOTTIME`.
    pub boottime: Duration,
}

impl View for Timens {
    const KIND: Kind = Kind::Timens;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let entry = only_entry(image, Self::KIND)?;
        let monotonic = timespec(&entry, MONOTONIC).map_err(only)?;
        let boottime = timespec(&entry, BOOTTIME).map_err(only)?;
        Ok(Self { monotonic, boottime })
    }
}

fn timespec(entry: &Message, tag: Tag) -> Result<Duration, FieldError> {
    let time = entry.required_message(tag)?;
    let nanoseconds = u32::try_from(time.required_u64(TV_NSEC)?).ok().filter(|n| *n < 1_000_000_000);
    Ok(Duration::new(time.required_u64(TV_SEC)?, nanoseconds.ok_or_else(|| TV_NSEC.out_of_range())?))
}
