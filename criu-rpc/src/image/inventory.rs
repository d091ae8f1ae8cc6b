// SPDX-License-Identifier: Apache-2.0
//! What a checkpoint as a whole is: `inventory.img`.

use super::{
    file::{ImageFile, Kind},
    ids::Ids,
    message::{FieldError, Message, Tag},
    view::{View, ViewError, only, only_entry},
};

// Source of the fields: CRIU 4.2 images/inventory.proto, inventory_entry.
const IMG_VERSION: Tag = Tag::new(1, "img_version");
const ROOT_IDS: Tag = Tag::new(3, "root_ids");
const LSMTYPE: Tag = Tag::new(6, "lsmtype");
const TCP_CLOSE: Tag = Tag::new(10, "tcp_close");
const NETWORK_LOCK_METHOD: Tag = Tag::new(11, "network_lock_method");
const PLUGINS_ENTRY: Tag = Tag::new(12, "plugins_entry");
const PLUGINS: Tag = Tag::new(12, "plugins");

/// The current format, whose files begin with the common magic. Source: magic.h, `CRTOOLS_IMAGES_V1_1`.
const VERSION: u32 = 2;
/// No network lock. Not the number of the RPC. Source: CRIU 4.2 criu/include/cr_options.h,
/// `NETWORK_LOCK_SKIP`.
const SKIP: u64 = 2;

/// The security module of the host that the checkpoint was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lsm {
    /// None.
    None,
    /// SELinux.
    Selinux,
    /// AppArmor.
    Apparmor,
}

/// An `inventory.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    entry: Message,
    root_ids: Option<Ids>,
    lsm: Lsm,
    plugins: Option<Vec<String>>,
}

impl Inventory {
    /// The namespaces of the root process, where they are noted here.
    #[must_use]
    pub fn root_ids(&self) -> Option<Ids> {
        self.root_ids
    }

    /// The security module at the time of the dump.
    #[must_use]
    pub fn lsm(&self) -> Lsm {
        self.lsm
    }

    /// Whether connections were closed at the dump; the restore must close them too.
    #[must_use]
    pub fn tcp_close(&self) -> bool {
        self.entry.bool(TCP_CLOSE).unwrap_or(false)
    }

    /// Whether the restore does without a network lock.
    #[must_use]
    pub fn skips_network_lock(&self) -> bool {
        self.entry.u64(NETWORK_LOCK_METHOD) == Ok(Some(SKIP))
    }

    /// CRIU's plugins that the restore needs; `None` in images of before CRIU 4.1, which cannot tell.
    #[must_use]
    pub fn plugins(&self) -> Option<&[String]> {
        self.plugins.as_deref()
    }

    /// Makes the restore do without a network lock.
    pub fn skip_network_lock(&mut self) {
        self.entry.set_u64(NETWORK_LOCK_METHOD, SKIP);
    }

    /// Takes a plugin out of those that the restore needs; whether it was among them.
    pub fn remove_plugin(&mut self, name: &str) -> bool {
        let Some(plugins) = &mut self.plugins else { return false };
        let before = plugins.len();
        plugins.retain(|plugin| plugin != name);
        let removed = plugins.len() < before;
        if removed {
            let mut entry = Message::default();
            entry.set_all_bytes(PLUGINS, plugins.iter().map(String::as_bytes));
            self.entry.set_bytes(PLUGINS_ENTRY, entry.as_bytes());
        }
        removed
    }

    /// The image with its changes.
    #[must_use]
    pub fn into_image(self) -> ImageFile {
        ImageFile::new(Self::KIND, vec![self.entry])
    }

    fn read(entry: Message) -> Result<Self, FieldError> {
        if entry.required_u32(IMG_VERSION)? != VERSION {
            return Err(IMG_VERSION.out_of_range());
        }
        entry.bool(TCP_CLOSE)?;
        entry.u32(NETWORK_LOCK_METHOD)?;
        let root_ids = entry.message(ROOT_IDS)?.map(|ids| Ids::of(&ids)).transpose()?;
        let lsm = match entry.u32(LSMTYPE)?.unwrap_or(0) {
            0 => Lsm::None,
            1 => Lsm::Selinux,
            2 => Lsm::Apparmor,
            _ => return Err(LSMTYPE.out_of_range()),
        };
        let plugins = entry.message(PLUGINS_ENTRY)?.map(|plugins| plugin_names(&plugins)).transpose()?;
        Ok(Self { entry, root_ids, lsm, plugins })
    }
}

fn plugin_names(entry: &Message) -> Result<Vec<String>, FieldError> {
    let name = |bytes: &&[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| PLUGINS.out_of_range());
    entry.all_bytes(PLUGINS)?.iter().map(name).collect()
}

impl View for Inventory {
    const KIND: Kind = Kind::Inventory;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        Self::read(only_entry(image, Self::KIND)?).map_err(only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(entry: &Message) -> Result<Inventory, ViewError> {
        Inventory::from_image(ImageFile::new(Kind::Inventory, vec![entry.clone()]))
    }

    fn entry() -> Message {
        let mut plugins = Message::default();
        plugins.set_all_bytes(PLUGINS, [&b"cuda_plugin"[..], b"amdgpu_plugin"]);
        let mut entry = Message::default();
        entry.set_u64(IMG_VERSION, 2);
        entry.set_u64(LSMTYPE, 2);
        entry.set_u64(NETWORK_LOCK_METHOD, 0);
        entry.set_bytes(PLUGINS_ENTRY, plugins.as_bytes());
        entry.set_u64(Tag::new(99, "future"), 7);
        entry
    }

    #[test]
    fn the_network_lock_can_be_skipped_and_nothing_else_changes() {
        let mut inventory = inventory(&entry()).unwrap();
        assert!(!inventory.skips_network_lock());
        inventory.skip_network_lock();
        assert!(inventory.skips_network_lock());
        let mut want = entry();
        want.set_u64(NETWORK_LOCK_METHOD, 2);
        assert_eq!(inventory.into_image().entries(), [want]);
    }

    #[test]
    fn a_plugin_can_be_removed() {
        let mut inventory = inventory(&entry()).unwrap();
        assert!(inventory.remove_plugin("cuda_plugin"));
        assert!(!inventory.remove_plugin("cuda_plugin"));
        let again = Inventory::from_image(inventory.into_image()).unwrap();
        assert_eq!(again.plugins().unwrap(), ["amdgpu_plugin"]);
        assert_eq!(again.lsm(), Lsm::Apparmor);
    }

    #[test]
    fn another_format_and_an_unknown_security_module_are_refused() {
        for (tag, value) in [(IMG_VERSION, 1), (IMG_VERSION, 3), (LSMTYPE, 3)] {
            let mut entry = entry();
            entry.set_u64(tag, value);
            assert!(inventory(&entry).is_err(), "{tag:?} {value}");
        }
    }
}
