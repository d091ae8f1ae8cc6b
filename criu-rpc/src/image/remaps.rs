// SPDX-License-Identifier: Apache-2.0
//! Open files that have lost their name: `remap-fpath.img`.

use std::collections::BTreeSet;

use super::{
    file::{ImageFile, Kind},
    message::Tag,
    view::{View, ViewError, each, entries},
};

/// A `remap-fpath.img`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remaps {
    /// The numbers of the files that CRIU does not open by their own name.
    pub ids: BTreeSet<u32>,
}

impl View for Remaps {
    const KIND: Kind = Kind::RemapFpath;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        // Source: CRIU 4.2 images/remap-file-path.proto, remap_file_path_entry.
        let id = Tag::new(1, "orig_id");
        let ids = each(&entries(image, Self::KIND)?, |entry| entry.required_u32(id))?;
        Ok(Self { ids: ids.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Message;

    #[test]
    fn the_files_without_a_name_are_listed() {
        let entry = |id: u64| {
            let mut entry = Message::default();
            entry.set_u64(Tag::new(1, "orig_id"), id);
            entry.set_u64(Tag::new(2, "remap_id"), 99);
            entry
        };
        let image = ImageFile::new(Kind::RemapFpath, vec![entry(7), entry(3)]);
        assert_eq!(Remaps::from_image(image).unwrap().ids, BTreeSet::from([3, 7]));
        assert!(Remaps::from_image(ImageFile::new(Kind::RemapFpath, vec![Message::default()])).is_err());
    }
}
