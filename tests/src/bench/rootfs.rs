// SPDX-License-Identifier: Apache-2.0
//! Writable layers of all sizes: how long a restore takes, and what it writes, when a program has written so much into
//! its root file system.

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::freeze::{self, freeze};
use super::measured::Measured;
use super::record::{Record, timed};
use super::run::{Run, kubelet, remove_pods};
use crate::harness::counter::{self, PORT};
use crate::harness::pods::RESTORE;
use crate::harness::thaw::Imported;
use crate::kubelet::Kubelet;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

const WORKLOADS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads");
/// How long writing may take, seconds.
const FILLING: i64 = 1800;
/// About how long one restore takes, freezing a case, and each MB of it, seconds.
const RUN_SECONDS: f64 = 3.0;
const FREEZE_SECONDS: f64 = 20.0;
const MEGABYTE_SECONDS: f64 = 0.012;
/// How often what was written is on the disk while it is frozen: in the layer, in containerd's difference, archive and
/// image, and some more.
const COPIES: u64 = 5;
/// The node's disk, where all of them are.
const DISK: &str = "/var";
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
    pub(crate) runs: u32,
    /// What was written, MB in one file. What the disk cannot hold five times is skipped.
    #[arg(long, value_delimiter = ',', default_value = "0,100,1000,10000")]
    pub(crate) sizes: Vec<u64>,
    /// One more case: this number of files of 100 bytes; 0 for none.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) files: u64,
}

impl RootfsArgs {
    /// The cases: name, MB, number of files.
    fn cases(&self) -> Vec<(String, u64, u64)> {
        let sizes = self.sizes.iter().map(|size| (format!("rootfs.{size}"), *size, 0));
        let files = (self.files > 0).then(|| ("rootfs.files".to_owned(), 0, self.files));
        sizes.chain(files).collect()
    }

    /// About how long it takes, seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let runs = RUN_SECONDS * f64::from(self.runs);
        self.cases().into_iter().map(|(_, megabytes, _)| freeze_seconds(megabytes) + runs).sum()
    }
}

/// Measures writable layers.
///
/// # Errors
/// When the node does not answer; a pod that does not start, or does not find again what it had written, is noted and
/// passed over.
pub async fn rootfs(run: &mut Run, args: &RootfsArgs) -> anyhow::Result<()> {
    let kubelet = kubelet().await?;
    let mut frozen = Vec::new();
    for (case, megabytes, files) in args.cases() {
        let (needed, free) = (megabytes.saturating_mul(COPIES), free()?);
        if needed > free {
            let reason = format!("it needs {} GB of free disk, and {} are there", needed / 1000, free / 1000);
            run.skip(&case, &reason);
            continue;
        }
        run.step(&format!("{case}: freezing it"), freeze_seconds(megabytes));
        match Filled::freeze(run, &kubelet, &case, (megabytes, files)).await {
            Ok(filled) => frozen.push((case, filled)),
            Err(error) => run.fail(&case, &error),
        }
        remove_pods(&kubelet, "bench-").await?;
    }
    // In turns, so that all meet the same machine.
    for number in 1..=args.runs {
        for (case, filled) in &frozen {
            run.step(&format!("{case}: run {number} of {}", args.runs), RUN_SECONDS);
            let mut record = Record::default();
            match filled.restore(&kubelet, &mut record).await {
                Ok(()) => run.add(case, record),
                Err(error) => run.fail(case, &error),
            }
            remove_pods(&kubelet, "bench-").await?;
        }
    }
    frozen.iter().try_for_each(|(_, filled)| freeze::remove(&filled.imported))
}

/// About how long freezing takes, seconds.
fn freeze_seconds(megabytes: u64) -> f64 {
    FREEZE_SECONDS + MEGABYTE_SECONDS * f64::from(u32::try_from(megabytes).unwrap_or(u32::MAX))
}

/// The free disk, MB.
fn free() -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(DISK).with_context(|| format!("cannot look at {DISK}"))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

/// Each restore over that of an empty layer.
pub(crate) fn ratios(measured: &Measured) -> Vec<(String, f64)> {
    let median = |case: &str| measured.median(case, "restore");
    let Some(empty) = median("rootfs.0") else { return Vec::new() };
    let cases = measured.cases().into_iter();
    let others = cases.filter(|case| case.starts_with("rootfs.") && *case != "rootfs.0");
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

/// A frozen program, and what it counted in its root file system.
struct Filled {
    imported: Imported,
    written: String,
}

impl Filled {
    async fn freeze(
        run: &mut Run,
        kubelet: &Kubelet,
        case: &str,
        (megabytes, files): (u64, u64),
    ) -> anyhow::Result<Self> {
        let state = kubelet.run(pod()?).await?;
        counter::state(&state, PORT).await?;
        inside(kubelet, &state, FILL, &[megabytes, files]).await?;
        let written = inside(kubelet, &state, COUNT, &[]).await?;
        let mut record = Record::default();
        let imported = freeze(kubelet, &state, &mut record).await?;
        run.add(case, record);
        Ok(Self { imported, written })
    }

    async fn restore(&self, kubelet: &Kubelet, record: &mut Record) -> anyhow::Result<()> {
        let again = pod()?.annotated(RESTORE, &self.imported.reference());
        let restored = timed(async {
            let state = kubelet.run(again).await?;
            counter::state(&state, PORT).await?;
            Ok(state)
        });
        let state = record.step("restore", restored).await?;
        let found = inside(kubelet, &state, COUNT, &[]).await?;
        ensure!(found == self.written, "the restored pod has {found:?} and had {:?}", self.written);
        Ok(())
    }
}
