// SPDX-License-Identifier: Apache-2.0
//! The rows of `docs/fidelity.md`: one pod runs the small programs of a whole group (`workloads/fidelity`), goes
//! through two freezes and restores, and each test asks for the verdict on its own row.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::pods::{HANDLER, RESTORE, SNAPSHOTTERS};
use super::process_state::{self, ProcessState};
use super::{HarnessError, Need, Node};
use crate::kubelet::http::{self, GetError};
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// Where the program answers.
const PORT: u16 = 8080;
/// How long all rows together may take to check themselves: each has a minute, and some sleep on purpose.
const VERIFY: Duration = Duration::from_secs(300);
/// How long they may take to be set up.
const SET_UP: Duration = Duration::from_secs(300);
/// How often to look whether they answer: what is measured is no finer.
const POLL: Duration = Duration::from_millis(10);
/// How often to look at `/proc` until it stands still.
const LOOKS: usize = 50;
/// What a row answers when it is as it was.
pub(super) const OK: &str = "ok";
/// How often the pod is frozen and restored.
const ROUNDS: usize = 2;

/// The verdicts on a group of rows, or why there are none.
#[derive(Debug)]
pub struct Verdicts {
    rounds: Vec<BTreeMap<String, String>>,
    /// The differences in `/proc` between before and after, for each round.
    pub differences: Vec<Vec<String>>,
}

/// A group of rows, which is run once for all tests of a test program.
#[derive(Debug)]
pub struct Group {
    name: &'static str,
    handlers: [&'static str; ROUNDS + 1],
    verdicts: OnceCell<Result<Option<Verdicts>, String>>,
}

impl Group {
    /// The group of `workloads/fidelity/NAME.py`.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self::under(name, [HANDLER; ROUNDS + 1])
    }

    /// The same, each life of the pod under one of these runtime handlers.
    #[must_use]
    pub const fn under(name: &'static str, handlers: [&'static str; ROUNDS + 1]) -> Self {
        Self { name, handlers, verdicts: OnceCell::const_new() }
    }

    /// The verdicts; `None` where the machine lacks what the group needs, of which a line is printed.
    ///
    /// # Errors
    /// When the pod could not be run, frozen or restored; the same for each test.
    pub async fn verdicts(&self) -> Result<Option<&Verdicts>, HarnessError> {
        let done = self
            .verdicts
            .get_or_init(|| async { run(self.name, self.handlers).await.map_err(|e| chain(&e)) })
            .await;
        match done {
            Ok(Some(verdicts)) => Ok(Some(verdicts)),
            Ok(None) => {
                println!("SKIP the group {} needs a node with containerd, CRIU and thaw", self.name);
                Ok(None)
            }
            Err(said) => {
                Err(HarnessError::answer(format!("the pod of the group {}", self.name), said.clone()))
            }
        }
    }

    /// Whether a row was as it was, each time.
    ///
    /// # Errors
    /// With the row's own words, when it was not.
    pub async fn row(&self, row: &str) -> Result<(), HarnessError> {
        let Some(verdicts) = self.verdicts().await? else { return Ok(()) };
        for (round, said) in (1..).zip(&verdicts.rounds) {
            let said = said.get(row).map_or("there is no such row", String::as_str);
            if said != OK {
                return Err(HarnessError::answer(format!("row {row} after restore {round}"), said));
            }
        }
        Ok(())
    }
}

/// That `/proc` shows every process of the group as it was, each time.
///
/// # Errors
/// With all differences.
pub async fn no_differences(group: &Group) -> Result<(), HarnessError> {
    let Some(verdicts) = group.verdicts().await? else { return Ok(()) };
    let found: Vec<_> = verdicts.differences.iter().flatten().cloned().collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(HarnessError::answer("/proc before and after", found.join("\n")))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn run(group: &str, handlers: [&str; ROUNDS + 1]) -> Result<Option<Verdicts>, HarnessError> {
    let others = SNAPSHOTTERS.iter().filter(|(handler, _)| handlers.contains(handler));
    let others: Vec<&str> = others.map(|(_, snapshotter)| *snapshotter).collect();
    let mut needs = vec![Need::Criu, Need::Thaw, Need::Shim];
    needs.extend(others.iter().map(|snapshotter| Need::Snapshotter(snapshotter)));
    let Some(node) = Node::enter(&needs).await else { return Ok(None) };
    for snapshotter in others {
        node.unpack_for(snapshotter)?;
    }
    let [first, later @ ..] = handlers;
    let mut state = node.run(pod(&node, group, "life-0")?.under(first)).await?;
    let set_up = ask(&state, "/", SET_UP).await?;
    let failed: Vec<_> = set_up.iter().filter(|(_, said)| *said != OK).collect();
    if !failed.is_empty() {
        return Err(HarnessError::answer("rows that could not be set up", format!("{failed:?}")));
    }
    let mut verdicts = Verdicts { rounds: Vec::new(), differences: Vec::new() };
    for (round, handler) in (1..).zip(later) {
        let before = settled(&node, &state).await?;
        let imported = node.freeze_into_store(&state).await?;
        node.remove(&state).await?;
        let again = pod(&node, group, &format!("life-{round}"))?.annotated(RESTORE, &imported.reference());
        state = node.run(again.under(handler)).await?;
        verdicts.differences.push(process_state::differences(&before, &look(&node, &state).await?));
        verdicts.rounds.push(ask(&state, "/verify", VERIFY).await?);
    }
    node.remove(&state).await?;
    let volume = volume(&node);
    std::fs::remove_dir_all(&volume).map_err(|source| HarnessError::file("remove", &volume, source))?;
    node.leave().await?;
    Ok(Some(verdicts))
}

/// What `/proc` shows when the connection of the last question has been closed.
async fn settled(node: &Node, state: &PodState) -> Result<BTreeMap<u32, ProcessState>, HarnessError> {
    let mut last = look(node, state).await?;
    for _ in 0..LOOKS {
        tokio::time::sleep(POLL).await;
        let now = look(node, state).await?;
        if process_state::differences(&last, &now).is_empty() {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

async fn look(node: &Node, state: &PodState) -> Result<BTreeMap<u32, ProcessState>, HarnessError> {
    let init = node.kubelet.pids(state).await?.get("rows").copied().unwrap_or_default();
    let own = [state.uid.as_str(), &state.sandbox_id, &state.container("")?.id, &state.pod.metadata.name];
    process_state::of_container(init, &own)
}

/// The volume outlives the pods, as a hostPath does.
fn volume(node: &Node) -> String {
    format!("/var/tmp/{}", node.namespace)
}

fn pod(node: &Node, group: &str, name: &str) -> Result<Pod, HarnessError> {
    let workloads = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads");
    node.pod(&format!(
        "
metadata: {{name: {name}}}
spec:
  volumes:
  - {{name: workloads, hostPath: {{path: {workloads}, type: Directory}}}}
  - {{name: volume, hostPath: {{path: {volume}, type: DirectoryOrCreate}}}}
  containers:
  - name: rows
    image: thaw.local/python:1
    command: [python3, -B, /workloads/fidelity/main.py, {group}]
    volumeMounts:
    - {{name: workloads, mountPath: /workloads, readOnly: true}}
    - {{name: volume, mountPath: /volume}}
",
        volume = volume(node)
    ))
}

/// What the rows in a pod say, as soon as they answer.
pub(super) async fn ask(
    state: &PodState,
    path: &str,
    limit: Duration,
) -> Result<BTreeMap<String, String>, HarnessError> {
    let ip = state.ip.parse();
    let ip = ip.map_err(|_| HarnessError::answer("the runtime", format!("address {:?}", state.ip)))?;
    let (address, began) = (SocketAddr::new(ip, PORT), Instant::now());
    loop {
        match http::get(address, path, limit).await {
            Err(GetError::Io { .. }) if began.elapsed() < limit => {
                tokio::time::sleep(POLL).await;
            }
            answered => {
                let body = answered?.body;
                return serde_json::from_str(&body).map_err(|_| HarnessError::answer("the rows", body));
            }
        }
    }
}

/// One test for each row, which has the row's name: `rows!(GROUP: row, row)`.
#[macro_export]
macro_rules! rows {
    ($group:expr; $($row:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $row() -> $crate::harness::Tested {
                $group.row(stringify!($row)).await
            }
        )+
        /// The rows of this file.
        const ROWS: &[&str] = &[$(stringify!($row)),+];
    };
}
