// SPDX-License-Identifier: Apache-2.0
//! Seccomp filters: `seccomp.img`.

use super::{
    core::Core,
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, only, only_entry},
};

// Source of the fields: CRIU 4.2 images/seccomp.proto, seccomp_entry and seccomp_filter.
const SECCOMP_FILTERS: Tag = Tag::new(1, "seccomp_filters");
const PREV: Tag = Tag::new(2, "prev");
const FLAGS: Tag = Tag::new(3, "flags");

/// The filter is put on all threads of the process. Source: linux/seccomp.h, `SECCOMP_FILTER_FLAG_TSYNC`.
const TSYNC: u32 = 1;
/// Source: linux/seccomp.h, `SECCOMP_MODE_FILTER`.
const MODE_FILTER: u32 = 2;

/// A `seccomp.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seccomp {
    /// How many filters there are.
    pub filters: usize,
    chain: Vec<Filter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Filter {
    /// The filter that is put on after this one.
    prev: Option<u32>,
    flags: u32,
}

impl Seccomp {
    /// Whether a thread of the process whose main thread is `main` will be under seccomp.
    ///
    /// Where all threads have the same filters, CRIU notes them with the main thread only, and marks them
    /// as those of all threads. Source: CRIU 4.2 criu/seccomp.c, `try_use_tsync`.
    #[must_use]
    pub fn confines(&self, main: &Core, thread: &Core) -> bool {
        thread.seccomp_mode != 0
            || main.seccomp_mode == MODE_FILTER && self.is_of_all_threads(main.seccomp_filter)
    }

    /// Whether one of the filters from `first` on is put on all threads.
    fn is_of_all_threads(&self, first: u32) -> bool {
        let filter = |index: u32| self.chain.get(usize::try_from(index).ok()?).copied();
        let chain = std::iter::successors(filter(first), |last| last.prev.and_then(filter));
        // A chain longer than there are filters runs in a circle.
        chain.take(self.filters).any(|filter| filter.flags & TSYNC != 0)
    }
}

impl View for Seccomp {
    const KIND: Kind = Kind::Seccomp;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let chain = filters(&only_entry(image, Self::KIND)?).map_err(only)?;
        Ok(Self { filters: chain.len(), chain })
    }
}

fn filters(entry: &Message) -> Result<Vec<Filter>, FieldError> {
    let filter = |bytes: &&[u8]| {
        let filter = Message::parse(*bytes).map_err(|source| SECCOMP_FILTERS.no_message(source))?;
        Ok(Filter { prev: filter.u32(PREV)?, flags: filter.u32(FLAGS)?.unwrap_or(0) })
    };
    entry.all_bytes(SECCOMP_FILTERS)?.iter().map(filter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seccomp(filters: &[&[u8]]) -> Seccomp {
        let mut entry = Message::default();
        entry.set_all_bytes(SECCOMP_FILTERS, filters.iter().copied());
        Seccomp::from_image(ImageFile::new(Kind::Seccomp, vec![entry])).unwrap()
    }

    fn core(seccomp_mode: u32, seccomp_filter: u32) -> Core {
        Core { comm: "x".into(), creds: None, seccomp_mode, seccomp_filter, oom_score_adj: None, ids: None }
    }

    #[test]
    fn a_thread_is_confined_by_its_own_filter_or_by_one_of_all_threads() {
        // 0 is of all threads; 1 leads to 0; 2 is of its thread only.
        let seccomp = seccomp(&[b"\x0a\x00\x18\x01", b"\x0a\x00\x10\x00\x18\x00", b"\x0a\x00\x18\x02"]);
        let bare = core(0, 0);
        assert!(seccomp.confines(&bare, &core(2, 2)));
        assert!(seccomp.confines(&core(2, 0), &bare));
        assert!(seccomp.confines(&core(2, 1), &bare));
        assert!(!seccomp.confines(&core(2, 2), &bare));
        assert!(!seccomp.confines(&core(2, 9), &bare));
        assert!(!seccomp.confines(&core(1, 0), &bare));
        assert!(!seccomp.confines(&bare, &bare));
    }

    #[test]
    fn filters_in_a_circle_come_to_an_end() {
        let seccomp = seccomp(&[b"\x0a\x00\x10\x01", b"\x0a\x00\x10\x00"]);
        assert!(!seccomp.confines(&core(2, 0), &core(0, 0)));
    }
}
