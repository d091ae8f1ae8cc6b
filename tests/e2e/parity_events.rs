// SPDX-License-Identifier: Apache-2.0
//! Events: what containerd is told, and in which order; and what the runtime says of itself.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "the whole file is tests"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use thaw_tests::harness::parity::{Case, EVERY, FOREVER, Kind, STARTED, hold};
use thaw_tests::harness::{HarnessError, Tested, process};
use thaw_tests::kubelet::state::PodState;

/// What containerd tells from now on.
struct Told {
    child: Child,
    lines: Receiver<String>,
}

impl Told {
    /// Returns when it is told of what happens: `ctr` subscribes a moment after it has started.
    fn listen() -> Self {
        let mut command = Command::new("ctr");
        command.args(["--namespace", "k8s.io", "events"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let hears = || {
            for verb in ["create", "remove"] {
                process::output("ctr", &["namespaces", verb, "listening"]).unwrap();
            }
            lines.recv_timeout(Duration::from_millis(100)).is_ok()
        };
        assert!((0..100).any(|_| hears()), "ctr events tells nothing");
        Self { child, lines }
    }

    /// What was told of the tasks of a pod's container `name` until that `is_all`, and what more came at once.
    fn of(
        mut self,
        state: &PodState,
        name: &str,
        is_all: impl Fn(&[String]) -> bool,
    ) -> Result<Vec<String>, HarnessError> {
        let id = &state.container(name)?.id;
        let mut told = Vec::new();
        loop {
            let patience = if is_all(&told) { Duration::from_millis(200) } else { Duration::from_secs(60) };
            let Ok(line) = self.lines.recv_timeout(patience) else { break };
            if line.contains("/tasks/") && line.contains(id.as_str()) {
                told.push(tell(&line));
            }
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Ok(told)
    }
}

/// Nothing more is told of a container.
fn deleted(told: &[String]) -> bool {
    told.last().is_some_and(|last| last == "delete")
}

/// One line of `ctr events` as a word: the topic, and for an exit whose and how.
fn tell(line: &str) -> String {
    let topic =
        line.split_whitespace().find_map(|word| word.strip_prefix("/tasks/")).unwrap_or_default().to_owned();
    let json = line.split_once('{').and_then(|(_, rest)| serde_json::from_str(&format!("{{{rest}")).ok());
    let json: serde_json::Value = json.unwrap_or_default();
    let field = |name: &str| json.get(name).map(ToString::to_string).unwrap_or_default();
    match topic.as_str() {
        "exit" if field("id") == field("container_id") => format!("exit {}", field("exit_status")),
        "exit" => format!("exit of a command {}", field("exit_status")),
        _ => topic,
    }
}

/// The end of a container, after the events so far.
async fn end(case: &Case<'_>, state: &PodState) -> Tested {
    case.node.kubelet.stop(state, Some(0)).await?;
    case.ended(state, "").await.map(drop)
}

#[tokio::test]
async fn the_life_of_a_container_is_told_in_order() -> Tested {
    hold(EVERY, async |case| {
        let told = Told::listen();
        let state = case.shell(FOREVER).await?;
        case.sh(&state, "exit 3").await?;
        let id = state.container("")?.id.clone();
        case.ctr(&["task", "pause", &id])?;
        case.ctr(&["task", "resume", &id])?;
        end(&case, &state).await?;
        let told = told.of(&state, "", deleted)?;
        assert_eq!(
            told,
            [
                "create",
                "start",
                "exec-added",
                "exec-started",
                "exit of a command 3",
                "paused",
                "resumed",
                "exit 137",
                "delete"
            ]
        );
        Ok(told)
    })
    .await
}

#[tokio::test]
async fn the_start_is_told_before_the_end_of_a_program_that_ends_at_once() -> Tested {
    hold(STARTED, async |case| {
        for n in 0..5 {
            let told = Told::listen();
            let pod = case.node.shell_pod(&format!("row-{n}"), "exit 1")?;
            let handler = if case.kind == Kind::Runc { "runc" } else { "thaw" };
            let state = case.node.kubelet.run(pod.under(handler)).await?;
            case.ended(&state, "").await?;
            case.node.kubelet.stop(&state, Some(0)).await?;
            assert_eq!(told.of(&state, "", deleted)?, ["create", "start", "exit 1", "delete"]);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_start_is_told_before_the_end_of_a_command_that_ends_at_once() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let told = Told::listen();
        for _ in 0..10 {
            case.exec(&state, "", "exit 1").await?;
        }
        let told = told.of(&state, "", |told| told.len() >= 30)?;
        let once = ["exec-added", "exec-started", "exit of a command 1"].map(str::to_owned);
        assert_eq!(told, vec![once; 10].concat());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_kill_for_memory_is_told_before_the_end() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", "resources: {limits: {memory: 24Mi}}").await?;
        let told = Told::listen();
        let output = case.exec(&state, "", "x=x; while :; do x=$x$x; done").await?;
        assert_eq!(output.exit_code, 137);
        let told = told.of(&state, "", |told| told.iter().any(|word| word == "oom"))?;
        assert!(told.contains(&"oom".to_owned()), "{told:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_runtime_says_of_itself_what_runc_does() -> Tested {
    hold(STARTED, async |case| {
        let program = match case.kind {
            Kind::Runc => "/usr/bin/containerd-shim-runc-v2",
            Kind::Thaw | Kind::Restored => "/usr/local/bin/containerd-shim-thaw-v1",
        };
        let said = Command::new("sh").args(["-c", "\"$0\" -info < /dev/null", program]).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        // The features are runc's own JSON, whose end is that of the message's field.
        let runc = Command::new("runc").arg("features").output().unwrap().stdout;
        let features: serde_json::Value = serde_json::from_slice(&runc).unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let from = text.find("{\"ociVersionMin\"").or_else(|| text.find('{')).unwrap();
        let mut found = serde_json::Deserializer::from_str(&text[from..]).into_iter::<serde_json::Value>();
        assert_eq!(found.next().unwrap().unwrap(), features);
        Ok(text.contains("types.containerd.io/opencontainers/runtime-spec/1/features/Features"))
    })
    .await
}
