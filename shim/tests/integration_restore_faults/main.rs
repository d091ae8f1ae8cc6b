// SPDX-License-Identifier: Apache-2.0
//! Restores through the real shim with a CRIU that does as it is told: whatever goes wrong, the pod's events say what
//! and why, nothing is left, and the next container starts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::tests_outside_test_module
)]

#[path = "../support/mod.rs"]
mod support;

mod criu;
mod fallback;
mod kill;
mod place;
mod pod;
mod refuse;
mod restored;
