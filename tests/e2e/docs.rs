// SPDX-License-Identifier: Apache-2.0
//! The documentation on a node: its examples run, are frozen and go on; its commands for the store do what it says.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole file is tests"
)]

use std::time::Duration;

use thaw_tests::harness::examples::{blocks, object, page, workload};
use thaw_tests::harness::nri::Program;
use thaw_tests::harness::nvidia::Nvidia;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process};
use thaw_tests::kubelet::container::CDI;
use thaw_tests::kubelet::patience::patient;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// The image with Python that every node has.
const PYTHON: &str = "thaw.local/python:1";
/// The one of the example with a GPU.
const PYTORCH: &str = "docker.io/pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime";
/// How long a program may take until it has written something.
const LIMIT: Duration = Duration::from_secs(60);

/// The number at the end of each line that a pod's container has written.
fn numbers(node: &Node, state: &PodState) -> Result<Vec<u64>, HarnessError> {
    let lines = node.kubelet.logs(state, "")?;
    Ok(lines.iter().filter_map(|line| line.text.rsplit(' ').next()?.parse().ok()).collect())
}

/// Waits until a pod has written a number above `above`, and returns the first and the last that it has written.
async fn written(node: &Node, state: &PodState, above: u64) -> Result<(u64, u64), HarnessError> {
    let began = std::time::Instant::now();
    loop {
        if let [first, .., last] | [first @ last] = numbers(node, state)?.as_slice()
            && *last > above
        {
            return Ok((*first, *last));
        }
        assert!(began.elapsed() < patient(LIMIT), "{:?}", node.kubelet.logs(state, "")?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a pod, freezes and deletes it, and runs the one that comes after it: that goes on and does not start.
async fn goes_on(node: &Node, first: Pod, second: Pod) -> Tested {
    let state = node.run(first).await?;
    let (_, last) = written(node, &state, 2).await?;
    node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    let again = node.run(second).await?;
    let (first, _) = written(node, &again, last).await?;
    assert!(first > last, "it wrote {first}, and {last} before it was frozen");
    node.remove(&again).await
}

/// The example that a file of the documentation has.
fn example(node: &Node, file: &str) -> Result<Pod, HarnessError> {
    let example = object(&page(file.strip_prefix("docs/").unwrap())?)?;
    node.example(example["metadata"]["name"].as_str().unwrap(), &example, PYTHON)
}

/// The commands under "Try it", one after the other. The kubelet of the tests does what `kubectl` would ask for.
#[tokio::test]
async fn the_way_of_the_page_leads_to_a_pod_that_goes_on() -> Tested {
    let Some(mut node) = Node::enter(NEEDS).await else { return Ok(()) };
    "default".clone_into(&mut node.namespace);
    let page = page("use/annotations.md")?;
    let way = blocks(page.split("## Try it").nth(1).unwrap(), "sh").concat();
    let (mut state, mut archive, mut again, mut reached) = (None::<PodState>, None, None, 0);
    for command in way.lines() {
        println!("$ {command}");
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["kubectl", "apply", "-f", "again.yaml"] => state = Some(node.run(again.take().unwrap()).await?),
            ["kubectl", "apply", "-f", file] => state = Some(node.run(example(&node, file)?).await?),
            ["kubectl", "logs", name] => {
                let (first, last) = written(&node, &node.kubelet.find("default", name)?, reached).await?;
                assert!(reached == 0 || first > reached, "it wrote {first}, and {reached} before");
                reached = last;
            }
            ["kubectl", "get", "pod", name, ..] => drop(node.kubelet.find("default", name)?),
            ["kubectl", "create", "--raw", path, "--filename", "/dev/null"] => {
                let [pod, container] = path
                    .strip_prefix("/api/v1/nodes/NODE/proxy/checkpoint/default/")
                    .and_then(|rest| <[&str; 2]>::try_from(rest.split('/').collect::<Vec<_>>()).ok())
                    .unwrap();
                let pod = node.kubelet.find("default", pod)?;
                reached = written(&node, &pod, reached).await?.1;
                archive = Some(node.kubelet.checkpoint(&pod, container, None).await?);
            }
            ["thaw", "import", name] => {
                let archive = archive.take().unwrap();
                let (told, made) = (name.split("TIME").next().unwrap(), archive.to_str().unwrap());
                assert!(made.starts_with(told), "the archive is {made}, and the page has {name}");
                process::output("thaw", &["import", made])?;
                std::fs::remove_file(archive).unwrap();
            }
            ["kubectl", "delete", "pod", _] => node.remove(&state.take().unwrap()).await?,
            [
                "kubectl",
                "annotate",
                "--local",
                "--filename",
                file,
                annotation,
                "--output",
                "yaml",
                ">again.yaml",
            ] => {
                let (key, value) = annotation.split_once('=').unwrap();
                again = Some(example(&node, file)?.annotated(key, value));
            }
            _ => panic!("no test runs {command}"),
        }
    }
    node.remove(&state.unwrap()).await?;
    node.leave().await
}

#[tokio::test]
async fn the_job_and_the_stateful_set_go_on_in_their_next_pods() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let mut kinds = Vec::new();
    for block in blocks(&page("use/workloads.md")?, "yaml") {
        let example = object(&block)?;
        let template = &example["spec"]["template"];
        let kind = example["kind"].as_str().unwrap();
        // As their controllers name them.
        let names = match (kind, example["metadata"]["name"].as_str().unwrap()) {
            ("Job", _) => ["train-x7k2p", "train-b9wqz"],
            ("StatefulSet", _) => ["worker-0"; 2],
            // The group `apps` and a test below run these.
            ("Pod", "notebook" | "gpu") => continue,
            other => panic!("{other:?} is run by no test"),
        };
        let [first, second] = names.map(|name| node.example(name, template, PYTHON));
        goes_on(&node, first?, second?).await?;
        kinds.push(kind.to_owned());
    }
    assert_eq!(kinds, ["Job", "StatefulSet"]);
    node.leave().await
}

#[tokio::test]
async fn what_the_hub_is_told_makes_a_users_pod_go_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let [settings] = <[String; 1]>::try_from(blocks(&page("use/workloads.md")?, "python")).unwrap();
    // The hub's configuration is Python; KubeSpawner adds `extra_pod_config` to the pod's spec. The real one, which a node
    // has not, reads the same in the group `docs`.
    let script = format!(
        "import json, sys, types\nnew = types.SimpleNamespace\nsys.modules['kubespawner'] = new(KubeSpawner=object)\n\
         c = new(JupyterHub=new(), KubeSpawner=new())\n{settings}\nprint(json.dumps(vars(c.KubeSpawner)))"
    );
    let told = object(&process::output("python3", &["-c", &script])?)?;
    // Any program will do for a notebook's server.
    let mut pod = workload("worker")?["spec"]["template"].clone();
    pod["metadata"]["annotations"] = told["extra_annotations"].clone();
    let spec = pod["spec"].as_mapping_mut().unwrap();
    spec.remove("runtimeClassName");
    spec.extend(told["extra_pod_config"].as_mapping().unwrap().clone());
    let user = node.example("jupyter-alice", &pod, PYTHON)?;
    goes_on(&node, user.clone(), user).await?;
    node.leave().await
}

/// The example with a GPU, which it gets as from a device plugin.
fn gpu_pod(node: &Node, image: &str, device: &str) -> Result<Pod, HarnessError> {
    let mut example = workload("gpu")?;
    let limits = example["spec"]["containers"][0]["resources"]["limits"].as_mapping_mut().unwrap();
    assert_eq!(limits.remove("nvidia.com/gpu"), Some(1.into()));
    Ok(node.example("gpu", &example, image)?.annotated(CDI, device))
}

#[tokio::test]
async fn the_pod_with_a_gpu_goes_on_with_another_one_as_far_as_stand_ins_can_tell() -> Tested {
    const WORKLOADS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/gpu");
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let (nvidia, program) = (Nvidia::new().unwrap(), Program::start()?);
    let [first, second] = ["nvidia.com/gpu=0", "nvidia.com/gpu=1"].map(|device| {
        // In the place of PyTorch, which the image has not.
        let mut pod = gpu_pod(&node, PYTHON, device)?.with_containers(|container| {
            container.set_env("PYTHONPATH", "/torch");
            container.volume_mounts =
                vec![node.parsed("{name: torch, mountPath: /torch, readOnly: true}").unwrap()];
        });
        pod.spec.volumes = node.parsed(&format!("[{{name: torch, hostPath: {{path: {WORKLOADS}}}}}]"))?;
        Ok::<_, HarnessError>(pod)
    });
    goes_on(&node, first?, second?).await?;
    drop((nvidia, program));
    node.leave().await
}

#[tokio::test]
async fn the_pod_with_a_gpu_goes_on_with_what_was_in_the_gpus_memory() -> Tested {
    let needs = [NEEDS, &[Need::Gpu, Need::Image(PYTORCH)]].concat();
    let Some(node) = Node::enter(&needs).await else { return Ok(()) };
    let program = Program::start()?;
    let pod = gpu_pod(&node, PYTORCH, "nvidia.com/gpu=0")?;
    goes_on(&node, pod.clone(), pod).await?;
    drop(program);
    node.leave().await
}

/// The commands of ours for the store, as the pages have them.
fn commands(name: &str) -> Vec<Vec<String>> {
    let blocks = blocks(&page(name).unwrap(), "sh").concat();
    let lines = blocks.lines().filter(|line| line.starts_with("thaw ") && !line.starts_with("thaw node"));
    lines.map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect()).collect()
}

#[tokio::test]
async fn the_commands_for_the_store_do_what_the_page_says() -> Tested {
    let Some(mut node) = Node::enter(NEEDS).await else { return Ok(()) };
    // As the page names them.
    "team".clone_into(&mut node.namespace);
    let state = node.run_counter(node.counter_pod("trainer", 1)?).await?;
    let archive = node.kubelet.checkpoint(&state, "", None).await?;
    let svg = tempfile::NamedTempFile::new().unwrap();
    let (mut done, mut restored) = (Vec::new(), None);
    for mut command in commands("operate/operate.md") {
        for word in &mut command {
            if word.starts_with("/var/lib/kubelet/checkpoints/checkpoint-") {
                archive.to_str().unwrap().clone_into(word);
            }
            if word == "trainer.svg" {
                svg.path().to_str().unwrap().clone_into(word);
            }
        }
        let words: Vec<_> = command.iter().map(String::as_str).collect();
        if words[0] == "trace" && restored.is_none() {
            process::output("thaw", &["import", archive.to_str().unwrap()])?;
            let again = node.counter_pod("trainer", 1)?.annotated("thaw.dev/restore", "latest");
            node.remove(&state).await?;
            restored = Some(node.run(again).await?);
        }
        let said = process::output("thaw", &words)?;
        match words[..] {
            ["rm", ..] => assert!(said.contains("removed"), "{said}"),
            [_, _, "--svg", _] => assert!(std::fs::read_to_string(svg.path()).unwrap().contains("trainer")),
            _ => assert!(said.contains("trainer"), "{said}"),
        }
        done.push(words[0].to_owned());
    }
    assert_eq!(
        done,
        ["checkpoint", "import", "list", "list", "inspect", "rm", "trace", "trace", "checkpoint"]
    );
    node.remove(&restored.unwrap()).await?;
    for _ in 0..2 {
        process::output("thaw", &["rm", "team/trainer/latest"])?;
    }
    drop(svg);
    std::fs::remove_file(archive).unwrap();
    node.leave().await
}
