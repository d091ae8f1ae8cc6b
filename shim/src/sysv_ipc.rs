// SPDX-License-Identifier: Apache-2.0
//! System V objects of a pod with several containers. They belong to the sandbox's IPC namespace, so the images of each
//! container hold all of them, and the container that is restored first brings them; CRIU makes each anew and fails
//! where it finds one. So the images of those that follow are made to hold only what is not there yet.
//!
//! ```text
//!  in the namespace already         in this container       then
//!  no                               whatever                CRIU makes it
//!  yes, the same number and key     not attached            the image does without it
//!  yes, attached by nobody          attached                it is removed, and CRIU makes it again, while nobody runs
//!  yes, attached by another         attached                refused: CRIU cannot attach what it has not made
//!  only its number, or its key      whatever                refused
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use criu_rpc::image::{ImagesDir, IpcKind, IpcObject, LoadError, Mm};
use rustix::thread::LinkNameSpaceType;

use crate::container::Container;
use crate::sandbox::within;
use crate::together::{Together, Unstoppable};

/// Why a container's System V objects cannot be brought.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysvError {
    /// An image does not read.
    #[error("its images cannot be read: {0}; the checkpoint is damaged: make it again")]
    Load(#[from] LoadError),
    /// The namespace could not be looked at.
    #[error("cannot look at the System V objects of the pod")]
    Look(#[source] io::Error),
    /// Another container would see it done.
    #[error("another container of the pod would see a segment missing")]
    Seen(#[from] Unstoppable),
    /// They are not all free.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Taken(Vec<Taken>),
}

/// An object that cannot be brought.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Taken {
    /// CRIU attaches only what it has made.
    #[error(
        "System V shared memory segment {id} (key {key:#x}) is attached in another container of the pod, and only one container of a pod can have it attached when it is frozen"
    )]
    Attached {
        /// The kernel's number of it.
        id: u32,
        /// The program's name of it.
        key: u32,
    },
    /// Numbers and keys are unique.
    #[error(
        "System V {what} {id} (key {key:#x}) cannot be made: the pod has another one with this number or key"
    )]
    Other {
        /// What it is.
        what: &'static str,
        /// The kernel's number of it.
        id: u32,
        /// The program's name of it.
        key: u32,
    },
}

/// An object that the namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Existing {
    key: u32,
    id: u32,
    /// How often it is attached; 0 of all that is not shared memory.
    attached: u64,
}

/// What becomes of the objects of one image.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Those that the image does without.
    dropped: BTreeSet<u32>,
    /// Those that are removed from the namespace.
    removed: Vec<u32>,
    /// Those that cannot be had.
    taken: Vec<Taken>,
}

/// Images to be replaced: names and bytes.
type Images = Vec<(String, Vec<u8>)>;

/// The images in `dir` of objects that the IPC namespace has in part already, as they must be. Removes from the namespace
/// what CRIU is to make again; the `others` of the pod must stand until it has.
///
/// # Errors
/// [`SysvError`]; nothing is removed then, except that an object could not be.
pub(crate) fn bring(
    dir: &ImagesDir,
    namespace: &Path,
    others: &[Arc<Container>],
) -> Result<(Images, Option<Together>), SysvError> {
    let names = dir.names()?;
    let mut images = Vec::new();
    for kind in IpcKind::ALL {
        let stem = format!("ipcns-{}-", kind.name());
        if let Some(name) = names.iter().find(|name| name.starts_with(&stem)) {
            images.push((kind, name, dir.ipc_objects(kind, name)?));
        }
    }
    images.retain(|(_, _, image)| !image.objects.is_empty());
    // What a container has brought stays in the pod when it has ended: whether others run says nothing.
    if images.is_empty() {
        return Ok((Vec::new(), None));
    }
    let attached = attached(dir, &names)?;
    let standing = if attached.is_empty() { None } else { Some(Together::freeze(others)?) };
    let existing = existing(namespace).map_err(SysvError::Look)?;
    let (mut rewritten, mut removed, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, name, mut image) in images {
        let there = existing.get(kind.name()).map(Vec::as_slice).unwrap_or_default();
        let verdict = judge(kind, &image.objects, there, &attached);
        removed.extend(verdict.removed);
        taken.extend(verdict.taken);
        image.objects.retain(|object| !verdict.dropped.contains(&object.id));
        rewritten.push((name.clone(), image.to_bytes()));
    }
    if !taken.is_empty() {
        return Err(SysvError::Taken(taken));
    }
    let standing = standing.filter(|_| !removed.is_empty());
    remove(namespace, removed).map_err(SysvError::Look)?;
    Ok((rewritten, standing))
}

fn judge(kind: IpcKind, objects: &[IpcObject], existing: &[Existing], attached: &BTreeSet<u32>) -> Verdict {
    let mut verdict = Verdict::default();
    // `IPC_PRIVATE` is the key of any number of objects.
    let near = |object: &IpcObject, other: &Existing| {
        other.id == object.id || (object.key != 0 && other.key == object.key)
    };
    for object in objects {
        let Some(other) = existing.iter().find(|other| near(object, other)) else { continue };
        let same = (other.id, other.key) == (object.id, object.key);
        let ours = kind == IpcKind::Shm && attached.contains(&object.id);
        match (same, ours, other.attached) {
            (true, false, _) => drop(verdict.dropped.insert(object.id)),
            (true, true, 0) => verdict.removed.push(object.id),
            (true, true, _) => verdict.taken.push(Taken::Attached { id: object.id, key: object.key }),
            (false, _, _) => {
                verdict.taken.push(Taken::Other { what: what(kind), id: object.id, key: object.key });
            }
        }
    }
    verdict
}

fn what(kind: IpcKind) -> &'static str {
    match kind {
        IpcKind::Shm => "shared memory segment",
        IpcKind::Sem => "semaphore set",
        IpcKind::Msg => "message queue",
    }
}

/// The shared memory segments that the processes had attached.
fn attached(dir: &ImagesDir, names: &[String]) -> Result<BTreeSet<u32>, LoadError> {
    let mut attached = BTreeSet::new();
    for name in names.iter().filter(|name| name.starts_with("mm-")) {
        attached.extend(dir.load::<Mm>(name)?.vmas.iter().filter_map(|vma| vma.segment));
    }
    Ok(attached)
}

/// What the namespace has, by [`IpcKind::name`].
fn existing(namespace: &Path) -> io::Result<BTreeMap<&'static str, Vec<Existing>>> {
    within(namespace, LinkNameSpaceType::InterProcessCommunication, || {
        let names = IpcKind::ALL.map(IpcKind::name).into_iter();
        names
            .map(|name| Ok((name, parse(name, &std::fs::read_to_string(format!("/proc/sysvipc/{name}"))?)?)))
            .collect()
    })
}

/// The lines of a file in `/proc/sysvipc` below its first. Source: proc_sysvipc(5): key and number come first, of shared
/// memory the count of attachments is the seventh.
fn parse(name: &str, text: &str) -> io::Result<Vec<Existing>> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let key: i32 = fields.first()?.parse().ok()?;
        let attached = if name == "shm" { fields.get(6)?.parse().ok()? } else { 0 };
        Some(Existing { key: key.cast_unsigned(), id: fields.get(1)?.parse().ok()?, attached })
    };
    let bad = |text: &str| io::Error::other(format!("/proc/sysvipc/{name} has the line {text:?}"));
    text.lines().skip(1).map(|text| line(text).ok_or_else(|| bad(text))).collect()
}

/// Removes shared memory segments from the namespace.
fn remove(namespace: &Path, segments: Vec<u32>) -> io::Result<()> {
    if segments.is_empty() {
        return Ok(());
    }
    within(namespace, LinkNameSpaceType::InterProcessCommunication, move || {
        segments.into_iter().try_for_each(|id| {
            // SAFETY: IPC_RMID reads and writes no memory of ours; the pointer is not used.
            let removed = unsafe { libc::shmctl(id.cast_signed(), libc::IPC_RMID, std::ptr::null_mut()) };
            if removed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHM: &str = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
     31233      32768   600                  8192    12    14      2     0     0     0     0 1700000000 1700000000 1700000000                  4096                     0
-559038737          5  1600                   512    12    14      0     0     0     0     0 1700000000 1700000000 1700000000                     0                     0
";

    #[test]
    fn the_kernels_tables_are_read() {
        let there = parse("shm", SHM).unwrap();
        let existing = |key, id, attached| Existing { key, id, attached };
        assert_eq!(there, [existing(31233, 32768, 2), existing(0xdead_beef, 5, 0)]);
        assert_eq!(parse("sem", "key semid\n 1 2 600 3\n").unwrap(), [existing(1, 2, 0)]);
        assert!(parse("shm", "key shmid\n 1 2 600\n").is_err());
    }

    fn judged(kind: IpcKind, object: (u32, u32), there: (u32, u32, u64), attached: bool) -> Verdict {
        let objects = image(kind, object);
        let existing = [Existing { key: there.0, id: there.1, attached: there.2 }];
        judge(kind, &objects, &existing, &attached.then_some(object.1).into_iter().collect())
    }

    fn image(kind: IpcKind, (key, id): (u32, u32)) -> Vec<IpcObject> {
        // Numbers below 128 are one byte each: desc { key, id }, then size and in_pagemaps, nsems or qnum.
        let (key, id) = (u8::try_from(key).unwrap(), u8::try_from(id).unwrap());
        let (magic, rest): (u32, &[u8]) = match kind {
            IpcKind::Shm => (0x4628_3044, &[0x10, 1, 0x18, 1]),
            IpcKind::Sem => (0x5957_3019, &[0x10, 0]),
            IpcKind::Msg => (0x5545_3737, &[0x18, 0]),
        };
        let entry = [&[0x0a, 4, 0x08, key, 0x38, id], rest].concat();
        let size = u32::try_from(entry.len()).unwrap();
        let bytes = [0x5456_4319, magic, size].map(u32::to_le_bytes).concat();
        criu_rpc::image::IpcObjects::parse(kind, &[bytes, entry].concat()).unwrap().objects
    }

    #[test]
    fn what_another_container_has_brought_is_not_brought_again() {
        for kind in IpcKind::ALL {
            let dropped = Verdict { dropped: BTreeSet::from([9]), ..Verdict::default() };
            assert_eq!(judged(kind, (5, 9), (5, 9, 0), false), dropped, "{kind:?}");
            assert_eq!(judged(kind, (5, 9), (6, 10, 0), false), Verdict::default(), "{kind:?}");
            assert_eq!(judged(kind, (0, 9), (0, 10, 0), false), Verdict::default(), "{kind:?}: private");
        }
    }

    #[test]
    fn an_attached_segment_is_made_again_unless_another_has_attached_it() {
        let removed = Verdict { removed: vec![9], ..Verdict::default() };
        assert_eq!(judged(IpcKind::Shm, (5, 9), (5, 9, 0), true), removed);
        let taken = judged(IpcKind::Shm, (5, 9), (5, 9, 1), true).taken;
        assert_eq!(
            taken[0].to_string(),
            "System V shared memory segment 9 (key 0x5) is attached in another container of the pod, and only one container of a pod can have it attached when it is frozen"
        );
    }

    #[test]
    fn another_object_in_the_same_place_is_named() {
        for there in [(6, 9, 0), (5, 10, 0)] {
            let taken = judged(IpcKind::Sem, (5, 9), there, false).taken;
            assert_eq!(
                taken[0].to_string(),
                "System V semaphore set 9 (key 0x5) cannot be made: the pod has another one with this number or key"
            );
        }
    }
}
