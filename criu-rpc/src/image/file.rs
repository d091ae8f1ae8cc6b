// SPDX-License-Identifier: Apache-2.0
//! An image file: a header that tells its kind, then entries, each a protobuf message with its size.
//!
//! Only kinds whose files consist of nothing else are known here: others (pipe data, TCP streams, ghost
//! files) have raw data between the entries, or no header at all.
//!
//! Source: CRIU 4.2 criu/protobuf.c, criu/image.c, criu/include/magic.h.

use std::fmt;

use thiserror::Error;

use super::{message::Message, wire::MessageError};

/// Begins every image file of the current format, except the inventory. Source: magic.h, `IMG_COMMON_MAGIC`.
pub(super) const COMMON: u32 = 0x5456_4319;
/// Begins files that are not part of a checkpoint proper. Source: magic.h, `IMG_SERVICE_MAGIC`.
const SERVICE: u32 = 0x5510_5940;
/// Entries that a file may have: far more than a process tree has descriptors.
const ENTRIES: usize = 1 << 20;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $magic:literal, $name:literal;)*) => {
        /// What an image file holds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            fn magic(self) -> u32 {
                match self { $(Self::$kind => $magic,)* }
            }

            fn of(magic: u32) -> Option<Self> {
                match magic { $($magic => Some(Self::$kind),)* _ => None }
            }

            /// CRIU's name: `inventory`, `core`, ...
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$kind,)*];
        }
    };
}

kinds! {
    /// What the checkpoint as a whole is.
    Inventory = 0x5831_3116, "inventory";
    /// The process tree.
    Pstree = 0x5027_3030, "pstree";
    /// A thread.
    Core = 0x5505_3847, "core";
    /// The namespaces of a process.
    Ids = 0x5443_2030, "ids";
    /// The address space of a process.
    Mm = 0x5749_2820, "mm";
    /// Which pages are where in a pages file.
    Pagemap = 0x5608_4025, "pagemap";
    /// All open files.
    Files = 0x5630_3138, "files";
    /// The descriptors of a process.
    Fdinfo = 0x5621_3732, "fdinfo";
    /// Current directory, root, umask of a process.
    Fs = 0x5140_3912, "fs";
    /// The mounts of a mount namespace.
    Mountpoints = 0x5556_3928, "mountpoints";
    /// A UTS namespace.
    Utsns = 0x5447_3203, "utsns";
    /// The sysctls of an IPC namespace.
    IpcnsVar = 0x5311_5007, "ipcns-var";
    /// A network namespace.
    Netns = 0x5593_3752, "netns";
    /// A pid namespace.
    Pidns = 0x6115_7326, "pidns";
    /// A user namespace.
    Userns = 0x5547_4906, "userns";
    /// A time namespace.
    Timens = 0x4311_4433, "timens";
    /// Cgroups.
    Cgroup = 0x5938_3330, "cgroup";
    /// Seccomp filters.
    Seccomp = 0x6441_3049, "seccomp";
    /// What is mounted over or deleted under an open file.
    RemapFpath = 0x5913_3954, "remap-fpath";
    /// What CRIU took time for.
    Stats = 0x5709_3306, "stats";
}

impl Kind {
    /// The magic number before the kind's own.
    fn preamble(self) -> Option<u32> {
        match self {
            Self::Inventory => None,
            Self::Stats => Some(SERVICE),
            Self::Pstree
            | Self::Core
            | Self::Ids
            | Self::Mm
            | Self::Pagemap
            | Self::Files
            | Self::Fdinfo
            | Self::Fs
            | Self::Mountpoints
            | Self::Utsns
            | Self::IpcnsVar
            | Self::Netns
            | Self::Pidns
            | Self::Userns
            | Self::Timens
            | Self::Cgroup
            | Self::Seccomp
            | Self::RemapFpath => Some(COMMON),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes are not an image file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The header is incomplete.
    #[error("it is cut off in its header")]
    Header,
    /// The header is none of a known kind.
    #[error("it begins with {first:#010x} {second:#010x}, which is no image of a known kind")]
    Kind {
        /// The first four bytes.
        first: u32,
        /// The next four bytes.
        second: u32,
    },
    /// An entry is incomplete.
    #[error("it is cut off in entry {entry}")]
    Truncated {
        /// The entry, from 0.
        entry: usize,
    },
    /// An entry is no message.
    #[error("entry {entry} is damaged")]
    Entry {
        /// The entry, from 0.
        entry: usize,
        /// Why.
        #[source]
        source: MessageError,
    },
    /// There are more entries than any checkpoint has.
    #[error("it has more than {limit} entries")]
    TooMany {
        /// The most that are read.
        limit: usize,
    },
}

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    kind: Kind,
    entries: Vec<Message>,
}

impl ImageFile {
    /// A file of these entries.
    #[must_use]
    pub fn new(kind: Kind, entries: Vec<Message>) -> Self {
        Self { kind, entries }
    }

    /// The file that `bytes` are.
    ///
    /// # Errors
    /// [`FormatError`] when they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let (first, rest) = number(bytes).ok_or(FormatError::Header)?;
        let (kind, mut rest) = if first == Kind::Inventory.magic() {
            (Kind::Inventory, rest)
        } else {
            let (second, rest) = number(rest).ok_or(FormatError::Header)?;
            let kind = Kind::of(second).filter(|kind| kind.preamble() == Some(first));
            (kind.ok_or(FormatError::Kind { first, second })?, rest)
        };
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let entry = entries.len();
            if entry == ENTRIES {
                return Err(FormatError::TooMany { limit: ENTRIES });
            }
            let (message, after) = split_entry(rest).ok_or(FormatError::Truncated { entry })?;
            entries.push(Message::parse(message).map_err(|source| FormatError::Entry { entry, source })?);
            rest = after;
        }
        Ok(Self { kind, entries })
    }

    /// What it holds.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[Message] {
        &self.entries
    }

    /// Its entries, to be changed.
    pub fn entries_mut(&mut self) -> &mut Vec<Message> {
        &mut self.entries
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for magic in self.kind.preamble().into_iter().chain([self.kind.magic()]) {
            bytes.extend_from_slice(&magic.to_le_bytes());
        }
        for entry in &self.entries {
            // An entry of 4 GiB cannot come from a file and is not made by an edit.
            let size = u32::try_from(entry.as_bytes().len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&size.to_le_bytes());
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes
    }
}

/// The number that `bytes` begin with, and what follows it.
pub(super) fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

/// The entry that `bytes` begin with, and what follows it.
pub(super) fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = number(bytes)?;
    rest.split_at_checked(usize::try_from(size).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_kind_is_written_and_read_back() {
        for kind in Kind::ALL {
            let entries = vec![Message::parse(*b"\x08\x01").unwrap(), Message::default()];
            let file = ImageFile::new(*kind, entries);
            assert_eq!(ImageFile::parse(&file.to_bytes()), Ok(file), "{kind}");
        }
    }

    #[test]
    fn headers_are_those_of_criu() {
        let bytes = |kind| ImageFile::new(kind, Vec::new()).to_bytes();
        assert_eq!(bytes(Kind::Inventory), [0x16, 0x31, 0x31, 0x58]);
        assert_eq!(bytes(Kind::Core), [0x19, 0x43, 0x56, 0x54, 0x47, 0x38, 0x05, 0x55]);
        assert_eq!(bytes(Kind::Stats), [0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57]);
    }

    #[test]
    fn a_file_without_the_common_magic_is_refused() {
        let core = 0x5505_3847_u32.to_le_bytes();
        let error = ImageFile::parse(&[core, [2, 0, 0, 0], [8, 1, 0, 0]].concat()).unwrap_err();
        assert!(matches!(error, FormatError::Kind { first: 0x5505_3847, .. }));
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_inside_is_refused_or_shorter_by_whole_entries() {
        let entry = Message::parse(*b"\x08\x01\x12\x03abc").unwrap();
        let bytes = ImageFile::new(Kind::Files, vec![entry.clone(), entry]).to_bytes();
        for length in 0..bytes.len() {
            let whole = [8, 8 + 4 + 7].contains(&length);
            assert_eq!(ImageFile::parse(&bytes[..length]).is_ok(), whole, "{length}");
        }
    }

    #[test]
    fn an_entry_that_is_no_message_is_named() {
        let mut bytes = ImageFile::new(Kind::Files, vec![Message::parse(*b"\x08\x01").unwrap()]).to_bytes();
        bytes.extend_from_slice(&[1, 0, 0, 0, 0x0b]);
        let error = ImageFile::parse(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "entry 1 is damaged");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in prop::sample::select(Kind::ALL)) {
            let _ = ImageFile::parse(&bytes);
            let mut file = ImageFile::new(kind, Vec::new()).to_bytes();
            file.extend_from_slice(&bytes);
            if let Ok(parsed) = ImageFile::parse(&file) {
                prop_assert_eq!(parsed.to_bytes(), file);
            }
        }
    }
}
