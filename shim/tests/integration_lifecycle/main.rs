// SPDX-License-Identifier: Apache-2.0
//! Ordinary containers: every verb of containerd's task service through the real shim, and the events that tell of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::tests_outside_test_module
)]

#[path = "../support/mod.rs"]
mod support;

mod checkpoint;
mod events;
mod execs;
mod life;
mod limits;
mod refusals;
mod signals;
mod streams;

/// A program that ends when it is made to.
const SLEEP: [&str; 2] = ["sleep", "1000"];
