// SPDX-License-Identifier: Apache-2.0
//! A pod with its sandbox, and what is always done with its containers.

use checkpoint::CheckpointId;
use containerd_shim_protos::api::Status;
use containerd_shim_protos::ttrpc::Code;

use crate::support::bundle::Bundle;
use crate::support::eventually;
use crate::support::node::Node;
use crate::support::shim::{Fault, Shim};

pub(crate) const RESTORE: &str = "thaw.dev/restore";
/// What the container runs when it is not restored.
pub(crate) const FRESH: [&str; 3] = ["sh", "-c", "echo fresh; exec sleep 1000"];
/// A CRIU that does its work; the restored program says so and reads a line.
pub(crate) const GOOD: &str = "init echo restored; read -r line; echo \"got $line\"; exit 4\n\
    notify pre-restore\nnotify setup-namespaces\nnotify post-restore\nreply ok";

/// A pod whose sandbox runs.
pub(crate) struct Pod<'n> {
    pub(crate) shim: Shim<'n>,
    pub(crate) sandbox: u32,
}

impl<'n> Pod<'n> {
    pub(crate) async fn new(node: &'n Node) -> Self {
        let sandbox = Bundle::sandbox(node, "s1");
        let shim = node.shim(&sandbox).await;
        let pid = shim.run(&sandbox).await;
        // Only then has it its namespaces.
        eventually("the sandbox", || (comm(pid) == "sleep").then_some(())).await;
        Self { shim, sandbox: pid }
    }

    /// The container that is to be restored from `reference`.
    pub(crate) fn container(&self, id: &str, reference: &str) -> Bundle {
        let bundle = Bundle::restored(self.shim.node, id, "s1", self.sandbox, &FRESH);
        bundle.annotate(RESTORE, reference)
    }

    /// An ordinary container of the pod starts and ends as if nothing had been.
    pub(crate) async fn goes_on(&self) {
        let next = Bundle::new(self.shim.node, "next", &["sh", "-c", "exit 5"]);
        self.shim.run(&next).await;
        assert_eq!(self.shim.wait("next", "").await.unwrap(), 5);
        self.shim.delete("next", "").await.unwrap();
    }
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[track_caller]
pub(crate) fn says(fault: &Fault, parts: &[&str]) {
    for part in parts {
        assert!(fault.text.contains(part), "{part:?} is missing: {}", fault.text);
    }
}

/// Create and Start; the start fails, and then nothing of the restore is there any more.
pub(crate) async fn fail_to_start(pod: &Pod<'_>, mut bundle: Bundle) -> Fault {
    let before = pod.shim.traces(&bundle);
    let _streams = (bundle.with_input(), bundle.with_output());
    assert_eq!(pod.shim.create(&bundle).await.unwrap(), 0, "no process yet");
    let created = pod.shim.traces(&bundle);
    let fault = pod.shim.start(&bundle.id).await.unwrap_err();
    pod.shim.is_as_before(&bundle, &created).await;
    fails_for_good(pod, &bundle).await;
    pod.shim.is_as_before(&bundle, &before).await;
    fault
}

/// What is left to do with a container whose restore has failed.
pub(crate) async fn fails_for_good(pod: &Pod<'_>, bundle: &Bundle) {
    let (shim, id) = (&pod.shim, bundle.id.as_str());
    assert_eq!(shim.status(id).await, Status::STOPPED);
    assert_eq!(shim.wait(id, "").await.unwrap(), 137);
    assert_eq!(shim.start(id).await.unwrap_err().code, Code::FAILED_PRECONDITION);
    assert_eq!(shim.kill(id, "", 9).await.unwrap_err().code, Code::NOT_FOUND);
    shim.delete(id, "").await.unwrap();
    assert_eq!(shim.story(id, "delete").await, ["create", "delete"]);
    pod.goes_on().await;
}

/// A create that fails; nothing is left of it.
pub(crate) async fn fail_to_create(pod: &Pod<'_>, bundle: &Bundle) -> Fault {
    let before = pod.shim.traces(bundle);
    let fault = pod.shim.create(bundle).await.unwrap_err();
    assert_eq!(fault.code, Code::FAILED_PRECONDITION, "{}", fault.text);
    pod.shim.is_as_before(bundle, &before).await;
    assert_eq!(pod.shim.delete(&bundle.id, "").await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(pod.shim.node.events.story(&bundle.id), [""; 0]);
    pod.goes_on().await;
    fault
}

/// Runs a container that starts normally in spite of its annotation, and proves that it does.
pub(crate) async fn starts_fresh(pod: &Pod<'_>, mut bundle: Bundle) {
    let shim = &pod.shim;
    let before = shim.traces(&bundle);
    let (stdin, (mut stdout, _stderr)) = (bundle.with_input(), bundle.with_output());
    bundle.spec["process"]["args"] =
        serde_json::json!(["sh", "-c", "echo fresh; read -r line; echo \"got $line\"; exit 8"]);
    shim.create(&bundle).await.unwrap();
    let pid = shim.start(&bundle.id).await.unwrap();
    assert_eq!((shim.status(&bundle.id).await, shim.task_pid(&bundle.id).await), (Status::RUNNING, pid));
    stdout.expect("fresh\n").await;
    assert!(bundle.read("from-image").is_some());
    assert_eq!(bundle.read("from-checkpoint"), None, "nothing of the checkpoint");
    stdin.write("hello\n").await;
    stdout.expect("got hello\n").await;
    assert_eq!(shim.wait(&bundle.id, "").await.unwrap(), 8);
    shim.delete(&bundle.id, "").await.unwrap();
    assert_eq!(shim.story(&bundle.id, "delete").await, ["create", "start", "exit 8", "delete"]);
    shim.is_as_before(&bundle, &before).await;
}

/// `team/counter/ID`.
pub(crate) fn name(id: &CheckpointId) -> String {
    format!("team/counter/{id}")
}
