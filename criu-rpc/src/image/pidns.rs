// SPDX-License-Identifier: Apache-2.0
//! A pid namespace: `pidns-N.img`.

use std::ffi::OsString;

use super::{
    file::{ImageFile, Kind},
    message::Tag,
    view::{View, ViewError, only, only_entry},
};

/// Source: CRIU 4.2 images/pidns.proto, `pidns_entry`.
const EXT_KEY: Tag = Tag::new(1, "ext_key");

/// A `pidns-N.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pidns {
    /// The namespace is not part of the checkpoint; one is handed in under this key (`extRootPidNS`).
    pub ext_key: Option<OsString>,
}

impl View for Pidns {
    const KIND: Kind = Kind::Pidns;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let ext_key = only_entry(image, Self::KIND)?.text(EXT_KEY).map_err(only)?;
        Ok(Self { ext_key })
    }
}
