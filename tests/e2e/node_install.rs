// SPDX-License-Identifier: Apache-2.0
//! `thaw node install`: the real containerd reads what was written as it is meant.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::{Path, PathBuf};

use thaw_tests::harness::{Need, Node, Tested, process};

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

/// A directory as RKE2's, with the node's containerd in it. It is removed in the end, and the node as it was.
struct Rke2(tempfile::TempDir);

impl Rke2 {
    fn new() -> Self {
        let rke2 = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(rke2.file("config-v3.toml.d")).unwrap();
        std::fs::create_dir_all(rke2.0.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("/usr/bin/containerd", rke2.0.path().join("bin/containerd")).unwrap();
        rke2
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join("agent/etc/containerd").join(name)
    }

    /// The configuration as RKE2 generates it, with or without an import of drop-ins.
    fn generate(&self, imports: bool) -> String {
        let line = format!("imports = [{:?}]\n", self.file("config-v3.toml.d/*.toml"));
        let text = format!(
            "version = 3\n{}\
             [plugins.'io.containerd.cri.v1.runtime']\n  enable_selinux = false\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n\
             [plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/certs.d'\n",
            if imports { &line } else { "" }
        );
        std::fs::write(self.file("config.toml"), &text).unwrap();
        text
    }

    fn thaw(&self, verb: &str) -> Tested {
        let data = self.0.path().to_str().unwrap();
        process::output("thaw", &["node", verb, "--distribution", "rke2", "--data-dir", data])?;
        Ok(())
    }

    /// What containerd makes of the configuration.
    fn dump(&self) -> Result<toml::Table, Box<dyn std::error::Error>> {
        let config = self.file("config.toml");
        Ok(process::output("containerd", &["-c", config.to_str().unwrap(), "config", "dump"])?.parse()?)
    }
}

fn check(dump: &toml::Table) {
    let plugins = &dump["plugins"];
    let runtimes = &plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"];
    let thaw = &runtimes["thaw"];
    assert_eq!(thaw["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
    assert_eq!(thaw["runtime_path"].as_str(), Some("/usr/local/bin/containerd-shim-thaw-v1"));
    assert_eq!(thaw["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(thaw["pod_annotations"].as_array().unwrap().len(), 1);
    // The rest of the configuration is as it was.
    assert_eq!(runtimes["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
    assert_eq!(plugins["io.containerd.cri.v1.images"]["registry"]["config_path"].as_str(), Some("/certs.d"));
}

#[tokio::test]
async fn containerd_merges_the_drop_in_and_nri_is_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let rke2 = Rke2::new();
    rke2.generate(true);
    let off = "[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n";
    std::fs::write(rke2.file("config-v3.toml.d/10-off.toml"), off).unwrap();
    assert_eq!(rke2.dump().unwrap()["plugins"]["io.containerd.nri.v1.nri"]["disable"].as_bool(), Some(true));
    rke2.thaw("install")?;
    let dump = rke2.dump().unwrap();
    rke2.thaw("uninstall")?;
    drop(rke2);
    check(&dump);
    assert_eq!(dump["plugins"]["io.containerd.nri.v1.nri"]["disable"].as_bool(), Some(false));
    assert!(!Path::new("/var/lib/thaw/node.json").exists());
    node.leave().await
}

#[tokio::test]
async fn containerd_reads_the_template_once_it_is_rendered() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let rke2 = Rke2::new();
    let base = rke2.generate(false);
    rke2.thaw("install")?;
    let template = std::fs::read_to_string(rke2.file("config-v3.toml.tmpl")).unwrap();
    rke2.thaw("uninstall")?;
    std::fs::write(rke2.file("config.toml"), template.replace("{{ template \"base\" . }}", &base)).unwrap();
    check(&rke2.dump().unwrap());
    drop(rke2);
    node.leave().await
}
