// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes side: the Helm chart, the manifests that are rendered from it, and the script of its DaemonSet.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn every_variant_of_the_chart_is_what_kubernetes_and_prometheus_accept() {
    let output = Command::new(tree().join("scripts/manifests")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let bad: Vec<_> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(
        output.status.success() && bad.is_empty(),
        "{bad:#?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.lines().filter(|line| line.starts_with("ok")).count() > 100, "{text}");
}

/// A node as the installer's container sees it. The programs that it calls are fakes that say what they were asked.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for folder in ["host/usr/local/bin", "state", "account", "files"] {
            std::fs::create_dir_all(node.path(folder)).unwrap();
        }
        std::fs::write(node.path("account/token"), "secret").unwrap();
        node.program("bin/nsenter", "while [ \"$1\" != -- ]; do shift; done; shift; exec \"$HOST/$@\"");
        node.program("bin/curl", "echo \"$@\" >>\"$HOST/../labels\"");
        node.program("host/systemctl", "echo \"systemctl $@\" >>\"$HOST/../log\"");
        node.program("files/install.sh", "echo \"install.sh $@\" >>\"$HOST/../log\"");
        node.program(
            "host/usr/local/bin/thaw",
            "echo \"thaw $@\" >>\"$HOST/../log\"; case $2 in status) [ -e \"$HOST/ready\" ] ;; esac",
        );
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// What was written to a file so far.
    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// One round of the script.
    fn installer(&self, mode: &str) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        Command::new(tree().join("packaging/installer/node-installer"))
            .arg(mode)
            .env("PATH", path)
            .env("HOST", self.path("host"))
            .env("FILES", self.path("files"))
            .env("STATE", self.path("state"))
            .env("ACCOUNT", self.path("account"))
            .envs([("INTERVAL", "0"), ("NODE_NAME", "node-7")])
            .envs([("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("KUBERNETES_SERVICE_PORT", "443")])
            .output()
            .unwrap()
    }
}

#[test]
fn the_installer_labels_a_node_only_when_it_is_ready() {
    let node = Node::new();
    assert!(node.installer("install").status.success());
    let log = node.said("log");
    assert!(log.contains("install.sh --root") && log.contains("thaw node install\n"), "{log}");
    assert!(log.contains("enable --now thaw-nri.service") && !log.contains("--restart"), "{log}");
    assert!(node.said("labels").contains("\"thaw.dev/node\":null"), "{}", node.said("labels"));
    assert!(!node.path("state/done").exists());

    std::fs::write(node.path("host/ready"), "").unwrap();
    assert!(node.installer("label").status.success());
    let labels = node.said("labels");
    let last = labels.lines().last().unwrap();
    assert!(
        last.contains("\"thaw.dev/node\":\"true\"") && last.ends_with("10.0.0.1:443/api/v1/nodes/node-7"),
        "{last}"
    );
    assert!(node.path("state/done").exists());
}

#[test]
fn the_installer_cleans_up() {
    let node = Node::new();
    assert!(node.installer("uninstall").status.success());
    let log = node.said("log");
    assert!(log.contains("thaw node uninstall\n") && log.contains("install.sh --uninstall --root"), "{log}");
    assert!(node.said("labels").contains("\"thaw.dev/node\":null"));
}

#[test]
fn the_installer_leaves_the_files_of_a_package_alone() {
    let node = Node::new();
    std::fs::create_dir_all(node.path("host/usr/bin")).unwrap();
    std::fs::rename(node.path("host/usr/local/bin/thaw"), node.path("host/usr/bin/thaw")).unwrap();
    assert!(node.installer("install").status.success());
    assert!(!node.said("log").contains("install.sh"), "{}", node.said("log"));
}

#[test]
fn the_installer_does_not_label_a_node_where_the_install_failed() {
    let node = Node::new();
    node.program("host/usr/local/bin/thaw", "exit 1");
    assert!(!node.installer("install").status.success());
    assert_eq!(node.said("labels"), "");
}
