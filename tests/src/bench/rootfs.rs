// SPDX-License-Identifier: Apache-2.0
//! Writable layers of all sizes: how long a restore takes, and what it writes, when a program has written so much into
//! its root file system.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use super::machine::Machine;
use super::record::{Record, Results, timed};
use super::report;
use crate::harness::counter::{self, PORT};
use crate::harness::pods::RESTORE;
use crate::harness::thaw;
use crate::kubelet::Kubelet;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::settings::Settings;
use crate::kubelet::state::PodState;

const WORKLOADS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads");
/// How long writing may take, seconds.
const FILLING: i64 = 1800;
/// Writes what cannot be compressed, and many small files: `FILL MEGABYTES FILES`.
const FILL: &str = "
import os, sys
megabytes, files = int(sys.argv[1]), int(sys.argv[2])
os.makedirs('/data')
with open('/data/large', 'wb') as large:
    for _ in range(megabytes):
        large.write(os.urandom(1 << 20))
for number in range(files):
    if number % 1000 == 0:
        os.mkdir(f'/data/{number // 1000}')
    with open(f'/data/{number // 1000}/{number}', 'w') as small:
        small.write(f'{number:0100}')
";
/// Counts the bytes and the files that are there.
const COUNT: &str = "
import os
found = [os.path.join(at, name) for at, _, names in os.walk('/data') for name in names]
print(sum(os.path.getsize(path) for path in found), len(found))
";

/// How large, and how often.
#[derive(Debug, Args)]
pub struct RootfsArgs {
    /// Repetitions of each.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// What was written, MB in one file.
    #[arg(long, value_delimiter = ',', default_value = "0,100,1000")]
    sizes: Vec<u64>,
    /// One more case: this number of files of 100 bytes; 0 for none.
    #[arg(long, default_value_t = 100_000)]
    files: u64,
    /// Write the results here too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures writable layers.
///
/// # Errors
/// When a pod does not start or does not find again what it had written.
pub async fn rootfs(args: RootfsArgs) -> anyhow::Result<()> {
    let machine = Machine::look();
    let kubelet = Kubelet::connect(Settings::from_env()).await?;
    let mut cases: Vec<_> = args.sizes.iter().map(|size| (format!("rootfs.{size}"), *size, 0)).collect();
    if args.files > 0 {
        cases.push(("rootfs.files".to_owned(), 0, args.files));
    }
    let (mut results, mut failures) = (Results::default(), 0);
    for (case, megabytes, files) in &cases {
        eprintln!("{case}");
        if let Err(error) = measure(&kubelet, case, (*megabytes, *files), args.runs, &mut results).await {
            failures += 1;
            eprintln!("FAILED: {case}: {error:#}");
        }
        for left in kubelet.list()? {
            kubelet.remove(&left, Some(0)).await?;
        }
    }
    print!("{}", report::table(&machine, &results));
    let ratios = ratios(&results, &cases);
    for (name, ratio) in &ratios {
        println!("  {name:<36} {ratio:>7.3}");
    }
    if let Some(file) = &args.json {
        fs::write(file, format!("{:#}\n", report::json(&machine, &results, ratios)))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if failures > 0 {
        bail!("{failures} cases failed");
    }
    Ok(())
}

/// Each restore over that of an empty layer.
fn ratios(results: &Results, cases: &[(String, u64, u64)]) -> Vec<(String, f64)> {
    let median = |case: &str| Some(results.find(case, "restore")?.median());
    let Some(empty) = median("rootfs.0") else { return Vec::new() };
    let others = cases.iter().map(|(case, _, _)| case).filter(|case| *case != "rootfs.0");
    others.filter_map(|case| Some((format!("{case}.vs_0"), median(case)? / empty))).collect()
}

fn pod() -> anyhow::Result<Pod> {
    let yaml = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: bench-rootfs}}
spec:
  runtimeClassName: thaw
  volumes:
  - {{name: workloads, hostPath: {{path: {WORKLOADS}, type: Directory}}}}
  containers:
  - name: counter
    image: thaw.local/python:1
    command: [python3, /workloads/counter.py]
    env: [{{name: MB, value: '16'}}]
    volumeMounts:
    - {{name: workloads, mountPath: /workloads, readOnly: true}}
"
    );
    Ok(Pod::parse(yaml.trim())?)
}

async fn inside(kubelet: &Kubelet, state: &PodState, script: &str, words: &[u64]) -> anyhow::Result<String> {
    let mut command = vec!["python3".to_owned(), "-c".to_owned(), script.to_owned()];
    command.extend(words.iter().map(u64::to_string));
    let output = kubelet.exec(state, "", &command, FILLING).await?;
    if output.exit_code != 0 {
        bail!("{}", output.stderr);
    }
    Ok(output.stdout)
}

async fn measure(
    kubelet: &Kubelet,
    case: &str,
    (megabytes, files): (u64, u64),
    runs: u32,
    results: &mut Results,
) -> anyhow::Result<()> {
    let frozen = kubelet.run(pod()?).await?;
    counter::state(&frozen, PORT).await?;
    inside(kubelet, &frozen, FILL, &[megabytes, files]).await?;
    let written = inside(kubelet, &frozen, COUNT, &[]).await?;
    let mut record = Record::default();
    let archive = PathBuf::from("/var/tmp").join(format!("{case}.tar"));
    record
        .step(
            "checkpoint",
            timed(async { Ok(kubelet.checkpoint(&frozen, "counter", Some(&archive)).await?) }),
        )
        .await?;
    kubelet.remove(&frozen, Some(0)).await?;
    let imported =
        record.step("import", timed(async { Ok(thaw::import(std::slice::from_ref(&archive))?) })).await?;
    fs::remove_file(&archive)?;
    results.add(case, record);
    for _ in 0..runs {
        let mut record = Record::default();
        let again = pod()?.annotated(RESTORE, &imported.reference());
        let restored = timed(async {
            let state = kubelet.run(again).await?;
            counter::state(&state, PORT).await?;
            Ok(state)
        });
        let state = record.step("restore", restored).await?;
        let found = inside(kubelet, &state, COUNT, &[]).await?;
        if found != written {
            bail!("the restored pod has {found:?} and had {written:?}");
        }
        kubelet.remove(&state, Some(0)).await?;
        results.add(case, record);
    }
    Ok(fs::remove_dir_all(imported.dir())?)
}
