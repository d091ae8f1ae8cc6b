// SPDX-License-Identifier: Apache-2.0
//! The documentation: it renders as a site whose links lead somewhere, its commands exist and are run, its examples are
//! what programs accept, and it lists every message with its cure.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole file is tests"
)]

mod blocks;
mod book;
mod commands;
mod hub;
mod messages;
mod pages;
