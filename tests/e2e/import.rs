// SPDX-License-Identifier: Apache-2.0
//! `thaw import`: archives as containerd, CRI-O and Podman write them become checkpoints that can be restored;
//! others leave nothing in the store.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tar::EntryType;
use thaw_tests::harness::archive::{self, Compression, Unpacked};
use thaw_tests::harness::counter::{self, PORT};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::{self, STORE};
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process};

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw];
const RESTORES: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

/// Freezes a pod that counts, under stock runc, and returns its archive.
async fn counter_archive(node: &Node) -> Result<PathBuf, HarnessError> {
    let state = node.run_counter(node.counter_pod("before", 4)?.under("runc")).await?;
    let archives = node.freeze(&state).await?;
    node.remove(&state).await?;
    Ok(archives[0].clone())
}

fn remove(archive: &Path) {
    std::fs::remove_file(archive).unwrap();
}

/// Everything beneath the store that belongs to the test's namespace.
fn stored(node: &Node) -> Vec<PathBuf> {
    let dir = Path::new(STORE).join(&node.namespace);
    let lineages = std::fs::read_dir(dir).into_iter().flatten().flatten();
    lineages
        .flat_map(|lineage| std::fs::read_dir(lineage.path()).unwrap().flatten())
        .map(|id| id.path())
        .collect()
}

/// Every folder and file of the store, but not what is in a checkpoint.
fn all_of_store() -> Vec<PathBuf> {
    let folders = |path: &PathBuf| -> Vec<PathBuf> {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut all = top_of_store();
    let lineages: Vec<_> = all.iter().flat_map(folders).collect();
    all.extend(lineages.iter().flat_map(folders));
    all.extend(lineages);
    all.sort();
    all
}

/// Everything that is in the top folder of the store, whatever it is called.
fn top_of_store() -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(STORE).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn an_archive_becomes_a_checkpoint_of_its_pod_that_only_root_can_read() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let archive = counter_archive(&node).await?;
    let imported = thaw::import(std::slice::from_ref(&archive))?;
    remove(&archive);
    assert_eq!((&imported.namespace, imported.lineage.as_str()), (&node.namespace, "before"));
    assert_eq!(stored(&node), [imported.dir()]);
    for file in
        ["manifest.json", "counter/config.dump", "counter/spec.dump", "counter/checkpoint/inventory.img"]
    {
        assert!(imported.dir().join(file).is_file(), "{file}");
    }
    assert!(imported.dir().join("counter/rootfs").is_dir());
    assert!(!imported.dir().join("counter/rootfs-diff.tar").exists(), "the layer is unpacked once, here");
    let mode = std::fs::metadata(STORE).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "{mode:o}");
    node.leave().await
}

#[tokio::test]
async fn list_and_inspect_tell_what_was_imported() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let archive = counter_archive(&node).await?;
    let imported = thaw::import(std::slice::from_ref(&archive))?;
    remove(&archive);
    let list = process::output("thaw", &["list"])?;
    let line = list.lines().find(|line| line.contains(&imported.id)).unwrap_or_default();
    assert!(line.contains(&node.namespace) && line.contains("before"), "{list}");
    let name = format!("{}/{}", imported.namespace, imported.reference());
    let told = process::output("thaw", &["inspect", &name])?;
    for word in ["counter", "thaw.local/python:1", &imported.id] {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }
    node.leave().await
}

#[tokio::test]
async fn archives_of_every_compression_and_of_other_runtimes_are_restored() -> Tested {
    let Some(node) = Node::enter(RESTORES).await else { return Ok(()) };
    let original = counter_archive(&node).await?;
    let (containerd, cri_o) = (Unpacked::new(&original)?, Unpacked::new(&original)?);
    remove(&original);
    cri_o.as_cri_o_writes_it()?;
    for (name, files, compression) in [
        ("containerd-gzip", &containerd, Compression::Gzip),
        ("containerd-zstd", &containerd, Compression::Zstd),
        ("cri-o", &cri_o, Compression::None),
        ("podman", &cri_o, Compression::Zstd),
    ] {
        let archive = archive::path(&node.namespace, name);
        files.pack(&archive, compression)?;
        let imported = thaw::import(std::slice::from_ref(&archive))?;
        remove(&archive);
        let state =
            node.run_counter(node.counter_pod(name, 4)?.annotated(RESTORE, &imported.reference())).await?;
        let now = counter::verify(&state, PORT).await?;
        assert!(now.crc_ok && now.hostname == name, "{name}: {now:?}");
        node.remove(&state).await?;
    }
    drop((containerd, cri_o));
    node.leave().await
}

#[tokio::test]
async fn deletions_are_kept_whichever_way_the_archive_tells_them() -> Tested {
    let Some(node) = Node::enter(RESTORES).await else { return Ok(()) };
    let shell = "while :; do sleep 1; done";
    let state = node.run(node.shell_pod("before", shell)?.under("runc")).await?;
    let command = ["sh", "-c", "rm /bin/wget; mkdir /made; echo x > /made/file"].map(str::to_owned);
    assert_eq!(node.kubelet.exec(&state, "", &command, 10).await?.exit_code, 0);
    let original = node.freeze(&state).await?.remove(0);
    node.remove(&state).await?;
    let cri_o = Unpacked::new(&original)?;
    cri_o.as_cri_o_writes_it()?;
    let rewritten = archive::path(&node.namespace, "cri-o");
    cri_o.pack(&rewritten, Compression::None)?;
    for (name, archive) in [("whiteouts", &original), ("deleted-files", &rewritten)] {
        let imported = thaw::import(std::slice::from_ref(archive))?;
        let state = node.run(node.shell_pod(name, shell)?.annotated(RESTORE, &imported.reference())).await?;
        let command = ["sh", "-c", "cat /made/file; test -e /bin/wget || echo gone"].map(str::to_owned);
        assert_eq!(node.kubelet.exec(&state, "", &command, 10).await?.stdout, "x\ngone\n", "{name}");
        node.remove(&state).await?;
        remove(archive);
    }
    drop(cri_o);
    node.leave().await
}

#[tokio::test]
async fn an_archive_that_was_cut_anywhere_leaves_nothing_in_the_store() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let archive = counter_archive(&node).await?;
    let length = std::fs::metadata(&archive).unwrap().len();
    let before = top_of_store();
    for percent in [99, 90, 75, 50, 25, 1] {
        archive::cut(&archive, length * percent / 100)?;
        let result = thaw::import(std::slice::from_ref(&archive));
        let error = result.map(|imported| imported.reference()).unwrap_err().to_string();
        assert!(error.contains(&*archive.to_string_lossy()), "{percent} %: {error}");
        assert_eq!((stored(&node), top_of_store()), (Vec::new(), before.clone()), "{percent} %");
    }
    remove(&archive);
    node.leave().await
}

#[tokio::test]
async fn an_import_that_was_killed_is_no_checkpoint_and_the_next_one_clears_it_away() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let archive = counter_archive(&node).await?;
    let before = all_of_store();
    let mut import =
        std::process::Command::new("thaw").args(["import", "--json"]).arg(&archive).spawn().unwrap();
    while all_of_store() == before && import.try_wait().unwrap().is_none() {}
    import.kill().unwrap();
    while import.try_wait().unwrap().is_none() {}
    assert_ne!(all_of_store(), before, "it had begun to write");
    assert!(!process::output("thaw", &["list"])?.contains(&node.namespace), "it is listed");

    let imported = thaw::import(std::slice::from_ref(&archive))?;
    remove(&archive);
    assert_eq!(stored(&node), [imported.dir()]);
    thaw::remove_namespace(&node.namespace)?;
    assert_eq!(all_of_store(), before);
    node.leave().await
}

#[tokio::test]
async fn what_is_no_archive_is_refused() -> Tested {
    let Some(node) = Node::enter(&[Need::Thaw]).await else { return Ok(()) };
    let before = top_of_store();
    let path = archive::path(&node.namespace, "text");
    std::fs::write(&path, "this is no archive\n".repeat(100)).unwrap();
    let name = path.to_string_lossy().into_owned();
    for wrong in [name.as_str(), "/var/tmp/no-such-file.tar"] {
        let error = thaw::import(&[PathBuf::from(wrong)]).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
    remove(&path);
    assert_eq!(top_of_store(), before);
    node.leave().await
}

#[tokio::test]
async fn an_entry_that_no_honest_archive_has_is_refused_and_named() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let original = counter_archive(&node).await?;
    let files = Unpacked::new(&original)?;
    remove(&original);
    let before = top_of_store();
    for (path, kind, target) in [
        ("../escaped", EntryType::Regular, ""),
        ("checkpoint/../../escaped", EntryType::Regular, ""),
        ("/var/tmp/escaped", EntryType::Regular, ""),
        ("checkpoint/link", EntryType::Symlink, "/etc/shadow"),
        ("checkpoint/hard", EntryType::Link, "/etc/shadow"),
        ("checkpoint/device", EntryType::Char, ""),
    ] {
        let archive = archive::path(&node.namespace, "hostile");
        files.pack_with_entry(&archive, path, kind, target)?;
        let result = thaw::import(std::slice::from_ref(&archive));
        remove(&archive);
        let error = result.map(|imported| imported.reference()).unwrap_err().to_string();
        assert!(error.contains(path.trim_start_matches('/')), "{path}: {error}");
        assert_eq!((stored(&node), top_of_store()), (Vec::new(), before.clone()), "{path}");
        assert!(!Path::new("/var/tmp/escaped").exists(), "{path}");
    }
    drop(files);
    node.leave().await
}

#[tokio::test]
async fn the_archives_of_one_pod_are_one_checkpoint_and_those_of_two_pods_are_refused() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let mut pod = node.counter_pod("pair", 1)?.under("runc");
    let mut second = pod.spec.containers[0].clone();
    second.name = "second".to_owned();
    second.set_env("PORT", "8081");
    pod.spec.containers.push(second);
    let pair = node.run(pod).await?;
    let archives = node.freeze(&pair).await?;
    node.remove(&pair).await?;
    let imported = thaw::import(&archives)?;
    for container in ["counter", "second"] {
        assert!(imported.dir().join(container).join("checkpoint").is_dir(), "{container}");
    }
    thaw::remove_namespace(&node.namespace)?;

    let other = counter_archive(&node).await?;
    let error = thaw::import(&[archives[1].clone(), other.clone()]).unwrap_err().to_string();
    assert!(error.contains("pair") && error.contains("before"), "{error}");
    assert_eq!(stored(&node), Vec::<PathBuf>::new());
    archives.iter().chain([&other]).for_each(|archive| remove(archive));
    node.leave().await
}
