// SPDX-License-Identifier: Apache-2.0
//! Exec: commands that are run in a container.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use futures_util::future::join_all;
use thaw_tests::harness::parity::{Case, EVERY, FOREVER, alive, hold};
use thaw_tests::harness::{HarnessError, Tested, process};
use thaw_tests::kubelet::cri::api::ExecRequest;
use thaw_tests::kubelet::error::KubeletError;
use thaw_tests::kubelet::probe::Health;
use thaw_tests::kubelet::state::PodState;
use thaw_tests::kubelet::stream::{ENDED, STDERR, STDIN, STDOUT, Streams};

/// Every namespace that a process has.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// The process on the node whose command line has `text`.
async fn process_with(case: &Case<'_>, text: &str) -> Result<u32, HarnessError> {
    let found = |pid: &u32| {
        let command = process::read(*pid, "cmdline").unwrap_or_default().replace('\0', " ");
        command.contains(text) && !command.contains("containerd") && !command.contains("runc ")
    };
    case.until(text, async || Ok(process::all().into_iter().find(found))).await
}

/// Runs a command with streams.
async fn stream(case: &Case<'_>, state: &PodState, tty: bool, script: &str) -> Result<Streams, HarnessError> {
    let request = ExecRequest {
        container_id: state.container("")?.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = case.node.kubelet.cri.exec(request).await?.url;
    Ok(Streams::open(&url).await?)
}

#[tokio::test]
async fn exit_code_and_both_outputs_are_the_commands() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let mut seen = Vec::new();
        for script in ["echo out; echo err >&2; exit 3", "exit 0", "kill -9 $$", "cat; exit 255"] {
            let output = case.exec(&state, "", script).await?;
            seen.push((output.exit_code, output.stdout, output.stderr));
        }
        assert_eq!(seen[0], (3, "out\n".into(), "err\n".into()));
        assert_eq!(seen[2].0, 137);
        Ok(seen)
    })
    .await
}

#[tokio::test]
async fn environment_and_working_directory_are_the_containers() -> Tested {
    hold(EVERY, async |case| {
        let fields = "workingDir: /usr/bin
    env: [{name: GREETING, value: hello there}]";
        let state = case.spec("", fields).await?;
        let said = case.sh(&state, "echo $GREETING; pwd; env | sort").await?;
        assert!(said.starts_with("hello there\n/usr/bin\n"), "{said}");
        Ok(case.nameless(&said, &state))
    })
    .await
}

#[tokio::test]
async fn user_and_working_directory_may_be_others_for_one_command() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let id = state.container("")?.id.clone();
        let command =
            ["task", "exec", "--exec-id", "other", "--user", "1000:1001", "--cwd", "/tmp", &id, "sh", "-c"];
        let said = case.ctr(&[&command[..], &["id; pwd; grep -E 'Cap|NoNew' /proc/self/status"]].concat())?;
        assert!(said.starts_with("uid=1000"), "{said}");
        Ok(said)
    })
    .await
}

#[tokio::test]
async fn it_is_in_all_namespaces_and_in_the_cgroup_of_the_container() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let init = case.pid(&state, "").await?;
        let mut streams = stream(&case, &state, false, "echo here; sleep 271.5").await?;
        streams.expect(STDOUT, "here").await?;
        let exec = process_with(&case, "sleep 271.5").await?;
        for kind in NAMESPACES {
            assert_eq!(process::namespace(exec, kind)?, process::namespace(init, kind)?, "{kind}");
        }
        assert_eq!(process::cgroups(exec)?, process::cgroups(init)?);
        let clocks = (process::read(exec, "timens_offsets")?, process::read(init, "timens_offsets")?);
        assert_eq!(clocks.0, clocks.1);
        kill(exec)?;
        streams.end().await?;
        Ok(streams.heard(ENDED))
    })
    .await
}

fn kill(pid: u32) -> Tested {
    thaw_tests::harness::parity::kill(pid, "KILL")
}

#[tokio::test]
async fn its_rights_are_those_of_the_containers_first_process() -> Tested {
    hold(EVERY, async |case| {
        let confined = "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [CHOWN]}, \
                        seccompProfile: {type: RuntimeDefault}}";
        let state = case.spec("", confined).await?;
        let init = process::credentials(case.pid(&state, "").await?)?;
        let mut streams = stream(&case, &state, false, "echo here; sleep 272.5").await?;
        streams.expect(STDOUT, "here").await?;
        let exec = process_with(&case, "sleep 272.5").await?;
        let rights = process::credentials(exec)?;
        assert_eq!(rights, init);
        assert_eq!((rights["Seccomp"].as_str(), rights["NoNewPrivs"].as_str()), ("2", "1"));
        kill(exec)?;
        let limits = process::read(case.pid(&state, "").await?, "limits")?;
        Ok((rights, limits, case.sh(&state, "cat /proc/self/limits").await?))
    })
    .await
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let command = ["sleep", "273.5"].map(str::to_owned);
        let error = case.node.kubelet.exec(&state, "", &command, 1).await.unwrap_err();
        let KubeletError::Cri(error) = error else { return Err(error.into()) };
        let found = |pid: &u32| process::read(*pid, "cmdline").is_ok_and(|line| line.contains("273.5"));
        let gone = async || Ok(process::all().iter().all(|pid| !found(pid) || !alive(*pid)).then_some(()));
        case.until("the end of the command", gone).await?;
        Ok(case.nameless(error.message(), &state))
    })
    .await
}

#[tokio::test]
async fn a_command_that_is_not_there_or_a_container_that_has_ended_is_told_in_the_same_words() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell("while [ ! -e /now ]; do sleep 0.1; done").await?;
        let mut told = Vec::new();
        let exec = async |command: &str| -> Result<(i32, String), String> {
            let answer = case.node.kubelet.exec(&state, "", &[command.to_owned()], 10).await;
            answer.map(|output| (output.exit_code, output.stderr)).map_err(|error| {
                let message = case.nameless(error.cri_message().unwrap_or_default(), &state);
                // Without the id of the exec.
                message
                    .split('"')
                    .enumerate()
                    .filter(|(n, _)| *n != 1)
                    .map(|(_, part)| part.to_owned())
                    .collect()
            })
        };
        told.push(exec("/no/such/command").await);
        told.push(exec("/etc/passwd").await);
        case.sh(&state, "touch /now").await?;
        case.ended(&state, "").await?;
        told.push(exec("true").await);
        let detail = |said: String| said.split("task ").next().unwrap_or_default().to_owned();
        Ok(told.into_iter().map(|one| one.map_err(detail)).collect::<Vec<_>>())
    })
    .await
}

#[tokio::test]
async fn fifty_commands_run_at_once() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let scripts: Vec<_> = (0..50).map(|n| format!("echo {n}; exit {n}")).collect();
        let all = join_all(scripts.iter().map(|script| case.exec(&state, "", script))).await;
        for (n, output) in (0..).zip(all) {
            let output = output?;
            assert_eq!((output.exit_code, output.stdout), (n, format!("{n}\n")));
        }
        // None of them stays with the shim.
        let shim = case.shims(&state)[0];
        let children = async || {
            let tasks = process::all().into_iter().filter(|pid| {
                let stat = process::read(*pid, "stat").unwrap_or_default();
                stat.rsplit(") ")
                    .next()
                    .and_then(|rest| rest.split(' ').nth(1))
                    .is_some_and(|p| p == shim.to_string())
            });
            Ok((tasks.count() == 2).then_some(()))
        };
        case.until("no children of the shim but the two inits", children).await
    })
    .await
}

#[tokio::test]
async fn much_output_of_a_command_is_complete() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let script = "i=0; while [ $i -lt 40000 ]; do echo line $i of many lines; i=$((i+1)); done";
        let output = case.exec(&state, "", script).await?;
        let complete = (0..40_000).all(|_| true)
            && output.stdout.lines().enumerate().all(|(i, line)| line == format!("line {i} of many lines"));
        assert!(complete && output.stdout.lines().count() == 40_000);
        Ok(output.stdout.len())
    })
    .await
}

#[tokio::test]
async fn probes_by_exec_tell_healthy_and_unhealthy() -> Tested {
    hold(EVERY, async |case| {
        let probe = "readinessProbe: {exec: {command: [test, '!', -e, /sick]}, periodSeconds: 1}";
        let state = case.spec("", probe).await?;
        let container = &state.pod.spec.containers[0];
        let ask = async || {
            Ok::<_, HarnessError>(
                case.node
                    .kubelet
                    .probe(&state, container, container.readiness_probe.as_ref().unwrap())
                    .await?,
            )
        };
        assert_eq!(ask().await?, Health::Healthy);
        case.sh(&state, "touch /sick").await?;
        ask().await
    })
    .await
}

#[tokio::test]
async fn without_a_terminal_it_has_input_and_two_outputs() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let mut streams = stream(&case, &state, false, "head -n 2; echo over >&2; exit 2").await?;
        streams.send(STDIN, b"one\n").await?;
        streams.send(STDIN, b"two\n").await?;
        streams.end().await?;
        assert_eq!(
            (streams.heard(STDOUT).as_str(), streams.heard(STDERR).as_str()),
            ("one\ntwo\n", "over\n")
        );
        Ok(streams.heard(ENDED))
    })
    .await
}

#[tokio::test]
async fn with_a_terminal_it_has_input_size_and_an_exit_code() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let script = "tty; echo go; read line; echo \"got $line\"; trap 'stty size; exit 9' WINCH; echo armed; \
                      while :; do sleep 0.1; done";
        let mut streams = stream(&case, &state, true, script).await?;
        streams.expect(STDOUT, "go").await?;
        streams.send(STDIN, b"words\n").await?;
        streams.expect(STDOUT, "got words").await?;
        streams.expect(STDOUT, "armed").await?;
        streams.resize(120, 50).await?;
        streams.expect(STDOUT, "50 120").await?;
        streams.end().await?;
        assert!(streams.heard(STDOUT).contains("/dev/pts/"), "{}", streams.heard(STDOUT));
        let ended = streams.heard(ENDED);
        assert!(ended.contains("\"9\""), "{ended}");
        Ok((ended, streams.heard(STDERR)))
    })
    .await
}

#[tokio::test]
async fn one_command_can_be_killed_and_the_container_goes_on() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let id = state.container("")?.id.clone();
        // Its output is heard after it has been started as far as the runtime is concerned.
        let mut streams = stream(&case, &state, false, "echo here; exec sleep 274.5").await?;
        streams.expect(STDOUT, "here").await?;
        let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}");
        let files = std::fs::read_dir(bundle).unwrap().map(|file| file.unwrap().file_name());
        let mut files = files.filter_map(|name| name.to_str()?.strip_suffix(".pid").map(str::to_owned));
        let exec_id = files.find(|name| name != "init").unwrap();
        case.ctr(&["task", "kill", "--exec-id", &exec_id, "--signal", "SIGTERM", &id])?;
        streams.end().await?;
        let ended = streams.heard(ENDED);
        assert!(ended.contains("143"), "{ended}");
        assert!(alive(case.pid(&state, "").await?));
        Ok((ended, case.sh(&state, "echo still here").await?))
    })
    .await
}
