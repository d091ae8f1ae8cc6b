// SPDX-License-Identifier: Apache-2.0
//! Protobuf's encoding: where a field begins and ends, and what its value is.
//!
//! Source: protobuf's documentation, "Encoding".

use std::ops::Range;

use thiserror::Error;

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The end is missing.
    #[error("it is cut off at byte {at}")]
    Truncated {
        /// Where something should go on.
        at: usize,
    },
    /// A number has more than 64 bits.
    #[error("the number at byte {at} is too large")]
    Number {
        /// Where the number begins.
        at: usize,
    },
    /// A field has no possible number, or a wire type that CRIU does not know.
    #[error("there is no field at byte {at}")]
    Field {
        /// Where the field begins.
        at: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of 4 or 8 bytes.
    Fixed,
}

pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
    pub(super) range: Range<usize>,
}

/// The field that begins at `at`.
pub(super) fn field(bytes: &[u8], at: usize) -> Result<Field<'_>, MessageError> {
    let (tag, body) = varint(bytes, at)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
    let number = number.ok_or(MessageError::Field { at })?;
    let skip = |length: usize| {
        let end = body.checked_add(length).filter(|end| *end <= bytes.len());
        end.ok_or(MessageError::Truncated { at: body })
    };
    // Source: protobuf encoding, wire types. Groups (3 and 4) are unknown to protobuf-c.
    let (value, end) = match tag & 7 {
        0 => varint(bytes, body).map(|(value, end)| (Value::Varint(value), end))?,
        1 => (Value::Fixed, skip(8)?),
        2 => {
            let (length, start) = varint(bytes, body)?;
            let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
            let slice = end.and_then(|end| Some((bytes.get(start..end)?, end)));
            let (slice, end) = slice.ok_or(MessageError::Truncated { at: start })?;
            (Value::Bytes(slice), end)
        }
        5 => (Value::Fixed, skip(4)?),
        _ => return Err(MessageError::Field { at }),
    };
    Ok(Field { number, value, range: at..end })
}

/// The variable-length number at `at`, and where it ends.
pub(super) fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), MessageError> {
    let mut value = 0;
    for (index, byte) in bytes.get(at..).unwrap_or_default().iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, at.saturating_add(index).saturating_add(1)));
        }
    }
    let left = bytes.len().saturating_sub(at);
    Err(if left < 10 { MessageError::Truncated { at } } else { MessageError::Number { at } })
}

/// A field with a number.
pub(super) fn encoded_varint(number: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_varint(&mut bytes, u64::from(number) << 3);
    push_varint(&mut bytes, value);
    bytes
}

/// A field with a text, a piece of data or an encoded message.
pub(super) fn encoded_bytes(number: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_varint(&mut bytes, u64::from(number) << 3 | 2);
    push_varint(&mut bytes, value.len() as u64);
    bytes.extend_from_slice(value);
    bytes
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}
