// SPDX-License-Identifier: Apache-2.0
//! What a CRIU is and can do.

use std::fmt;

/// CRIU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 4 in 4.2.1.
    pub major: u32,
    /// 2 in 4.2.1.
    pub minor: u32,
    /// 1 in 4.2.1.
    pub sublevel: u32,
}

impl Version {
    /// The version `major.minor.sublevel`.
    #[must_use]
    pub const fn new(major: u32, minor: u32, sublevel: u32) -> Self {
        Self { major, minor, sublevel }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, sublevel } = self;
        write!(f, "{major}.{minor}.{sublevel}")
    }
}

/// What this CRIU on this kernel can do.
///
/// Source: CRIU 4.2 images/rpc.proto, `criu_features`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Tracking of changed pages, for pre-dumps.
    pub mem_track: bool,
    /// Restored memory can follow later.
    pub lazy_pages: bool,
    /// Pid descriptors can be kept over a series of pre-dumps.
    pub pidfd_store: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_major_then_minor_then_sublevel() {
        assert!(Version::new(4, 1, 1) < Version::new(4, 2, 0));
        assert!(Version::new(3, 19, 0) < Version::new(4, 0, 0));
        assert_eq!(Version::new(4, 2, 1).to_string(), "4.2.1");
    }
}
