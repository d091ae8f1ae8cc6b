// SPDX-License-Identifier: Apache-2.0
//! The machine as somebody finds it who has just installed the distribution and its containerd: without this tree's
//! programs, and with containerd's configuration as its package brings it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thaw_tests::harness::{Node, process};
use thaw_tests::kubelet::Kubelet;
use thaw_tests::kubelet::cri::api::ListPodSandboxRequest;
use thaw_tests::kubelet::patience::patient;
use thaw_tests::kubelet::settings::Settings;

/// What `scripts/vm` brings: thaw's package, and the configuration of containerd that the distribution's package has.
pub(crate) const BROUGHT: &str = "/var/lib/thaw-install";
/// containerd's configuration.
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";
/// Where the tests' programs are, which must not be found in place of the package's.
const PROGRAMS: [&str; 3] = ["containerd-shim-thaw-v1", "thaw", "thaw-nri"];
/// How long a service may take until it answers.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program, which must succeed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    match process::output(program, arguments) {
        Ok(said) => said,
        Err(error) => panic!("{error}"),
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < patient(LIMIT), "not seen: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The machine without thaw. It gets back what it had when this is dropped.
pub(crate) struct Machine {
    config: Vec<u8>,
}

impl Machine {
    /// Takes away what the tests brought, and what earlier tests installed.
    pub(crate) fn bare() -> Self {
        let machine = Self { config: std::fs::read(CONFIG).unwrap() };
        for name in PROGRAMS {
            std::fs::rename(Path::new("/usr/local/bin").join(name), Path::new(BROUGHT).join(name)).unwrap();
        }
        std::fs::copy(Path::new(BROUGHT).join("containerd.toml"), CONFIG).unwrap();
        // Only folders that other tests have emptied: the package must not find them there.
        for folder in ["/var/lib/thaw/checkpoints", "/var/lib/thaw"] {
            let _ = std::fs::remove_dir(folder);
        }
        tag_pause_image("containerd", "/run/containerd/containerd.sock", CONFIG);
        run("systemctl", &["restart", "containerd"]);
        machine
    }

    /// thaw's package, as it was built.
    pub(crate) fn package() -> PathBuf {
        let files = std::fs::read_dir(BROUGHT).unwrap().map(|file| file.unwrap().path());
        let found: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|suffix| suffix == "deb")).collect();
        let [package] = found.as_slice() else { panic!("not one package: {found:?}") };
        package.clone()
    }

    /// The same package with a higher version and another shim: a byte after its end, which the kernel does not load.
    pub(crate) fn newer_package(folder: &Path) -> PathBuf {
        let (tree, made) = (folder.join("tree"), folder.join("thaw_newer.deb"));
        let (tree_name, made_name) = (tree.to_str().unwrap(), made.to_str().unwrap());
        run("dpkg-deb", &["--raw-extract", Self::package().to_str().unwrap(), tree_name]);
        let control = tree.join("DEBIAN/control");
        let text = std::fs::read_to_string(&control).unwrap();
        let version = text.lines().find(|line| line.starts_with("Version: ")).unwrap();
        std::fs::write(&control, text.replace(version, &format!("{version}+newer"))).unwrap();
        let shim = tree.join("usr/bin/containerd-shim-thaw-v1");
        let mut program = std::fs::read(&shim).unwrap();
        program.push(0);
        std::fs::write(&shim, program).unwrap();
        run("dpkg-deb", &["-Znone", "--root-owner-group", "--build", tree_name, made_name]);
        std::fs::remove_dir_all(tree).unwrap();
        made
    }

    /// Installs a package as the documentation says.
    pub(crate) fn install(package: &Path) -> String {
        run("apt-get", &["install", "--yes", package.to_str().unwrap()])
    }

    /// Whether the package is installed.
    pub(crate) fn has_package() -> bool {
        Path::new("/usr/bin/thaw").exists()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whatever of this fails, the rest is to be done; a test that follows finds what is missing.
        if Self::has_package() {
            let _ = process::output("dpkg", &["--purge", "thaw"]);
        }
        for name in PROGRAMS {
            let _ = std::fs::rename(Path::new(BROUGHT).join(name), Path::new("/usr/local/bin").join(name));
        }
        let _ = std::fs::write(CONFIG, &self.config);
        let _ = process::output("systemctl", &["start", "containerd"]);
        let ctr = ["--namespace", "k8s.io", "images"];
        let names = process::output("ctr", &[&ctr[..], &["ls", "--quiet"]].concat()).unwrap_or_default();
        for name in names.lines().filter(|name| name.contains("pause") && !name.starts_with("thaw.local/")) {
            let _ = process::output("ctr", &[&ctr[..], &["rm", name]].concat());
        }
        // It looks at its images and its configuration when it starts.
        let _ = process::output("systemctl", &["restart", "containerd"]);
    }
}

/// Gives the tests' pause image the name that a configuration asks for: no registry can be asked here.
pub(crate) fn tag_pause_image(containerd: &str, socket: &str, config: &str) {
    let dump: toml::Table = run(containerd, &["--config", config, "config", "dump"]).parse().unwrap();
    let image = dump["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"].as_str().unwrap();
    // Docker's registry has two names, and containerd knows its images by this one.
    let image = &image.replacen("index.docker.io/", "docker.io/", 1);
    if image != "thaw.local/pause:1" {
        let tag = [
            "--address",
            socket,
            "--namespace",
            "k8s.io",
            "images",
            "tag",
            "--force",
            "thaw.local/pause:1",
            image,
        ];
        run("ctr", &tag);
    }
}

/// Connects the test's kubelet to a runtime that may have just been started, and waits until that takes calls.
pub(crate) async fn connect(node: &mut Node, socket: &str, cgroup_parent: &str) {
    let settings =
        Settings { socket: socket.into(), cgroup_parent: cgroup_parent.to_owned(), ..Settings::from_env() };
    let began = Instant::now();
    loop {
        let error = match Kubelet::connect(settings.clone()).await {
            Ok(kubelet) => match kubelet.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await {
                Ok(_) => {
                    node.kubelet = kubelet;
                    return;
                }
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(began.elapsed() < patient(LIMIT), "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
