// SPDX-License-Identifier: Apache-2.0
//! Prints several faults as one message, so that nobody has to fix them one at a time.

use std::fmt::{self, Display};

/// How many faults one message spells out.
const SHOWN_MAX: usize = 20;

/// Writes the items with `; ` between them.
pub(crate) fn join<T: Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (index, item) in items.iter().take(SHOWN_MAX).enumerate() {
        write!(f, "{}{item}", if index == 0 { "" } else { "; " })?;
    }
    match items.len().checked_sub(SHOWN_MAX) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "; and {more} more"),
    }
}
