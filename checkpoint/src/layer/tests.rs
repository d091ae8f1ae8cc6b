// SPDX-License-Identifier: Apache-2.0
//! Tests of layers on a real file system. Whiteouts, owners and `trusted` attributes need root.

mod content;

use super::*;
use crate::manifest::Rootfs;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use tar::{Builder, EntryType, Header};

/// One entry of a tar: type, path, content or link target.
type Item<'a> = (EntryType, &'a str, &'a str);

use EntryType::{Char, Directory as Dir, Fifo, Link, Regular as File, Symlink};

fn header(kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == Dir { 0o750 } else { 0o640 });
    header.set_uid(1000);
    header.set_gid(1001);
    header.set_mtime(1_700_000_000);
    header.set_size(0);
    header
}

fn tar(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, path, content) in items {
        let mut header = header(*kind);
        // Written by hand, since the library would not write the bad ones.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        let is_link = kind.is_hard_link() || kind.is_symlink();
        if is_link {
            header.set_link_name_literal(content).unwrap();
        } else if kind.is_character_special() {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        } else {
            header.set_size(content.len() as u64);
        }
        header.set_cksum();
        tar.append(&header, if is_link { &b""[..] } else { content.as_bytes() }).unwrap();
    }
    tar.into_inner().unwrap()
}

fn open(dir: &Path) -> std::fs::File {
    std::fs::File::open(dir).unwrap()
}

fn apply(tar: &[u8], dir: &Path) -> Result<Rootfs, ApplyError> {
    let dir = open(dir);
    let mut stack = Stack::new(dir.as_fd());
    stack.apply(tar)?;
    Ok(stack.finish())
}

fn delete(json: &[u8], dir: &Path) -> Result<(), ApplyError> {
    Stack::new(open(dir).as_fd()).delete(json)
}

fn apply_to(dir: &Path, items: &[Item<'_>]) -> Result<Rootfs, ApplyError> {
    apply(&tar(items), dir)
}

/// Applies each tar after the other and shows what then lies there.
fn tree(layers: &[&[Item<'_>]]) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    for layer in layers {
        apply_to(dir.path(), layer).unwrap();
    }
    show(dir.path())
}

/// Path -> what it is.
fn show(dir: &Path) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        for child in std::fs::read_dir(dir.join(&path)).unwrap() {
            let child = child.unwrap();
            let (path, meta) = (path.join(child.file_name()), child.metadata().unwrap());
            let opaque = upper::is_opaque(open(dir).as_fd()).unwrap();
            assert!(!opaque);
            let what = if meta.is_dir() {
                todo.push(path.clone());
                let opaque = upper::is_opaque(open(&dir.join(&path)).as_fd()).unwrap();
                if opaque { "opaque".into() } else { "dir".into() }
            } else if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(child.path()).unwrap().display())
            } else if meta.is_file() {
                std::fs::read_to_string(child.path()).unwrap()
            } else if meta.rdev() == 0 && meta.mode() & 0o170_000 == 0o020_000 {
                "deleted".into()
            } else {
                format!("special {:o}", meta.mode() >> 12)
            };
            shown.insert(path.to_str().unwrap().to_owned(), what);
        }
    }
    shown
}

fn expect(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect()
}

#[test]
fn every_kind_of_file_is_unpacked() {
    let layer: &[Item<'_>] = &[
        (Dir, "etc/", ""),
        (File, "./etc/hosts", "x"),
        (Symlink, "etc/link", "/somewhere/else"),
        (Link, "etc/hard", "etc/hosts"),
        (Fifo, "fifo", ""),
        (Char, "null", ""),
        (File, "etc/.wh.gone", ""),
    ];
    let fifo = "special 1";
    assert_eq!(
        tree(&[layer]),
        expect(&[
            ("etc", "dir"),
            ("etc/hosts", "x"),
            ("etc/link", "-> /somewhere/else"),
            ("etc/hard", "x"),
            ("etc/gone", "deleted"),
            ("fifo", fifo),
            ("null", "special 2"),
        ])
    );
}

#[test]
fn mode_owner_time_and_attributes_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(Vec::new());
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: [(&str, &[u8]); 4] = [
        ("mtime", b"1700000000.25"),
        ("SCHILY.xattr.user.note", b"kept"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut file = header(File);
    file.set_mode(0o4755);
    builder.append_data(&mut file, "dir/tool", &b""[..]).unwrap();
    builder.append_data(&mut header(Dir), "dir", &b""[..]).unwrap();
    let applied = apply(&builder.into_inner().unwrap()[..], dir.path()).unwrap();
    let path = dir.path().join("dir/tool");
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4755, 1000, 1001));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000, 250_000_000));
    let mut value = [0; 64];
    assert_eq!(rustix::fs::getxattr(&path, "user.note", &mut value[..]).unwrap(), 4);
    assert_eq!(rustix::fs::getxattr(&path, "security.capability", &mut value[..]).unwrap(), 20);
    assert!(rustix::fs::getxattr(&path, "trusted.overlay.redirect", &mut value[..]).is_err());
    let dir = std::fs::metadata(dir.path().join("dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.uid(), dir.mtime()), (0o750, 1000, 1_700_000_000));
    assert!(applied.implied_directories.is_empty());
}

#[test]
fn directories_that_the_layer_does_not_describe_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let open = open(dir.path());
    let mut stack = Stack::new(open.as_fd());
    stack.apply(&tar(&[(File, "tmp/a/x", ""), (File, "old/b/y", ""), (File, "late/x", "")])[..]).unwrap();
    stack.apply(&tar(&[(Dir, "late", ""), (Dir, "etc", ""), (File, "etc/y", "123")])[..]).unwrap();
    stack.delete(br#"["/var/log/gone", "/old/b"]"#).unwrap();
    let rootfs = stack.finish();
    assert_eq!(rootfs.implied_directories, ["old", "tmp", "tmp/a", "var", "var/log"]);
    assert_eq!((rootfs.bytes, rootfs.layers.len(), rootfs.layers[0].len()), (3, 2, 64));
}

#[test]
fn a_second_layer_changes_what_the_first_one_put_there() {
    let first: &[Item<'_>] = &[(Dir, "a", ""), (File, "a/x", "1"), (File, "a/y", "1"), (File, "b", "1")];
    assert_eq!(
        tree(&[first, &[(File, "a/.wh.x", ""), (Dir, "b", ""), (File, "b/z", "2")]]),
        expect(&[("a", "dir"), ("a/x", "deleted"), ("a/y", "1"), ("b", "opaque"), ("b/z", "2")])
    );
    assert_eq!(tree(&[first, &[(File, "a", "2")]]), expect(&[("a", "2"), ("b", "1")]));
    assert_eq!(tree(&[first, &[(File, ".wh.a", "")]]), expect(&[("a", "deleted"), ("b", "1")]));
    assert_eq!(
        tree(&[first, &[(File, ".wh.a", "")], &[(Dir, "a", ""), (File, "a/n", "3")]]),
        expect(&[("a", "opaque"), ("a/n", "3"), ("b", "1")])
    );
}

#[test]
fn an_opaque_mark_clears_earlier_layers_and_keeps_its_own() {
    let first: &[Item<'_>] =
        &[(Dir, "a", ""), (File, "a/old", "1"), (Dir, "a/s", ""), (File, "a/s/old", "1")];
    let second: &[Item<'_>] =
        &[(Dir, "a", ""), (File, "a/new", "2"), (File, "a/s/new", "2"), (File, "a/.wh..wh..opq", "")];
    assert_eq!(
        tree(&[first, second]),
        expect(&[("a", "opaque"), ("a/new", "2"), ("a/s", "dir"), ("a/s/new", "2")])
    );
    // A deletion in a directory that already hides everything would only be an odd device.
    assert_eq!(
        tree(&[second, &[(File, "a/.wh.new", "")]]),
        expect(&[("a", "opaque"), ("a/s", "dir"), ("a/s/new", "2")])
    );
}

#[test]
fn a_deletion_does_not_hide_what_the_same_layer_adds() {
    let added: &[Item<'_>] = &[(Dir, "a", ""), (File, "a/x", "2"), (File, ".wh.a", "")];
    assert_eq!(tree(&[added]), expect(&[("a", "opaque"), ("a/x", "2")]));
    assert_eq!(tree(&[&[(File, "b", "2"), (File, ".wh.b", "")]]), expect(&[("b", "2")]));
}

#[test]
fn deleted_files_become_deletions_in_any_order() {
    for json in [&br#"["/a/x","/a","/gone/deep"]"#[..], &br#"["/gone/deep","/a","/a/x"]"#[..]] {
        let dir = tempfile::tempdir().unwrap();
        apply_to(dir.path(), &[(Dir, "a", ""), (File, "a/x", "1")]).unwrap();
        delete(json, dir.path()).unwrap();
        assert_eq!(show(dir.path()), expect(&[("a", "deleted"), ("gone", "dir"), ("gone/deep", "deleted")]));
    }
}

#[test]
fn hostile_paths_are_refused_and_touch_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    let up = format!("..{}", target.display());
    let whiteout_up = [(File, "a/.wh...", "")];
    let absolute = target.display().to_string();
    let through = [(Symlink, "l", outside.path().to_str().unwrap()), (File, "l/target", "x")];
    let through_dir = [(Symlink, "l", outside.path().to_str().unwrap()), (Dir, "l/target", "")];
    let hard = [(Link, "h", "../../../../etc/passwd")];
    let hard_through = [(Symlink, "l", "/etc"), (Link, "h", "l/passwd")];
    let layers: [&[Item<'_>]; 9] = [
        &[(File, &up, "x")],
        &[(File, "a/../../b", "x")],
        &[(File, &absolute, "x")],
        &whiteout_up,
        &[(File, ".wh.", "")],
        &through,
        &through_dir,
        &hard,
        &hard_through,
    ];
    for layer in layers {
        let dir = outside.path().join("layer");
        std::fs::create_dir(&dir).unwrap();
        assert!(apply_to(&dir, layer).is_err(), "{layer:?}");
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{layer:?}");
    }
    for json in [&br#"["/../x"]"#[..], br#"["a/../../x"]"#, br#"["/"]"#, br#"[1]"#, b"{}"] {
        assert!(delete(json, outside.path()).is_err());
    }
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let layers: [&[Item<'_>]; 2] = [&[(Symlink, "l", "/etc")], &[(Dir, "l", ""), (File, "l/x", "1")]];
    assert_eq!(tree(&layers), expect(&[("l", "opaque"), ("l/x", "1")]));
    assert_eq!(tree(&[&[(Symlink, "l", "/etc/passwd")], &[(File, "l", "1")]]), expect(&[("l", "1")]));
}

#[test]
fn a_truncated_layer_is_an_error_wherever_it_is_cut() {
    let whole = tar(&[(File, "a", "0123456789"), (File, "b", "x")]);
    for length in [100, 512, 515, 1024, 1300, 2048] {
        let dir = tempfile::tempdir().unwrap();
        assert!(apply(&whole[..length], dir.path()).is_err(), "{length}");
    }
}

#[test]
fn what_is_unpacked_can_be_packed_again() {
    let long = "d".repeat(80) + "/" + &"f".repeat(80);
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    apply_to(
        first.path(),
        &[
            (Dir, "etc", ""),
            (File, "etc/hosts", "x"),
            (Link, "etc/hard", "etc/hosts"),
            (Symlink, "etc/link", "target"),
            (Char, "null", ""),
            (Fifo, "fifo", ""),
            (File, ".wh.gone", ""),
            (Dir, "new", ""),
            (File, "new/.wh..wh..opq", ""),
        ],
    )
    .unwrap();
    std::fs::create_dir(first.path().join(&long[..80])).unwrap();
    std::fs::write(first.path().join(&long), "long").unwrap();
    rustix::fs::setxattr(first.path().join(&long), "user.note", b"kept", rustix::fs::XattrFlags::empty())
        .unwrap();
    let mut packed = Vec::new();
    write(open(first.path()).as_fd(), &mut packed).unwrap();
    apply(&packed[..], second.path()).unwrap();
    assert_eq!(show(first.path()), show(second.path()));
    let (third, fourth) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(copied(first.path(), third.path()).unwrap(), apply(&packed[..], fourth.path()).unwrap());
    assert_eq!(show(first.path()), show(third.path()));
    assert_eq!(show(second.path())[&long], "long");
    let (a, b) = (first.path().join("etc/hosts"), second.path().join("etc/hosts"));
    let facts = |path: &Path| {
        let meta = std::fs::metadata(path).unwrap();
        (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), meta.nlink())
    };
    assert_eq!(facts(&a), facts(&b));
    assert_eq!(facts(&first.path().join(&long)), facts(&second.path().join(&long)));
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(second.path().join(&long), "user.note", &mut value[..]).unwrap(), 4);
}

fn copied(from: &Path, to: &Path) -> Result<Rootfs, CopyError> {
    let to = open(to);
    let mut stack = Stack::new(to.as_fd());
    copy(open(from).as_fd(), &mut stack)?;
    Ok(stack.finish())
}

#[test]
fn a_name_that_would_mean_a_deletion_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".wh.x"), "").unwrap();
    assert!(matches!(write(open(dir.path()).as_fd(), Vec::new()), Err(WriteLayerError::Name { .. })));
    let to = tempfile::tempdir().unwrap();
    assert!(matches!(copied(dir.path(), to.path()), Err(CopyError::Read(WriteLayerError::Name { .. }))));
}

/// A file system: path -> content, or `None` for a directory.
type Model = BTreeMap<String, Option<u8>>;

/// Any small file system whose directories all exist.
fn model() -> impl Strategy<Value = Model> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4);
    prop::collection::vec((path, prop::option::of(0u8..3)), 0..8).prop_map(|nodes| {
        let mut model = Model::new();
        for (path, content) in nodes {
            let is_file = |model: &Model, path: &str| model.get(path).is_some_and(Option::is_some);
            let parents: Vec<String> = (1..path.len()).map(|end| path[..end].join("/")).collect();
            if parents.iter().any(|parent| is_file(&model, parent)) || model.contains_key(&path.join("/")) {
                continue;
            }
            model.extend(parents.into_iter().map(|parent| (parent, None)));
            model.insert(path.join("/"), content);
        }
        model
    })
}

/// The layer that makes `new` of `old`, as containerd writes it.
fn diff(old: &Model, new: &Model) -> Vec<u8> {
    let mut items: Vec<(EntryType, String, String)> = Vec::new();
    let gone = |path: &String| !new.contains_key(path);
    for path in old.keys().filter(|path| gone(path)) {
        let (dir, name) =
            path.rsplit_once('/').map_or((String::new(), path.as_str()), |(d, n)| (format!("{d}/"), n));
        let below = dir.trim_end_matches('/').to_owned();
        if dir.is_empty() || (new.get(&below) == Some(&None) && old.get(&below) == Some(&None)) {
            items.push((File, format!("{dir}.wh.{name}"), String::new()));
        }
    }
    for (path, content) in new.iter().filter(|(path, content)| old.get(*path) != Some(content)) {
        match content {
            None => items.push((Dir, path.clone(), String::new())),
            Some(byte) => items.push((File, path.clone(), byte.to_string())),
        }
    }
    tar(&items
        .iter()
        .map(|(kind, path, content)| (*kind, path.as_str(), content.as_str()))
        .collect::<Vec<_>>())
}

/// What overlayfs shows with the upper directory `upper` on top of `image`.
fn merged(image: &Model, upper: &BTreeMap<String, String>) -> Model {
    let parents = |path: &str| -> Vec<String> {
        path.match_indices('/').map(|(end, _)| path[..end].to_owned()).collect()
    };
    let hides = |what: &str| what != "dir";
    let mut shown: Model = image
        .iter()
        .filter(|(path, _)| !upper.contains_key(*path))
        .filter(|(path, _)| {
            !parents(path).iter().any(|parent| upper.get(parent).is_some_and(|what| hides(what)))
        })
        .map(|(path, content)| (path.clone(), *content))
        .collect();
    for (path, what) in upper {
        match what.as_str() {
            "deleted" => {}
            "dir" | "opaque" => drop(shown.insert(path.clone(), None)),
            content => drop(shown.insert(path.clone(), Some(content.parse().unwrap()))),
        }
    }
    shown
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn layers_on_an_image_give_what_the_container_had(image in model(), first in model(), second in model()) {
        let dir = tempfile::tempdir().unwrap();
        apply(&diff(&image, &first)[..], dir.path()).unwrap();
        prop_assert_eq!(&merged(&image, &show(dir.path())), &first);
        apply(&diff(&first, &second)[..], dir.path()).unwrap();
        prop_assert_eq!(&merged(&image, &show(dir.path())), &second);
        let (mut packed, again) = (Vec::new(), tempfile::tempdir().unwrap());
        write(open(dir.path()).as_fd(), &mut packed).unwrap();
        apply(&packed[..], again.path()).unwrap();
        prop_assert_eq!(show(again.path()), show(dir.path()));
    }

    #[test]
    fn any_bytes_are_unpacked_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let dir = tempfile::tempdir().unwrap();
        let _ = apply(&bytes[..], dir.path());
    }

    #[test]
    fn a_damaged_layer_stays_inside(at in 0usize..2048, byte: u8) {
        let outside = tempfile::tempdir().unwrap();
        let dir = outside.path().join("layer");
        std::fs::create_dir(&dir).unwrap();
        let mut bytes = tar(&[(Symlink, "l", ".."), (File, "l/../x", "1"), (Dir, "d", ""), (File, "d/.wh.x", "")]);
        bytes[at] = byte;
        let _ = apply(&bytes[..], &dir);
        let names: BTreeSet<_> = std::fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(names.len(), 1);
    }
}
