// SPDX-License-Identifier: Apache-2.0
//! `thaw node status`.

use crate::tree::{RKE2, Tree, generated};

fn status(tree: &Tree) -> (bool, serde_json::Value) {
    let ran = tree.node(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["ready"].as_bool(), Some(ran.ok));
    (ran.ok, json)
}

fn check<'a>(json: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    json["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

#[test]
fn a_node_is_ready_when_the_handler_is_installed() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    let (ready, json) = status(&tree);
    assert!(!ready && check(&json, "handler")["found"] == "not installed", "{json}");
    tree.install();
    let (ready, json) = status(&tree);
    assert!(ready, "{json}");
    assert_eq!(
        (&json["kind"], &json["server"], &json["service"]),
        (&"rke2".into(), &false.into(), &"rke2-agent".into())
    );
    assert_eq!(json["files"][0], format!("{RKE2}/config-v3.toml.d/99-thaw.toml"));
    assert_eq!(check(&json, "containerd")["state"], "ok");
}

#[test]
fn a_handler_that_is_gone_or_no_longer_fits_is_seen() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    tree.install();
    tree.write(&format!("{RKE2}/config.toml"), &generated(RKE2, true, false));
    let (ready, json) = status(&tree);
    assert!(!ready && check(&json, "handler")["found"].as_str().unwrap().contains("has changed"), "{json}");
    tree.install();
    assert!(status(&tree).0);
    std::fs::remove_file(tree.path(&format!("{RKE2}/config-v3.toml.d/99-thaw.toml"))).unwrap();
    let (ready, json) = status(&tree);
    assert!(!ready && check(&json, "handler")["found"].as_str().unwrap().contains("is gone"), "{json}");
}

#[test]
fn an_import_that_somebody_has_taken_out_is_missed() {
    let tree = Tree::containerd(Some("version = 3\n"));
    tree.install();
    tree.write("/etc/containerd/config.toml", "version = 3\n");
    let (ready, json) = status(&tree);
    assert!(
        !ready && check(&json, "handler")["found"].as_str().unwrap().contains("no longer imports"),
        "{json}"
    );
    tree.install();
    assert!(status(&tree).0);
}

#[test]
fn a_node_without_criu_can_be_installed_and_is_not_ready() {
    let tree = Tree::containerd(Some("version = 3\n"));
    tree.program("/usr/sbin/criu", "Version: 3.17.1");
    tree.install();
    let (ready, json) = status(&tree);
    assert!(!ready && check(&json, "criu")["state"] == "unready", "{json}");
    // thaw's own configuration may name another one.
    tree.program("/opt/criu", "Version: 4.2.1");
    tree.write("/etc/thaw/config.toml", "criu = '/opt/criu'\n");
    let (ready, json) = status(&tree);
    assert!(ready && check(&json, "criu")["state"] == "ok", "{json}");
    tree.write("/etc/thaw/config.toml", "rots = []\n");
    let (ready, json) = status(&tree);
    assert!(!ready && check(&json, "configuration")["state"] == "fail", "{json}");
}

#[test]
fn what_a_person_reads_names_the_cure() {
    let tree = Tree::containerd(Some("version = 3\n"));
    let ran = tree.node(&["status"]);
    assert!(ran.out.contains("FAIL     handler       not installed\n"), "{}", ran.out);
    assert!(
        ran.out.contains("-> run `thaw node install`") && ran.error.contains("not ready: handler"),
        "{}",
        ran.error
    );
}
