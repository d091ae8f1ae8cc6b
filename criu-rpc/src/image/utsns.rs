// SPDX-License-Identifier: Apache-2.0
//! A UTS namespace: `utsns-N.img`. CRIU writes these names into the namespace also when it joins one.

use std::ffi::OsString;

use super::{
    file::{ImageFile, Kind},
    message::{Message, Tag},
    view::{View, ViewError, only, only_entry},
};

// Source of the fields: CRIU 4.2 images/utsns.proto, utsns_entry.
const NODENAME: Tag = Tag::new(1, "nodename");
const DOMAINNAME: Tag = Tag::new(2, "domainname");

/// A `utsns-N.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utsns {
    entry: Message,
    nodename: OsString,
    domainname: OsString,
}

impl Utsns {
    /// The host name.
    #[must_use]
    pub fn nodename(&self) -> &OsString {
        &self.nodename
    }

    /// The NIS domain name.
    #[must_use]
    pub fn domainname(&self) -> &OsString {
        &self.domainname
    }

    /// Changes the host name.
    pub fn set_nodename(&mut self, name: &str) {
        self.entry.set_bytes(NODENAME, name.as_bytes());
        self.nodename = name.into();
    }

    /// Changes the NIS domain name.
    pub fn set_domainname(&mut self, name: &str) {
        self.entry.set_bytes(DOMAINNAME, name.as_bytes());
        self.domainname = name.into();
    }

    /// The image with its changes.
    #[must_use]
    pub fn into_image(self) -> ImageFile {
        ImageFile::new(Self::KIND, vec![self.entry])
    }
}

impl View for Utsns {
    const KIND: Kind = Kind::Utsns;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let entry = only_entry(image, Self::KIND)?;
        let nodename = entry.required_text(NODENAME).map_err(only)?;
        let domainname = entry.required_text(DOMAINNAME).map_err(only)?;
        Ok(Self { entry, nodename, domainname })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_changed_in_place() {
        let entry = Message::parse(*b"\x0a\x03old\x12\x06(none)").unwrap();
        let mut utsns = Utsns::from_image(ImageFile::new(Kind::Utsns, vec![entry])).unwrap();
        assert_eq!((utsns.nodename(), utsns.domainname()), (&"old".into(), &"(none)".into()));
        utsns.set_nodename("pod-new");
        utsns.set_domainname("d");
        assert_eq!(utsns.nodename(), "pod-new");
        assert_eq!(utsns.into_image().entries()[0].as_bytes(), b"\x0a\x07pod-new\x12\x01d");
    }

    #[test]
    fn a_name_with_a_zero_byte_is_refused() {
        let entry = Message::parse(*b"\x0a\x03a\0b\x12\x00").unwrap();
        assert!(Utsns::from_image(ImageFile::new(Kind::Utsns, vec![entry])).is_err());
    }
}
