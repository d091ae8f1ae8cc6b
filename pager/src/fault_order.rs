// SPDX-License-Identifier: Apache-2.0
//! The order in which a restored program first waited for its pages, so that the next restore of the same checkpoint
//! brings those first. Only a hint: a wrong one costs time and nothing else.
//!
//! ```text
//! file:  magic, then for each fault  pages id (4 bytes), page in that file (8 bytes), all little-endian
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};

use criu_rpc::image::PAGE;

use crate::space::{AddressSpace, LATER, Source};
use crate::task::FAULT;

/// Also the version of the form.
const MAGIC: [u8; 8] = *b"thawflt1";
/// Bytes of one fault.
const ENTRY: usize = 12;
/// The most faults that are kept: with what each brings along, the first 4 GB that a program has touched.
const MOST: usize = LATER as usize;

/// Where the pages lie that were waited for, the first one first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultOrder(Vec<Source>);

impl FaultOrder {
    /// Reads one that another pager has written; an empty one from anything else.
    #[must_use]
    pub fn read(file: &File) -> Self {
        let mut bytes = Vec::new();
        // One that cannot be read is none.
        let _ = file.take((MAGIC.len() + MOST * ENTRY) as u64).read_to_end(&mut bytes);
        let entries = bytes.strip_prefix(&MAGIC).unwrap_or_default();
        Self(entries.as_chunks::<ENTRY>().0.iter().filter_map(source).collect())
    }

    /// Writes it, if there is anything in it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, mut file: &File) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let entry = |source: &Source| {
            let page = (source.offset / PAGE).to_le_bytes();
            source.pages_id.to_le_bytes().into_iter().chain(page)
        };
        let bytes: Vec<u8> = MAGIC.into_iter().chain(self.0.iter().flat_map(entry)).collect();
        file.write_all(&bytes)
    }

    /// One more page was waited for.
    pub(crate) fn note(&mut self, source: Source) {
        if self.0.len() < MOST {
            self.0.push(source);
        }
    }

    /// Puts what is in it before everything else that is owed, as much at each place as a fault brings along. Pure.
    pub fn apply(&self, spaces: &mut HashMap<u32, AddressSpace>) {
        let mut owed = BTreeMap::new();
        for (pid, space) in &*spaces {
            owed.extend(space.in_order().map(|piece| (piece.source, (*pid, *piece))));
        }
        for (rank, wanted) in (0..LATER).zip(&self.0) {
            let found = owed.range(..=*wanted).next_back().map(|(_, found)| *found);
            let Some((pid, piece)) = found.filter(|(_, piece)| piece.source.pages_id == wanted.pages_id)
            else {
                continue;
            };
            let address = piece.start.saturating_add(wanted.offset - piece.source.offset);
            if let Some(space) = spaces.get_mut(&pid) {
                space.hasten(address, FAULT, rank);
            }
        }
    }
}

/// A fault of the file.
fn source(entry: &[u8; ENTRY]) -> Option<Source> {
    let (id, page) = entry.split_first_chunk()?;
    let page = u64::from_le_bytes(*page.first_chunk()?);
    Some(Source { pages_id: u32::from_le_bytes(*id), offset: page.checked_mul(PAGE)? })
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;
    use crate::space::Piece;

    fn order(pages: &[u64]) -> FaultOrder {
        FaultOrder(pages.iter().map(|page| Source { pages_id: 1, offset: page * PAGE }).collect())
    }

    fn space(first_page: u64, pages: u64) -> AddressSpace {
        let mut space = AddressSpace::default();
        let start = (0x1000 + first_page) * PAGE;
        let source = Source { pages_id: 1, offset: first_page * PAGE };
        space.add(Piece { start, end: start + pages * PAGE, source, rank: LATER + 20, wipe_on_fork: false });
        space
    }

    #[test]
    fn what_is_written_is_read_again_and_anything_else_is_empty() {
        let mut file = tempfile::tempfile().unwrap();
        let order = order(&[7, 0, 1 << 40]);
        order.write(&file).unwrap();
        file.rewind().unwrap();
        assert_eq!(FaultOrder::read(&file), order);
        for content in [&b""[..], b"thawflt", b"thawflt2aaaaaaaaaaaa", b"thawflt1aaaaaaaaaaa"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            file.rewind().unwrap();
            assert_eq!(FaultOrder::read(&file), FaultOrder::default());
        }
        // The highest page would be beyond all offsets.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[&MAGIC[..], &[0xff; 12]].concat()).unwrap();
        file.rewind().unwrap();
        assert_eq!(FaultOrder::read(&file), FaultOrder::default());
    }

    #[test]
    fn pages_that_were_waited_for_come_first_in_their_order_in_each_process() {
        let mut spaces = HashMap::from([(1, space(0, 100)), (2, space(100, 100))]);
        // 5000 is nobody's; 42 comes along with 40.
        order(&[150, 90, 5000, 40, 42]).apply(&mut spaces);
        let places = |pid: u32| -> Vec<(u64, u64)> {
            let pieces = spaces[&pid].in_order();
            pieces.map(|piece| (piece.source.offset / PAGE, piece.len() / PAGE)).collect()
        };
        assert_eq!(places(1), [(90, 10), (40, 16), (0, 40), (56, 34)]);
        assert_eq!(places(2), [(150, 16), (100, 50), (166, 34)]);
    }
}
