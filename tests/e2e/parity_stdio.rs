// SPDX-License-Identifier: Apache-2.0
//! Streams: logs, terminals, attach, and port-forward.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use thaw_tests::harness::parity::{Case, EVERY, FOREVER, Kind, NEEDS, STARTED, hold, scratch, text};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Node, Tested};
use thaw_tests::kubelet::cri::api::{AttachRequest, PortForwardRequest, ReopenContainerLogRequest};
use thaw_tests::kubelet::state::PodState;
use thaw_tests::kubelet::stream::{STDERR, STDIN, STDOUT, Streams};

/// Counts aloud, quickly.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo line $i; [ $((i % 20)) != 0 ] || sleep 0.05; done";

/// The numbers that [`COUNT`] has written to a container's log.
fn counted(node: &Node, state: &PodState) -> Result<Vec<u64>, HarnessError> {
    let lines = node.kubelet.logs(state, "")?;
    Ok(lines.iter().filter_map(|line| line.text.strip_prefix("line ")?.trim_end().parse().ok()).collect())
}

/// Checks that no number is missing and none comes twice.
#[track_caller]
fn complete(numbers: &[u64]) {
    let gaps: Vec<_> = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).collect();
    assert!(gaps.is_empty() && !numbers.is_empty(), "{gaps:?}");
}

/// The streams of a container's first process.
async fn attach(case: &Case<'_>, state: &PodState, tty: bool) -> Result<Streams, HarnessError> {
    let container_id = state.container("")?.id.clone();
    let request = AttachRequest { container_id, stdin: true, tty, stdout: true, stderr: !tty };
    let url = case.node.kubelet.cri.attach(request).await?.url;
    Ok(Streams::open(&url).await?)
}

#[tokio::test]
async fn each_stream_is_logged_as_what_it_is_and_long_lines_are_whole() -> Tested {
    hold(EVERY, async |case| {
        let long = "x".repeat(40_000);
        let script = "while [ ! -e /now ]; do sleep 0.1; done; echo to out; echo to err >&2; printf 'no end'; \
                      echo >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; echo over";
        let state = case.shell(script).await?;
        case.sh(&state, "touch /now").await?;
        case.logged(&state, "", "over").await?;
        case.ended(&state, "").await?;
        let lines = case.node.kubelet.logs(&state, "")?;
        let told: Vec<_> = lines.into_iter().filter(|line| line.text != "ready").collect();
        assert!(told.iter().any(|line| line.text == format!("no end{long}")), "the long line is whole");
        let mut told: Vec<_> = told.into_iter().map(|line| (line.stream, line.text)).collect();
        told.sort();
        Ok(told)
    })
    .await
}

#[tokio::test]
async fn what_is_written_right_before_the_end_is_logged() -> Tested {
    hold(EVERY, async |case| {
        let script = "while [ ! -e /now ]; do sleep 0.1; done; i=0; \
                      while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done";
        let state = case.shell(script).await?;
        case.sh(&state, "touch /now").await?;
        case.ended(&state, "").await?;
        case.logged(&state, "", "line 20000").await?;
        let numbers = counted(case.node, &state)?;
        complete(&numbers);
        Ok(numbers.len())
    })
    .await
}

#[tokio::test]
async fn a_log_goes_on_in_a_new_file_when_it_is_rotated() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(COUNT).await?;
        let log = &state.container("")?.log;
        let old = log.with_extension("old");
        case.logged(&state, "", "line ").await?;
        std::fs::rename(log, &old).unwrap();
        let container_id = state.container("")?.id.clone();
        case.node.kubelet.cri.reopen_container_log(ReopenContainerLogRequest { container_id }).await?;
        case.logged(&state, "", "line ").await?;
        let parse = |text: String| thaw_tests::kubelet::logs::parse(&text);
        let lines = [parse(text(&old)?), parse(text(log)?)].concat();
        let all: Vec<_> =
            lines.iter().filter_map(|line| line.text.strip_prefix("line ")?.parse().ok()).collect();
        complete(&all);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn attached_it_takes_input_and_shows_what_it_says() -> Tested {
    hold(EVERY, async |case| {
        let script = "while read line; do echo \"got $line\"; echo \"heard $line\" >&2; done; echo no more";
        let state =
            case.shell_with(script, |pod| pod.with_containers(|container| container.stdin = true)).await?;
        let mut streams = attach(&case, &state, false).await?;
        streams.send(STDIN, b"one\n").await?;
        streams.expect(STDOUT, "got one\n").await?;
        streams.expect(STDERR, "heard one\n").await?;
        drop(streams);
        // It goes on without anybody, and takes another one.
        let mut streams = attach(&case, &state, false).await?;
        streams.send(STDIN, b"two\n").await?;
        streams.expect(STDOUT, "got two\n").await?;
        streams.expect(STDERR, "heard two\n").await?;
        case.logged(&state, "", "got two").await?;
        Ok((streams.heard(STDOUT), streams.heard(STDERR)))
    })
    .await
}

#[tokio::test]
async fn input_that_is_given_once_ends_with_its_giver() -> Tested {
    hold(EVERY, async |case| {
        let script = "while read line; do echo \"got $line\"; done; echo no more; exit 6";
        let once = |pod: thaw_tests::kubelet::pod_spec::Pod| {
            pod.with_containers(|container| (container.stdin, container.stdin_once) = (true, true))
        };
        let state = case.shell_with(script, once).await?;
        let mut streams = attach(&case, &state, false).await?;
        streams.send(STDIN, b"one\n").await?;
        streams.expect(STDOUT, "got one\n").await?;
        drop(streams);
        case.logged(&state, "", "no more").await?;
        case.ended(&state, "").await
    })
    .await
}

#[tokio::test]
async fn a_terminal_has_size_input_and_one_log() -> Tested {
    hold(EVERY, async |case| {
        let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; while read line; do echo \"got $line\"; \
                      stty size; done; exit 8";
        let tty = |pod: thaw_tests::kubelet::pod_spec::Pod| {
            pod.with_containers(|container| (container.stdin, container.tty) = (true, true))
        };
        let state = case.shell_with(script, tty).await?;
        let mut streams = attach(&case, &state, true).await?;
        streams.resize(91, 33).await?;
        // The size may come after the first line.
        for n in 0..100 {
            streams.send(STDIN, format!("{n}\n").as_bytes()).await?;
            streams.expect(STDOUT, &format!("got {n}")).await?;
            if streams.heard(STDOUT).contains("33 91") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(streams.heard(STDOUT).contains("33 91"), "{}", streams.heard(STDOUT));
        let inside = case.sh(&state, "ls -l /dev/console | cut -c 1; tty < /dev/console; ls /dev/pts").await?;
        streams.send(STDIN, b"\x04").await?;
        let end = case.ended(&state, "").await?;
        assert_eq!(end.exit_code, 8);
        let streams_in_log: std::collections::BTreeSet<_> =
            case.node.kubelet.logs(&state, "")?.into_iter().map(|line| line.stream).collect();
        Ok((inside, end, streams_in_log))
    })
    .await
}

#[tokio::test]
async fn a_port_of_the_pod_can_be_reached_through_the_runtime() -> Tested {
    hold(EVERY, async |case| {
        let state = case
            .run(case.node.counter_pod("row", 1)?.with_containers(|container| {
                container.command = ["sh", "-c", "echo ready; exec python3 /workloads/counter.py"]
                    .map(str::to_owned)
                    .to_vec();
            }))
            .await?;
        thaw_tests::harness::counter::state(&state, 8080).await?;
        let request = PortForwardRequest { pod_sandbox_id: state.sandbox_id.clone(), port: vec![8080] };
        let url = case.node.kubelet.cri.port_forward(request).await?.url;
        let mut streams = Streams::open(&url).await?;
        streams.send(0, b"GET / HTTP/1.0\r\n\r\n").await?;
        streams.expect(0, "\"crc_ok\": true").await?;
        Ok(streams.heard(0).contains("HTTP/1.0 200"))
    })
    .await
}

#[tokio::test]
async fn restored_the_log_goes_on_with_the_line_after_the_last() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let case = Case { node: &node, kind: Kind::Thaw, variant: "" };
    let old = case.shell(COUNT).await?;
    case.logged(&old, "", "line 40").await?;
    let imported = node.freeze_into_store(&old).await?;
    // What it has written since shows that it goes on.
    let frozen = counted(&node, &old)?.len() as u64;
    case.logged(&old, "", &format!("line {}", frozen + 20)).await?;
    let before = counted(&node, &old)?;
    node.remove(&old).await?;
    let pod = node.shell_pod("again", "exit 1")?.annotated(RESTORE, &imported.reference());
    let new = node.run(pod).await?;
    case.logged(&new, "", "line ").await?;
    case.logged(&new, "", &format!("line {}", frozen + 40)).await?;
    let after = counted(&node, &new)?;
    complete(&before);
    complete(&after);
    assert!(
        after[0] > 40 && after[0] <= *before.last().unwrap() + 1,
        "{} after {:?}",
        after[0],
        before.last()
    );
    assert!(before.contains(&(after[0] - 1)), "nothing is lost between the two logs");
    node.remove(&new).await?;
    node.leave().await
}

/// The handler's shim, as a client of containerd without CRI names it.
fn runtime(case: &Case<'_>) -> &'static str {
    match case.kind {
        Kind::Runc => "io.containerd.runc.v2",
        Kind::Thaw | Kind::Restored => "/usr/local/bin/containerd-shim-thaw-v1",
    }
}

/// Runs `script` in a container without a pod, its output to `uri`.
fn run_logged(case: &Case<'_>, uri: &str, more: &[&str], script: &str) -> Result<String, HarnessError> {
    let first = ["run", "--rm", "--runtime", runtime(case), "--log-uri", uri];
    let rest = ["thaw.local/busybox:1", "parity-logged", "sh", "-c", script];
    case.ctr(&[&first, more, &rest].concat())
}

#[tokio::test]
async fn output_can_go_to_the_end_of_a_file() -> Tested {
    hold(STARTED, async |case| {
        let folder = scratch()?;
        let log = folder.path().join("made/log");
        for _ in 0..2 {
            run_logged(
                &case,
                &format!("file://{}", log.display()),
                &[],
                "echo out; sleep 0.2; echo err >&2",
            )?;
        }
        let told = text(&log)?;
        assert_eq!(told, "out\nerr\nout\nerr\n");
        Ok(told)
    })
    .await
}

/// A logging program: says that it is ready, and writes what it gets, who from, and how it was called.
const LOGGER: &str = "#!/bin/sh
trap '' TERM
echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\" > \"$2/call\"
cat <&3 5>&- > \"$2/out\" &
cat <&4 5>&- > \"$2/err\" &
exec 5>&-
wait
echo done > \"$2/end\"
";

#[tokio::test]
async fn output_can_go_to_a_program() -> Tested {
    hold(STARTED, async |case| {
        use std::os::unix::fs::PermissionsExt;
        let folder = scratch()?;
        let (program, path) = (folder.path().join("logger"), folder.path().display().to_string());
        std::fs::write(&program, LOGGER).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?--to={path}", program.display());
        run_logged(
            &case,
            &uri,
            &[],
            "echo out; echo err >&2; i=0; while [ $i -lt 9999 ]; do i=$((i+1)); echo $i; done",
        )?;
        let read = |name: &str| text(folder.path().join(name));
        case.until("the logger's end", async || Ok(read("end").ok())).await?;
        let told = (read("call")?.replace(&path, "FOLDER"), read("out")?, read("err")?);
        assert!(told.1.ends_with("9999\n") && told.2 == "err\n", "{told:?}");
        Ok(told)
    })
    .await
}

#[tokio::test]
async fn output_to_a_place_that_is_not_there_is_an_error() -> Tested {
    hold(STARTED, async |case| {
        let mut failed = Vec::new();
        for uri in ["binary:///no/such/logger", "gopher:///x"] {
            failed.push(run_logged(&case, uri, &[], "true").is_err());
            let _ = case.ctr(&["container", "rm", "parity-logged"]);
        }
        assert_eq!(failed, [true, true]);
        let state = case.shell(FOREVER).await?;
        case.sh(&state, "true").await
    })
    .await
}
