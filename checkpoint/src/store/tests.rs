// SPDX-License-Identifier: Apache-2.0
//! Tests of the store on a real file system.

use super::*;
use crate::id::CheckpointId;
use crate::manifest::example;
use crate::reference::{Lineage, Reference};
use std::os::unix::fs::PermissionsExt;
use time::macros::datetime;

struct Fixture {
    root: tempfile::TempDir,
    config: Config,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = Config {
            roots: vec![root.path().to_owned()],
            shared_namespaces: vec!["golden".into()],
            ..Config::default()
        };
        Self { root, config }
    }

    fn store(&self) -> Store {
        Store::create(&self.config).unwrap()
    }

    fn publish(&self, namespace: &str, lineage: &str, random: u16) -> CheckpointId {
        let (store, id) = (self.store(), id(random));
        let writer = store.begin(namespace, &name(lineage), id.clone()).unwrap();
        let mut container = writer.container("main").unwrap();
        container.add("checkpoint/inventory.img", &mut &b"x"[..]).unwrap();
        writer.publish(&example(namespace, lineage, id.clone())).unwrap();
        id
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    fn resolve(&self, reference: &str) -> Result<CheckpointDir, ResolveError> {
        self.store().resolve("team", &name("trainer"), &reference.parse().unwrap())
    }
}

fn id(random: u16) -> CheckpointId {
    CheckpointId::new(datetime!(2026-11-22 18:15 UTC), random)
}

fn name(lineage: &str) -> Lineage {
    lineage.parse().unwrap()
}

#[test]
fn a_lineage_that_cannot_be_listed_is_not_one_that_holds_nothing() {
    let fixture = Fixture::new();
    fixture.publish("team", "other", 1);
    std::fs::write(fixture.path("team/trainer"), "no directory").unwrap();
    let error = fixture.resolve("latest").unwrap_err();
    assert!(!error.is_missing() && error.to_string().contains("cannot list"), "{error}");
}

#[test]
fn one_manifest_that_cannot_be_read_does_not_hide_the_others() {
    let fixture = Fixture::new();
    let (good, bad) = (fixture.publish("team", "trainer", 1), fixture.publish("team", "trainer", 2));
    let manifest = fixture.path(&format!("team/trainer/{bad}/manifest.json"));
    let file = std::fs::File::options().write(true).open(manifest).unwrap();
    file.set_len(crate::manifest::LIMIT_BYTES + 1).unwrap();
    let listed = fixture.store().list(&Filter::default()).unwrap();
    let read: Vec<_> = listed.iter().map(|listed| (&listed.id, listed.manifest.is_ok())).collect();
    assert_eq!(read, [(&good, true), (&bad, false)]);
}

#[test]
fn a_manifest_that_nobody_could_read_is_not_published() {
    let fixture = Fixture::new();
    let (store, id) = (fixture.store(), id(1));
    let writer = store.begin("team", &name("trainer"), id.clone()).unwrap();
    let mut manifest = example("team", "trainer", id);
    manifest.pod.name = "x".repeat(17 << 20);
    let error = writer.publish(&manifest).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("too many files"), "{error}");
    assert!(fixture.resolve("latest").unwrap_err().is_missing());
}

#[test]
fn latest_is_the_newest_with_a_manifest() {
    let fixture = Fixture::new();
    fixture.publish("team", "trainer", 1);
    let newest = fixture.publish("team", "trainer", 2);
    std::fs::create_dir(fixture.path(&format!("team/trainer/{}", id(3)))).unwrap();
    std::fs::create_dir(fixture.path("team/trainer/.tmp-x")).unwrap();
    std::fs::create_dir(fixture.path("team/trainer/zzz")).unwrap();
    let checkpoint = fixture.resolve("latest").unwrap();
    assert_eq!(*checkpoint.id(), newest);
    assert_eq!(checkpoint.name(), format!("team/trainer/{newest}"));
    assert_eq!(fixture.store().list(&Filter::default()).unwrap().len(), 2);
}

#[test]
fn an_id_and_a_lineage_with_id_resolve_exactly() {
    let fixture = Fixture::new();
    let (first, other) = (fixture.publish("team", "trainer", 1), fixture.publish("team", "other", 9));
    fixture.publish("team", "trainer", 2);
    assert_eq!(*fixture.resolve(first.as_str()).unwrap().id(), first);
    assert_eq!(fixture.resolve(&format!("other/{other}")).unwrap().lineage().as_str(), "other");
}

#[test]
fn what_does_not_exist_is_missing_and_the_error_says_what_exists() {
    let fixture = Fixture::new();
    let error = fixture.resolve("latest").unwrap_err();
    assert!(error.is_missing() && error.to_string().contains("there is none"), "{error}");
    let first = fixture.publish("team", "trainer", 1);
    let error = fixture.resolve(id(7).as_str()).unwrap_err();
    assert!(error.is_missing() && error.to_string().contains(first.as_str()), "{error}");
    let other = fixture.publish("team", "other", 9);
    let error = fixture.resolve(other.as_str()).unwrap_err().to_string();
    assert!(error.contains(&format!("write other/{other}")), "{error}");
}

#[test]
fn a_checkpoint_of_another_namespace_is_out_of_reach() {
    let fixture = Fixture::new();
    let id = fixture.publish("foreign", "trainer", 1);
    let error = fixture.resolve(id.as_str()).unwrap_err();
    assert!(error.is_missing() && !error.to_string().contains("foreign"), "{error}");
    std::fs::create_dir_all(fixture.path("team/trainer")).unwrap();
    std::fs::rename(
        fixture.path(&format!("foreign/trainer/{id}")),
        fixture.path(&format!("team/trainer/{id}")),
    )
    .unwrap();
    let error = fixture.resolve(id.as_str()).unwrap_err();
    assert!(matches!(error, ResolveError::ForeignNamespace { .. }) && !error.is_missing(), "{error}");
}

#[test]
fn a_shared_namespace_serves_after_the_own_one() {
    let fixture = Fixture::new();
    fixture.publish("golden", "trainer", 9);
    assert_eq!(fixture.resolve("latest").unwrap().namespace(), "golden");
    fixture.publish("team", "trainer", 1);
    assert_eq!(fixture.resolve("latest").unwrap().namespace(), "team");
}

#[test]
fn several_roots_are_searched_and_an_absent_one_is_empty() {
    let (first, second) = (Fixture::new(), Fixture::new());
    second.publish("team", "trainer", 2);
    first.publish("team", "trainer", 1);
    let roots = vec!["/nonexistent/root".into(), first.root.path().to_owned(), second.root.path().to_owned()];
    let store = Store::open(&Config { roots, ..Config::default() }).unwrap();
    assert_eq!(*store.resolve("team", &name("trainer"), &Reference::Latest).unwrap().id(), id(2));
}

#[test]
fn a_link_anywhere_in_the_store_is_refused() {
    let fixture = Fixture::new();
    let id = fixture.publish("team", "trainer", 1);
    for relative in [
        format!("team/trainer/{id}/manifest.json"),
        format!("team/trainer/{id}"),
        "team/trainer".into(),
        "team".into(),
    ] {
        let (path, moved) = (fixture.path(&relative), fixture.path("moved"));
        std::fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        let error = fixture.resolve(id.as_str()).unwrap_err();
        assert!(matches!(error, ResolveError::Io { .. }), "{relative}: {error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&moved, &path).unwrap();
    }
    assert!(fixture.resolve(id.as_str()).is_ok());
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let fixture = Fixture::new();
    fixture.publish("team", "trainer", 1);
    let lineage = fixture.path("team/trainer");
    std::fs::set_permissions(&lineage, PermissionsExt::from_mode(0o770)).unwrap();
    assert!(matches!(fixture.resolve("latest"), Err(ResolveError::Unsafe(_))));
    std::fs::set_permissions(fixture.root.path(), PermissionsExt::from_mode(0o707)).unwrap();
    assert!(matches!(Store::open(&fixture.config), Err(OpenStoreError::Unsafe(_))));
}

#[test]
fn a_manifest_of_another_version_is_an_error_and_not_missing() {
    let fixture = Fixture::new();
    let id = fixture.publish("team", "trainer", 1);
    std::fs::write(fixture.path(&format!("team/trainer/{id}/manifest.json")), "{\"version\":9}").unwrap();
    assert!(!fixture.resolve("latest").unwrap_err().is_missing());
    assert!(fixture.store().list(&Filter::default()).unwrap()[0].manifest.is_err());
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let writer = store.begin("team", &name("trainer"), id(1)).unwrap();
    writer.container("main").unwrap().add("config.dump", &mut &b"{}"[..]).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(fixture.root.path()).unwrap().count(), 0);
}

#[test]
fn a_file_cannot_be_written_outside_its_container() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let writer = store.begin("team", &name("trainer"), id(1)).unwrap();
    let mut container = writer.container("main").unwrap();
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "checkpoint/../x",
        "checkpoint/",
        "/x",
        "a/b",
        "checkpoint/a/b",
        "checkpoint/.x",
    ] {
        assert!(matches!(container.add(bad, &mut &b""[..]), Err(WriteError::Name { .. })), "{bad}");
    }
    container.add("x", &mut &b""[..]).unwrap();
    assert!(container.add("x", &mut &b""[..]).is_err());
    assert!(writer.container("../main").is_err());
}

#[test]
fn an_id_is_published_once() {
    let fixture = Fixture::new();
    let id = fixture.publish("team", "trainer", 1);
    let store = fixture.store();
    assert!(matches!(store.begin("team", &name("trainer"), id), Err(WriteError::Exists { .. })));
    assert!(fixture.resolve("latest").is_ok());
}

#[test]
fn cleaning_takes_what_the_dead_left_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.publish("team", "trainer", 1);
    let store = fixture.store();
    let alive = store.begin("team", &name("trainer"), id(2)).unwrap();
    let dead = fixture.path(&format!("team/trainer/.tmp-{}", id(3)));
    std::fs::create_dir_all(dead.join("main/checkpoint")).unwrap();
    assert_eq!(store.clean().unwrap(), 1);
    assert!(!dead.exists());
    alive.publish(&example("team", "trainer", id(2))).unwrap();
    assert_eq!(*fixture.resolve("latest").unwrap().id(), id(2));
}

#[test]
fn a_checkpoint_in_use_is_not_removed() {
    let fixture = Fixture::new();
    let id = fixture.publish("team", "trainer", 1);
    let (one, two) = (fixture.resolve("latest").unwrap(), fixture.resolve("latest").unwrap());
    drop(one);
    let error = fixture.store().remove("team", &name("trainer"), &id).unwrap_err();
    assert!(matches!(error, RemoveError::InUse { .. }), "{error}");
    drop(two);
    fixture.store().remove("team", &name("trainer"), &id).unwrap();
    assert!(fixture.resolve("latest").unwrap_err().is_missing());
    assert_eq!(std::fs::read_dir(fixture.root.path()).unwrap().count(), 0);
    assert!(matches!(
        fixture.store().remove("team", &name("trainer"), &id),
        Err(RemoveError::NotFound { .. })
    ));
}
