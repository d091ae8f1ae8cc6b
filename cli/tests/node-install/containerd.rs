// SPDX-License-Identifier: Apache-2.0
//! Nodes with a containerd of their own.

use crate::tree::Tree;

const CONFIG: &str = "/etc/containerd/config.toml";
const DROP_IN: &str = "/etc/containerd/conf.d/99-thaw.toml";

fn imports(tree: &Tree) -> Vec<String> {
    let config: toml::Table = tree.read(CONFIG).parse().unwrap();
    config["imports"].as_array().unwrap().iter().map(|import| import.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_directory_that_is_imported_gets_the_drop_in() {
    let tree = Tree::containerd(Some("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"));
    let diff = tree.comes_and_goes();
    assert!(diff.contains(&format!("+++ {DROP_IN}")) && !diff.contains("--- /etc"), "{diff}");
    let tree = Tree::containerd(Some("imports = ['extra/*.toml']\nversion = 4\n"));
    let diff = tree.comes_and_goes();
    assert!(
        diff.contains("+++ /etc/containerd/extra/99-thaw.toml") && diff.contains("+version = 4"),
        "{diff}"
    );
}

#[test]
fn a_configuration_that_imports_nothing_gets_one_line() {
    let config = "# mine\n  version = 3 # three\n\n[grpc]\n  version = 1\n  gid = 7\n";
    let tree = Tree::containerd(Some(config));
    tree.mode(CONFIG, 0o640);
    let diff = tree.comes_and_goes();
    assert!(
        diff.contains("+imports = [\"/etc/containerd/conf.d/*.toml\"]\n   version = 3 # three"),
        "{diff}"
    );
    tree.install();
    assert_eq!(imports(&tree), ["/etc/containerd/conf.d/*.toml"]);
    assert!(tree.snapshot()[std::path::Path::new("etc/containerd/config.toml")].starts_with("100640 "));
    // What an administrator changes elsewhere stays.
    tree.write(CONFIG, &(tree.read(CONFIG) + "# more\n"));
    assert!(tree.install().contains("nothing to change"));
    assert!(tree.node(&["uninstall"]).ok);
    assert_eq!(tree.read(CONFIG), config.to_owned() + "# more\n");
}

#[test]
fn imports_of_single_files_get_one_more() {
    for list in ["['/etc/x.toml']", "[]", "[\n  '/etc/x.toml', # x\n]", "[ '/etc/x.toml', ]"] {
        let tree = Tree::containerd(Some(&format!("version = 3\nimports = {list}\n[grpc]\n")));
        tree.comes_and_goes();
        tree.install();
        let imports = imports(&tree);
        assert_eq!(imports[0], "/etc/containerd/conf.d/*.toml");
        assert_eq!(imports.len(), 1 + list.matches("x.toml").count());
    }
}

#[test]
fn a_containerd_without_a_configuration_gets_one() {
    let tree = Tree::containerd(None);
    let diff = tree.comes_and_goes();
    assert!(diff.contains("+++ /etc/containerd/config.toml") && diff.contains("+version = 3"), "{diff}");
    tree.install();
    assert_eq!(imports(&tree).len(), 1);
}

#[test]
fn a_configuration_of_version_2_gets_tables_of_version_2() {
    let runc =
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n";
    let diff = Tree::containerd(Some(&format!("version = 2\n{runc}"))).comes_and_goes();
    assert!(diff.contains("+[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.thaw]"), "{diff}");
    assert!(diff.contains("+version = 2") && diff.contains("+  SystemdCgroup = true"), "{diff}");
}

#[test]
fn a_handler_written_by_hand_is_enough() {
    let tree = Tree::containerd(Some(
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.thaw]\nruntime_type = 'x'\n",
    ));
    let before = tree.snapshot();
    assert!(tree.install().contains("nothing to do: the handler is in /etc/containerd/config.toml"));
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn a_file_that_was_changed_afterwards_is_not_lost() {
    let tree = Tree::containerd(Some("version = 3\n"));
    tree.install();
    tree.write(DROP_IN, &(tree.read(DROP_IN) + "# mine\n"));
    tree.refused(&["uninstall"], &[DROP_IN, "was changed after thaw wrote it"]);
    tree.refused(&["install"], &[DROP_IN, "was changed after thaw wrote it"]);
}

#[test]
fn a_file_of_somebody_elses_is_not_replaced() {
    let tree = Tree::containerd(Some("version = 3\n"));
    tree.write(DROP_IN, "# mine\n");
    tree.refused(&["install"], &[DROP_IN, "thaw did not write it"]);
}

#[test]
fn another_shim_or_handler_of_the_node_changes_the_file() {
    let tree = Tree::containerd(Some("version = 3\n"));
    let before = tree.snapshot();
    tree.install();
    tree.program("/opt/shim", "");
    assert!(tree.node(&["install", "--shim", "/opt/shim"]).out.contains("+  runtime_path = \"/opt/shim\""));
    assert!(tree.read(DROP_IN).contains("/opt/shim"));
    std::fs::remove_dir_all(tree.path("/opt")).unwrap();
    assert!(tree.node(&["uninstall"]).ok);
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn an_install_that_fails_half_way_leaves_nothing() {
    let tree = Tree::containerd(Some("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"));
    tree.write("/etc/containerd/conf.d", "a file where a directory belongs");
    tree.refused(&["install"], &["/etc/containerd/conf.d"]);
}

#[test]
fn what_an_install_that_died_has_recorded_does_not_keep_the_next_ones_from_working() {
    let tree = Tree::containerd(Some("version = 3\n"));
    let before = tree.snapshot();
    tree.install();
    // As if the machine had gone down before the second change.
    std::fs::remove_file(tree.path(DROP_IN)).unwrap();
    assert!(tree.install().contains("+++ /etc/containerd/conf.d/99-thaw.toml"));
    let import = "imports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    tree.write(CONFIG, &format!("{import}{import}version = 3\n"));
    let ran = tree.node(&["uninstall"]);
    assert!(!ran.ok && ran.error.contains("more than once"), "{}", ran.error);
    // What somebody has taken out is undone already.
    tree.write(CONFIG, "version = 3\n");
    assert!(tree.node(&["uninstall"]).ok);
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn what_others_import_by_now_goes_on_being_imported() {
    for config in [Some("version = 3\n"), None] {
        let tree = Tree::containerd(config);
        tree.install();
        tree.write("/etc/containerd/conf.d/99-nvidia.toml", "version = 3\n");
        let ran = tree.node(&["uninstall"]);
        assert!(ran.ok && ran.out.contains("99-nvidia.toml is read through it"), "{} {}", ran.out, ran.error);
        assert_eq!(imports(&tree), ["/etc/containerd/conf.d/*.toml"]);
        assert!(!tree.path(DROP_IN).exists());
        assert!(tree.node(&["uninstall"]).out.contains("nothing was installed"));
    }
}

#[test]
fn without_anything_installed_uninstall_says_so() {
    let tree = Tree::containerd(Some("version = 3\n"));
    let before = tree.snapshot();
    assert!(tree.node(&["uninstall"]).out.contains("nothing was installed"));
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn a_machine_without_containerd_is_refused() {
    Tree::new().refused(&["install"], &["no RKE2, k3s or containerd"]);
}

#[test]
fn a_restart_is_for_this_machine_only() {
    let tree = Tree::containerd(Some("version = 3\n"));
    let ran = tree.node(&["install", "--restart"]);
    assert!(!ran.ok && ran.error.contains("this machine only"), "{}", ran.error);
}
