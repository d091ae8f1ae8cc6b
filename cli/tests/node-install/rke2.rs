// SPDX-License-Identifier: Apache-2.0
//! Nodes of RKE2 and k3s, whose configuration of containerd is generated.

use crate::tree::{GENERATED_V2, K3S, RKE2, Tree, generated};

#[test]
fn a_release_with_containerd_1_7_is_refused() {
    let tree = Tree::rke2("v1.7.23-k3s2", GENERATED_V2);
    tree.refused(&["install"], &["containerd: ", "1.7", "2.0 or later", "1.31.6"]);
}

#[test]
fn a_release_without_drop_ins_gets_a_template_with_new_tables_only() {
    let tree = Tree::rke2("v2.0.5-k3s1", &generated(RKE2, false, true));
    let diff = tree.comes_and_goes();
    assert!(diff.starts_with("RKE2 agent with "), "{diff}");
    assert!(diff.contains(&format!("+++ {RKE2}/config-v3.toml.tmpl")), "{diff}");
    tree.install();
    let template = tree.read(&format!("{RKE2}/config-v3.toml.tmpl"));
    assert!(template.contains("{{ template \"base\" . }}\n"), "{template}");
    // Rendered, it must not open a table twice, nor have a second version.
    let rendered = template.replace("{{ template \"base\" . }}", &generated(RKE2, false, true));
    let rendered: toml::Table = rendered.parse().unwrap();
    let runtimes = &rendered["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"];
    assert_eq!(runtimes["thaw"]["runtime_path"].as_str(), Some("/usr/bin/containerd-shim-thaw-v1"));
    assert_eq!(runtimes["thaw"]["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(runtimes["runc"]["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
    // Once RKE2 has restarted, the generated file shows the handler; that is not somebody else's.
    tree.write(
        &format!("{RKE2}/config.toml"),
        &template.replace("{{ template \"base\" . }}", &generated(RKE2, false, true)),
    );
    assert!(tree.install().contains("nothing to change"));
    // Uninstalled and not restarted, it still shows it, and an install must not rely on that.
    assert!(tree.node(&["uninstall"]).ok);
    assert!(tree.install().contains("+++ "));
}

#[test]
fn a_release_with_drop_ins_gets_one() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    let diff = tree.comes_and_goes();
    assert!(diff.contains(&format!("+++ {RKE2}/config-v3.toml.d/99-thaw.toml")), "{diff}");
    assert!(diff.contains("+version = 3") && diff.contains("+  SystemdCgroup = true"), "{diff}");
    assert!(!diff.contains("nri"), "{diff}");
}

#[test]
fn the_cgroup_driver_is_the_nodes() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, false));
    assert!(tree.comes_and_goes().contains("+  SystemdCgroup = false"));
}

#[test]
fn k3s_is_found_and_its_service_named() {
    let tree = Tree::k3s("v2.1.5-k3s1", &generated(K3S, true, true));
    assert!(tree.comes_and_goes().contains(&format!("+++ {K3S}/config-v3.toml.d/99-thaw.toml")));
    let out = tree.install();
    assert!(out.starts_with("k3s server") && out.contains("systemctl restart k3s\n"), "{out}");
}

#[test]
fn a_server_is_told_from_an_agent_by_the_unit_that_is_switched_on() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    tree.write("/var/lib/rancher/rke2/server/token", "");
    assert!(tree.install().contains("systemctl restart rke2-agent\n"));
    std::fs::remove_file(tree.path("/etc/systemd/system/multi-user.target.wants/rke2-agent.service"))
        .unwrap();
    assert!(tree.node(&["uninstall"]).out.contains("systemctl restart rke2-server\n"));
}

#[test]
fn a_data_directory_elsewhere_is_found_in_the_configuration_of_rke2() {
    let tree = Tree::new();
    let folder = "/big/rke2/agent/etc/containerd";
    tree.write("/etc/rancher/rke2/config.yaml", "token: x\ndata-dir: \"/small\"\n");
    tree.write("/etc/rancher/rke2/config.yaml.d/50-data.yaml", "data-dir: /big/rke2\n");
    tree.write(&format!("{folder}/config.toml"), &generated(folder, true, true));
    let diff = tree.comes_and_goes();
    assert!(diff.contains(&format!("+++ {folder}/config-v3.toml.d/99-thaw.toml")), "{diff}");
    assert!(diff.contains("warning: containerd: no containerd program found"), "{diff}");
}

#[test]
fn nri_is_switched_on_where_a_drop_in_has_it_off() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    tree.write(
        &format!("{RKE2}/config-v3.toml.d/10-nri.toml"),
        "[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n",
    );
    let diff = tree.comes_and_goes();
    assert!(diff.contains("+[plugins.'io.containerd.nri.v1.nri']\n+  disable = false"), "{diff}");
}

#[test]
fn nri_that_a_template_cannot_switch_on_is_a_warning() {
    let off = generated(RKE2, false, true) + "[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n";
    let diff = Tree::rke2("v2.0.5-k3s1", &off).comes_and_goes();
    assert!(diff.contains("warning: nri: off") && !diff.contains("disable = false"), "{diff}");
}

#[test]
fn a_template_of_somebody_elses_is_not_touched_and_the_tables_are_shown() {
    let tree = Tree::rke2("v2.0.5-k3s1", &generated(RKE2, false, true));
    let template = format!("{RKE2}/config-v3.toml.tmpl");
    tree.write(&template, "version = 3\n# mine\n");
    let shown =
        tree.refused(&["install"], &["config-v3.toml.tmpl", "template of yours", "config-v3.toml.d/*.toml"]);
    assert!(shown.contains("runtimes.thaw]") && shown.contains("SystemdCgroup = true"), "{shown}");
    // An administrator who adds them is done.
    tree.write(&template, &format!("version = 3\n# mine\n{}", &shown[shown.find("[plugins").unwrap()..]));
    assert!(tree.install().contains("nothing to do"));
}

#[test]
fn a_template_with_imports_of_its_own_is_left_and_the_drop_in_goes_beside_it() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    tree.write(&format!("{RKE2}/config-v3.toml.tmpl"), "{{ template \"base\" . }}\n");
    assert!(tree.comes_and_goes().contains("99-thaw.toml"));
}

#[test]
fn a_node_that_has_never_started_is_refused() {
    let tree = Tree::rke2("v2.1.5-k3s1", "");
    std::fs::remove_file(tree.path(&format!("{RKE2}/config.toml"))).unwrap();
    tree.refused(&["install"], &["starts for the first time", "RKE2 agent"]);
}

#[test]
fn a_node_with_both_must_be_told_which() {
    let tree = Tree::rke2("v2.1.5-k3s1", &generated(RKE2, true, true));
    tree.write(&format!("{K3S}/config.toml"), &generated(K3S, true, true));
    tree.refused(&["install"], &["--distribution"]);
    let ran = tree.node(&["install", "--dry-run", "--distribution", "k3s"]);
    assert!(ran.ok && ran.out.contains(K3S), "{}{}", ran.out, ran.error);
}

#[test]
fn what_makes_a_node_unfit_is_said_at_once() {
    let tree = Tree::rke2("v1.7.23-k3s2", GENERATED_V2);
    std::fs::remove_file(tree.path("/usr/bin/containerd-shim-thaw-v1")).unwrap();
    tree.refused(&["install"], &["shim: ", "containerd: "]);
}
