// SPDX-License-Identifier: Apache-2.0
//! The address space of a process: `mm-PID.img`. Only where its mappings are.

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, only, only_entry},
};

// Source of the fields: CRIU 4.2 images/mm.proto, mm_entry, and images/vma.proto, vma_entry.
const VMAS: Tag = Tag::new(14, "vmas");
const START: Tag = Tag::new(1, "vma.start");
const END: Tag = Tag::new(2, "vma.end");
const SHMID: Tag = Tag::new(4, "vma.shmid");
const STATUS: Tag = Tag::new(7, "vma.status");
const MADV: Tag = Tag::new(9, "vma.madv");

/// `MADV_WIPEONFORK`, a bit of `vma.madv`. Source: linux `asm-generic/mman-common.h`.
const WIPE_ON_FORK: u64 = 1 << 18;

/// System V shared memory, a bit of `vma.status`. Source: CRIU 4.2 criu/include/image.h, VMA_AREA_SYSVIPC.
const SYSVIPC: u32 = 1 << 10;

/// A guard region (`MADV_GUARD_INSTALL`), a bit of `vma.status`: no mapping, but a part of one. They come after all
/// mappings. Source: CRIU 4.2 criu/include/image.h, VMA_AREA_GUARD.
const GUARD: u32 = 1 << 16;

/// A mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vma {
    /// The first address.
    pub start: u64,
    /// The address after the last; above `start`.
    pub end: u64,
    /// A forked child finds zeroes there.
    pub wipe_on_fork: bool,
    /// The System V shared memory segment that is attached there, by the kernel's number.
    pub segment: Option<u32>,
}

/// An `mm-PID.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mm {
    /// The mappings, by address; none overlaps another.
    pub vmas: Vec<Vma>,
}

impl View for Mm {
    const KIND: Kind = Kind::Mm;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let entry = only_entry(image, Self::KIND)?;
        vmas(&entry).map(|vmas| Self { vmas }).map_err(only)
    }
}

fn vmas(entry: &Message) -> Result<Vec<Vma>, FieldError> {
    let mut vmas: Vec<Vma> = Vec::new();
    for bytes in entry.all_bytes(VMAS)? {
        let message = Message::parse(bytes).map_err(|source| VMAS.no_message(source))?;
        let status = message.u32(STATUS)?.unwrap_or_default();
        if status & GUARD != 0 {
            continue;
        }
        let segment = || u32::try_from(message.required_u64(SHMID)?).map_err(|_| SHMID.out_of_range());
        let vma = Vma {
            start: message.required_u64(START)?,
            end: message.required_u64(END)?,
            wipe_on_fork: message.u64(MADV)?.unwrap_or_default() & WIPE_ON_FORK != 0,
            segment: (status & SYSVIPC != 0).then(segment).transpose()?,
        };
        let before = vmas.last().map_or(0, |last| last.end);
        if vma.start < before || vma.end <= vma.start {
            return Err(START.out_of_range());
        }
        vmas.push(vma);
    }
    Ok(vmas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mm(vmas: &[(u64, u64, u64)]) -> Result<Mm, ViewError> {
        mm_with_status(vmas, 1)
    }

    fn mm_with_status(vmas: &[(u64, u64, u64)], last: u64) -> Result<Mm, ViewError> {
        let mut entry = Message::default();
        let encoded: Vec<Message> = vmas
            .iter()
            .enumerate()
            .map(|(number, (start, end, madv))| {
                let mut vma = Message::default();
                vma.set_u64(START, *start);
                vma.set_u64(END, *end);
                vma.set_u64(STATUS, if number + 1 == vmas.len() { last } else { 1 });
                vma.set_u64(MADV, *madv);
                vma
            })
            .collect();
        entry.set_all_bytes(VMAS, encoded.iter().map(Message::as_bytes));
        Mm::from_image(ImageFile::new(Kind::Mm, vec![entry]))
    }

    #[test]
    fn mappings_are_read() {
        let vmas = mm(&[(0x1000, 0x2000, 0), (0x2000, 0x5000, 1 << 18)]).unwrap().vmas;
        let vma = |start, end, wipe_on_fork| Vma { start, end, wipe_on_fork, segment: None };
        assert_eq!(vmas, [vma(0x1000, 0x2000, false), vma(0x2000, 0x5000, true)]);
    }

    #[test]
    fn an_attached_segment_is_known() {
        assert!(mm_with_status(&[(0x1000, 0x2000, 0)], 1 << 10).is_err(), "it needs a number");
        let mut vma = Message::default();
        for (tag, value) in [(START, 0x1000), (END, 0x2000), (STATUS, 1 << 10 | 1), (SHMID, 32768)] {
            vma.set_u64(tag, value);
        }
        let mut entry = Message::default();
        entry.set_all_bytes(VMAS, [vma.as_bytes()]);
        let mm = Mm::from_image(ImageFile::new(Kind::Mm, vec![entry])).unwrap();
        assert_eq!(mm.vmas[0].segment, Some(32768));
    }

    #[test]
    fn guard_regions_are_no_mappings() {
        let vmas = mm_with_status(&[(0x1000, 0x9000, 0), (0x2000, 0x3000, 0)], 1 << 16).unwrap().vmas;
        assert_eq!(vmas.len(), 1);
    }

    #[test]
    fn mappings_that_overlap_or_are_empty_are_refused() {
        for vmas in [&[(0x1000, 0x3000, 0), (0x2000, 0x5000, 0)][..], &[(0x1000, 0x1000, 0)]] {
            assert!(mm(vmas).is_err(), "{vmas:?}");
        }
    }
}
