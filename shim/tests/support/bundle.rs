// SPDX-License-Identifier: Apache-2.0
//! What containerd prepares for a container: the bundle with the spec, the snapshot's mounts.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use super::checkpoint;
use super::node::Node;
use super::stdio::Fifo;

/// A container to be.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) spec: Value,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) options: Any,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

impl Bundle {
    /// A container that runs `args`; its root file system is an overlay, as the default snapshotter makes it.
    pub(crate) fn new(node: &Node, id: &str, args: &[&str]) -> Self {
        let dir = node.bundles().join(id);
        fs::create_dir_all(dir.join("rootfs")).unwrap();
        // containerd's fifo for the shim's log.
        fs::write(dir.join("log"), "").unwrap();
        let snapshot = node.path("snapshots").join(id);
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| snapshot.join(name));
        for directory in [&lower.join("proc"), &lower.join("etc"), &upper, &work] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(lower.join("from-image"), id).unwrap();
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let overlay = Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![option("workdir", &work), option("upperdir", &upper), option("lowerdir", &lower)],
            ..Default::default()
        };
        let spec = json!({
            "ociVersion": "1.2.0",
            "root": { "path": "rootfs" },
            "process": { "cwd": "/", "args": args, "user": { "uid": 0, "gid": 0 } },
            "mounts": [],
            "annotations": {},
            "linux": { "cgroupsPath": format!("{}/{id}", node.cgroup()), "namespaces": [] }
        });
        Self {
            id: id.into(),
            dir,
            spec,
            mounts: vec![overlay],
            options: node.options(),
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            terminal: false,
        }
    }

    /// The sandbox of the pod that a checkpoint is restored into.
    pub(crate) fn sandbox(node: &Node, id: &str) -> Self {
        Self::new(node, id, &["sleep", "1000"]).of_pod(id).annotate(&cri("container-type"), "sandbox")
    }

    /// The container of that pod which the checkpoint holds; `args` are what it runs if it is not restored.
    /// `sandbox` is the pid of the sandbox whose id is `pod`.
    pub(crate) fn restored(node: &Node, id: &str, pod: &str, sandbox: u32, args: &[&str]) -> Self {
        let hosts = node.path("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let mut bundle = Self::new(node, id, args)
            .of_pod(pod)
            .annotate(&cri("container-type"), "container")
            .annotate(&cri("container-name"), checkpoint::CONTAINER)
            .annotate(&cri("image-name"), checkpoint::IMAGE);
        bundle.spec["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind", "rw"] },
        ]);
        let path = |kind: &str| format!("/proc/{sandbox}/ns/{kind}");
        bundle.spec["linux"]["namespaces"] = json!([
            { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
            { "type": "network", "path": path("net") },
            { "type": "ipc", "path": path("ipc") },
            { "type": "uts", "path": path("uts") },
        ]);
        bundle
    }

    fn of_pod(self, sandbox: &str) -> Self {
        self.annotate(&cri("sandbox-id"), sandbox)
            .annotate(&cri("sandbox-name"), checkpoint::POD)
            .annotate(&cri("sandbox-namespace"), checkpoint::NAMESPACE)
    }

    /// Sets one annotation.
    pub(crate) fn annotate(mut self, key: &str, value: &str) -> Self {
        self.spec["annotations"][key] = value.into();
        self
    }

    /// Gives the container a pid namespace, so far as the shim can tell.
    pub(crate) fn with_pid_namespace(mut self) -> Self {
        self.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "pid" }));
        self
    }

    /// Gives the init fifos for what it writes; returns containerd's ends of stdout and stderr.
    pub(crate) fn with_output(&mut self) -> (Fifo, Fifo) {
        let [stdout, stderr] = ["out", "err"].map(|name| Fifo::output(&self.dir, name));
        (self.stdout, self.stderr) = (stdout.name(), stderr.name());
        (stdout, stderr)
    }

    /// Gives the init a fifo to read from; returns containerd's end.
    pub(crate) fn with_input(&mut self) -> Fifo {
        let stdin = Fifo::input(&self.dir, "in");
        self.stdin = stdin.name();
        stdin
    }

    /// Writes `config.json`.
    pub(crate) fn write(&self) -> &Self {
        fs::write(self.dir.join("config.json"), self.spec.to_string()).unwrap();
        self
    }

    /// A file of the mounted root file system; `None` when it is not there.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.dir.join("rootfs").join(path)).ok()
    }

    /// The same with a snapshot that is all the container's own, as the snapshotter `native` makes it; returns where.
    pub(crate) fn without_layers(&mut self, node: &Node) -> PathBuf {
        let own = node.path("snapshots").join(&self.id).join("lower");
        let options = vec!["rbind".into(), "rw".into()];
        let source = own.display().to_string();
        self.mounts = vec![Mount { type_: "bind".into(), source, options, ..Default::default() }];
        own
    }

    /// Where a restore works.
    pub(crate) fn restore_dir(&self) -> PathBuf {
        self.dir.join("restore")
    }
}

/// Source: containerd `internal/cri/annotations/annotations.go`.
fn cri(key: &str) -> String {
    format!("io.kubernetes.cri.{key}")
}
