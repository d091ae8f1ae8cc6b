// SPDX-License-Identifier: Apache-2.0
//! Rows of the parity table: what holds for a container of the stock handler holds for an ordinary container under
//! thaw and for a restored one.
//!
//! A row is one function that takes a [`Case`]: it runs a pod, asserts what is known beforehand, and returns what
//! must be equal whatever the kind of the container is. `docs/parity.md` is made from the tests that call [`hold`].

use std::fmt::{self, Debug};
use std::path::PathBuf;

use super::pods::{HANDLER, RESTORE};
use super::{HarnessError, Need, Node, Tested, process, until};
use crate::kubelet::cri::api::ContainerState;
use crate::kubelet::error::KubeletError;
use crate::kubelet::exec::Output;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// What the rows need of the machine.
pub const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

/// A program that goes on for ever. A `sleep` that is frozen ends early, so it is one of many.
pub const FOREVER: &str = "while :; do sleep 0.2; done";

/// What a program prints when there is something to freeze.
const READY: &str = "ready";

/// How a container came to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Started by containerd's own shim: the measure of the others.
    Runc,
    /// Started under thaw.
    Thaw,
    /// Started under thaw, frozen, and restored in a new pod.
    Restored,
}

/// Rows that hold for every kind.
pub const EVERY: &[Kind] = &[Kind::Runc, Kind::Thaw, Kind::Restored];
/// Rows about what there is no restore of.
pub const STARTED: &[Kind] = &[Kind::Runc, Kind::Thaw];
/// The second half of a row whose restore needs more of the machine than its start.
pub const RESTORED: &[Kind] = &[Kind::Runc, Kind::Restored];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Thaw => "thaw",
            Self::Restored => "restored",
        })
    }
}

/// One kind of container on the node under test.
#[derive(Debug)]
pub struct Case<'n> {
    /// The node.
    pub node: &'n Node,
    /// The kind.
    pub kind: Kind,
    /// Which of the kind's handlers: `""`, or `limits`, whose base specification has limits of processes.
    pub variant: &'static str,
}

/// Checks a row for each of `kinds`: what it returns must be equal to what the first of them returned.
///
/// # Errors
/// What the row could not do, and what it leaves behind on the node.
///
/// # Panics
/// When the row does not hold.
pub async fn hold<T: PartialEq + Debug>(
    kinds: &[Kind],
    row: impl AsyncFn(Case<'_>) -> Result<T, HarnessError>,
) -> Tested {
    hold_with(NEEDS, kinds, row).await
}

/// As [`hold`], where the machine must have more.
///
/// # Errors
/// As [`hold`].
///
/// # Panics
/// As [`hold`].
pub async fn hold_with<T: PartialEq + Debug>(
    needs: &[Need],
    kinds: &[Kind],
    row: impl AsyncFn(Case<'_>) -> Result<T, HarnessError>,
) -> Tested {
    let Some(node) = Node::enter(needs).await else { return Ok(()) };
    let mut measure: Option<T> = None;
    for &kind in kinds {
        println!("--- {kind}");
        let seen = row(Case { node: &node, kind, variant: "" }).await?;
        for left in node.kubelet.list()? {
            node.remove(&left).await?;
        }
        match &measure {
            Some(measure) if *measure != seen => panic!("{}", differences(kind, &seen, measure)),
            Some(_) => {}
            None => measure = Some(seen),
        }
    }
    node.leave().await
}

/// Checks that a pod can be frozen and that its restore is refused with `words` in the reason; and that it runs again
/// without the wish to be restored.
///
/// # Errors
/// As [`hold`].
///
/// # Panics
/// When it is restored, or refused in other words.
pub async fn refused(words: &str, pod: impl AsyncFn(&Case<'_>) -> Result<Pod, HarnessError>) -> Tested {
    hold(&[Kind::Thaw], async |case| {
        let state = case.run(pod(&case).await?).await?;
        let imported = case.node.freeze_into_store(&state).await?;
        case.node.remove(&state).await?;
        let said = case.refusal(pod(&case).await?.annotated(RESTORE, &imported.reference())).await?;
        assert!(said.contains("cannot restore") && said.contains(words), "{said}");
        Ok(())
    })
    .await
}

/// What is only in one of two things, line by line.
fn differences(kind: Kind, seen: &impl Debug, measure: &impl Debug) -> String {
    let (seen, measure) = (format!("{seen:#?}"), format!("{measure:#?}"));
    let only = |here: &str, there: &str, who: &str| -> String {
        let lines = here.lines().filter(|line| !there.lines().any(|other| other == *line));
        lines.map(|line| format!("\n  {who}: {}", line.trim())).collect()
    };
    let (ours, theirs) = (only(&seen, &measure, "it"), only(&measure, &seen, "runc"));
    format!("a {kind} container is not as one of runc:{ours}{theirs}")
}

/// How a container ended, as the runtime tells it to kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub exit_code: i32,
    /// The runtime's word for it.
    pub reason: String,
    /// What else the runtime says.
    pub message: String,
}

impl Case<'_> {
    fn handler(&self) -> String {
        let runtime = if self.kind == Kind::Runc { "runc" } else { HANDLER };
        if self.variant.is_empty() { runtime.to_owned() } else { format!("{runtime}-{}", self.variant) }
    }

    /// Runs a pod until each of its containers has printed `ready`; for a restored one, freezes it then, removes it,
    /// and runs it again from there.
    ///
    /// # Errors
    /// When a step fails.
    ///
    /// # Panics
    /// When a container that should have been restored was started.
    pub async fn run(&self, pod: Pod) -> Result<PodState, HarnessError> {
        let (node, handler) = (self.node, self.handler());
        let state = node.run(pod.clone().under(&handler)).await?;
        self.is_ready(&state).await?;
        if self.kind != Kind::Restored {
            return Ok(state);
        }
        let imported = node.freeze_into_store(&state).await?;
        node.remove(&state).await?;
        let state = node.run(pod.under(&handler).annotated(RESTORE, &imported.reference())).await?;
        for container in &state.pod.spec.containers {
            let lines = node.kubelet.logs(&state, &container.name)?;
            assert!(lines.iter().all(|line| line.text.trim_end() != READY), "{}: started", container.name);
        }
        Ok(state)
    }

    /// Runs a pod with one container, `shell`, whose shell prints `ready` and goes on with `script`.
    ///
    /// # Errors
    /// As [`Case::run`].
    pub async fn shell(&self, script: &str) -> Result<PodState, HarnessError> {
        self.shell_with(script, |pod| pod).await
    }

    /// As [`Case::shell`], after a change of the pod.
    ///
    /// # Errors
    /// As [`Case::run`].
    pub async fn shell_with(
        &self,
        script: &str,
        change: impl FnOnce(Pod) -> Pod,
    ) -> Result<PodState, HarnessError> {
        let pod = self.node.shell_pod("row", &format!("echo {READY}; {script}"))?;
        self.run(change(pod)).await
    }

    /// Runs a pod with one container, `shell`, that goes on for ever; the texts are further fields of the pod's `spec`
    /// and of the container, in YAML's short form.
    ///
    /// # Errors
    /// As [`Case::run`].
    pub async fn spec(&self, of_pod: &str, of_container: &str) -> Result<PodState, HarnessError> {
        self.run(self.spec_pod(of_pod, of_container)?).await
    }

    /// The pod of [`Case::spec`].
    ///
    /// # Errors
    /// When it is none.
    pub fn spec_pod(&self, of_pod: &str, of_container: &str) -> Result<Pod, HarnessError> {
        self.node.pod(&format!(
            "
metadata: {{name: row}}
spec:
  {of_pod}
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [sh, -c, 'echo {READY}; {FOREVER}']
    {of_container}
"
        ))
    }

    /// Runs containerd's own client in the namespace of Kubernetes.
    ///
    /// # Errors
    /// What it says.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String, HarnessError> {
        process::output("ctr", &[&["--namespace", "k8s.io"], arguments].concat())
    }

    async fn is_ready(&self, state: &PodState) -> Tested {
        for container in &state.pod.spec.containers {
            self.logged(state, &container.name, READY).await?;
        }
        Ok(())
    }

    /// Waits until a container's log has a line with `text`, and returns that line.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn logged(
        &self,
        state: &PodState,
        container: &str,
        text: &str,
    ) -> Result<String, HarnessError> {
        let said = || {
            let lines = self.node.kubelet.logs(state, container).unwrap_or_default();
            lines.into_iter().map(|line| line.text.trim_end().to_owned()).find(|line| line.contains(text))
        };
        self.until(&format!("{text:?} in the log of {container}"), async || Ok(said())).await
    }

    /// [`until`], for a row.
    ///
    /// # Errors
    /// When there is no answer within a minute, with `what` was waited for.
    pub async fn until<T>(
        &self,
        what: &str,
        ask: impl AsyncFn() -> Result<Option<T>, HarnessError>,
    ) -> Result<T, HarnessError> {
        until(&format!("{}: {what}", self.kind), ask).await
    }

    /// Runs a shell's `script` in the only container; what it wrote to both streams.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn sh(&self, state: &PodState, script: &str) -> Result<String, HarnessError> {
        let output = self.exec(state, "", script).await?;
        Ok(format!("{}{}", output.stdout, output.stderr))
    }

    /// Runs a shell's `script` in a container.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn exec(
        &self,
        state: &PodState,
        container: &str,
        script: &str,
    ) -> Result<Output, HarnessError> {
        let command = ["sh", "-c", script].map(str::to_owned);
        Ok(self.node.kubelet.exec(state, container, &command, 60).await?)
    }

    /// Waits for a container's end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&self, state: &PodState, container: &str) -> Result<Ended, HarnessError> {
        let id = state.container(container)?.id.clone();
        let end = async || {
            let status = self.node.kubelet.container_status(&id).await?;
            Ok((status.state() == ContainerState::ContainerExited).then(|| Ended {
                exit_code: status.exit_code,
                reason: status.reason.clone(),
                message: self.nameless(&status.message, state),
            }))
        };
        self.until("the end of the container", end).await
    }

    /// The process id of a container's init on the node. An empty name means the only container.
    ///
    /// # Errors
    /// When the runtime does not tell.
    pub async fn pid(&self, state: &PodState, container: &str) -> Result<u32, HarnessError> {
        let (name, _) = state.named_container(container)?;
        let pids = self.node.kubelet.pids(state).await?;
        pids.get(name).copied().ok_or_else(|| HarnessError::answer("the runtime", format!("{pids:?}")))
    }

    /// A text without the names that are this pod's alone, so that two pods can be compared.
    #[must_use]
    pub fn nameless(&self, text: &str, state: &PodState) -> String {
        let mut text = state.without_uid(text).replace(&state.sandbox_id, "SANDBOX");
        if !state.ip.is_empty() {
            text = text.replace(&state.ip, "ADDRESS");
        }
        for (name, container) in &state.containers {
            text = text.replace(&container.id, &format!("ID-{name}"));
        }
        text
    }

    /// What the runtime says to a pod that cannot run.
    ///
    /// # Errors
    /// When it runs.
    pub async fn refusal(&self, pod: Pod) -> Result<String, HarnessError> {
        match self.node.kubelet.run(pod.under(&self.handler())).await {
            Err(KubeletError::Cri(error)) => Ok(error.message().to_owned()),
            Err(error) => Err(error.into()),
            Ok(state) => Err(HarnessError::answer("the runtime", format!("{} runs", state.full_name()))),
        }
    }

    /// The shims on the node that serve a pod.
    #[must_use]
    pub fn shims(&self, state: &PodState) -> Vec<u32> {
        let serves = |pid: &u32| {
            let command = process::read(*pid, "cmdline").unwrap_or_default();
            command.contains("containerd-shim-") && command.contains(&state.sandbox_id)
        };
        process::all().into_iter().filter(serves).collect()
    }
}

/// Sends a signal to a process of the node, from outside of every container.
///
/// # Errors
/// When there is no such process.
pub fn kill(pid: u32, signal: &str) -> Tested {
    process::output("kill", &["-s", signal, &pid.to_string()]).map(drop)
}

/// Whether a process lives and is no zombie.
#[must_use]
pub fn alive(pid: u32) -> bool {
    process::read(pid, "stat").is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// A folder of the node for one test, that pods can mount.
///
/// # Errors
/// When it cannot be made.
pub fn scratch() -> Result<tempfile::TempDir, HarnessError> {
    tempfile::tempdir_in("/var/tmp")
        .map_err(|source| HarnessError::file("make a folder in", "/var/tmp", source))
}

/// The text of a file of the node.
///
/// # Errors
/// When it cannot be read.
pub fn text(path: impl Into<PathBuf>) -> Result<String, HarnessError> {
    let path = path.into();
    std::fs::read_to_string(&path).map_err(|source| HarnessError::file("read", &path, source))
}
