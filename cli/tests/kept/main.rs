// SPDX-License-Identifier: Apache-2.0
//! Checkpoints that were kept from releases with each format of the manifest: this release reads them.
//!
//! `format-N.tar.zst` is the store's content after `thaw import` of a pod `team/kept` with one container that sleeps. It is
//! never made again: a release that cannot read it must say so in CHANGELOG.md and in docs/support.md.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Every kept checkpoint, with its format.
fn kept() -> Vec<(u64, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kept");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let format = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("format-")?.strip_suffix(".tar.zst")?.parse().ok()
    };
    names.filter_map(|path| Some((format(&path)?, path))).collect()
}

fn unpack(archive: &Path, folder: &Path) {
    let file = std::fs::File::open(archive).unwrap();
    let mut tar = tar::Archive::new(zstd::Decoder::new(file).unwrap());
    tar.set_preserve_permissions(true);
    tar.unpack(folder).unwrap();
}

fn thaw(root: &Path, arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thaw"));
    let output = command.args(arguments).arg("--json").arg("--root").arg(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn there_is_a_kept_checkpoint_of_the_format_that_is_written() {
    let newest = kept().into_iter().map(|(format, _)| format).max();
    assert_eq!(newest, Some(u64::from(checkpoint::manifest::VERSION)));
}

#[test]
fn every_kept_checkpoint_is_listed_and_its_images_are_read() {
    for (format, archive) in kept() {
        let root = tempfile::tempdir().unwrap();
        unpack(&archive, root.path());
        let listed = thaw(root.path(), &["list"]);
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
        let shown = thaw(root.path(), &["inspect", "team/kept/latest"]);
        assert_eq!(shown["manifest"]["version"], format);
        assert_eq!(shown["manifest"]["pod"]["name"], "kept");
        let processes = shown["containers"]["main"].to_string();
        assert!(processes.contains("\"sleep\""), "{processes}");
    }
}
