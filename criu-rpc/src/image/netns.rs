// SPDX-License-Identifier: Apache-2.0
//! A network namespace: `netns-N.img`.

use std::ffi::OsString;

use super::{
    file::{ImageFile, Kind},
    message::Tag,
    view::{View, ViewError, only, only_entry},
};

/// Source: CRIU 4.2 images/netdev.proto, `netns_entry`.
const EXT_KEY: Tag = Tag::new(8, "ext_key");

/// A `netns-N.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    /// The namespace is not part of the checkpoint; one is handed in under this key (`extRootNetNS`).
    pub ext_key: Option<OsString>,
}

impl View for Netns {
    const KIND: Kind = Kind::Netns;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let ext_key = only_entry(image, Self::KIND)?.text(EXT_KEY).map_err(only)?;
        Ok(Self { ext_key })
    }
}
