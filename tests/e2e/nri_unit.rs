// SPDX-License-Identifier: Apache-2.0
//! `thaw-nri` as the service that packages install, under systemd and with the rights that its unit leaves it: over a
//! restart of the runtime and its own death nothing of what it knows is lost.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::Imported;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process};
use thaw_tests::kubelet::patience::patient;
use thaw_tests::kubelet::pod_spec::Pod;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim, Need::SystemdDriver];
const UNIT: &str = "thaw-nri.service";
/// How long a service may take to do what it is told.
const LIMIT: Duration = Duration::from_secs(60);

fn systemctl(arguments: &[&str]) -> Result<String, HarnessError> {
    process::output("systemctl", arguments)
}

fn journal() -> Result<String, HarnessError> {
    process::output("journalctl", &["--unit", UNIT, "--output", "cat", "--no-pager"])
}

/// The unit as packages install it; gone when this is dropped.
struct Service {
    unit: PathBuf,
    program: PathBuf,
    /// How much an earlier one has logged, in bytes.
    logged: usize,
}

impl Service {
    fn start() -> Result<Self, HarnessError> {
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(UNIT);
        let service = Self {
            unit: Path::new("/run/systemd/system").join(UNIT),
            program: "/usr/libexec/thaw/thaw-nri".into(),
            logged: journal()?.len(),
        };
        std::fs::create_dir_all(service.program.parent().unwrap()).unwrap();
        // Copied, as a package does: the unit does not let it see all of this machine.
        std::fs::copy("/usr/local/bin/thaw-nri", &service.program).unwrap();
        std::fs::copy(packaged, &service.unit).unwrap();
        systemctl(&["daemon-reload"])?;
        systemctl(&["start", UNIT])?;
        Ok(service)
    }

    /// What it has logged.
    fn log(&self) -> Result<String, HarnessError> {
        Ok(journal()?.get(self.logged..).unwrap_or_default().to_owned())
    }

    /// Waits until it has been told all pods so many times, and says that it is well.
    fn wait_for(&self, times: usize) -> Tested {
        let began = Instant::now();
        while self.log()?.matches("synchronized").count() < times || !healthy() {
            assert!(began.elapsed() < patient(LIMIT), "{times}: {}", self.log()?);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        println!("{}", self.log().unwrap_or_default());
        let _ = systemctl(&["stop", UNIT]);
        let _ = std::fs::remove_file(&self.unit);
        let _ = std::fs::remove_file(&self.program);
        let _ = systemctl(&["daemon-reload"]);
    }
}

/// What `/healthz` says.
fn healthy() -> bool {
    let Ok(mut stream) = UnixStream::connect("/run/thaw/metrics.sock") else { return false };
    let request = b"GET /healthz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    let asked = stream.write_all(request).and_then(|()| stream.read_to_string(&mut answer));
    asked.is_ok() && answer.starts_with("HTTP/1.1 200")
}

fn sleeper(node: &Node, name: &str) -> Result<Pod, HarnessError> {
    node.shell_pod(name, "while :; do sleep 1; done")
}

/// A pod that wants the address that another one has, of which only the service knows.
async fn is_kept_from(node: &Node, imported: &Imported, name: &str) -> Tested {
    let pod = sleeper(node, name)?.annotated(RESTORE, &imported.reference());
    let error = node.kubelet.run(pod.annotated("thaw.dev/address", "keep")).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default().to_owned();
    let owner = format!("belongs to pod {}/owner of this node", node.namespace);
    assert!(message.contains(&owner), "{name}: {message}");
    node.remove(&node.kubelet.find(&node.namespace, name)?).await
}

#[tokio::test]
async fn the_service_outlives_its_runtime_and_comes_back_when_it_dies_and_knows_all_pods_again() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let owner = node.run(sleeper(&node, "owner")?).await?;
    let imported = node.freeze_into_store(&owner).await?;
    let service = Service::start()?;
    service.wait_for(1)?;
    is_kept_from(&node, &imported, "first").await?;

    systemctl(&["restart", "containerd.service"])?;
    service.wait_for(2)?;
    // The runtime asks its plugins before it answers others.
    let began = Instant::now();
    while let Err(error) = node.kubelet.container_status(&owner.container("")?.id).await {
        assert!(began.elapsed() < patient(LIMIT), "the runtime does not answer: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    is_kept_from(&node, &imported, "after-the-runtime").await?;

    systemctl(&["kill", "--signal", "KILL", UNIT])?;
    service.wait_for(3)?;
    assert_eq!(systemctl(&["show", "--property", "NRestarts", "--value", UNIT])?.trim(), "1");
    is_kept_from(&node, &imported, "after-its-death").await?;

    node.remove(&owner).await?;
    // The runtime does not tell of the end of a pod from before its restart.
    let pod = sleeper(&node, "heir")?.annotated(RESTORE, &imported.reference());
    let heir = node.run(pod.annotated("thaw.dev/address", "keep")).await?;
    let command = ["cat", "/proc/net/fib_trie"].map(str::to_owned);
    let routes = node.kubelet.exec(&heir, "", &command, 60).await?.stdout;
    assert!(routes.split_whitespace().any(|word| word == owner.ip), "{} is not in {routes}", owner.ip);
    node.remove(&heir).await?;
    drop(service);
    node.leave().await
}
