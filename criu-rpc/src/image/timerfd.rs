// SPDX-License-Identifier: Apache-2.0
//! Timers behind descriptors, in `files.img`.

use super::message::{FieldError, Message, Tag};

// Source of the fields: CRIU 4.2 images/fdinfo.proto (file_entry, fd_types) and images/timerfd.proto.
const TYPE: Tag = Tag::new(1, "type");
const TFD: Tag = Tag::new(12, "tfd");
const VALUE_SECONDS: Tag = Tag::new(7, "tfd.vsec");
const VALUE_NANOSECONDS: Tag = Tag::new(8, "tfd.vnsec");
const INTERVAL_SECONDS: Tag = Tag::new(9, "tfd.isec");
const INTERVAL_NANOSECONDS: Tag = Tag::new(10, "tfd.insec");

const TIMERFD_TYPE: u32 = 17;

/// Lets a periodic timer go on that had expired and not been read when it was frozen; whether the entry is one. The
/// kernel shows no time left for such a timer, and CRIU sets what it shows: that would disarm it for ever.
pub(super) fn rearm(entry: &mut Message) -> Result<bool, FieldError> {
    if entry.required_u32(TYPE)? != TIMERFD_TYPE {
        return Ok(false);
    }
    let mut timer = entry.required_message(TFD)?;
    let zero = |seconds, nanoseconds| -> Result<bool, FieldError> {
        Ok(timer.u64(seconds)?.unwrap_or(0) == 0 && timer.u64(nanoseconds)?.unwrap_or(0) == 0)
    };
    if !zero(VALUE_SECONDS, VALUE_NANOSECONDS)? || zero(INTERVAL_SECONDS, INTERVAL_NANOSECONDS)? {
        return Ok(false);
    }
    timer.set_u64(VALUE_NANOSECONDS, 1);
    entry.set_bytes(TFD, timer.as_bytes());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u64, value: u64, interval: u64) -> Message {
        let mut timer = Message::default();
        timer.set_u64(VALUE_SECONDS, value);
        timer.set_u64(INTERVAL_NANOSECONDS, interval);
        let mut entry = Message::default();
        entry.set_u64(TYPE, kind);
        entry.set_bytes(TFD, timer.as_bytes());
        entry
    }

    #[test]
    fn only_a_periodic_timer_with_no_time_left_is_armed_again() {
        for (kind, value, interval, expected) in
            [(17, 0, 5, true), (17, 3, 5, false), (17, 0, 0, false), (6, 0, 5, false)]
        {
            let mut timer = entry(kind, value, interval);
            assert_eq!(rearm(&mut timer), Ok(expected), "{kind} {value} {interval}");
            let left = timer.message(TFD).unwrap().unwrap().u64(VALUE_NANOSECONDS).unwrap();
            assert_eq!(left, expected.then_some(1));
        }
    }
}
