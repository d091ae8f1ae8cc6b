// SPDX-License-Identifier: Apache-2.0
//! The process tree: `pstree.img`. All ids are those within the pid namespace.

use std::collections::HashSet;

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, each, entries},
};

// Source of the fields: CRIU 4.2 images/pstree.proto, pstree_entry.
const PID: Tag = Tag::new(1, "pid");
const PPID: Tag = Tag::new(2, "ppid");
const PGID: Tag = Tag::new(3, "pgid");
const SID: Tag = Tag::new(4, "sid");
const THREADS: Tag = Tag::new(5, "threads");

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id; `ids-PID.img`, `mm-PID.img` and others are its.
    pub pid: u32,
    /// Its parent; 0 for the root.
    pub ppid: u32,
    /// Its process group.
    pub pgid: u32,
    /// Its session.
    pub sid: u32,
    /// Its threads, itself included; each has a `core-TID.img`.
    pub threads: Vec<u32>,
}

/// A `pstree.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pstree {
    /// All processes, parents before children.
    pub tasks: Vec<Task>,
}

impl View for Pstree {
    const KIND: Kind = Kind::Pstree;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let tasks = each(&entries(image, Self::KIND)?, task)?;
        let mut pids = HashSet::new();
        match tasks.iter().find(|task| !pids.insert(task.pid)) {
            Some(task) => Err(ViewError::Duplicate { name: "pid", id: task.pid }),
            None => Ok(Self { tasks }),
        }
    }
}

fn task(entry: &Message) -> Result<Task, FieldError> {
    Ok(Task {
        pid: entry.required_u32(PID)?,
        ppid: entry.required_u32(PPID)?,
        pgid: entry.required_u32(PGID)?,
        sid: entry.required_u32(SID)?,
        threads: entry.u32s(THREADS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[&[u8]]) -> ImageFile {
        let entries = entries.iter().map(|bytes| Message::parse(*bytes).unwrap()).collect();
        ImageFile::new(Kind::Pstree, entries)
    }

    #[test]
    fn processes_and_their_threads_are_read() {
        let root = b"\x08\x01\x10\x00\x18\x01\x20\x01\x28\x01\x28\x07";
        let tree = Pstree::from_image(image(&[root])).unwrap();
        assert_eq!(tree.tasks, [Task { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: vec![1, 7] }]);
    }

    #[test]
    fn a_process_that_is_there_twice_is_refused() {
        let root = &b"\x08\x01\x10\x00\x18\x01\x20\x01\x28\x01"[..];
        let error = Pstree::from_image(image(&[root, root])).unwrap_err();
        assert_eq!(error, ViewError::Duplicate { name: "pid", id: 1 });
    }

    #[test]
    fn a_missing_field_is_named_with_its_entry() {
        let error = Pstree::from_image(image(&[b"\x08\x01"])).unwrap_err();
        assert_eq!(error, ViewError::Field { entry: 0, source: FieldError::Missing { name: "ppid" } });
    }
}
