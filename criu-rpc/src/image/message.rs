// SPDX-License-Identifier: Apache-2.0
//! A protobuf message at the level of its tags: reads and changes fields, keeps all others as they are.
//!
//! Stricter than protobuf on purpose. CRIU (protobuf-c) takes the last of several values of one field,
//! merges messages, and cuts numbers to their width; here all of that is an error, so that a message
//! never means something else to CRIU than to its reader here.

use thiserror::Error;

use super::wire::{Field, MessageError, Value, encoded_bytes, encoded_varint, field, varint};

/// A field: its number and, for messages to people, its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    number: u32,
    name: &'static str,
}

impl Tag {
    /// The field `number` (1 to 2^29 - 1), called `name`.
    #[must_use]
    pub const fn new(number: u32, name: &'static str) -> Self {
        Self { number, name }
    }

    pub(super) fn missing(self) -> FieldError {
        FieldError::Missing { name: self.name }
    }

    pub(super) fn no_message(self, source: MessageError) -> FieldError {
        FieldError::Message { name: self.name, source }
    }

    pub(super) fn out_of_range(self) -> FieldError {
        FieldError::Range { name: self.name }
    }
}

/// Why a field is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldError {
    /// It must be there and is not.
    #[error("{name} is missing")]
    Missing {
        /// The field.
        name: &'static str,
    },
    /// It may be there once and is there more often.
    #[error("{name} is there more than once")]
    Repeated {
        /// The field.
        name: &'static str,
    },
    /// It is of another type.
    #[error("{name} has another type")]
    Type {
        /// The field.
        name: &'static str,
    },
    /// Its value is none that it can have.
    #[error("{name} is out of range")]
    Range {
        /// The field.
        name: &'static str,
    },
    /// The message in it is none.
    #[error("{name} is not a message")]
    Message {
        /// The field.
        name: &'static str,
        /// Why.
        #[source]
        source: MessageError,
    },
}

/// A protobuf message. Its bytes are known to be a sequence of whole fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// The message that `bytes` are.
    ///
    /// # Errors
    /// [`MessageError`] when they are none.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, MessageError> {
        let bytes = bytes.into();
        let mut at = 0;
        while at < bytes.len() {
            at = field(&bytes, at)?.range.end;
        }
        Ok(Self { bytes })
    }

    /// Its bytes; those of fields that were not changed are those that were parsed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the field is there.
    #[must_use]
    pub fn has(&self, tag: Tag) -> bool {
        self.fields(tag).next().is_some()
    }

    /// An unsigned number.
    ///
    /// # Errors
    /// [`FieldError`] when the field is there more than once or is no number.
    pub fn u64(&self, tag: Tag) -> Result<Option<u64>, FieldError> {
        match self.one(tag)? {
            None => Ok(None),
            Some(Value::Varint(value)) => Ok(Some(value)),
            Some(Value::Bytes(_) | Value::Fixed) => Err(FieldError::Type { name: tag.name }),
        }
    }

    /// An unsigned number of 32 bits.
    ///
    /// # Errors
    /// As [`Message::u64`], and when the number is larger.
    pub fn u32(&self, tag: Tag) -> Result<Option<u32>, FieldError> {
        self.u64(tag)?.map(|value| narrow(tag, value)).transpose()
    }

    /// A number of 32 bits (`int32`).
    ///
    /// # Errors
    /// As [`Message::u32`].
    pub fn i32(&self, tag: Tag) -> Result<Option<i32>, FieldError> {
        let value = self.u64(tag)?.map(u64::cast_signed);
        value.map(|value| i32::try_from(value).map_err(|_| FieldError::Range { name: tag.name })).transpose()
    }

    /// A number of 32 bits whose sign is the lowest bit (`sint32`).
    ///
    /// # Errors
    /// As [`Message::u32`].
    pub fn sint32(&self, tag: Tag) -> Result<Option<i32>, FieldError> {
        Ok(self.u32(tag)?.map(|value| (value >> 1).cast_signed() ^ -(value & 1).cast_signed()))
    }

    /// A truth value; `false` when it is not there.
    ///
    /// # Errors
    /// As [`Message::u64`].
    pub fn bool(&self, tag: Tag) -> Result<bool, FieldError> {
        Ok(self.u64(tag)?.is_some_and(|value| value != 0))
    }

    /// A text or a piece of data.
    ///
    /// # Errors
    /// [`FieldError`] when the field is there more than once or is a number.
    pub fn bytes(&self, tag: Tag) -> Result<Option<&[u8]>, FieldError> {
        match self.one(tag)? {
            None => Ok(None),
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Varint(_) | Value::Fixed) => Err(FieldError::Type { name: tag.name }),
        }
    }

    /// A message.
    ///
    /// # Errors
    /// As [`Message::bytes`], and when it is no message.
    pub fn message(&self, tag: Tag) -> Result<Option<Self>, FieldError> {
        let parse = |bytes| Self::parse(bytes).map_err(|source| tag.no_message(source));
        self.bytes(tag)?.map(parse).transpose()
    }

    /// All values of a repeated number of 32 bits, packed or not.
    ///
    /// # Errors
    /// [`FieldError`] when one of them is no such number.
    pub fn u32s(&self, tag: Tag) -> Result<Vec<u32>, FieldError> {
        let mut values = Vec::new();
        for field in self.fields(tag) {
            match field.value {
                Value::Varint(value) => values.push(narrow(tag, value)?),
                Value::Bytes(packed) => {
                    let mut at = 0;
                    while at < packed.len() {
                        let (value, end) = varint(packed, at).map_err(|source| tag.no_message(source))?;
                        values.push(narrow(tag, value)?);
                        at = end;
                    }
                }
                Value::Fixed => return Err(FieldError::Type { name: tag.name }),
            }
        }
        Ok(values)
    }

    /// All values of a repeated text or message.
    ///
    /// # Errors
    /// [`FieldError`] when one of them is a number.
    pub fn all_bytes(&self, tag: Tag) -> Result<Vec<&[u8]>, FieldError> {
        let mut values = Vec::new();
        for field in self.fields(tag) {
            match field.value {
                Value::Bytes(bytes) => values.push(bytes),
                Value::Varint(_) | Value::Fixed => return Err(FieldError::Type { name: tag.name }),
            }
        }
        Ok(values)
    }

    /// Makes the field this one number, where it was (the first of several), else at the end.
    pub fn set_u64(&mut self, tag: Tag, value: u64) {
        self.replace(tag, &encoded_varint(tag.number, value));
    }

    /// Makes the field this one text, piece of data or encoded message, likewise.
    pub fn set_bytes(&mut self, tag: Tag, value: &[u8]) {
        self.replace(tag, &encoded_bytes(tag.number, value));
    }

    /// Makes the repeated field these numbers, not packed, likewise.
    pub fn set_u32s(&mut self, tag: Tag, values: &[u32]) {
        let encoded: Vec<u8> =
            values.iter().flat_map(|value| encoded_varint(tag.number, u64::from(*value))).collect();
        self.replace(tag, &encoded);
    }

    /// Makes the repeated field these texts, pieces of data or encoded messages, likewise.
    pub fn set_all_bytes<'a>(&mut self, tag: Tag, values: impl IntoIterator<Item = &'a [u8]>) {
        let encoded: Vec<u8> =
            values.into_iter().flat_map(|value| encoded_bytes(tag.number, value)).collect();
        self.replace(tag, &encoded);
    }

    /// Takes the field away, however often it is there.
    pub fn remove(&mut self, tag: Tag) {
        self.replace(tag, &[]);
    }

    /// Puts `encoded` in the place of the field's first occurrence and drops the others.
    fn replace(&mut self, tag: Tag, encoded: &[u8]) {
        let mut bytes = Vec::with_capacity(self.bytes.len().saturating_add(encoded.len()));
        let mut kept = 0;
        for (index, field) in self.fields(tag).enumerate() {
            bytes.extend_from_slice(self.bytes.get(kept..field.range.start).unwrap_or_default());
            if index == 0 {
                bytes.extend_from_slice(encoded);
            }
            kept = field.range.end;
        }
        bytes.extend_from_slice(self.bytes.get(kept..).unwrap_or_default());
        if kept == 0 {
            bytes.extend_from_slice(encoded);
        }
        self.bytes = bytes;
    }

    fn one(&self, tag: Tag) -> Result<Option<Value<'_>>, FieldError> {
        let mut fields = self.fields(tag);
        let first = fields.next();
        match fields.next() {
            None => Ok(first.map(|field| field.value)),
            Some(_) => Err(FieldError::Repeated { name: tag.name }),
        }
    }

    fn fields(&self, tag: Tag) -> impl Iterator<Item = Field<'_>> {
        let mut at = 0;
        let next = move || {
            let field = field(&self.bytes, at).ok()?;
            at = field.range.end;
            Some(field)
        };
        std::iter::from_fn(next).filter(move |field| field.number == tag.number)
    }
}

fn narrow(tag: Tag, value: u64) -> Result<u32, FieldError> {
    u32::try_from(value).map_err(|_| FieldError::Range { name: tag.name })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Tag = Tag::new(1, "a");
    const B: Tag = Tag::new(2, "b");
    const C: Tag = Tag::new(300, "c");

    fn message(bytes: &[u8]) -> Message {
        Message::parse(bytes).unwrap()
    }

    #[test]
    fn numbers_texts_and_messages_are_read() {
        let message = message(b"\x08\x96\x01\x12\x03abc\xe2\x12\x02\x08\x07");
        assert_eq!(message.u32(A), Ok(Some(150)));
        assert_eq!(message.bytes(B), Ok(Some(&b"abc"[..])));
        assert_eq!(message.message(C).unwrap().unwrap().u64(A), Ok(Some(7)));
        assert_eq!(message.u64(Tag::new(9, "z")), Ok(None));
        assert!(message.has(C) && !message.has(Tag::new(9, "z")));
    }

    #[test]
    fn negative_numbers_are_read_in_both_ways_of_writing_them() {
        let negative = message(b"\x08\xfb\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        assert_eq!(negative.i32(A), Ok(Some(-5)));
        assert_eq!(message(b"\x08\x09").sint32(A), Ok(Some(-5)));
        assert_eq!(message(b"\x08\x0a").sint32(A), Ok(Some(5)));
    }

    #[test]
    fn a_field_that_criu_would_read_in_another_way_is_refused() {
        assert_eq!(message(b"\x08\x01\x08\x02").u32(A), Err(FieldError::Repeated { name: "a" }));
        assert_eq!(message(b"\x0a\x00\x0a\x00").message(A), Err(FieldError::Repeated { name: "a" }));
        assert_eq!(message(b"\x08\x80\x80\x80\x80\x10").u32(A), Err(FieldError::Range { name: "a" }));
        assert_eq!(message(b"\x0d\x01\x00\x00\x00").u32(A), Err(FieldError::Type { name: "a" }));
        assert_eq!(message(b"\x08\x01").bytes(A), Err(FieldError::Type { name: "a" }));
    }

    #[test]
    fn repeated_numbers_are_read_packed_and_not_packed() {
        assert_eq!(message(b"\x08\x01\x10\x05\x08\x02").u32s(A), Ok(vec![1, 2]));
        assert_eq!(message(b"\x0a\x03\x01\x96\x01\x08\x02").u32s(A), Ok(vec![1, 150, 2]));
        assert!(message(b"\x0a\x01\x80").u32s(A).is_err());
    }

    #[test]
    fn a_changed_field_stays_in_its_place_and_the_others_stay_as_they_are() {
        // The last field has a length that is written longer than it need be.
        let mut message = message(b"\x10\x01\x08\x05\x10\x02\x1d\x01\x02\x03\x04\x22\x81\x00x");
        message.set_u64(A, 300);
        assert_eq!(message.as_bytes(), b"\x10\x01\x08\xac\x02\x10\x02\x1d\x01\x02\x03\x04\x22\x81\x00x");
        message.set_bytes(B, b"y");
        assert_eq!(message.as_bytes(), b"\x12\x01y\x08\xac\x02\x1d\x01\x02\x03\x04\x22\x81\x00x");
        message.remove(A);
        message.set_u32s(C, &[1, 2]);
        assert_eq!(message.as_bytes(), b"\x12\x01y\x1d\x01\x02\x03\x04\x22\x81\x00x\xe0\x12\x01\xe0\x12\x02");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(Message::parse(*b"\x08"), Err(MessageError::Truncated { at: 1 }));
        assert_eq!(Message::parse(*b"\x0a\x05abc"), Err(MessageError::Truncated { at: 2 }));
        assert_eq!(Message::parse(*b"\x0d\x01"), Err(MessageError::Truncated { at: 1 }));
        assert_eq!(Message::parse(*b"\x0b"), Err(MessageError::Field { at: 0 }));
        assert_eq!(Message::parse(*b"\x00\x00"), Err(MessageError::Field { at: 0 }));
        assert_eq!(Message::parse([&[8][..], &[0xff; 12]].concat()), Err(MessageError::Number { at: 1 }));
        let huge = b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(Message::parse(*huge), Err(MessageError::Truncated { at: 11 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, value: u64) {
            if let Ok(mut message) = Message::parse(bytes.clone()) {
                prop_assert_eq!(message.as_bytes(), &bytes[..]);
                for tag in [A, B, C] {
                    let _ = (message.u64(tag), message.i32(tag), message.sint32(tag), message.bytes(tag));
                    let _ = (message.message(tag), message.u32s(tag), message.all_bytes(tag));
                }
                message.set_u64(A, value);
                message.set_bytes(C, &bytes);
                prop_assert_eq!(message.u64(A), Ok(Some(value)));
                prop_assert_eq!(message.bytes(C), Ok(Some(&bytes[..])));
                prop_assert!(Message::parse(message.as_bytes()).is_ok());
            }
        }

        #[test]
        fn what_is_set_is_read(numbers: Vec<u32>, texts: Vec<Vec<u8>>) {
            let mut message = Message::default();
            message.set_u32s(A, &numbers);
            message.set_all_bytes(C, texts.iter().map(Vec::as_slice));
            prop_assert_eq!(message.u32s(A), Ok(numbers));
            let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(message.all_bytes(C), Ok(texts));
            prop_assert!(Message::parse(message.as_bytes()).is_ok());
        }
    }
}
