// SPDX-License-Identifier: Apache-2.0
//! Content of volumes: packed and unpacked as it is.

use super::*;

fn put(tar: &[u8], dir: &Path, conflict: Conflict) -> Result<u64, ApplyError> {
    fill(open(dir).as_fd(), tar, conflict, &mut Vec::new())
}

fn pack(dir: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    write_content(open(dir).as_fd(), &mut tar).unwrap();
    tar
}

#[test]
fn the_content_of_a_volume_comes_back_as_it_was_and_no_name_in_it_is_a_deletion() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |path: &str| from.path().join(path);
    std::fs::create_dir_all(at("a/b")).unwrap();
    std::fs::write(at("a/.wh.name"), "content").unwrap();
    std::fs::write(at(".wh..wh..opq"), "").unwrap();
    std::fs::hard_link(at("a/.wh.name"), at("a/b/again")).unwrap();
    std::os::unix::fs::symlink("../x", at("link")).unwrap();
    std::os::unix::fs::chown(at("a/b"), Some(7), Some(8)).unwrap();
    rustix::fs::chmod(from.path(), rustix::fs::Mode::from_raw_mode(0o2771)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("null"), FileType::CharacterDevice, rustix::fs::Mode::RUSR, 259)
        .unwrap();
    std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

    put(&pack(from.path()), to.path(), Conflict::Replace).unwrap();
    std::fs::remove_file(at("null")).unwrap();
    std::fs::remove_file(at("socket")).unwrap();
    assert_eq!(show(to.path()), show(from.path()));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode();
    assert_eq!(mode(to.path()), mode(from.path()));
    assert_eq!(std::fs::metadata(to.path().join("a/b/again")).unwrap().nlink(), 2);
}

#[test]
fn holes_of_a_volume_s_file_take_no_room() {
    use std::os::unix::fs::FileExt;
    const BYTES: u64 = 1 << 30;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = std::fs::File::create(from.path().join("sparse")).unwrap();
    file.set_len(BYTES).unwrap();
    for at in (0..40).map(|at| at << 24) {
        file.write_all_at(b"data", at + 5000).unwrap();
    }
    let tar = pack(from.path());
    assert!(tar.len() < 1 << 20, "{} bytes", tar.len());
    assert_eq!(put(&tar, to.path(), Conflict::Replace).unwrap(), BYTES);
    let copy = std::fs::File::open(to.path().join("sparse")).unwrap();
    let metadata = copy.metadata().unwrap();
    assert_eq!(metadata.len(), BYTES);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    let mut data = [0; 6];
    copy.read_exact_at(&mut data, (39 << 24) + 4999).unwrap();
    assert_eq!(&data, b"\0data\0");
}

#[test]
fn what_is_in_a_volume_already_makes_way_or_stays() {
    let items: &[Item<'_>] = &[(Dir, "d", ""), (File, "d/f", "new"), (File, "g", "new")];
    for (conflict, expected) in [(Conflict::Replace, "new"), (Conflict::Keep, "old")] {
        let to = tempfile::tempdir().unwrap();
        std::fs::create_dir(to.path().join("d")).unwrap();
        std::fs::write(to.path().join("d/f"), "old").unwrap();
        put(&tar(items), to.path(), conflict).unwrap();
        assert_eq!(std::fs::read_to_string(to.path().join("d/f")).unwrap(), expected);
        assert_eq!(std::fs::read_to_string(to.path().join("g")).unwrap(), "new");
    }
}

#[test]
fn the_content_of_a_volume_has_no_devices_and_leads_nowhere() {
    let to = tempfile::tempdir().unwrap();
    let refused = |item: Item<'_>| put(&tar(&[item]), to.path(), Conflict::Replace).unwrap_err();
    assert!(matches!(refused((Char, "null", "")), ApplyError::Type { .. }));
    assert!(matches!(refused((File, "../x", "")), ApplyError::Path { .. }));
    std::os::unix::fs::symlink("/tmp", to.path().join("out")).unwrap();
    assert!(matches!(refused((File, "out/x", "")), ApplyError::Write { .. }));
    let cut = tar(&[(File, "f", "content")]);
    let cut = put(&cut[..600], to.path(), Conflict::Replace);
    assert!(cut.is_err(), "{cut:?}");
}

#[test]
fn what_was_put_into_a_volume_is_taken_out_again_and_what_was_there_stays() {
    let to = tempfile::tempdir().unwrap();
    std::fs::create_dir(to.path().join("part")).unwrap();
    std::fs::write(to.path().join("part/own"), "").unwrap();
    let before = show(to.path());
    let items: &[Item<'_>] = &[
        (Dir, "part", ""),
        (File, "part/new", "x"),
        (Dir, "d", ""),
        (File, "d/f", "x"),
        (Symlink, "d/out", "/tmp"),
        (Char, "null", ""),
    ];
    let (dir, mut made) = (open(to.path()), Vec::new());
    assert!(fill(dir.as_fd(), &*tar(items), Conflict::Replace, &mut made).is_err());
    assert!(to.path().join("d/f").exists());
    empty(dir.as_fd(), &made);
    let names = |shown: BTreeMap<String, String>| shown.into_keys().collect::<Vec<_>>();
    assert_eq!(names(show(to.path())), names(before));
}
