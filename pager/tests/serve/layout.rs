// SPDX-License-Identifier: Apache-2.0
//! The memory of the fake restored process: where it is, and what is in it. Shared by it and the tests.

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Mappings: address, pages, which of them the image holds (every page whose number modulo the last is not 0).
pub(crate) const REGIONS: [Region; 6] = [
    Region { start: 0x10_0000_0000, pages: 3, hole: 7 },
    Region { start: 0x10_0000_3000, pages: 64, hole: 1000 },
    Region { start: 0x10_1000_0000, pages: 700, hole: 5 },
    Region { start: 0x10_2000_0000, pages: 4096, hole: 1_000_000 },
    Region { start: 0x10_4000_0000, pages: 2048, hole: 33 },
    Region { start: 0x10_6000_0000, pages: 1024, hole: 9 },
];

/// A mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    /// Its address.
    pub(crate) start: usize,
    /// Its length in pages.
    pub(crate) pages: usize,
    /// Page N is not in the image where N modulo this is `hole - 1`.
    pub(crate) hole: usize,
}

impl Region {
    /// Whether the image has this page of it.
    pub(crate) fn holds(&self, page: usize) -> bool {
        page % self.hole != self.hole - 1
    }
}

/// The first eight bytes of a page in the image, made from where it is; all other words follow from it.
pub(crate) fn mark(address: usize) -> u64 {
    let mut x = address as u64 ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x | 1
}

/// Word `index` of a page with this mark; a page of zeroes has mark 0.
pub(crate) fn word(mark: u64, index: usize) -> u64 {
    mark.wrapping_mul(2 * index as u64 + 1)
}
