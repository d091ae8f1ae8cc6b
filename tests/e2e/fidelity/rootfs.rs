// SPDX-License-Identifier: Apache-2.0
//! The root file system comes back as it was frozen.
//!
//! One pod runs all rows (`workloads/fidelity/rootfs.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::rows::Group;
use thaw_tests::rows;

static GROUP: Group = Group::new("rootfs");

rows!(GROUP; created, owners, changed, deleted, replaced, opaque, renamed, capabilities_of_a_program, hard_links, special_files, sparse_file, large_file);
