// SPDX-License-Identifier: Apache-2.0
//! The documentation on a node: its examples run, are frozen and go on; its commands for the store do what it says.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the whole file is tests"
)]

use std::path::Path;
use std::time::Duration;

use serde_yaml_ng::Value;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process};
use thaw_tests::kubelet::patience::patient;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// How long a program may take until it has written something.
const LIMIT: Duration = Duration::from_secs(60);

fn page(name: &str) -> String {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(tree.join("docs").join(name)).unwrap()
}

/// The blocks of a language on a page.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// A pod of an example, with the name that it has in a cluster, in the test's namespace and with an image of this node.
fn pod(node: &Node, name: &str, metadata: &Value, spec: &Value) -> Pod {
    let mut whole = serde_yaml_ng::Mapping::new();
    whole.insert("apiVersion".into(), "v1".into());
    whole.insert("kind".into(), "Pod".into());
    let mut metadata = metadata.as_mapping().unwrap().clone();
    metadata.insert("name".into(), name.into());
    whole.insert("metadata".into(), Value::Mapping(metadata));
    whole.insert("spec".into(), spec.clone());
    let mut pod = Pod::parse(&serde_yaml_ng::to_string(&whole).unwrap()).unwrap();
    pod.metadata.namespace.clone_from(&node.namespace);
    pod.with_containers(|container| "thaw.local/python:1".clone_into(&mut container.image))
}

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

#[tokio::test]
async fn the_pod_that_counts_goes_on_when_it_is_applied_again_with_the_annotation() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let example: Value = serde_yaml_ng::from_str(&page("examples/counter.yaml")).unwrap();
    let first = pod(&node, "counter", &example["metadata"], &example["spec"]);
    goes_on(&node, first.clone(), first.annotated("thaw.dev/restore", "latest")).await?;
    node.leave().await
}

#[tokio::test]
async fn the_job_and_the_stateful_set_go_on_in_their_next_pods() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let mut kinds = Vec::new();
    for block in blocks(&page("use/workloads.md"), "yaml") {
        let example: Value = serde_yaml_ng::from_str(&block).unwrap();
        let template = &example["spec"]["template"];
        let kind = example["kind"].as_str().unwrap();
        // As their controllers name them.
        let names = match kind {
            "Job" => ["train-x7k2p", "train-b9wqz"],
            "StatefulSet" => ["worker-0"; 2],
            other => panic!("{other} is run by no test"),
        };
        let [first, second] = names.map(|name| pod(&node, name, &template["metadata"], &template["spec"]));
        goes_on(&node, first, second).await?;
        kinds.push(kind.to_owned());
    }
    assert_eq!(kinds, ["Job", "StatefulSet"]);
    node.leave().await
}

#[tokio::test]
async fn what_the_hub_is_told_makes_a_users_pod_go_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let page = page("use/workloads.md");
    let [settings] = <[String; 1]>::try_from(blocks(&page, "python")).unwrap();
    // The hub's configuration is Python; KubeSpawner adds `extra_pod_config` to the pod's spec.
    let script = format!(
        "import json, types\nc = types.SimpleNamespace(KubeSpawner=types.SimpleNamespace())\n{settings}\n\
         print(json.dumps(vars(c.KubeSpawner)))"
    );
    let told: Value = serde_yaml_ng::from_str(&process::output("python3", &["-c", &script])?).unwrap();
    let program = &blocks(&page, "yaml")[1];
    let program: Value = serde_yaml_ng::from_str(program).unwrap();
    let mut spec = told["extra_pod_config"].clone();
    let containers = program["spec"]["template"]["spec"]["containers"].clone();
    spec.as_mapping_mut().unwrap().insert("containers".into(), containers);
    let metadata: Value = serde_yaml_ng::from_str(&format!(
        "{{annotations: {}}}",
        serde_json::to_string(&told["extra_annotations"]).unwrap()
    ))
    .unwrap();
    let user = pod(&node, "jupyter-alice", &metadata, &spec);
    goes_on(&node, user.clone(), user).await?;
    node.leave().await
}

/// The commands of ours for the store, as the pages have them.
fn commands(name: &str) -> Vec<Vec<String>> {
    let blocks = blocks(&page(name), "sh").concat();
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
    node.remove(&state).await?;
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
    assert_eq!(done, ["import", "list", "list", "inspect", "rm", "trace", "trace"]);
    node.remove(&restored.unwrap()).await?;
    process::output("thaw", &["rm", "team/trainer/latest"])?;
    drop(svg);
    std::fs::remove_file(archive).unwrap();
    node.leave().await
}
