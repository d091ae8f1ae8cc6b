// SPDX-License-Identifier: Apache-2.0
//! Tests of imports into a real store. Layers need root.

use super::*;
use crate::fixture::{
    Fixture, Tar, chain, containerd, containerd_spec, gzip, images, is_whiteout, plain, zstd,
};
use checkpoint::manifest::Producer;
use checkpoint::{Config, Reference};
use tar::EntryType;

#[track_caller]
fn refused(archives: &[&[u8]], import: Import, parts: &[&str]) {
    let fixture = Fixture::new();
    let error = chain(&fixture.import_as(archives, import).unwrap_err());
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(fixture.files().is_empty(), "left behind: {:?}", fixture.files());
}

#[test]
fn an_archive_of_the_kubelet_with_containerd_becomes_a_checkpoint() {
    let diff = Tar::new().folder("etc/").file("etc/new", "new").file("etc/.wh.gone", "").bytes();
    let tar = images(Tar::new(), "python3").file("rootfs-diff.tar", gzip(&diff));
    let fixture = Fixture::new();
    let imported = fixture.import(&[&containerd(tar, "team", "trainer-0", "main").bytes()]).unwrap();
    assert_eq!((imported.namespace.as_str(), imported.lineage.as_str()), ("team", "trainer-0"));
    let store = Store::open(&Config { roots: vec![fixture.root()], ..Config::default() }).unwrap();
    let lineage = "trainer-0".parse().unwrap();
    let checkpoint = store.resolve("team", &lineage, &Reference::Latest).unwrap();
    assert_eq!(checkpoint.id().as_str(), imported.id);
    let manifest = checkpoint.manifest();
    assert_eq!(manifest.pod.uid.as_deref(), Some("11111111-2222"));
    let main = checkpoint.container("main").unwrap();
    assert_eq!(main.record().image.name, "docker.io/library/python:3.12");
    assert_eq!((main.record().producer, main.images().len()), (Producer::Containerd, 5));
    assert_eq!(main.record().files["checkpoint/pages-1.img"].sha256.len(), 64);
    assert_eq!(main.stdio().unwrap()[1].as_deref(), Some("pipe:[1]"));
    assert_eq!(main.config().unwrap().id, "abc");
    assert!(main.spec().unwrap().annotations().is_some() && main.status().unwrap().is_some());
    let rootfs = main.rootfs().unwrap();
    assert_eq!(std::fs::read_to_string(rootfs.join("etc/new")).unwrap(), "new");
    assert!(is_whiteout(&rootfs.join("etc/gone")) && main.implied_directories().is_empty());
    assert_eq!(std::fs::read_to_string(imported.path.join("main/container.log")).unwrap(), "log");
}

#[test]
fn an_archive_of_crio_brings_its_deletions_as_a_list() {
    let diff = Tar::new().file("tmp/new", "new").bytes();
    let labels = r#"{\"io.kubernetes.pod.namespace\":\"team\",\"io.kubernetes.pod.name\":\"p\",\"io.kubernetes.container.name\":\"c\"}"#;
    let tar = images(Tar::new(), "sleep")
        .file("rootfs-diff.tar", diff)
        .file("deleted.files", r#"["/etc/gone"]"#)
        .file("bind.mounts", "[]")
        .file("config.dump", r#"{"id":"abc","name":"k8s_c","rootfsImageName":"quay.io/x:1"}"#)
        .file(
            "spec.dump",
            format!(r#"{{"ociVersion":"1.2.0","annotations":{{"io.kubernetes.cri-o.Labels":"{labels}"}}}}"#),
        );
    let fixture = Fixture::new();
    let imported = fixture.import(&[&tar.bytes()]).unwrap();
    assert_eq!(imported.containers, ["c"]);
    let rootfs = imported.path.join("c/rootfs");
    assert!(is_whiteout(&rootfs.join("etc/gone")) && rootfs.join("tmp/new").is_file());
    let manifest = std::fs::read(imported.path.join("manifest.json")).unwrap();
    let manifest = Manifest::parse(&manifest).unwrap();
    assert_eq!(manifest.containers["c"].rootfs.as_ref().unwrap().implied_directories, ["etc", "tmp"]);
}

#[test]
fn an_archive_of_podman_needs_a_namespace_and_a_lineage() {
    let tar = || {
        images(Tar::new(), "sleep")
            .file("config.dump", r#"{"id":"abc","name":"magical","rootfsImageName":"quay.io/x:1"}"#)
            .file("spec.dump", r#"{"ociVersion":"1.2.0"}"#)
            .file("devshm-checkpoint.tar", gzip(b"a tar"))
            .file("volumes/data.tar", "another tar")
            .file("volumes/No_name.tar", "")
            .bytes()
    };
    refused(&[&zstd(&tar())], Import::default(), &["which namespace", "--namespace"]);
    let namespace = Import { namespace: Some("team".into()), ..Import::default() };
    refused(&[&zstd(&tar())], namespace.clone(), &["which pod", "--lineage"]);
    for archive in [tar(), zstd(&tar()), gzip(&tar())] {
        let import =
            Import { lineage: Some("line".into()), container: Some("main".into()), ..namespace.clone() };
        let fixture = Fixture::new();
        let imported = fixture.import_as(&[&archive], import).unwrap();
        let image = |name| std::fs::read(imported.path.join("main/checkpoint").join(name)).unwrap();
        assert_eq!(image("thaw-shm.tar"), b"a tar");
        assert_eq!(image("thaw-volume-data.tar"), b"another tar");
        assert_eq!((imported.lineage.as_str(), imported.containers), ("line", vec!["main".to_owned()]));
    }
}

#[test]
fn several_archives_are_one_checkpoint() {
    let archive = |container| containerd(images(Tar::new(), "x"), "team", "pod", container).bytes();
    let fixture = Fixture::new();
    let imported = fixture.import(&[&archive("web"), &archive("side")]).unwrap();
    assert_eq!(imported.containers, ["side", "web"]);
    assert!(imported.path.join("web/checkpoint/pages-1.img").is_file());
    refused(&[&archive("web"), &archive("web")], Import::default(), &["two of the archives", "\"web\""]);
    let other = containerd(images(Tar::new(), "x"), "team", "other", "web").bytes();
    refused(&[&archive("side"), &other], Import::default(), &["team/other", "team/pod"]);
    let container = Import { container: Some("x".into()), ..Import::default() };
    refused(&[&archive("side"), &other], container, &["--container"]);
}

/// Puts both layers into an archive.
type Order = fn(Tar, Vec<u8>, Vec<u8>) -> Tar;

#[test]
fn the_inherited_layer_goes_below_the_difference_in_any_order() {
    let inherited = Tar::new().folder("d/").file("d/a", "old").file("d/b", "old").bytes();
    let diff = gzip(&Tar::new().folder("d/").file("d/a", "new").file("d/.wh.b", "").bytes());
    let orders: [Order; 2] = [
        |tar, inherited, diff| {
            tar.file("checkpoint/thaw-rootfs.tar", inherited).file("rootfs-diff.tar", diff)
        },
        |tar, inherited, diff| {
            tar.file("rootfs-diff.tar", diff).file("checkpoint/thaw-rootfs.tar", inherited)
        },
    ];
    for order in orders {
        let fixture = Fixture::new();
        let tar = order(images(Tar::new(), "x"), inherited.clone(), diff.clone());
        let imported = fixture.import(&[&containerd(tar, "team", "pod", "main").bytes()]).unwrap();
        let rootfs = imported.path.join("main/rootfs/d");
        assert_eq!(std::fs::read_to_string(rootfs.join("a")).unwrap(), "new");
        assert!(is_whiteout(&rootfs.join("b")));
        assert!(!imported.path.join("main/checkpoint/thaw-rootfs.tar").exists());
        let manifest = Manifest::parse(&std::fs::read(imported.path.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest.containers["main"].rootfs.as_ref().unwrap().layers.len(), 2);
    }
}

#[test]
fn the_time_of_the_freeze_and_not_of_the_import_orders_checkpoints() {
    let archive = |time: &str| {
        let config = format!(r#"{{"id":"a","rootfsImageName":"x","checkpointedTime":"{time}"}}"#);
        let spec = containerd_spec("team", "pod", "main");
        images(Tar::new(), "x").file("config.dump", config).file("spec.dump", spec).bytes()
    };
    let fixture = Fixture::new();
    let new = fixture.import(&[&archive("2026-02-01T00:00:00Z")]).unwrap();
    let old = fixture.import(&[&archive("2026-01-01T00:00:00.123456789+01:00")]).unwrap();
    assert!(new.id > old.id && old.id.starts_with("20251231T230000.123Z-"), "{}", old.id);
}

/// What somebody did to a good archive.
type Change = fn(Tar) -> Tar;

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let with = |change: Change| change(images(containerd(Tar::new(), "team", "pod", "main"), "x")).bytes();
    let cases: [(&str, Change); 8] = [
        ("no plain file", |tar| tar.odd(EntryType::Symlink, "checkpoint/x.img", "/etc/passwd")),
        ("no plain file", |tar| tar.odd(EntryType::Link, "checkpoint/x.img", "config.dump")),
        ("no plain file", |tar| tar.odd(EntryType::Char, "checkpoint/x.img", "")),
        ("leads outside", |tar| tar.file("checkpoint/../../x", "")),
        ("leads outside", |tar| tar.file("/etc/x", "")),
        ("leads outside", |tar| tar.folder("../x/")),
        ("flat", |tar| tar.file("checkpoint/a/b.img", "")),
        ("twice", |tar| tar.file("config.dump", "{}")),
    ];
    for (part, change) in cases {
        refused(&[&with(change)], Import::default(), &[part, "0.tar"]);
    }
    let evil = Tar::new().file("../evil", "x").bytes();
    let tar = images(containerd(Tar::new(), "team", "pod", "main"), "x").file("rootfs-diff.tar", gzip(&evil));
    refused(&[&tar.bytes()], Import::default(), &["rootfs-diff.tar", "leads upwards"]);
    let name = containerd(images(Tar::new(), "x"), "../team", "pod", "main").bytes();
    refused(&[&name], Import::default(), &["\"../team\" is not the name of a namespace"]);
}

#[test]
fn what_is_no_whole_checkpoint_is_refused() {
    let no_inventory = containerd(Tar::new(), "team", "pod", "main").bytes();
    refused(&[&no_inventory], Import::default(), &["checkpoint/inventory.img is missing"]);
    refused(&[b"not a tar at all".repeat(100).as_slice()], Import::default(), &["cannot be read"]);
    refused(&[b""], Import::default(), &["is missing"]);
    let image = r#"{"id":"a"}"#;
    let spec = containerd_spec("team", "pod", "main").replace("image-name", "other");
    let tar = images(Tar::new(), "x").file("config.dump", image).file("spec.dump", spec).bytes();
    refused(&[&tar], Import::default(), &["which image"]);
    let tar = images(Tar::new(), "x").file("config.dump", "[").file("spec.dump", "{}").bytes();
    refused(&[&tar], Import::default(), &["config.dump cannot be understood"]);
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_is_cut() {
    let whole = plain();
    for part in [20, 60, 90] {
        refused(&[&whole[..whole.len() * part / 100]], Import::default(), &["0.tar"]);
    }
    // The end mark alone is missing: every file is there.
    refused(&[&whole[..whole.len() - 1024]], Import::default(), &["truncated"]);
    for packed in [gzip(&whole), zstd(&whole)] {
        refused(&[&packed[..packed.len() - 9]], Import::default(), &["0.tar"]);
    }
}

#[test]
fn what_a_killed_import_left_is_cleaned_by_the_next_one() {
    let fixture = Fixture::new();
    let dead = fixture.root().join("team/other/.tmp-20260101T000000.000Z-0001/main/checkpoint");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join("pages-1.img"), "half").unwrap();
    for dir in [fixture.root(), fixture.root().join("team"), fixture.root().join("team/other")] {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    fixture.import(&[&plain()]).unwrap();
    assert!(
        !dead.exists() && !fixture.files().iter().any(|path| path.display().to_string().contains(".tmp-"))
    );
}

#[test]
fn the_output_is_the_name_or_json() {
    let fixture = Fixture::new();
    let import = Import {
        archives: vec![fixture.archive("a.tar", &plain())],
        store: fixture.store(),
        ..Import::default()
    };
    let mut out = Vec::new();
    import.run(&mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.starts_with("team/trainer/20") && text.ends_with('\n') && text.lines().count() == 1,
        "{text}"
    );
    let mut out = Vec::new();
    Import { json: true, ..import }.run(&mut out).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&json["namespace"], &json["containers"][0]), (&"team".into(), &"main".into()));
}
