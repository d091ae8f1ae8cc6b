// SPDX-License-Identifier: Apache-2.0
//! CRIU's image files: reading, editing, and the bytes to write back.
//!
//! Three layers: [`ImagesDir`] opens files, [`ImageFile`] and [`Message`] are their format without its
//! meaning, and each [`View`] is the meaning of one kind. An edit changes the fields that it names;
//! all others, known or not, keep their bytes and their order.
//!
//! Everything here may come from an enemy. Sizes are bounded, nothing panics, and a file that CRIU
//! could read in another way is refused: a field given twice, a number that CRIU would cut off, a text
//! with a zero byte, a field of an older format that CRIU prefers to the current one.

mod core;
mod dir;
mod file;
mod files;
mod ids;
mod inet_socket;
mod inventory;
mod ipcns;
mod message;
mod mm;
mod mountpoints;
mod netns;
mod packet_socket;
mod pagemap;
mod pidns;
mod pstree;
mod remaps;
mod seccomp;
mod timens;
mod timerfd;
mod utsns;
mod view;
mod wire;

pub use self::{
    core::{Core, Creds},
    dir::{ImagesDir, LoadError},
    file::{FormatError, ImageFile, Kind},
    files::{Files, RegFile, RewriteError},
    ids::Ids,
    inet_socket::InetSocket,
    inventory::{Inventory, Lsm},
    ipcns::{IpcError, IpcKind, IpcObject, IpcObjects},
    message::{FieldError, Message, Tag},
    mm::{Mm, Vma},
    mountpoints::{AddMountError, Mount, Mountpoints},
    netns::Netns,
    packet_socket::PacketSocket,
    pagemap::{PAGE, PageRun, Pagemap},
    pidns::Pidns,
    pstree::{Pstree, Task},
    remaps::Remaps,
    seccomp::Seccomp,
    timens::Timens,
    utsns::Utsns,
    view::{View, ViewError},
    wire::MessageError,
};

#[cfg(test)]
mod tests;
