// SPDX-License-Identifier: Apache-2.0
//! A writable layer on file systems that can share content between files: it is laid onto a root file system without
//! being copied.
#![cfg(test)]
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // the tests wait for their own children

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use checkpoint::layer::lay;

/// The smallest that `mkfs.xfs` makes is 300 MB; most of it is never written.
const SIZE: u64 = 512 << 20;
/// What the layer holds, in words of four bytes.
const WORDS: u32 = 8 << 20;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system of its own; it is unmounted on drop.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where the machine cannot have it, which is said.
    fn new(kind: &str) -> Option<Self> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        let mkfs = format!("mkfs.{kind}");
        let missing = if !rustix::process::geteuid().is_root() {
            Some("only root may mount".to_owned())
        } else if !known.split_whitespace().any(|word| word == kind) {
            Some(format!("the kernel has no {kind}"))
        } else if !["/sbin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(&mkfs).exists()) {
            Some(format!("{mkfs} is not installed"))
        } else {
            None
        };
        if let Some(missing) = missing {
            println!("SKIP {missing}");
            return None;
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::tempdir_in(folder).unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let image = image.to_str().unwrap();
        run(&mkfs, &["-q", image]);
        std::fs::create_dir(dir.path().join("mounted")).unwrap();
        let mounted = Self(dir);
        run("mount", &["-o", "loop", image, mounted.path("").to_str().unwrap()]);
        Some(mounted)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join("mounted").join(name)
    }

    /// Bytes in use.
    fn used(&self) -> u64 {
        let top = File::open(self.path("")).unwrap();
        rustix::fs::syncfs(&top).unwrap();
        let stat = rustix::fs::fstatvfs(&top).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.path("").to_str().unwrap()]);
    }
}

fn shares_content(kind: &str) {
    let Some(mounted) = Mounted::new(kind) else { return };
    let (root, layer) = (mounted.path("root"), mounted.path("layer"));
    std::fs::create_dir_all(root.join("data")).unwrap();
    std::fs::create_dir_all(layer.join("data")).unwrap();
    std::fs::write(root.join("data/changed"), "old").unwrap();
    std::fs::write(layer.join("data/changed"), "new").unwrap();
    let content: Vec<u8> = (0..WORDS).flat_map(u32::to_le_bytes).collect();
    std::fs::write(layer.join("data/large"), &content).unwrap();

    let size = content.len() as u64;
    let before = mounted.used();
    let laid = lay(File::open(&layer).unwrap().as_fd(), File::open(&root).unwrap().into(), &[]).unwrap();
    assert_eq!((laid.shared, laid.copied), (size + 3, 0));
    laid.keep().unwrap();
    let grown = mounted.used().saturating_sub(before);
    assert!(grown < size / 4, "{grown} bytes more are in use");

    assert!(std::fs::read(root.join("data/large")).unwrap() == content);
    assert_eq!(std::fs::read(root.join("data/changed")).unwrap(), b"new");
    std::fs::write(root.join("data/large"), "mine").unwrap();
    assert!(std::fs::read(layer.join("data/large")).unwrap() == content, "the layer is never written to");
}

#[test]
fn a_layer_on_btrfs_is_laid_without_a_copy() {
    shares_content("btrfs");
}

#[test]
fn a_layer_on_xfs_is_laid_without_a_copy() {
    shares_content("xfs");
}
