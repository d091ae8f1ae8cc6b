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
struct Node {
    folder: tempfile::TempDir,
    /// Whether it may restart containerd.
    restart: &'static str,
}

impl Node {
    fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap(), restart: "false" };
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
        self.folder.path().join(name)
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
            .envs([("INTERVAL", "0"), ("NODE_NAME", "node-7"), ("PAUSE", "0"), ("RESTART", self.restart)])
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

/// A node on which the handler is to be written, once, and whose service is `service`.
fn to_be_told(service: &str) -> Node {
    let node = Node { restart: "true", ..Node::new() };
    node.program(
        "host/usr/local/bin/thaw",
        &format!(
            "echo \"thaw $@\" >>\"$HOST/../log\"\n\
             case \"$*\" in\n\
             *--dry-run) [ -e \"$HOST/ready\" ] || echo '+++ 99-thaw.toml' ;;\n\
             *--restart) touch \"$HOST/ready\" ;;\n\
             *status*) echo '  \"service\": \"{service}\",'; [ -e \"$HOST/ready\" ] ;;\n\
             esac"
        ),
    );
    node
}

#[test]
fn servers_restart_one_after_the_other_and_agents_at_once() {
    let agent = to_be_told("rke2-agent");
    assert!(agent.installer("install").status.success());
    assert!(agent.said("log").contains("thaw node install --restart\n"), "{}", agent.said("log"));
    assert!(!agent.said("labels").contains("leases"), "{}", agent.said("labels"));

    let server = to_be_told("rke2-server");
    // The Lease is another node's when it is asked for first, and one that has been gone for long.
    let theirs = r#"{"uid":"theirs","holderIdentity":"node-1","acquireTime":"2026-01-01T00:00:00Z"}"#;
    let answers = format!(
        "echo \"$@\" >>\"$HOST/../labels\"\n\
         case \"$*\" in\n\
         *'POST'*leases) [ -e \"$HOST/free\" ] && echo '{{\"uid\":\"ours\"}}' ;;\n\
         *'GET'*leases/thaw-restart) echo '{theirs}' ;;\n\
         *'DELETE'*leases/thaw-restart) touch \"$HOST/free\"; echo 200 ;;\n\
         esac"
    );
    server.program("bin/curl", &answers);
    let output = server.installer("install");
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("node-1 has not come back") && told.contains("waits for node-1"), "{told}");
    let asked = server.said("labels");
    let methods: Vec<_> = asked
        .lines()
        .filter(|line| line.contains("leases"))
        .filter_map(|line| ["POST", "GET", "DELETE"].into_iter().find(|method| line.contains(method)))
        .collect();
    assert_eq!(methods, ["POST", "GET", "DELETE", "POST", "DELETE"], "{asked}");
    // Each removes the one that it knows, and no later one.
    let removed: Vec<_> = asked.lines().filter(|line| line.contains("DELETE")).collect();
    assert!(removed[0].contains(r#""uid":"theirs""#) && removed[1].contains(r#""uid":"ours""#), "{asked}");
}

#[test]
fn what_an_upgrade_of_the_distribution_has_changed_is_written_anew() {
    let node = Node::new();
    std::fs::write(node.path("host/ready"), "").unwrap();
    // The node changes right after the first look.
    node.program(
        "host/usr/local/bin/thaw",
        "echo \"thaw $@\" >>\"$HOST/../log\"\n\
         case \"$*\" in\n\
         *--dry-run) [ -e \"$HOST/ready\" ] || echo '+++ 99-thaw.toml' ;;\n\
         *status) [ -e \"$HOST/ready\" ] ;;\n\
         *) if [ -e \"$HOST/ready\" ]; then rm \"$HOST/ready\"; else touch \"$HOST/ready\"; fi ;;\n\
         esac",
    );
    assert!(node.installer("install").status.success());
    let log = node.said("log");
    assert_eq!(log.matches("thaw node install\n").count(), 2, "{log}");
    assert!(node.path("host/ready").exists() && node.said("labels").contains("\"thaw.dev/node\":null"));

    std::fs::remove_file(node.path("host/ready")).unwrap();
    assert!(node.installer("label").status.success());
    assert_eq!(node.said("log").matches("thaw node install\n").count(), 2, "it only labels");
}
