// SPDX-License-Identifier: Apache-2.0
//! The namespaces of a process: `ids-PID.img`, and the same within `core-PID.img` and `inventory.img`.

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, only, only_entry},
};

/// Numbers of namespaces; `mountpoints-N.img`, `utsns-N.img` and so on belong to the namespace N.
///
/// Source: CRIU 4.2 images/core.proto, `task_kobj_ids_entry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // each is the namespace that it is named after
pub struct Ids {
    pub pid_ns: Option<u32>,
    pub net_ns: Option<u32>,
    pub ipc_ns: Option<u32>,
    pub uts_ns: Option<u32>,
    pub mnt_ns: Option<u32>,
    pub user_ns: Option<u32>,
    pub cgroup_ns: Option<u32>,
    pub time_ns: Option<u32>,
}

impl Ids {
    pub(super) fn of(message: &Message) -> Result<Self, FieldError> {
        Ok(Self {
            pid_ns: message.u32(Tag::new(5, "pid_ns_id"))?,
            net_ns: message.u32(Tag::new(6, "net_ns_id"))?,
            ipc_ns: message.u32(Tag::new(7, "ipc_ns_id"))?,
            uts_ns: message.u32(Tag::new(8, "uts_ns_id"))?,
            mnt_ns: message.u32(Tag::new(9, "mnt_ns_id"))?,
            user_ns: message.u32(Tag::new(10, "user_ns_id"))?,
            cgroup_ns: message.u32(Tag::new(11, "cgroup_ns_id"))?,
            time_ns: message.u32(Tag::new(12, "time_ns_id"))?,
        })
    }
}

impl View for Ids {
    const KIND: Kind = Kind::Ids;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        Self::of(&only_entry(image, Self::KIND)?).map_err(only)
    }
}
