// SPDX-License-Identifier: Apache-2.0
//! A checkpoint in the store: of one container with one process, in images as small as CRIU's can be.

use std::collections::BTreeMap;

use checkpoint::config::Config;
use checkpoint::manifest::{self, Manifest};
use checkpoint::store::{RemoveError, Store};
use checkpoint::{CheckpointId, Lineage};
use criu_rpc::image::{ImageFile, Kind, Message, Tag};
use time::OffsetDateTime;

use super::node::Node;

/// The name of the image that the frozen container ran.
pub(crate) const IMAGE: &str = "docker.io/library/counter:1";
/// The container that a checkpoint holds.
pub(crate) const CONTAINER: &str = "main";
/// Where the pod and its checkpoints are.
pub(crate) const NAMESPACE: &str = "team";
/// The pod's name, and so its lineage.
pub(crate) const POD: &str = "counter";

/// The files of a container's checkpoint, by their path in its directory.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

/// A field of a message by its number. Source of all numbers here: CRIU 4.2 images/*.proto.
const fn tag(number: u32) -> Tag {
    Tag::new(number, "field")
}

fn numbers(fields: &[(u32, u64)]) -> Message {
    let mut message = Message::default();
    fields.iter().for_each(|(number, value)| message.set_u64(tag(*number), *value));
    message
}

/// Numbers of namespaces: pid, network, IPC, UTS, mount, user.
fn ids(base: u64) -> Message {
    numbers(&[
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, base),
        (6, base + 1),
        (7, base + 2),
        (8, base + 3),
        (9, base + 4),
        (10, 1),
    ])
}

fn mount(id: u64, parent: u64, kind: u64, flags: u64, mountpoint: &str, external: bool) -> Message {
    // Each is of a file system of its own (3) without flags (17).
    let mut mount = numbers(&[(1, kind), (2, id), (3, 48 + id), (4, parent), (5, flags), (17, 0)]);
    for (number, text) in [(6, "/"), (7, mountpoint), (8, "source"), (9, "")] {
        mount.set_bytes(tag(number), text.as_bytes());
    }
    if external {
        mount.set_bytes(tag(18), mountpoint.as_bytes());
    }
    mount
}

impl Images {
    /// Of the process 1 of user 0 without any capability, in namespaces of its pod, with `/proc` and `/etc/hosts`.
    pub(crate) fn new() -> Self {
        let mut inventory = numbers(&[(1, 2), (6, 0)]);
        inventory.set_bytes(tag(3), ids(100).as_bytes());
        let mut task = numbers(&[(1, 1), (2, 0), (3, 1), (4, 1)]);
        task.set_u32s(tag(5), &[1]);
        let mut netns = Message::default();
        netns.set_bytes(tag(8), b"extRootNetNS");
        let mut utsns = Message::default();
        utsns.set_bytes(tag(1), b"old-pod");
        utsns.set_bytes(tag(2), b"(none)");
        let mounts = vec![
            mount(1, 0, 17, 0, "/", false),
            mount(2, 1, 1, 14, "/proc", false),
            mount(3, 1, 0, 0, "/etc/hosts", true),
        ];
        let images = [
            ("inventory.img", Kind::Inventory, vec![inventory]),
            ("pstree.img", Kind::Pstree, vec![task]),
            ("ids-1.img", Kind::Ids, vec![ids(2)]),
            ("core-1.img", Kind::Core, vec![core(0)]),
            ("mountpoints-6.img", Kind::Mountpoints, mounts),
            ("netns-3.img", Kind::Netns, vec![netns]),
            ("utsns-5.img", Kind::Utsns, vec![utsns]),
            ("files.img", Kind::Files, Vec::new()),
        ];
        let mut files: BTreeMap<String, Vec<u8>> = images
            .into_iter()
            .map(|(name, kind, entries)| {
                (format!("checkpoint/{name}"), ImageFile::new(kind, entries).to_bytes())
            })
            .collect();
        files.insert("checkpoint/pages-1.img".into(), vec![7; 4096]);
        files.insert(
            "checkpoint/descriptors.json".into(),
            br#"["/dev/null","pipe:[11]","pipe:[12]"]"#.to_vec(),
        );
        files.insert("config.dump".into(), b"{\"id\":\"old\"}".to_vec());
        files.insert(
            "spec.dump".into(),
            br#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":{"uid":0,"gid":0}}}"#.to_vec(),
        );
        Self { files }
    }

    /// Of a process with all of these capabilities.
    pub(crate) fn with_capabilities(mut self, bits: u32) -> Self {
        let image = ImageFile::new(Kind::Core, vec![core(bits)]).to_bytes();
        self.files.insert("checkpoint/core-1.img".into(), image);
        self
    }

    /// Puts it into the node's store, with a writable layer of one file, `from-checkpoint`.
    pub(crate) fn publish(self, node: &Node) -> CheckpointId {
        let store = Store::create(&config(node)).unwrap();
        let id = CheckpointId::new(OffsetDateTime::now_utc(), 7);
        let writer = store.begin(NAMESPACE, &lineage(), id.clone()).unwrap();
        let mut container = writer.container(CONTAINER).unwrap();
        for (name, content) in &self.files {
            container.add(name, &mut content.as_slice()).unwrap();
        }
        let layer = container.rootfs().unwrap();
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        rustix::fs::openat(&layer, "from-checkpoint", flags, rustix::fs::Mode::RUSR).unwrap();
        let record = manifest::Container {
            image: manifest::Image { name: IMAGE.into(), reference: None },
            runtime: None,
            producer: manifest::Producer::Containerd,
            frozen: None,
            rootfs: Some(manifest::Rootfs::default()),
            files: container.into_files(),
        };
        let manifest = Manifest {
            version: manifest::VERSION,
            id: id.clone(),
            created: id.time(),
            pod: manifest::Pod {
                namespace: NAMESPACE.into(),
                name: POD.into(),
                uid: None,
                lineage: lineage(),
                addresses: Vec::new(),
            },
            containers: [(CONTAINER.to_owned(), record)].into(),
            host: None,
        };
        writer.publish(&manifest).unwrap();
        id
    }
}

/// `core_entry` with `task_core_entry` (3) and `thread_core_entry` (5), which has `creds_entry` (10).
fn core(capabilities: u32) -> Message {
    let mut task = numbers(&[(1, 1), (2, 0), (3, 0), (4, 0), (5, 0)]);
    task.set_bytes(tag(6), b"counter");
    let mut creds = Message::default();
    (1..=8).for_each(|id| creds.set_u64(tag(id), 0));
    for set in 9..=12 {
        // The low half and the high one.
        creds.set_u32s(tag(set), &[capabilities, 0]);
    }
    creds.set_u64(tag(13), 0);
    let mut thread = numbers(&[(1, 0), (2, 0)]);
    thread.set_bytes(tag(10), creds.as_bytes());
    let mut core = numbers(&[(1, 1)]);
    core.set_bytes(tag(3), task.as_bytes());
    core.set_bytes(tag(5), thread.as_bytes());
    core
}

fn lineage() -> Lineage {
    POD.parse().unwrap()
}

fn config(node: &Node) -> Config {
    Config { roots: vec![node.path("store")], ..Config::default() }
}

/// Tries to remove a checkpoint, as `thaw rm` does.
pub(crate) fn remove(node: &Node, id: &CheckpointId) -> Result<(), RemoveError> {
    Store::open(&config(node)).unwrap().remove(NAMESPACE, &lineage(), id)
}
