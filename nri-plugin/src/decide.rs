// SPDX-License-Identifier: Apache-2.0
//! What to do about a container that is about to be created. Pure: no files, no clock, no sockets.
//!
//! Invariant: a key under `thaw.dev/internal.` that this program has not set itself does not reach the shim.

use std::collections::{BTreeMap, BTreeSet};

use checkpoint::PodOptions;
use checkpoint::annotation::{AnnotationErrors, INTERNAL};
use nri_plugin::nri::api::{Container, ContainerAdjustment, PodSandbox};

/// How the container must be adjusted; most need nothing.
///
/// # Errors
/// Everything that is wrong with the pod's annotations under `thaw.dev/`.
pub(crate) fn create_container(
    pod: &PodSandbox,
    container: &Container,
) -> Result<ContainerAdjustment, AnnotationErrors> {
    // The container's own are those of its spec: what the runtime passed on of the pod's, and what kubelet added.
    let (internal, asked): (BTreeMap<&str, &str>, BTreeMap<_, _>) = pod
        .annotations
        .iter()
        .chain(&container.annotations)
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .partition(|(key, _)| key.starts_with(INTERNAL));
    PodOptions::parse(asked)?;

    // A key may be removed or set, never both: the runtime applies an adjustment's annotations in no certain order.
    let forged: BTreeSet<_> = internal.into_keys().collect();
    Ok(ContainerAdjustment {
        annotations: forged.into_iter().map(|key| (format!("-{key}"), String::new())).collect(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(list: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn decide(pod: &[(&str, &str)], container: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let pod = PodSandbox { annotations: annotations(pod), ..Default::default() };
        let container = Container { annotations: annotations(container), ..Default::default() };
        let adjustment = create_container(&pod, &container).map_err(|errors| errors.to_string())?;
        let rest = ContainerAdjustment { annotations: Default::default(), ..adjustment.clone() };
        assert_eq!(rest, ContainerAdjustment::default());
        assert!(adjustment.annotations.values().all(String::is_empty));
        let mut keys: Vec<_> = adjustment.annotations.into_keys().collect();
        keys.sort();
        Ok(keys)
    }

    #[test]
    fn a_container_gets_only_its_forged_annotations_removed() {
        let restart = ("io.kubernetes.container.restartCount", "0");
        let restore = ("thaw.dev/restore", "latest");
        let plan = ("thaw.dev/internal.plan", "x");
        let gpu = ("thaw.dev/internal.gpu-map", "");
        for (pod, container, removed) in [
            (vec![], vec![], vec![]),
            (vec![("example.com/thaw.dev/internal.x", "")], vec![restart], vec![]),
            (vec![restore], vec![restore, restart], vec![]),
            (vec![plan], vec![], vec!["-thaw.dev/internal.plan"]),
            (vec![plan], vec![plan], vec!["-thaw.dev/internal.plan"]),
            (vec![], vec![gpu], vec!["-thaw.dev/internal.gpu-map"]),
            (vec![restore, plan], vec![gpu], vec!["-thaw.dev/internal.gpu-map", "-thaw.dev/internal.plan"]),
        ] {
            assert_eq!(decide(&pod, &container).unwrap(), removed, "{pod:?} {container:?}");
        }
    }

    #[test]
    fn a_container_is_refused_with_all_faults_of_its_annotations() {
        for (pod, container, faults) in [
            (vec![("thaw.dev/restor", "latest")], vec![], vec!["thaw.dev/restor\""]),
            (vec![("thaw.dev/restore", "../x")], vec![], vec!["thaw.dev/restore\""]),
            (vec![("thaw.dev/memory", "lazy")], vec![], vec!["thaw.dev/memory\""]),
            (vec![], vec![("thaw.dev/if-failed", "maybe")], vec!["thaw.dev/if-failed\"", "maybe"]),
            // A key without a name after `internal` is no internal key.
            (vec![("thaw.dev/internal", "x")], vec![], vec!["thaw.dev/internal\""]),
            (
                vec![("thaw.dev/internal.x", "x"), ("thaw.dev/a", ""), ("thaw.dev/if-missing", "no")],
                vec![("thaw.dev/b", "")],
                vec!["thaw.dev/a\"", "thaw.dev/b\"", "thaw.dev/if-missing\""],
            ),
        ] {
            let message = decide(&pod, &container).unwrap_err();
            assert!(faults.iter().all(|fault| message.contains(fault)), "{message}");
            assert!(!message.contains("internal.x"), "{message}");
        }
    }
}
