// SPDX-License-Identifier: Apache-2.0
//! `pod`: runs ordinary Pods on this node as kubelet would, without a cluster.

use std::error::Error as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use thaw_tests::kubelet::Kubelet;
use thaw_tests::kubelet::error::KubeletError;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::settings::Settings;
use thaw_tests::kubelet::state::PodState;

/// Runs ordinary Pods on this node as kubelet would, without a cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// The container runtime's CRI socket.
    #[arg(long, global = true, env = "CONTAINERD_SOCKET", default_value = "/run/containerd/containerd.sock")]
    socket: PathBuf,
    /// Where pods have their directories.
    #[arg(long, global = true, default_value = "/var/lib/kubelet")]
    root_dir: PathBuf,
    /// Contents of ConfigMaps and Secrets: DIR/configmap/NAME/KEY and DIR/secret/NAME/KEY.
    #[arg(long, global = true, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Containers without a seccomp profile run under the runtime's.
    #[arg(long, global = true)]
    seccomp_default: bool,
    /// The namespace of the pod that is named.
    #[arg(short, long, global = true, default_value = "default")]
    namespace: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a pod.
    Run {
        /// A v1 Pod; - reads from stdin.
        file: PathBuf,
        /// Wait this long until the pod is ready.
        #[arg(long, value_name = "SECS")]
        wait_ready: Option<u64>,
        /// Print one JSON object with the duration of each CRI call, in milliseconds.
        #[arg(long)]
        time: bool,
    },
    /// Run a command in a container; its exit code is this one's.
    Exec {
        #[command(flatten)]
        target: Target,
        /// Give up after this many seconds.
        #[arg(long, value_name = "SECS", default_value_t = 0)]
        timeout: i64,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print what a container wrote.
    Logs {
        #[command(flatten)]
        target: Target,
        /// Print the time of each line too.
        #[arg(long)]
        timestamps: bool,
    },
    /// Run a container's probes once.
    Probe {
        #[command(flatten)]
        target: Target,
    },
    /// Stop a pod; it stays to be looked at.
    Stop {
        /// The pod's name.
        pod: String,
        /// Seconds between SIGTERM and SIGKILL, instead of the pod's own.
        #[arg(long, value_name = "SECS")]
        grace: Option<i64>,
    },
    /// Stop a pod and remove it.
    Rm {
        /// The pods' names.
        #[arg(required = true)]
        pods: Vec<String>,
        /// Seconds between SIGTERM and SIGKILL, instead of the pod's own.
        #[arg(long, value_name = "SECS")]
        grace: Option<i64>,
    },
    /// Stop a container and start a new instance of it in the same sandbox.
    Restart {
        #[command(flatten)]
        target: Target,
    },
    /// Freeze a container into an archive and print where it is.
    Checkpoint {
        #[command(flatten)]
        target: Target,
        /// Where to; without it, where kubelet would put it.
        #[arg(short, long, value_name = "FILE.tar")]
        output: Option<PathBuf>,
        /// Print one JSON object with the duration of the CRI call, in milliseconds.
        #[arg(long)]
        time: bool,
    },
    /// List the pods of this node.
    List,
    /// Print a pod's ids, address and processes as JSON.
    Inspect {
        /// The pod's name.
        pod: String,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// The pod's name.
    pod: String,
    /// The container; not needed where there is only one.
    #[arg(short, long, default_value = "")]
    container: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprint!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, KubeletError> {
    let settings = Settings {
        socket: cli.socket,
        root_dir: cli.root_dir,
        config_dir: cli.config,
        seccomp_default: cli.seccomp_default,
        ..Settings::from_env()
    };
    let kubelet = Kubelet::connect(settings).await?;
    let find = |pod: &str| kubelet.find(&cli.namespace, pod);
    match cli.verb {
        Verb::Run { file, wait_ready, time } => run_pod(&kubelet, &file, wait_ready, time).await?,
        Verb::Exec { target, timeout, command } => {
            let output = kubelet.exec(&find(&target.pod)?, &target.container, &command, timeout).await?;
            print_raw(&output.stdout);
            eprint!("{}", output.stderr);
            return Ok(ExitCode::from(u8::try_from(output.exit_code).unwrap_or(u8::MAX)));
        }
        Verb::Logs { target, timestamps } => {
            for line in kubelet.logs(&find(&target.pod)?, &target.container)? {
                let time = if timestamps { line.time + " " } else { String::new() };
                print_raw(&format!("{time}{}\n", line.text));
            }
        }
        Verb::Probe { target } => probe(&kubelet, &find(&target.pod)?, &target.container).await?,
        Verb::Stop { pod, grace } => kubelet.stop(&find(&pod)?, grace).await?,
        Verb::Rm { pods, grace } => {
            let mut failed = None;
            for pod in pods {
                let removed = match find(&pod) {
                    Ok(state) => kubelet.remove(&state, grace).await,
                    Err(error) => Err(error),
                };
                // The others are removed all the same; the first failure is the command's.
                failed = failed.or_else(|| removed.err());
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Verb::Restart { target } => {
            kubelet.restart_container(&mut find(&target.pod)?, &target.container).await?;
        }
        Verb::Checkpoint { target, output, time } => {
            let state = find(&target.pod)?;
            kubelet.cri.take_times();
            let archive = kubelet.checkpoint(&state, &target.container, output.as_deref()).await?;
            if time {
                println!("{}", json!({"archive": archive, "calls": kubelet.cri.take_times()}));
            } else {
                println!("{}", archive.display());
            }
        }
        Verb::List => {
            for state in kubelet.list()? {
                println!("{}\t{}\t{}\t{}", state.full_name(), state.ip, state.uid, container_ids(&state));
            }
        }
        Verb::Inspect { pod } => inspect(&kubelet, &find(&pod)?).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_pod(
    kubelet: &Kubelet,
    file: &std::path::Path,
    wait_ready: Option<u64>,
    time: bool,
) -> Result<(), KubeletError> {
    let from = if file.as_os_str() == "-" { std::path::Path::new("/dev/stdin") } else { file };
    let yaml = std::fs::read_to_string(from).map_err(|source| KubeletError::File {
        verb: "read",
        path: file.to_owned(),
        source,
    })?;
    let pod = Pod::parse(&yaml)?;
    kubelet.cri.take_times();
    let began = Instant::now();
    let state = kubelet.run(pod).await?;
    let calls = kubelet.cri.take_times();
    if let Some(seconds) = wait_ready {
        kubelet.wait_ready(&state, Duration::from_secs(seconds)).await?;
    }
    if time {
        let total_ms = began.elapsed().as_secs_f64() * 1e3;
        let metadata = &state.pod.metadata;
        println!(
            "{}",
            json!({
                "namespace": metadata.namespace, "name": metadata.name, "uid": state.uid, "ip": state.ip,
                "calls": calls, "total_ms": total_ms,
            })
        );
    } else {
        println!("pod {} runs, address {}, uid {}", state.full_name(), state.ip, state.uid);
    }
    Ok(())
}

async fn probe(kubelet: &Kubelet, state: &PodState, container: &str) -> Result<(), KubeletError> {
    let (name, _) = state.named_container(container)?;
    let Some(container) = state.pod.all_containers().find(|container| container.name == name) else {
        return Ok(());
    };
    let probes = [("liveness", &container.liveness_probe), ("readiness", &container.readiness_probe)];
    for (kind, probe) in probes {
        if let Some(probe) = probe {
            println!("{kind}: {:?}", kubelet.probe(state, container, probe).await?);
        }
    }
    Ok(())
}

async fn inspect(kubelet: &Kubelet, state: &PodState) -> Result<(), KubeletError> {
    let pids = kubelet.pids(state).await?;
    let mut containers = serde_json::Map::new();
    for (name, container) in &state.containers {
        let status = kubelet.container_status(&container.id).await?;
        let shown = json!({
            "id": container.id, "attempt": container.attempt, "pid": pids.get(name), "log": container.log,
            "state": status.state().as_str_name(), "exit_code": status.exit_code,
            "reason": status.reason, "message": status.message,
        });
        containers.insert(name.clone(), shown);
    }
    let metadata = &state.pod.metadata;
    let shown = json!({
        "namespace": metadata.namespace, "name": metadata.name, "uid": state.uid, "ip": state.ip,
        "hostname": state.pod.hostname(), "cgroup": state.cgroup, "dir": kubelet.pod_dir(state).path(),
        "sandbox": {"id": state.sandbox_id, "pid": pids.get("sandbox")}, "containers": containers,
    });
    println!("{shown:#}");
    Ok(())
}

fn container_ids(state: &PodState) -> String {
    let ids = state.containers.iter().map(|(name, container)| format!("{name}={}", container.id));
    ids.collect::<Vec<_>>().join(",")
}

/// Prints what may be read by a program that has gone away already.
fn print_raw(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
