// SPDX-License-Identifier: Apache-2.0
//! The root file system comes back as it was frozen.
//!
//! One pod runs all rows (`workloads/fidelity/rootfs.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::Tested;
use thaw_tests::harness::pods::HANDLER;
use thaw_tests::harness::rows::Group;
use thaw_tests::rows;

static GROUP: Group = Group::new("rootfs");

rows!(GROUP; created, owners, changed, deleted, replaced, opaque, renamed, capabilities_of_a_program, hard_links, special_files, sparse_file, large_file);

#[tokio::test]
async fn on_a_snapshotter_without_layers_every_row_is_the_same() -> Tested {
    static GROUP: Group = Group::under("rootfs", ["thaw-native"; 3]);
    every_row(&GROUP).await
}

#[tokio::test]
async fn on_snapshots_of_btrfs_every_row_is_the_same() -> Tested {
    static GROUP: Group = Group::under("rootfs", ["thaw-btrfs"; 3]);
    every_row(&GROUP).await
}

#[tokio::test]
async fn on_layers_of_erofs_every_row_is_the_same() -> Tested {
    static GROUP: Group = Group::under("rootfs", ["thaw-erofs"; 3]);
    every_row(&GROUP).await
}

#[tokio::test]
async fn from_one_snapshotter_to_another_every_row_is_the_same() -> Tested {
    static GROUP: Group = Group::under("rootfs", ["thaw-native", HANDLER, "thaw-native"]);
    every_row(&GROUP).await
}

async fn every_row(group: &Group) -> Tested {
    for row in ROWS {
        group.row(row).await?;
    }
    Ok(())
}
