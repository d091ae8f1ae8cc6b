// SPDX-License-Identifier: Apache-2.0
//! The System V objects of an IPC namespace: `ipcns-shm-N.img`, `ipcns-sem-N.img`, `ipcns-msg-N.img`.
//!
//! Not an [`ImageFile`](super::ImageFile): what semaphores count and what queues hold lies between the entries.
//!
//! Source: CRIU 4.2 criu/ipc_ns.c.

use thiserror::Error;

use super::{
    file::{COMMON, number, split_entry},
    message::{FieldError, Message, Tag},
    wire::MessageError,
};

// Source of the fields: CRIU 4.2 images/ipc-desc.proto, ipc-shm.proto, ipc-sem.proto, ipc-msg.proto.
const DESC: Tag = Tag::new(1, "desc");
const KEY: Tag = Tag::new(1, "desc.key");
const ID: Tag = Tag::new(7, "desc.id");
const SHM_SIZE: Tag = Tag::new(2, "size");
const SHM_IN_PAGEMAPS: Tag = Tag::new(3, "in_pagemaps");
const NSEMS: Tag = Tag::new(2, "nsems");
const QNUM: Tag = Tag::new(3, "qnum");
const MSIZE: Tag = Tag::new(2, "msize");

/// What an IPC namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpcKind {
    /// Shared memory segments.
    Shm,
    /// Sets of semaphores.
    Sem,
    /// Message queues.
    Msg,
}

impl IpcKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Shm, Self::Sem, Self::Msg];

    /// CRIU's name, and that of the file in `/proc/sysvipc`: `shm`, `sem`, `msg`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Sem => "sem",
            Self::Msg => "msg",
        }
    }

    /// Source: CRIU 4.2 criu/include/magic.h.
    fn magic(self) -> u32 {
        match self {
            Self::Shm => 0x4628_3044,
            Self::Sem => 0x5957_3019,
            Self::Msg => 0x5545_3737,
        }
    }
}

/// Why bytes are no image of System V objects.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IpcError {
    /// It begins with another magic number.
    #[error("it is no image of System V objects")]
    Header,
    /// It ends too early.
    #[error("it is cut off in object {object}")]
    Truncated {
        /// Which one, from 0.
        object: usize,
    },
    /// An entry is no message.
    #[error("object {object} is damaged")]
    Damaged {
        /// Which one, from 0.
        object: usize,
        /// Why.
        #[source]
        source: MessageError,
    },
    /// A field of an entry is not what it should be.
    #[error("object {object} is not usable")]
    Field {
        /// Which one, from 0.
        object: usize,
        /// Why.
        #[source]
        source: FieldError,
    },
}

/// A System V object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcObject {
    /// `IPC_PRIVATE` is 0.
    pub key: u32,
    /// The kernel's number of it.
    pub id: u32,
    /// Its entry and what follows that.
    bytes: Vec<u8>,
}

/// An image of System V objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpcObjects {
    kind: IpcKind,
    /// The objects, as they follow each other.
    pub objects: Vec<IpcObject>,
}

impl IpcObjects {
    /// The image of `kind` that `bytes` are.
    ///
    /// # Errors
    /// [`IpcError`] when they are none.
    pub fn parse(kind: IpcKind, bytes: &[u8]) -> Result<Self, IpcError> {
        let header = number(bytes).and_then(|(first, rest)| Some((first, number(rest)?)));
        let Some((COMMON, (magic, mut rest))) = header else { return Err(IpcError::Header) };
        if magic != kind.magic() {
            return Err(IpcError::Header);
        }
        let mut objects = Vec::new();
        while !rest.is_empty() {
            let (object, after) = parse_object(kind, rest, objects.len())?;
            objects.push(object);
            rest = after;
        }
        Ok(Self { kind, objects })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [COMMON.to_le_bytes(), self.kind.magic().to_le_bytes()].concat();
        self.objects.iter().for_each(|object| bytes.extend_from_slice(&object.bytes));
        bytes
    }
}

/// The first object of `bytes`, the `number`th of its file, and what comes after it.
fn parse_object(kind: IpcKind, bytes: &[u8], number: usize) -> Result<(IpcObject, &[u8]), IpcError> {
    let truncated = IpcError::Truncated { object: number };
    let field = |source| IpcError::Field { object: number, source };
    let (entry, after) = entry(bytes, number)?;
    let desc = entry.required_message(DESC).map_err(field)?;
    let raw = match kind {
        // Older CRIUs wrote the content here.
        IpcKind::Shm if entry.bool(SHM_IN_PAGEMAPS).map_err(field)? => Some(0),
        IpcKind::Shm => padded(entry.required_u64(SHM_SIZE).map_err(field)?, 4),
        IpcKind::Sem => padded(2 * u64::from(entry.required_u32(NSEMS).map_err(field)?), 8),
        IpcKind::Msg => messages(after, entry.required_u32(QNUM).map_err(field)?, number)?,
    };
    let rest = raw.and_then(|raw| after.get(raw..)).ok_or(truncated)?;
    let object = IpcObject {
        key: desc.required_u32(KEY).map_err(field)?,
        id: desc.required_u32(ID).map_err(field)?,
        bytes: bytes.get(..bytes.len() - rest.len()).unwrap_or_default().to_vec(),
    };
    Ok((object, rest))
}

/// How many bytes the `count` messages of a queue have that `bytes` begin with, or `None` where they are cut off.
fn messages(bytes: &[u8], count: u32, number: usize) -> Result<Option<usize>, IpcError> {
    let mut rest = bytes;
    for _ in 0..count {
        let (message, after) = entry(rest, number)?;
        let size =
            message.required_u32(MSIZE).map_err(|source| IpcError::Field { object: number, source })?;
        let Some(after) = padded(u64::from(size), 8).and_then(|size| after.get(size..)) else {
            return Ok(None);
        };
        rest = after;
    }
    Ok(Some(bytes.len() - rest.len()))
}

fn entry(bytes: &[u8], object: usize) -> Result<(Message, &[u8]), IpcError> {
    let (entry, after) = split_entry(bytes).ok_or(IpcError::Truncated { object })?;
    let entry = Message::parse(entry).map_err(|source| IpcError::Damaged { object, source })?;
    Ok((entry, after))
}

/// CRIU rounds what lies between entries up.
fn padded(size: u64, to: u64) -> Option<usize> {
    usize::try_from(size.checked_next_multiple_of(to)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: u64, fields: &[(Tag, u64)]) -> Vec<u8> {
        let mut desc = Message::default();
        desc.set_u64(KEY, 7);
        desc.set_u64(ID, id);
        let mut entry = Message::default();
        entry.set_bytes(DESC, desc.as_bytes());
        fields.iter().for_each(|(tag, value)| entry.set_u64(*tag, *value));
        sized(&entry)
    }

    fn sized(entry: &Message) -> Vec<u8> {
        [&u32::try_from(entry.as_bytes().len()).unwrap().to_le_bytes(), entry.as_bytes()].concat()
    }

    fn message(text: &[u8]) -> Vec<u8> {
        let mut message = Message::default();
        message.set_u64(Tag::new(1, "mtype"), 1);
        message.set_u64(MSIZE, u64::try_from(text.len()).unwrap());
        let mut bytes = sized(&message);
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len() + text.len().next_multiple_of(8) - text.len(), 0);
        bytes
    }

    fn image(kind: IpcKind, objects: &[Vec<u8>]) -> Vec<u8> {
        let header = [COMMON.to_le_bytes(), kind.magic().to_le_bytes()].concat();
        [header, objects.concat()].concat()
    }

    fn examples() -> [(IpcKind, Vec<u8>); 3] {
        let queue =
            [entry(2, &[(Tag::new(2, "qbytes"), 99), (QNUM, 2)]), message(b"abc"), message(b"12345678")];
        let shm = [entry(1, &[(SHM_SIZE, 9), (SHM_IN_PAGEMAPS, 1)]), entry(2, &[(SHM_SIZE, 5)]), vec![1; 8]];
        let sem = [entry(1, &[(NSEMS, 5)]), vec![3; 16], entry(2, &[(NSEMS, 0)])];
        [
            (IpcKind::Shm, image(IpcKind::Shm, &shm)),
            (IpcKind::Sem, image(IpcKind::Sem, &sem)),
            (IpcKind::Msg, image(IpcKind::Msg, &[entry(1, &[(QNUM, 0)]), queue.concat()])),
        ]
    }

    #[test]
    fn objects_are_read_and_written_back() {
        for (kind, bytes) in examples() {
            let mut image = IpcObjects::parse(kind, &bytes).unwrap();
            assert_eq!(
                image.objects.iter().map(|object| (object.key, object.id)).collect::<Vec<_>>(),
                [(7, 1), (7, 2)]
            );
            assert_eq!(image.to_bytes(), bytes, "{kind:?}");
            image.objects.remove(0);
            let shorter = image.to_bytes();
            assert!(shorter.len() < bytes.len() && bytes.ends_with(&shorter[8..]), "{kind:?}");
            assert_eq!(IpcObjects::parse(kind, &shorter), Ok(image), "{kind:?}");
        }
    }

    #[test]
    fn an_image_that_is_cut_off_is_refused_or_shorter_by_whole_objects() {
        for (kind, bytes) in examples() {
            let first = IpcObjects::parse(kind, &bytes).unwrap().objects[0].bytes.len();
            for length in 0..bytes.len() {
                let whole = [8, 8 + first].contains(&length);
                assert_eq!(IpcObjects::parse(kind, &bytes[..length]).is_ok(), whole, "{kind:?} {length}");
            }
        }
    }

    #[test]
    fn an_image_of_another_kind_is_refused() {
        let [(_, bytes), ..] = examples();
        assert_eq!(IpcObjects::parse(IpcKind::Sem, &bytes), Err(IpcError::Header));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in prop::sample::select(&IpcKind::ALL[..])) {
            let mut whole = image(kind, &[]);
            whole.extend_from_slice(&bytes);
            let _ = IpcObjects::parse(kind, &whole);
            let _ = IpcObjects::parse(kind, &bytes);
        }
    }
}
