// SPDX-License-Identifier: Apache-2.0
//! A node's files in a temporary directory, and `thaw node` on them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that a file system shows of a tree: kind, mode and content.
pub(crate) type Snapshot = BTreeMap<PathBuf, String>;

pub(crate) struct Tree(tempfile::TempDir);

/// What a run of `thaw` gave.
pub(crate) struct Ran {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) error: String,
}

/// Where RKE2 keeps containerd's configuration.
pub(crate) const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd";
pub(crate) const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd";

impl Tree {
    /// A node with the shim and CRIU, and nothing that runs pods.
    pub(crate) fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.program("/usr/bin/containerd-shim-thaw-v1", "");
        tree.program("/usr/sbin/criu", "Version: 4.2");
        tree
    }

    /// An RKE2 node whose containerd has this version and this generated configuration.
    pub(crate) fn rke2(containerd: &str, generated: &str) -> Self {
        let tree = Self::new();
        let release = "/var/lib/rancher/rke2/data/v1.34.1-rke2r1-0123456789ab/bin";
        tree.program(
            &format!("{release}/containerd"),
            &format!("containerd github.com/k3s-io/containerd {containerd} abc"),
        );
        // As RKE2 does it: an absolute link, which must not lead out of the tree.
        tree.link("/var/lib/rancher/rke2/bin", release);
        tree.write(&format!("{RKE2}/config.toml"), generated);
        tree.unit("rke2-agent.service");
        tree
    }

    pub(crate) fn k3s(containerd: &str, generated: &str) -> Self {
        let tree = Self::new();
        // k3s is one program with many names.
        tree.program(
            "/var/lib/rancher/k3s/data/0123/bin/k3s",
            &format!("${{0##*/}} github.com/k3s-io/containerd {containerd} abc"),
        );
        tree.link("/var/lib/rancher/k3s/data/0123/bin/containerd", "k3s");
        tree.link("/var/lib/rancher/k3s/data/current", "/var/lib/rancher/k3s/data/0123");
        tree.write(&format!("{K3S}/config.toml"), generated);
        tree.unit("k3s.service");
        tree
    }

    pub(crate) fn containerd(config: Option<&str>) -> Self {
        let tree = Self::new();
        tree.program("/usr/bin/containerd", "containerd github.com/containerd/containerd/v2 v2.1.9 abc");
        if let Some(config) = config {
            tree.write("/etc/containerd/config.toml", config);
        }
        tree
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.path(path), PermissionsExt::from_mode(mode)).unwrap();
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    /// A program that prints one line.
    pub(crate) fn program(&self, path: &str, prints: &str) {
        self.write(path, &format!("#!/bin/sh\necho \"{prints}\"\n"));
        self.mode(path, 0o755);
    }

    pub(crate) fn unit(&self, unit: &str) {
        let target = format!("/usr/local/lib/systemd/system/{unit}");
        self.link(&format!("/etc/systemd/system/multi-user.target.wants/{unit}"), &target);
        self.write(&target, "[Service]\n");
    }

    /// Runs `thaw node VERB... --root THIS`.
    pub(crate) fn node(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_thaw"))
            .arg("node")
            .args(arguments)
            .arg("--root")
            .arg(self.0.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { ok: output.status.success(), out: text(output.stdout), error: text(output.stderr) }
    }

    /// Installs, and must succeed.
    #[track_caller]
    pub(crate) fn install(&self) -> String {
        let ran = self.node(&["install"]);
        assert!(ran.ok, "{}{}", ran.out, ran.error);
        ran.out
    }

    /// Dry run, install, install again, uninstall: what is shown is what is done, twice is once, and nothing stays.
    /// Returns the diff.
    #[track_caller]
    pub(crate) fn comes_and_goes(&self) -> String {
        let before = self.snapshot();
        let dry = self.node(&["install", "--dry-run"]);
        assert!(dry.ok, "{}{}", dry.out, dry.error);
        assert_eq!(self.snapshot(), before, "a dry run changed something");
        let diff = dry.out.strip_suffix("dry run: nothing was changed\n").unwrap();
        let installed = self.install();
        assert!(installed.starts_with(diff), "{diff} is not what was done: {installed}");
        let with = self.snapshot();
        let again = self.install();
        assert!(again.contains("nothing to change"), "{again}");
        assert_eq!(self.snapshot(), with);
        let gone = self.node(&["uninstall"]);
        assert!(gone.ok, "{}{}", gone.out, gone.error);
        assert_eq!(self.snapshot(), before, "uninstall left something");
        assert_ne!(with, before);
        diff.to_owned()
    }

    /// Must be refused for a reason with all these words, and change nothing. Returns what was printed.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str], reasons: &[&str]) -> String {
        let before = self.snapshot();
        let ran = self.node(arguments);
        assert!(!ran.ok, "{}", ran.out);
        for reason in reasons {
            assert!(ran.error.contains(reason), "{reason} is not in: {}", ran.error);
        }
        assert_eq!(self.snapshot(), before, "a refusal changed something");
        ran.out
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot::new();
        snapshot(self.0.path(), self.0.path(), &mut all);
        all
    }
}

fn snapshot(root: &Path, folder: &Path, all: &mut Snapshot) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else if metadata.is_dir() {
            snapshot(root, &path, all);
            String::new()
        } else {
            std::fs::read_to_string(&path).unwrap()
        };
        let shown = format!("{:o} {content}", metadata.permissions().mode());
        all.insert(path.strip_prefix(root).unwrap().to_owned(), shown);
    }
}

/// A configuration as RKE2 and k3s generate it, of version 3. `imports`: whether it is of a release that imports
/// drop-ins.
pub(crate) fn generated(folder: &str, imports: bool, systemd: bool) -> String {
    let imports =
        if imports { format!("imports = [\"{folder}/config-v3.toml.d/*.toml\"]\n") } else { String::new() };
    format!(
        "# File generated by rke2. DO NOT EDIT. Use config-v3.toml.tmpl instead.
version = 3
{imports}root = \"/var/lib/rancher/rke2/agent/containerd\"
state = \"/run/k3s/containerd\"

[grpc]
  address = \"/run/k3s/containerd/containerd.sock\"

[plugins.'io.containerd.internal.v1.opt']
  path = \"/var/lib/rancher/rke2/agent/containerd\"

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = \"127.0.0.1\"
  stream_server_port = \"10010\"

[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  device_ownership_from_security_context = false

[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"overlayfs\"
  disable_snapshot_annotations = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = \"index.docker.io/rancher/mirrored-pause:3.6\"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = {systemd}

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = \"{folder}/certs.d\"
"
    )
}

/// A configuration as releases with containerd 1.7 generate it.
pub(crate) const GENERATED_V2: &str = r#"# File generated by rke2. DO NOT EDIT. Use config.toml.tmpl instead.
version = 2

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/rancher/rke2/agent/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  enable_selinux = false
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"#;
