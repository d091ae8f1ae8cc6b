// SPDX-License-Identifier: Apache-2.0
//! Events of pods, as `kubectl describe pod` shows them: what resumed, what was frozen, and what went wrong, also where
//! the pod goes on all the same. Only where the administrator has said with whose rights (`events` in the settings).
//!
//! Nothing waits for the API server: what is to be told waits in a short queue, and is lost with a line in the log when
//! that is full. What happens again counts up one event, so a pod that fails for ever has few of them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use checkpoint::config::Events as Rights;
use checkpoint::record::{Record, Verb};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use log::{debug, info, warn};
use serde_json::json;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{sleep, timeout};

use crate::logger::chain;

/// How many events are counted; what is forgotten counts from one again.
const COUNTED: usize = 4096;
/// How many records wait for the API server.
const QUEUE: usize = 64;
/// How long one request may take.
const WITHIN: Duration = Duration::from_secs(10);
/// How long to wait before each further try.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];
/// Who says it, beside the kubelet.
const COMPONENT: &str = "thaw";

/// Takes records for the API server; takes none where there are to be no events.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reporter(Option<Sender<Record>>);

/// What is to be told, and with whose rights.
#[derive(Debug)]
pub(crate) struct Told {
    rights: Rights,
    records: Receiver<Record>,
}

/// Both ends of the queue; no queue where there are to be no events.
pub(crate) fn queue(rights: Option<Rights>) -> (Reporter, Option<Told>) {
    let Some(rights) = rights else { return (Reporter::default(), None) };
    let (sender, records) = mpsc::channel(QUEUE);
    (Reporter(Some(sender)), Some(Told { rights, records }))
}

impl Reporter {
    /// Tells it when there is time.
    pub(crate) fn tell(&self, record: Record) {
        if let Some(sender) = self.0.as_ref().filter(|_| record.subject.is_some())
            && sender.try_send(record).is_err()
        {
            warn!("an event of a pod is lost: the API server does not keep up");
        }
    }
}

/// Tells the API server, for ever.
pub(crate) async fn report(told: Option<Told>) {
    let Some(Told { rights, mut records }) = told else { return std::future::pending().await };
    info!(rights:?; "writes events of pods");
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut counts = Counts::default();
    while let Some(record) = records.recv().await {
        let Some(event) = event(&record, &node, Timestamp::now()) else { continue };
        let mut waits = AGAIN.iter();
        loop {
            let reason = match timeout(WITHIN, write(&rights, &event, &mut counts)).await {
                Ok(Ok(())) => break,
                Ok(Err(Failed { reason, for_good: true })) => {
                    warn!("the API server does not take an event of a pod: {reason}");
                    break;
                }
                Ok(Err(Failed { reason, .. })) => reason,
                Err(_) => format!("it did not answer within {} s", WITHIN.as_secs()),
            };
            let Some(wait) = waits.next() else {
                warn!("an event of a pod is lost: {reason}");
                break;
            };
            debug!("an event of a pod is tried again: {reason}");
            sleep(*wait).await;
        }
    }
}

struct Failed {
    reason: String,
    /// Whether it would fail again.
    for_good: bool,
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else { return Self { reason: chain(&error), for_good: false } };
        // The pod or its namespace is gone, or there is no right to it.
        let for_good = (400..500).contains(&status.code);
        Self { reason: format!("{} ({})", status.message, status.code), for_good }
    }
}

/// Each time with what is in the files now: certificates and tokens of nodes change.
async fn client(rights: &Rights) -> Result<Client, Failed> {
    let failed = |reason| Failed { reason, for_good: false };
    let config = match rights {
        Rights::InCluster => Config::incluster().map_err(|e| failed(chain(&e)))?,
        Rights::Kubeconfig(path) => {
            let file = Kubeconfig::read_from(path).map_err(|e| failed(chain(&e)))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(file, &options).await.map_err(|e| failed(chain(&e)))?
        }
    };
    Client::try_from(config).map_err(Failed::from)
}

async fn write(rights: &Rights, event: &Event, counts: &mut Counts) -> Result<(), Failed> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client(rights).await?, namespace);
    match events.create(&PostParams::default(), event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => return Ok(other.map(drop)?),
    }
    let name = event.metadata.name.as_deref().unwrap_or_default();
    // Kubelets may patch events and not read them.
    let patch = json!({"count": counts.next(name), "lastTimestamp": event.last_timestamp});
    Ok(events.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)?)
}

/// How often what happened, by the names of events; as the kubelet counts, from one again after a restart.
#[derive(Debug, Default)]
struct Counts(HashMap<String, u32>);

impl Counts {
    /// How often, with this time, which is not the first.
    fn next(&mut self, name: &str) -> u32 {
        if self.0.len() >= COUNTED && !self.0.contains_key(name) {
            self.0.clear();
        }
        let count = self.0.entry(name.to_owned()).or_insert(1);
        *count = count.saturating_add(1);
        *count
    }
}

/// What is told of a record; `None` where it is nobody's. Pure. The same of the same container has the same name.
fn event(record: &Record, node: &str, now: Timestamp) -> Option<Event> {
    let pod = record.subject.as_ref()?;
    let reason = match (record.verb, &record.failed) {
        (Verb::Restore, None) => "Resumed",
        (Verb::Restore, Some(_)) => "ResumeFailed",
        (Verb::Checkpoint, None) => "Frozen",
        (Verb::Checkpoint, Some(_)) => "FreezeFailed",
    };
    let mut hasher = DefaultHasher::new();
    (&pod.uid, &pod.container, reason, &record.text).hash(&mut hasher);
    let some = |text: &str| Some(text.to_owned());
    Some(Event {
        metadata: ObjectMeta {
            // As the kubelet's: the pod's name, and what tells its events apart.
            name: Some(format!("{}.{:016x}", pod.pod, hasher.finish())),
            namespace: some(&pod.namespace),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: some("v1"),
            kind: some("Pod"),
            namespace: some(&pod.namespace),
            name: some(&pod.pod),
            uid: some(&pod.uid),
            field_path: Some(format!("spec.containers{{{}}}", pod.container)),
            ..ObjectReference::default()
        },
        reason: some(reason),
        message: some(&record.text),
        type_: some(if record.failed.is_some() { "Warning" } else { "Normal" }),
        source: Some(EventSource { component: some(COMPONENT), host: some(node) }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        reporting_component: some(COMPONENT),
        reporting_instance: some(node),
        ..Event::default()
    })
}

#[cfg(test)]
mod tests {
    use checkpoint::record::Subject;

    use super::*;

    fn record(failed: Option<&str>, text: &str) -> Record {
        let subject = Subject {
            namespace: "team".into(),
            pod: "trainer".into(),
            uid: "1-2".into(),
            container: "main".into(),
        };
        let record = match failed {
            Some(step) => Record::failed(Verb::Restore, step),
            None => Record::done(Verb::Restore, 7, &[]),
        };
        record.about(Some(subject), text)
    }

    #[test]
    fn what_happens_again_is_counted_and_not_for_ever() {
        let mut counts = Counts::default();
        assert_eq!(["a", "a", "b", "a"].map(|name| counts.next(name)), [2, 3, 2, 4]);
        for number in 0..COUNTED {
            counts.next(&number.to_string());
        }
        assert!(counts.0.len() <= COUNTED && counts.next("a") == 2);
    }

    #[test]
    fn an_event_names_the_pod_and_its_container_and_what_happened() {
        let event = |record: &Record| event(record, "node-1", Timestamp::UNIX_EPOCH).unwrap();
        let resumed = event(&record(None, "resumed from checkpoint team/trainer/x"));
        let object = &resumed.involved_object;
        assert_eq!(
            (object.kind.as_deref(), object.name.as_deref(), object.uid.as_deref()),
            (Some("Pod"), Some("trainer"), Some("1-2"))
        );
        assert_eq!(object.field_path.as_deref(), Some("spec.containers{main}"));
        assert_eq!((resumed.type_.as_deref(), resumed.reason.as_deref()), (Some("Normal"), Some("Resumed")));
        let failed = event(&record(Some("refused"), "no"));
        assert_eq!(
            (failed.type_.as_deref(), failed.reason.as_deref(), failed.message.as_deref()),
            (Some("Warning"), Some("ResumeFailed"), Some("no"))
        );
        assert_eq!(event(&record(Some("refused"), "no")).metadata.name, failed.metadata.name);
        assert_ne!(event(&record(Some("refused"), "other")).metadata.name, failed.metadata.name);
        assert!(super::event(&Record::failed(Verb::Restore, "x"), "node-1", Timestamp::UNIX_EPOCH).is_none());
    }

    #[test]
    fn a_full_queue_loses_what_comes_and_holds_up_nobody() {
        let (reporter, told) = queue(Some(Rights::InCluster));
        let mut records = told.unwrap().records;
        for _ in 0..QUEUE + 5 {
            reporter.tell(record(None, "x"));
        }
        assert_eq!(std::iter::from_fn(|| records.try_recv().ok()).count(), QUEUE);
        let (reporter, told) = queue(None);
        reporter.tell(record(None, "x"));
        assert!(told.is_none());
    }
}
