// SPDX-License-Identifier: Apache-2.0
//! The shim's program as `tar`, which CRIU runs in a tmpfs outside of any container.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// Runs `tar` as CRIU does.
fn unpack(archive: &[u8], into: &Path, programs: &Path) -> Output {
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(archive).unwrap();
    let file = programs.join("archive");
    std::fs::write(&file, gzip.finish().unwrap()).unwrap();
    let tar = programs.join("tar");
    let _ = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_containerd-shim-thaw-v1"), &tar);
    Command::new(tar)
        .args(["--extract", "--gzip", "--no-unquote", "--no-wildcards", "--directory"])
        .arg(into)
        // Where it would find the real one.
        .env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()))
        .stdin(Stdio::from(std::fs::File::open(file).unwrap()))
        .output()
        .unwrap()
}

fn header(kind: EntryType, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header
}

#[test]
fn an_archive_that_fails_in_the_middle_is_not_given_to_a_program_that_follows_links() {
    let work = tempfile::tempdir().unwrap();
    let [into, outside, programs] = ["into", "outside", "programs"].map(|name| {
        let path = work.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    });
    let mut archive = Builder::new(Vec::new());
    archive.append_data(&mut header(EntryType::Regular, 5), "a/x", &b"hello"[..]).unwrap();
    archive.append_link(&mut header(EntryType::Symlink, 0), "a", &outside).unwrap();
    archive.append_data(&mut header(EntryType::new(b'Z'), 0), "z", std::io::empty()).unwrap();
    let output = unpack(&archive.into_inner().unwrap(), &into, &programs);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("tar: "), "{output:?}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "it has followed the link");
}

#[test]
fn a_whole_archive_is_unpacked_and_anything_else_is_left_to_the_real_program() {
    let work = tempfile::tempdir().unwrap();
    let (into, programs) = (work.path().join("into"), work.path().join("programs"));
    std::fs::create_dir(&into).unwrap();
    std::fs::create_dir(&programs).unwrap();
    let mut archive = Builder::new(Vec::new());
    archive.append_data(&mut header(EntryType::Regular, 5), "a/x", &b"hello"[..]).unwrap();
    let output = unpack(&archive.into_inner().unwrap(), &into, &programs);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(into.join("a/x")).unwrap(), b"hello");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let version = Command::new(programs.join("tar")).arg("--version").env("PATH", path).output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains("tar"), "{version:?}");
}
