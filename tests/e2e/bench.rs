// SPDX-License-Identifier: Apache-2.0
//! The benchmark itself, with small programs: every case gives its numbers, and a page with plots is made of them.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::fs;

use serde_json::Value;
use thaw_tests::harness::{Need, Node, Tested, process};

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
const BENCH: &str = env!("CARGO_BIN_EXE_bench");
/// The metrics of the cases that need no registry; Podman is not on every node.
const METRICS: [(&str, &[&str]); 2] = [
    (
        "restore.16",
        &[
            "checkpoint",
            "import",
            "thaw.running",
            "thaw.pod",
            "thaw.pod.written",
            "lazy.running",
            "lazy.filled",
            "fresh.running",
            "criu.running",
            "criu_lazy.running",
            "criu_lazy.filled",
            "runc.running",
            "limit.memcpy",
            "limit.pread",
            "limit.uffd_copy",
            "limit.disk",
        ],
    ),
    ("crowd.2", &["lazy.running", "thaw.running", "fresh.running"]),
];

#[tokio::test]
async fn every_case_gives_its_numbers_and_a_page_is_made_of_them() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let dir = tempfile::tempdir().unwrap();
    let (json, report) = (dir.path().join("results.json"), dir.path().to_str().unwrap());
    let json = json.to_str().unwrap();
    let cases = "thaw,lazy,fresh,criu,criu-lazy,runc,podman,limits";
    let all =
        ["all", "--quick", "--groups", "restore,crowd", "--sizes", "16", "--pods", "2", "--cases", cases];
    println!("{}", process::output(BENCH, &[all.as_slice(), &["--json", json]].concat())?);

    let results: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let measured = results["results"].as_array().unwrap();
    for (case, metrics) in METRICS {
        for metric in metrics {
            let found = measured.iter().find(|found| found["case"] == case && found["metric"] == *metric);
            assert!(
                found.is_some_and(|found| found["median"].as_f64() > Some(0.0)),
                "{case} {metric}: {found:?}"
            );
        }
    }
    let copied = measured.iter().find(|found| found["metric"] == "checkpoint_bytes_written").unwrap();
    assert_eq!(copied["max"], 0.0, "a restore has copied the checkpoint");
    assert_eq!(results["failed"], Value::Array(Vec::new()));

    process::output(BENCH, &["page", "--from", json, "--report", report])?;
    let page = fs::read_to_string(dir.path().join("benchmarks.md")).unwrap();
    assert!(page.contains("16 MB") && page.contains("(benchmarks/first-answer.svg)"), "{page}");
    assert!(dir.path().join("benchmarks/first-answer.svg").is_file());
    dir.close().unwrap();
    node.leave().await
}
