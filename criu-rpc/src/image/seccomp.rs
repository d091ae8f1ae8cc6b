// SPDX-License-Identifier: Apache-2.0
//! Seccomp filters: `seccomp.img`.

use super::{
    file::{ImageFile, Kind},
    message::Tag,
    view::{View, ViewError, only, only_entry},
};

/// Source: CRIU 4.2 images/seccomp.proto, `seccomp_entry`.
const SECCOMP_FILTERS: Tag = Tag::new(1, "seccomp_filters");

/// A `seccomp.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seccomp {
    /// How many filters there are.
    pub filters: usize,
}

impl View for Seccomp {
    const KIND: Kind = Kind::Seccomp;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let entry = only_entry(image, Self::KIND)?;
        let filters = entry.all_bytes(SECCOMP_FILTERS).map_err(only)?.len();
        Ok(Self { filters })
    }
}
