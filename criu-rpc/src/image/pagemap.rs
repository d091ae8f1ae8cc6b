// SPDX-License-Identifier: Apache-2.0
//! Which pages of a process are where in its pages file: `pagemap-PID.img`.

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, each, entries, only},
};

// Source of the fields: CRIU 4.2 images/pagemap.proto, pagemap_head and pagemap_entry.
const PAGES_ID: Tag = Tag::new(1, "pages_id");
const VADDR: Tag = Tag::new(1, "vaddr");
const COMPAT_NR_PAGES: Tag = Tag::new(2, "compat_nr_pages");
const IN_PARENT: Tag = Tag::new(3, "in_parent");
const FLAGS: Tag = Tag::new(4, "flags");
const NR_PAGES: Tag = Tag::new(5, "nr_pages");

// Source: CRIU 4.2 criu/include/image.h, PE_PARENT, PE_LAZY, PE_PRESENT.
const PARENT: u32 = 1;
const LAZY: u32 = 2;
const PRESENT: u32 = 4;

/// The size of a page of memory and of the pages file, bytes.
pub const PAGE: u64 = 4096;

/// The end of what an address may be: no architecture has more. It keeps all sums in range.
const ADDRESSES: u64 = 1 << 57;

/// The longest entry that [`Pagemap::joined`] makes, bytes: CRIU counts its pages in an `int`.
const LONGEST: u64 = 1 << 40;

/// Pages that follow each other in memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The address of the first page; a multiple of [`PAGE`].
    pub start: u64,
    /// The address after the last page.
    pub end: u64,
    /// Where the first page is in the pages file, bytes; `None` for pages that are not in it.
    pub offset: Option<u64>,
    /// CRIU leaves them to the daemon when it restores with `lazy_pages`.
    pub lazy: bool,
}

/// A `pagemap-PID.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    /// The pages file is `pages-ID.img`.
    pub pages_id: u32,
    /// By address; none overlaps another.
    pub runs: Vec<PageRun>,
}

impl View for Pagemap {
    const KIND: Kind = Kind::Pagemap;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let mut all = entries(image, Self::KIND)?;
        if all.is_empty() {
            return Err(ViewError::Count { count: 0 });
        }
        let head = all.remove(0);
        let pages_id = head.required_u32(PAGES_ID).map_err(only)?;
        let mut runs = each(&all, run)?;
        let (mut address, mut offset) = (0, 0);
        for (entry, run) in (1..).zip(&mut runs) {
            if run.start < address {
                return Err(ViewError::Field { entry, source: VADDR.out_of_range() });
            }
            address = run.end;
            if run.offset.is_some() {
                run.offset = Some(offset);
                offset += run.end - run.start;
            }
        }
        Ok(Self { pages_id, runs })
    }
}

impl Pagemap {
    /// The same `image` in fewer entries: what CRIU leaves to a daemon, and follows upon each other, is one. Its dump
    /// makes an entry for each megabyte, its restore reads them one by one and writes a line into its log for each.
    ///
    /// # Errors
    /// When it is no such image.
    pub fn joined(image: ImageFile) -> Result<ImageFile, ViewError> {
        let mut all = entries(image, Self::KIND)?;
        let head: Vec<_> = all.drain(..all.len().min(1)).collect();
        let mut joined: Vec<(PageRun, Message)> = Vec::new();
        for (run, entry) in each(&all, run)?.into_iter().zip(all) {
            match joined.last_mut().filter(|(last, _)| last.goes_on_in(&run)) {
                Some((last, _)) => last.end = run.end,
                None => joined.push((run, entry)),
            }
        }
        let entries = joined.into_iter().map(|(run, mut entry)| {
            let field = if entry.has(NR_PAGES) { NR_PAGES } else { COMPAT_NR_PAGES };
            entry.set_u64(field, (run.end - run.start) / PAGE);
            entry
        });
        Ok(ImageFile::new(Self::KIND, head.into_iter().chain(entries).collect()))
    }
}

impl PageRun {
    fn goes_on_in(&self, next: &Self) -> bool {
        let left = |run: &Self| run.lazy && run.offset.is_some();
        left(self) && left(next) && self.end == next.start && next.end - self.start <= LONGEST
    }
}

/// The entry, with 0 for an offset that is not known yet.
fn run(entry: &Message) -> Result<PageRun, FieldError> {
    let start = entry.required_u64(VADDR)?;
    // Up to CRIU 4.1 the older field holds the number.
    let pages = match entry.u64(NR_PAGES)? {
        Some(pages) => pages,
        None => u64::from(entry.required_u32(COMPAT_NR_PAGES)?),
    };
    let end = pages.checked_mul(PAGE).and_then(|length| start.checked_add(length));
    let end = end.filter(|end| *end <= ADDRESSES && *end > start).ok_or_else(|| NR_PAGES.out_of_range())?;
    if start % PAGE != 0 {
        return Err(VADDR.out_of_range());
    }
    // Without flags it is an image from before CRIU had them: a page is there unless a parent image has it.
    let flags = entry.u32(FLAGS)?.unwrap_or(PRESENT);
    let parent = flags & PARENT != 0 || entry.bool(IN_PARENT)?;
    let present = flags & PRESENT != 0 && !parent;
    Ok(PageRun { start, end, offset: present.then_some(0), lazy: flags & LAZY != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[&[(Tag, u64)]]) -> ImageFile {
        let mut head = Message::default();
        head.set_u64(PAGES_ID, 3);
        let mut messages = vec![head];
        for fields in entries {
            let mut message = Message::default();
            fields.iter().for_each(|(tag, value)| message.set_u64(*tag, *value));
            messages.push(message);
        }
        ImageFile::new(Kind::Pagemap, messages)
    }

    fn pagemap(entries: &[&[(Tag, u64)]]) -> Result<Pagemap, ViewError> {
        Pagemap::from_image(image(entries))
    }

    #[test]
    fn what_is_left_to_a_daemon_is_one_entry_where_it_follows_upon_each_other() {
        let apart = image(&[
            &[(VADDR, 0x1000), (COMPAT_NR_PAGES, 0), (FLAGS, 6), (NR_PAGES, 2)],
            &[(VADDR, 0x3000), (COMPAT_NR_PAGES, 0), (FLAGS, 6), (NR_PAGES, 1)],
            // CRIU loads it itself.
            &[(VADDR, 0x4000), (COMPAT_NR_PAGES, 0), (FLAGS, 4), (NR_PAGES, 1)],
            &[(VADDR, 0x5000), (COMPAT_NR_PAGES, 0), (FLAGS, 6), (NR_PAGES, 1)],
            // It is in no file.
            &[(VADDR, 0x6000), (COMPAT_NR_PAGES, 0), (FLAGS, 2), (NR_PAGES, 1)],
            // There is something between them.
            &[(VADDR, 0x8000), (COMPAT_NR_PAGES, 3), (FLAGS, 6)],
            &[(VADDR, 0xb000), (COMPAT_NR_PAGES, 4), (FLAGS, 6)],
        ]);
        let joined = Pagemap::joined(apart.clone()).unwrap();
        let runs = |image| Pagemap::from_image(image).unwrap().runs;
        let run = |start, end, offset, lazy| PageRun { start, end, offset, lazy };
        assert_eq!(
            runs(joined.clone()),
            [
                run(0x1000, 0x4000, Some(0), true),
                run(0x4000, 0x5000, Some(0x3000), false),
                run(0x5000, 0x6000, Some(0x4000), true),
                run(0x6000, 0x7000, None, true),
                run(0x8000, 0xf000, Some(0x5000), true),
            ]
        );
        assert_eq!(runs(apart).last(), Some(&run(0xb000, 0xf000, Some(0x8000), true)));
        assert!(!joined.entries()[5].has(NR_PAGES), "an older CRIU reads the older field");
        assert!(Pagemap::joined(ImageFile::new(Kind::Pagemap, Vec::new())).unwrap().entries().is_empty());
    }

    #[test]
    fn runs_know_where_their_pages_are_in_the_file() {
        let map = pagemap(&[
            &[(VADDR, 0x1000), (COMPAT_NR_PAGES, 0), (FLAGS, 4), (NR_PAGES, 2)],
            &[(VADDR, 0x4000), (COMPAT_NR_PAGES, 0), (FLAGS, 1), (NR_PAGES, 9)],
            &[(VADDR, 0x10000), (COMPAT_NR_PAGES, 1), (FLAGS, 6)],
        ])
        .unwrap();
        assert_eq!(map.pages_id, 3);
        let run = |start, end, offset, lazy| PageRun { start, end, offset, lazy };
        assert_eq!(
            map.runs,
            [
                run(0x1000, 0x3000, Some(0), false),
                run(0x4000, 0xd000, None, false),
                run(0x10000, 0x11000, Some(0x2000), true),
            ]
        );
    }

    #[test]
    fn pages_out_of_place_are_refused() {
        for entries in [
            &[&[(VADDR, 0x1001), (NR_PAGES, 1)][..]][..],
            &[&[(VADDR, 0x1000), (NR_PAGES, 0)]],
            &[&[(VADDR, 0x1000), (NR_PAGES, u64::MAX)]],
            &[&[(VADDR, 0x1000), (NR_PAGES, 1 << 52)]],
            &[&[(VADDR, 0x1000), (NR_PAGES, 4)], &[(VADDR, 0x2000), (NR_PAGES, 1)]],
        ] {
            assert!(pagemap(entries).is_err(), "{entries:?}");
        }
        assert!(Pagemap::from_image(ImageFile::new(Kind::Pagemap, Vec::new())).is_err());
    }
}
