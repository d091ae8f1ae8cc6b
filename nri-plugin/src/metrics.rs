// SPDX-License-Identifier: Apache-2.0
//! The node's figures: what its shims have told since this program started, and how large the store is now.

use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{fs, io};

use checkpoint::record::{LIMIT, Record, Verb};
use checkpoint::store::Filter;
use checkpoint::{Config, Manifest, Store};
use log::warn;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::net::UnixDatagram;

use crate::events::Reporter;

/// Bounds of a step's duration in seconds: from a small program to hundreds of gigabytes.
const BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];
/// The longest name of a step that becomes a label.
const LABEL_MAX: usize = 64;

/// All figures.
pub(crate) struct Metrics {
    registry: Registry,
    done: Family<OfVerb, Counter>,
    failures: Family<Failure, Counter>,
    bytes: Family<OfVerb, Counter>,
    seconds: Family<Step, Histogram>,
    store_bytes: Gauge<u64, AtomicU64>,
    store_checkpoints: Gauge<u64, AtomicU64>,
    /// Whether a runtime has taken this plugin.
    registered: AtomicBool,
    config: Arc<Config>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("registered", &self.registered).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind(Verb);

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        fmt::Write::write_str(
            encoder,
            match self.0 {
                Verb::Restore => "restore",
                Verb::Checkpoint => "checkpoint",
            },
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVerb {
    verb: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    verb: Kind,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    verb: Kind,
    step: String,
}

impl Metrics {
    /// All at nothing.
    pub(crate) fn new(config: Arc<Config>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("thaw"),
            done: Family::default(),
            failures: Family::default(),
            bytes: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            store_bytes: Gauge::default(),
            store_checkpoints: Gauge::default(),
            registered: AtomicBool::new(false),
            config,
        };
        let Self { registry, done, failures, bytes, seconds, store_bytes, store_checkpoints, .. } =
            &mut metrics;
        registry.register("done", "Restores and checkpoints that succeeded", done.clone());
        registry.register("failures", "Restores and checkpoints that failed, by step", failures.clone());
        registry.register("bytes", "Size of what was restored and frozen", bytes.clone());
        registry.register("step_seconds", "How long the steps took", seconds.clone());
        registry.register("store_bytes", "Size of all checkpoints of the store", store_bytes.clone());
        registry.register("store_checkpoints", "Checkpoints in the store", store_checkpoints.clone());
        metrics
    }

    /// Counts what a shim told.
    pub(crate) fn count(&self, record: Record) {
        let verb = || Kind(record.verb);
        match record.failed {
            Some(step) => {
                self.failures.get_or_create(&Failure { verb: verb(), reason: shortened(&step) }).inc();
            }
            None => {
                self.done.get_or_create(&OfVerb { verb: verb() }).inc();
                self.bytes.get_or_create(&OfVerb { verb: verb() }).inc_by(record.bytes);
            }
        }
        for (step, seconds) in record.seconds {
            self.seconds.get_or_create(&Step { verb: verb(), step: shortened(&step) }).observe(seconds);
        }
    }

    /// Notes whether a runtime has taken this plugin.
    pub(crate) fn set_registered(&self, registered: bool) {
        self.registered.store(registered, Ordering::Relaxed);
    }

    /// Whether a runtime has taken this plugin.
    pub(crate) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// The figures in Prometheus' text format. Looks at the store, so it blocks.
    pub(crate) fn text(&self) -> String {
        let listed = Store::open(&self.config).map(|store| store.list(&Filter::default()));
        if let Ok(Ok(all)) = listed {
            let bytes = all
                .iter()
                .flat_map(|listed| &listed.manifest)
                .map(Manifest::bytes)
                .fold(0, u64::saturating_add);
            self.store_bytes.set(bytes);
            self.store_checkpoints.set(u64::try_from(all.len()).unwrap_or(u64::MAX));
        }
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(LABEL_MAX).collect()
}

/// Makes the directory of a socket, for root alone, and removes a socket that a former process has left.
///
/// # Errors
/// When either fails.
pub(crate) fn make_way(socket: &Path) -> io::Result<()> {
    if let Some(dir) = socket.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Counts what shims send to `socket`, and hands it on, for ever.
pub(crate) async fn listen(socket: &Path, metrics: &Metrics, reporter: &Reporter) {
    let bound = make_way(socket).and_then(|()| UnixDatagram::bind(socket));
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) => {
            warn!(socket:?; "restores and checkpoints are not counted: {error}");
            return std::future::pending::<()>().await;
        }
    };
    let mut buffer = [0; LIMIT];
    loop {
        match listener.recv(&mut buffer).await {
            Ok(length) => match Record::parse(buffer.get(..length).unwrap_or_default()) {
                Ok(record) => {
                    metrics.count(record.clone());
                    reporter.tell(record);
                }
                Err(error) => warn!("a record of a shim cannot be understood: {error}"),
            },
            Err(error) => {
                warn!("cannot receive the shims' records: {error}");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn records_become_figures() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { roots: vec![dir.path().to_owned()], ..Config::default() };
        let metrics = Metrics::new(Arc::new(config));
        for _ in 0..2 {
            metrics.count(Record::done(Verb::Restore, 100, &[("CRIU", Duration::from_millis(300))]));
        }
        metrics.count(Record::failed(Verb::Checkpoint, &"x".repeat(100)));
        let text = metrics.text();
        for line in [
            "thaw_done_total{verb=\"restore\"} 2".to_owned(),
            "thaw_bytes_total{verb=\"restore\"} 200".to_owned(),
            format!("thaw_failures_total{{verb=\"checkpoint\",reason=\"{}\"}} 1", "x".repeat(LABEL_MAX)),
            "thaw_step_seconds_bucket{le=\"0.5\",verb=\"restore\",step=\"CRIU\"} 2".to_owned(),
            "thaw_store_checkpoints 0".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
}
