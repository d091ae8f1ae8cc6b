// SPDX-License-Identifier: Apache-2.0
//! Every command of the documentation is run by a test, or it is said why not; and each is understood by its program.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::pages::{blocks, read, tree};

/// What becomes of a command.
enum How {
    /// A test does what it says: its file and its name.
    Test(&'static str, &'static str),
    /// A script that checks a release or the chart does: its file and which part of it.
    Script(&'static str, &'static str),
    /// Nothing does: why.
    Never(&'static str),
}
use How::{Never, Script, Test};

const STORE: How = Test("tests/e2e/docs.rs", "the_commands_for_the_store_do_what_the_page_says");
const TRY_IT: How = Test("tests/e2e/docs.rs", "the_way_of_the_page_leads_to_a_pod_that_goes_on");
const POD: How = Test(
    "tests/e2e/checkpoint_pod.rs",
    "containers_that_share_memory_and_a_volume_are_frozen_at_one_instant_and_go_on_twice",
);
const NODE: How = Test("cli/tests/node-install/rke2.rs", "a_release_with_drop_ins_gets_one");
const STATUS: How = Test("cli/tests/node-install/status.rs", "a_node_is_ready_when_the_handler_is_installed");
const INSTALL: How = Test(
    "tests/e2e/install/main.rs",
    "the_package_comes_is_upgraded_under_a_running_pod_and_goes_without_a_trace",
);
const RKE2: How = Test(
    "tests/e2e/install/main.rs",
    "on_rke2_each_form_of_its_configuration_takes_the_handler_and_gets_rid_of_it",
);
const UNIT: How = Test(
    "tests/e2e/nri_unit.rs",
    "the_service_outlives_its_runtime_and_comes_back_when_it_dies_and_knows_all_pods_again",
);
const UNDERSTOOD: How = Test("tests/packaging/docs/commands.rs", "kubectl_understands_every_command");
const RENDERED: How = Script("packaging/manifests/render", "def render");

/// Commands by how they begin, as they stand on the pages; the longest beginning counts.
const COMMANDS: &[(&str, How)] = &[
    ("scripts/demo", Never("a test of its own: it checks all that it shows")),
    ("scripts/test", Never("it runs this test")),
    ("scripts/vm test", Never("it runs these tests in a virtual machine")),
    ("scripts/bench", Never("it measures for minutes or hours")),
    ("scripts/package", Never("it builds releases for many minutes; it checks what it has built")),
    ("scripts/release", Never("it makes a tag")),
    ("thaw checkpoint", POD),
    ("thaw import", STORE),
    ("thaw import /var/lib/kubelet/checkpoints/checkpoint-counter_default-counter-TIME.tar", TRY_IT),
    ("thaw list", STORE),
    ("thaw inspect", STORE),
    ("thaw rm", STORE),
    ("thaw trace", STORE),
    ("thaw node install", NODE),
    ("thaw node uninstall", NODE),
    ("thaw node status", STATUS),
    ("kubectl apply -f docs/examples/counter.yaml", TRY_IT),
    ("kubectl apply -f again.yaml", TRY_IT),
    ("kubectl logs counter", TRY_IT),
    ("kubectl get pod counter", TRY_IT),
    ("kubectl delete pod counter", TRY_IT),
    ("kubectl annotate", TRY_IT),
    ("kubectl create --raw /api/v1/nodes/NODE/proxy/checkpoint/", TRY_IT),
    ("kubectl apply -f packaging/manifests/thaw.yaml", RENDERED),
    (
        "kubectl apply -f notebook.yaml",
        Test("tests/e2e/apps.rs", "the_notebook_of_the_documentation_goes_on"),
    ),
    (
        "kubectl port-forward",
        Test("tests/e2e/parity_stdio.rs", "a_port_of_the_pod_can_be_reached_through_the_runtime"),
    ),
    // What follows needs an API server: the command line is looked at.
    ("kubectl --kubeconfig=events.kubeconfig config", UNDERSTOOD),
    ("kubectl get secret", UNDERSTOOD),
    ("kubectl label", UNDERSTOOD),
    ("kubectl cordon", UNDERSTOOD),
    ("kubectl delete pod trainer", UNDERSTOOD),
    ("kubectl drain", UNDERSTOOD),
    ("kubectl describe pod", UNDERSTOOD),
    ("kubectl --namespace thaw-system rollout status", UNDERSTOOD),
    ("helm", RENDERED),
    (
        "curl --cert admin.crt",
        Never("the kubelet of the tests has no server; its path is that of `kubectl create --raw`"),
    ),
    ("apt-get install", INSTALL),
    ("apt-get remove", INSTALL),
    ("dnf install", Script("scripts/package.d/try", "rpm_install")),
    ("tar -xzf", Script("scripts/package.d/try", "tarball_install")),
    ("thaw-0.1.0-linux-amd64/install.sh", Script("scripts/package.d/try", "tarball_install")),
    ("systemctl restart rke2-agent", RKE2),
    ("systemctl enable --now thaw-nri", UNIT),
    ("journalctl", Never("it shows a log")),
    ("semanage", Never("the tests' machines have no SELinux")),
    ("restorecon", Never("the tests' machines have no SELinux")),
];

/// All commands, with their pages.
fn commands() -> Vec<(String, String)> {
    let mut commands = Vec::new();
    for block in blocks().into_iter().filter(|block| block.language == "sh") {
        for line in block.text.lines() {
            commands.push((block.page.clone(), line.split(" # ").next().unwrap().trim().to_owned()));
        }
    }
    assert!(commands.len() > 20);
    commands
}

#[test]
fn every_command_is_run_by_a_test_or_it_is_said_why_not() {
    let mut unused: Vec<_> = COMMANDS.iter().map(|(beginning, _)| *beginning).collect();
    for (page, command) in commands() {
        let found = COMMANDS.iter().filter(|(beginning, _)| command.starts_with(beginning));
        let Some((beginning, how)) = found.max_by_key(|(beginning, _)| beginning.len()) else {
            panic!("{page}: {command}: no test runs it");
        };
        unused.retain(|other| other != beginning);
        match how {
            Test(file, name) | Script(file, name) => {
                assert!(read(&tree().join(file)).contains(name), "{page}: {command}: {file} has no {name}");
            }
            Never(why) => assert!(!why.is_empty()),
        }
    }
    assert!(unused.is_empty(), "on no page: {unused:?}");
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_command_of_ours_is_one_that_the_program_understands() {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree().join("target"), PathBuf::from);
    for (page, command) in commands() {
        let words: Vec<&str> = command.split_whitespace().collect();
        let [program, arguments @ ..] = words.as_slice() else { continue };
        let at = format!("{page}: {command}");
        if *program == "thaw" {
            // With --help at the end, the command line is understood and nothing is done.
            let output =
                Command::new(target.join("debug/thaw")).args(arguments).arg("--help").output().unwrap();
            assert!(output.status.success(), "{at}: {}", said(&output));
        } else if program.starts_with("scripts/") {
            let usage = Command::new(tree().join(program)).arg("--help").output().unwrap();
            for flag in arguments.iter().filter(|word| word.starts_with("--")) {
                assert!(said(&usage).contains(flag), "{at}: {flag} is not in its usage");
            }
        } else if ["kubectl", "helm"].contains(program) {
            let files =
                arguments.iter().filter(|word| word.starts_with("packaging/") || word.starts_with("docs/"));
            files.for_each(|file| assert!(tree().join(file).exists(), "{at}: there is no {file}"));
        }
    }
}

/// With --help, kubectl looks at all words and flags, and asks no server.
#[test]
fn kubectl_understands_every_command() {
    if Command::new("kubectl").arg("help").output().is_err() {
        println!("SKIP no kubectl here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "secret").unwrap();
    std::fs::copy(tree().join("tests/src/kubelet/ca.crt"), folder.path().join("ca.crt")).unwrap();
    for (page, command) in commands().into_iter().filter(|(_, command)| command.starts_with("kubectl ")) {
        // These need no server, and are run as they are.
        let (config, local) = (command.contains(" config "), command.contains(" --local "));
        let line = command.split(" >").next().unwrap();
        let line = if config || local { line.to_owned() } else { format!("{line} --help") };
        let here = if local { tree() } else { folder.path() };
        let output = Command::new("sh").args(["-c", &line]).current_dir(here).output().unwrap();
        // For words that it does not know it prints its own help.
        assert!(!local || said(&output).contains("thaw.dev/restore: latest"), "{command}: {}", said(&output));
        let known = config || !said(&output).starts_with("kubectl controls the Kubernetes cluster manager");
        assert!(output.status.success() && known, "{page}: {command}: {}", said(&output));
    }
    let made = read(&folder.path().join("events.kubeconfig"));
    for word in
        ["https://CLUSTER:6443", "certificate-authority-data", "token: secret", "current-context: here"]
    {
        assert!(made.contains(word), "{made}");
    }
}
