// SPDX-License-Identifier: Apache-2.0
//! Whose checkpoint an archive is: read from what the container engine wrote into it.
//!
//! Source for the keys: containerd internal/cri/annotations/annotations.go; CRI-O pkg/annotations; Kubernetes
//! staging/src/k8s.io/kubelet/pkg/types/labels.go.

use std::collections::BTreeMap;
use std::net::IpAddr;

use checkpoint::annotation::LINEAGE;
use checkpoint::dump::NetworkBlock;
use checkpoint::manifest::Producer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::archive::Survey;

/// Labels that the kubelet gives every container.
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// What the archive says about the container; `None` where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) producer: Producer,
    pub(crate) namespace: Option<String>,
    pub(crate) pod: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) container: Option<String>,
    pub(crate) lineage: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) image_reference: Option<String>,
    pub(crate) runtime: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) frozen: Option<OffsetDateTime>,
}

impl Identity {
    pub(crate) fn of(survey: &Survey) -> Self {
        let annotations = &survey.spec.annotations;
        let nested = |key: &str| -> BTreeMap<String, String> {
            annotations.get(key).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
        };
        let (labels, pod_annotations) =
            (nested("io.kubernetes.cri-o.Labels"), nested("io.kubernetes.cri-o.Annotations"));
        let first = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| {
                let places = [annotations, &labels, &pod_annotations, &survey.status.labels];
                places.into_iter().find_map(|place| place.get(*key))
            });
            found.filter(|value| !value.is_empty()).cloned()
        };
        let producer = if annotations.contains_key("io.kubernetes.cri.container-type") {
            Producer::Containerd
        } else if annotations.keys().any(|key| key.starts_with("io.kubernetes.cri-o.")) {
            Producer::CriO
        } else {
            Producer::Podman
        };
        let config = &survey.config;
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let own_name =
            Some(config.name.clone()).filter(|name| producer == Producer::Podman && !name.is_empty());
        Self {
            producer,
            namespace: first(&["io.kubernetes.cri.sandbox-namespace", POD_NAMESPACE]),
            pod: first(&["io.kubernetes.cri.sandbox-name", POD_NAME]),
            uid: first(&["io.kubernetes.cri.sandbox-uid", POD_UID]),
            container: first(&["io.kubernetes.cri.container-name", CONTAINER_NAME]).or(own_name),
            lineage: first(&[LINEAGE]),
            // The new container is compared by the annotation that containerd gives it.
            image: first(&["io.kubernetes.cri.image-name"])
                .or_else(|| given(&config.rootfs_image_name))
                .or_else(|| first(&["io.kubernetes.cri-o.ImageName"]))
                .or_else(|| survey.status.image.as_ref().map(|image| image.image.clone()))
                .or_else(|| given(&config.rootfs_image)),
            image_reference: given(&config.rootfs_image_ref),
            runtime: given(&config.runtime),
            addresses: addresses(survey, annotations),
            frozen: config.checkpointed_time.as_ref().and_then(|text| frozen(text)),
        }
    }
}

/// The pod's addresses: from thaw's own record, from CRI-O's annotations, or from Podman's file.
fn addresses(survey: &Survey, annotations: &BTreeMap<String, String>) -> Vec<IpAddr> {
    if !survey.network.addresses.is_empty() {
        return survey.network.addresses.clone();
    }
    let of_crio = (0..).map_while(|n| annotations.get(&format!("io.kubernetes.cri-o.IP.{n}")));
    let of_crio = of_crio.filter_map(|ip| ip.parse().ok());
    of_crio.chain(survey.network_status.values().flat_map(NetworkBlock::addresses)).collect()
}

/// The time in `config.dump`, unless it is Go's zero time or in the future.
fn frozen(text: &str) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    (time > OffsetDateTime::UNIX_EPOCH && time <= OffsetDateTime::now_utc()).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint::dump::{self, ConfigDump, SpecDump};

    fn identity(annotations: &[(&str, &str)], config: &str) -> Identity {
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let config: ConfigDump = dump::parse(dump::CONFIG, config.as_bytes()).unwrap();
        Identity::of(&Survey { config, spec: SpecDump { annotations }, ..Survey::default() })
    }

    #[test]
    fn containerd_says_it_in_annotations() {
        let identity = identity(
            &[
                ("io.kubernetes.cri.container-type", "container"),
                ("io.kubernetes.cri.sandbox-namespace", "team"),
                ("io.kubernetes.cri.sandbox-name", "trainer-0"),
                ("io.kubernetes.cri.sandbox-uid", "u"),
                ("io.kubernetes.cri.container-name", "main"),
                ("io.kubernetes.cri.image-name", "docker.io/library/python:3.12"),
                ("thaw.dev/lineage", "trainer"),
            ],
            r#"{"name":"ignored","rootfsImageName":"other","checkpointedTime":"2026-01-02T03:04:05.5Z"}"#,
        );
        assert_eq!(identity.producer, Producer::Containerd);
        assert_eq!(identity.namespace.as_deref(), Some("team"));
        assert_eq!(identity.pod.as_deref(), Some("trainer-0"));
        assert_eq!(identity.container.as_deref(), Some("main"));
        assert_eq!(identity.lineage.as_deref(), Some("trainer"));
        assert_eq!(identity.image.as_deref(), Some("docker.io/library/python:3.12"));
        assert_eq!(identity.frozen.unwrap().year(), 2026);
    }

    #[test]
    fn crio_says_it_in_labels_within_an_annotation() {
        let identity = identity(
            &[
                (
                    "io.kubernetes.cri-o.Labels",
                    r#"{"io.kubernetes.pod.namespace":"team","io.kubernetes.pod.name":"p","io.kubernetes.container.name":"c"}"#,
                ),
                ("io.kubernetes.cri-o.Annotations", r#"{"thaw.dev/lineage":"l"}"#),
                ("io.kubernetes.cri-o.IP.0", "10.88.0.9"),
            ],
            r#"{"name":"k8s_c_p_team_0","rootfsImageName":"quay.io/x:1","checkpointedTime":"0001-01-01T00:00:00Z"}"#,
        );
        assert_eq!(identity.producer, Producer::CriO);
        assert_eq!((identity.namespace.as_deref(), identity.pod.as_deref()), (Some("team"), Some("p")));
        assert_eq!((identity.container.as_deref(), identity.lineage.as_deref()), (Some("c"), Some("l")));
        assert_eq!(identity.image.as_deref(), Some("quay.io/x:1"));
        assert_eq!(identity.addresses, ["10.88.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(identity.frozen, None);
    }

    #[test]
    fn podman_only_knows_the_container() {
        let identity =
            identity(&[("org.example/x", "y")], r#"{"name":"magical","rootfsImageName":"quay.io/x:1"}"#);
        assert_eq!(identity.producer, Producer::Podman);
        assert_eq!(identity.container.as_deref(), Some("magical"));
        assert_eq!((identity.namespace, identity.pod), (None, None));
    }
}
