// SPDX-License-Identifier: Apache-2.0
//! What all typed views of images have in common.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use thiserror::Error;

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
};

/// An image file as what it means. Everything that the view offers has been checked when it is made.
pub trait View: Sized {
    /// The images that it is a view of.
    const KIND: Kind;

    /// The view of an image.
    ///
    /// # Errors
    /// [`ViewError`] when the image is of another kind, or its fields are not what CRIU writes.
    fn from_image(image: ImageFile) -> Result<Self, ViewError>;
}

/// Why an image is not usable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ViewError {
    /// It is of another kind.
    #[error("it is a {found} image, not a {wanted} image")]
    Kind {
        /// What it should be.
        wanted: Kind,
        /// What it is.
        found: Kind,
    },
    /// It must have exactly one entry.
    #[error("it has {count} entries instead of one")]
    Count {
        /// How many it has.
        count: usize,
    },
    /// A field of an entry is not what it should be.
    #[error("entry {entry} is not usable")]
    Field {
        /// The entry, from 0.
        entry: usize,
        /// Why.
        #[source]
        source: FieldError,
    },
    /// Two entries have a number that only one can have.
    #[error("there are two entries with {name} {id}")]
    Duplicate {
        /// What the number is.
        name: &'static str,
        /// The number.
        id: u32,
    },
}

/// The entries of an image of the wanted kind.
pub(super) fn entries(mut image: ImageFile, wanted: Kind) -> Result<Vec<Message>, ViewError> {
    let found = image.kind();
    if found == wanted {
        Ok(std::mem::take(image.entries_mut()))
    } else {
        Err(ViewError::Kind { wanted, found })
    }
}

/// The entry of an image of the wanted kind, which has one.
pub(super) fn only_entry(image: ImageFile, wanted: Kind) -> Result<Message, ViewError> {
    let mut entries = entries(image, wanted)?;
    let count = entries.len();
    entries.pop().filter(|_| count == 1).ok_or(ViewError::Count { count })
}

/// What `read` finds in each of the entries.
pub(super) fn each<T>(
    entries: &[Message],
    read: impl Fn(&Message) -> Result<T, FieldError>,
) -> Result<Vec<T>, ViewError> {
    let at = |(entry, message)| read(message).map_err(|source| ViewError::Field { entry, source });
    entries.iter().enumerate().map(at).collect()
}

/// The error of the only entry.
pub(super) fn only(source: FieldError) -> ViewError {
    ViewError::Field { entry: 0, source }
}

impl Message {
    pub(super) fn required_u32(&self, tag: Tag) -> Result<u32, FieldError> {
        self.u32(tag)?.ok_or_else(|| tag.missing())
    }

    pub(super) fn required_u64(&self, tag: Tag) -> Result<u64, FieldError> {
        self.u64(tag)?.ok_or_else(|| tag.missing())
    }

    pub(super) fn required_message(&self, tag: Tag) -> Result<Message, FieldError> {
        self.message(tag)?.ok_or_else(|| tag.missing())
    }

    /// A text as CRIU reads it: a string of C, without a zero byte.
    pub(super) fn text(&self, tag: Tag) -> Result<Option<OsString>, FieldError> {
        match self.bytes(tag)? {
            Some(bytes) if bytes.contains(&0) => Err(tag.out_of_range()),
            bytes => Ok(bytes.map(|bytes| OsString::from_vec(bytes.to_vec()))),
        }
    }

    pub(super) fn required_text(&self, tag: Tag) -> Result<OsString, FieldError> {
        self.text(tag)?.ok_or_else(|| tag.missing())
    }

    pub(super) fn required_path(&self, tag: Tag) -> Result<PathBuf, FieldError> {
        self.required_text(tag).map(PathBuf::from)
    }
}
