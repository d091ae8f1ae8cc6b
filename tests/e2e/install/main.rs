// SPDX-License-Identifier: Apache-2.0
//! The package on a machine of its own: installed, used, upgraded under a running pod, and removed without a trace; with
//! the distribution's containerd, and on a node laid out as RKE2 lays it out.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole file is tests"
)]

mod files;
mod machine;
mod rke2;

use std::path::Path;

use machine::{Machine, connect, run, until};
use rke2::{Form, Rke2};
use thaw_tests::harness::counter::{self, PORT};
use thaw_tests::harness::node::collect_garbage;
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process, shim, thaw};
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Package, Need::Criu];
const SOCKET: &str = "/run/containerd/containerd.sock";
const PROGRAM: &str = "/usr/bin/containerd-shim-thaw-v1";
/// The file that `thaw node install` adds, with the distribution's containerd.
const DROP_IN: &str = "/etc/containerd/conf.d/99-thaw.toml";

/// The file that the shim of a pod runs from, as the kernel shows it.
fn program(pod: &PodState) -> Result<String, HarnessError> {
    let pid = shim::pid(&pod.sandbox_id)?;
    Ok(std::fs::read_link(format!("/proc/{pid}/exe")).unwrap().display().to_string())
}

/// Runs a pod that counts, freezes and deletes it, and resumes it as another one.
async fn resumed(node: &Node) -> Result<PodState, HarnessError> {
    let old = node.run_counter(node.counter_pod("before", 4)?).await?;
    let imported = node.freeze_into_store(&old).await?;
    let then = counter::state(&old, PORT).await?;
    node.remove(&old).await?;
    let again = node.counter_pod("after", 4)?.annotated(RESTORE, "latest");
    let new = node.run(again.annotated("thaw.dev/lineage", &imported.lineage)).await?;
    let now = counter::verify(&new, PORT).await?;
    assert!(now.started == then.started && now.crc_ok, "{now:?} after {then:?}");
    Ok(new)
}

/// `thaw node status` finds the node ready.
fn assert_ready() {
    until("thaw node status is content", || process::output("thaw", &["node", "status"]).is_ok());
}

/// thaw-nri runs as a service, containerd has taken it, and it answers.
fn assert_plugin_runs() {
    until("thaw-nri answers", || {
        let ask = ["--silent", "--fail", "--unix-socket", "/run/thaw/metrics.sock", "http://thaw/healthz"];
        process::output("systemctl", &["is-active", "thaw-nri"]).is_ok()
            && process::output("curl", &ask).is_ok()
    });
}

/// A pod of the RuntimeClass is refused, because containerd does not know the handler.
async fn assert_no_handler(node: &Node) -> Tested {
    let error = node.run(node.counter_pod("refused", 1)?).await.unwrap_err();
    let told = format!("{error:?}");
    assert!(told.contains("no runtime for") && told.contains("thaw"), "{told}");
    for left in node.kubelet.list()? {
        node.remove(&left).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_package_comes_is_upgraded_under_a_running_pod_and_goes_without_a_trace() -> Tested {
    let Some(mut node) = Node::enter(NEEDS).await else { return Ok(()) };
    let machine = Machine::bare();
    let before = files::all();

    Machine::install(&Machine::package());
    let config = std::fs::read_to_string(machine::CONFIG).unwrap();
    assert!(process::output("thaw", &["node", "status"]).is_err(), "nothing was told to containerd yet");
    let planned = run("thaw", &["node", "install", "--dry-run"]);
    assert!(planned.contains(&format!("+++ {DROP_IN}")) && !Path::new(DROP_IN).exists(), "{planned}");
    run("thaw", &["node", "install", "--restart"]);
    connect(&mut node, SOCKET, "kubepods").await;
    assert_ready();
    assert_plugin_runs();

    let pod = resumed(&node).await?;
    upgraded_under(&node, &pod).await?;

    thaw::remove_namespace(&node.namespace)?;
    collect_garbage()?;
    run("thaw", &["node", "uninstall", "--restart"]);
    assert_eq!(std::fs::read_to_string(machine::CONFIG).unwrap(), config);
    connect(&mut node, SOCKET, "kubepods").await;
    assert_no_handler(&node).await?;
    run("apt-get", &["purge", "--yes", "thaw"]);
    let left = files::difference(&before, &files::all());
    assert!(left.is_empty(), "{left:#?}");
    drop(machine);
    restored(&mut node).await;
    node.leave().await
}

/// Upgrades the package under a pod that runs, and ends the pod: the shim that it was started with serves it to the end,
/// and a new pod gets the new one. What an administrator wrote stays.
async fn upgraded_under(node: &Node, pod: &PodState) -> Tested {
    const SETTINGS: &str = "/etc/thaw/config.toml";
    let settings = std::fs::read_to_string(SETTINGS).unwrap() + "shared_namespaces = [\"golden\"]\n";
    std::fs::write(SETTINGS, &settings).unwrap();
    let (old_shim, old_program) = (shim::pid(&pod.sandbox_id)?, std::fs::read(PROGRAM).unwrap());
    let count = counter::state(pod, PORT).await?.count;

    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    Machine::install(&Machine::newer_package(folder.path()));
    drop(folder);
    assert_eq!(std::fs::read_to_string(SETTINGS).unwrap(), settings);
    assert!(std::fs::read(PROGRAM).unwrap() != old_program, "the program is the old one");
    assert_ready();
    assert_plugin_runs();

    assert_eq!(shim::pid(&pod.sandbox_id)?, old_shim);
    assert_eq!(program(pod)?, format!("{PROGRAM} (deleted)"));
    let said = node.kubelet.exec(pod, "", &["sh", "-c", "echo here; exit 5"].map(str::to_owned), 10).await?;
    assert_eq!((said.exit_code, said.stdout.as_str()), (5, "here\n"));
    assert!(counter::state(pod, PORT).await?.count > count);
    // A pod of the old shim's, frozen by it, resumes under the new one.
    let frozen = node.freeze_into_store(pod).await?;
    let again = node.counter_pod("newer", 4)?.annotated(RESTORE, &frozen.reference());
    let newer = node.run(again).await?;
    assert!(counter::verify(&newer, PORT).await?.crc_ok);
    assert_eq!(program(&newer)?, PROGRAM);
    node.remove(&newer).await?;
    counter::exit(pod, PORT, 7).await?;
    assert_eq!(node.exit_code(pod, "").await?, 7);
    node.remove(pod).await
}

/// Connects to the tests' own containerd again, once the machine is as it was.
async fn restored(node: &mut Node) {
    let parent = std::env::var("THAW_CGROUP_PARENT").unwrap_or_else(|_| "kubepods".to_owned());
    connect(node, SOCKET, &parent).await;
}

/// One round on a node of RKE2's: install, run, freeze, resume, uninstall. `removed`: by removing the package.
async fn round(node: &mut Node, rke2: &Rke2, form: Form, file: &str, removed: bool) -> Tested {
    println!("=== {form:?}");
    rke2.start(form);
    let before = files::all();
    let new = !Machine::has_package();
    if new {
        Machine::install(&Machine::package());
    }
    let planned = run("thaw", &["node", "install", "--dry-run"]);
    assert!(planned.contains(&format!("+++ {}/{file}", rke2::ETC)), "{planned}");
    run("thaw", &["node", "install", "--restart"]);
    connect(node, rke2::SOCKET, "kubepods.slice").await;
    assert_ready();
    assert_plugin_runs();
    let pod = resumed(node).await?;
    // Pods outlive a restart of RKE2, under the same shim.
    let shim = shim::pid(&pod.sandbox_id)?;
    run("systemctl", &["restart", "rke2-agent"]);
    connect(node, rke2::SOCKET, "kubepods.slice").await;
    assert_eq!(shim::pid(&pod.sandbox_id)?, shim);
    assert!(counter::verify(&pod, PORT).await?.crc_ok);
    node.remove(&pod).await?;

    thaw::remove_namespace(&node.namespace)?;
    if removed {
        run("apt-get", &["purge", "--yes", "thaw"]);
        run("systemctl", &["restart", "rke2-agent"]);
    } else {
        run("thaw", &["node", "uninstall", "--restart"]);
    }
    connect(node, rke2::SOCKET, "kubepods.slice").await;
    assert_no_handler(node).await?;
    let after = files::all();
    let wanted = |path: &Path| (new && removed) || path.starts_with(rke2::DATA);
    let of = |files: &files::Files| {
        files.iter().filter(|(path, _)| wanted(path)).map(|(p, t)| (p.clone(), t.clone())).collect()
    };
    let left = files::difference(&of(&before), &of(&after));
    assert!(left.is_empty(), "{left:#?}");
    Ok(())
}

#[tokio::test]
async fn on_rke2_each_form_of_its_configuration_takes_the_handler_and_gets_rid_of_it() -> Tested {
    let Some(mut node) = Node::enter(NEEDS).await else { return Ok(()) };
    let machine = Machine::bare();
    let rke2 = Rke2::new();
    let drop_in = "config-v3.toml.d/99-thaw.toml";
    round(&mut node, &rke2, Form::DropIns, drop_in, true).await?;
    round(&mut node, &rke2, Form::Template, "config-v3.toml.tmpl", false).await?;
    round(&mut node, &rke2, Form::Version2, "config.toml.d/99-thaw.toml", true).await?;
    drop(rke2);
    drop(machine);
    restored(&mut node).await;
    node.leave().await
}
