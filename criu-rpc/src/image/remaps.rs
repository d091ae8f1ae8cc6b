// SPDX-License-Identifier: Apache-2.0
//! Open files that have lost their name: `remap-fpath.img`.

use std::collections::BTreeSet;

use super::{
    file::{ImageFile, Kind},
    message::{Message, Tag},
    view::{View, ViewError, each, entries},
};

/// A `remap-fpath.img`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remaps {
    /// The numbers of the files that CRIU does not open by their own name.
    pub ids: BTreeSet<u32>,
    /// Those of them that had other names left: CRIU gives such a file a name for the time of the dump and looks for it
    /// at the restore.
    pub linked: BTreeSet<u32>,
}

/// `remap_type.LINKED`. Source: CRIU 4.2 images/remap-file-path.proto.
const LINKED: u32 = 0;

impl View for Remaps {
    const KIND: Kind = Kind::RemapFpath;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        // Source: CRIU 4.2 images/remap-file-path.proto, remap_file_path_entry.
        let (id, kind) = (Tag::new(1, "orig_id"), Tag::new(3, "remap_type"));
        let of = |entry: &Message| Ok((entry.required_u32(id)?, entry.u32(kind)? == Some(LINKED)));
        let all = each(&entries(image, Self::KIND)?, of)?;
        let linked = all.iter().filter(|(_, linked)| *linked).map(|(id, _)| *id).collect();
        Ok(Self { ids: all.into_iter().map(|(id, _)| id).collect(), linked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_without_a_name_are_listed() {
        let entry = |id: u64, kind: u64| {
            let mut entry = Message::default();
            entry.set_u64(Tag::new(1, "orig_id"), id);
            entry.set_u64(Tag::new(2, "remap_id"), 99);
            entry.set_u64(Tag::new(3, "remap_type"), kind);
            entry
        };
        let image = ImageFile::new(Kind::RemapFpath, vec![entry(7, 0), entry(3, 1)]);
        let remaps = Remaps::from_image(image).unwrap();
        assert_eq!((remaps.ids, remaps.linked), (BTreeSet::from([3, 7]), BTreeSet::from([7])));
        assert!(Remaps::from_image(ImageFile::new(Kind::RemapFpath, vec![Message::default()])).is_err());
    }
}
