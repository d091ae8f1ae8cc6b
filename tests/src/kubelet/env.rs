// SPDX-License-Identifier: Apache-2.0
//! A container's environment and the `$(NAME)` references in it. Pure.

use std::collections::BTreeMap;

use super::cri::api::KeyValue;
use super::pod_check::PodError;
use super::pod_spec::{Container, Pod};

/// What the downward API and the service variables are filled from.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its uid.
    pub uid: &'a str,
    /// Its address; empty before there is one.
    pub ip: &'a str,
    /// The address of the `kubernetes` Service.
    pub service_host: &'a str,
    /// The node's name.
    pub node_name: &'a str,
}

/// The variables in the order in which the pod gives them, then those of the `kubernetes` Service that it
/// does not give itself.
///
/// # Errors
/// When a `fieldRef` is not supported.
pub fn of_container(container: &Container, facts: &Facts<'_>) -> Result<Vec<KeyValue>, PodError> {
    let service = service_variables(facts.service_host);
    let mut known: BTreeMap<String, String> = service.iter().cloned().collect();
    let mut given = Vec::new();
    for variable in &container.env {
        let value = match &variable.value_from {
            Some(source) => field(&source.field_ref.field_path, facts)?,
            None => expand(variable.value.as_deref().unwrap_or_default(), &known),
        };
        known.insert(variable.name.clone(), value.clone());
        given.push((variable.name.clone(), value));
    }
    let rest: Vec<_> =
        service.into_iter().filter(|(name, _)| given.iter().all(|(given, _)| given != name)).collect();
    Ok(given.into_iter().chain(rest).map(|(key, value)| KeyValue { key, value }).collect())
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for one dollar, and a reference to what is not
/// known stays as it is. Source: Kubernetes, `third_party/forked/golang/expansion`.
#[must_use]
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

fn field(path: &str, facts: &Facts<'_>) -> Result<String, PodError> {
    let metadata = &facts.pod.metadata;
    let entry = |prefix: &str, map: &BTreeMap<String, String>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.get(key).cloned().unwrap_or_default())
    };
    let value = match path {
        "metadata.name" => Some(metadata.name.clone()),
        "metadata.namespace" => Some(metadata.namespace.clone()),
        "metadata.uid" => Some(facts.uid.to_owned()),
        "spec.nodeName" => Some(facts.node_name.to_owned()),
        "status.podIP" => Some(facts.ip.to_owned()),
        _ => entry("metadata.labels", &metadata.labels)
            .or_else(|| entry("metadata.annotations", &metadata.annotations)),
    };
    value.ok_or_else(|| PodError::Value {
        field: "env.valueFrom.fieldRef.fieldPath".to_owned(),
        reason: format!("{path:?} is not supported"),
    })
}

/// Source: kubelet, `pkg/kubelet/envvars`; the `kubernetes` Service has one port, 443.
fn service_variables(host: &str) -> Vec<(String, String)> {
    let url = format!("tcp://{host}:443");
    [
        ("KUBERNETES_PORT", url.as_str()),
        ("KUBERNETES_PORT_443_TCP", &url),
        ("KUBERNETES_PORT_443_TCP_ADDR", host),
        ("KUBERNETES_PORT_443_TCP_PORT", "443"),
        ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
        ("KUBERNETES_SERVICE_HOST", host),
        ("KUBERNETES_SERVICE_PORT", "443"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(env: &str) -> Result<Vec<(String, String)>, PodError> {
        let pod = Pod::parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, labels: {{app.x/y: z}}}}, \
             spec: {{containers: [{{name: c, image: i, env: [{env}]}}]}}}}"
        ))
        .unwrap();
        let facts = Facts { pod: &pod, uid: "u", ip: "10.1.2.3", service_host: "10.0.0.1", node_name: "n" };
        let made = of_container(&pod.spec.containers[0], &facts)?;
        Ok(made.into_iter().map(|variable| (variable.key, variable.value)).collect())
    }

    fn value(env: &str, name: &str) -> String {
        variables(env).unwrap().into_iter().find(|(key, _)| key == name).unwrap().1
    }

    #[test]
    fn a_reference_sees_what_stands_before_it_and_the_service() {
        assert_eq!(value("{name: A, value: x}, {name: B, value: $(A)-$(C)-$$(A)}", "B"), "x-$(C)-$(A)");
        assert_eq!(value("{name: A, value: $(KUBERNETES_SERVICE_HOST)}", "A"), "10.0.0.1");
    }

    #[test]
    fn the_downward_api_gives_the_pods_own_facts() {
        let of = |path: &str| {
            value(&format!("{{name: A, valueFrom: {{fieldRef: {{fieldPath: \"{path}\"}}}}}}"), "A")
        };
        assert_eq!(of("status.podIP"), "10.1.2.3");
        assert_eq!(of("metadata.labels['app.x/y']"), "z");
        assert_eq!(of("metadata.labels['none']"), "");
    }

    #[test]
    fn a_field_that_is_not_supported_is_named() {
        let error = variables("{name: A, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}").unwrap_err();
        assert!(error.to_string().contains("status.hostIP"), "{error}");
    }

    #[test]
    fn a_variable_of_the_pod_takes_the_place_of_the_services() {
        let made = variables("{name: KUBERNETES_SERVICE_HOST, value: own}").unwrap();
        let hosts: Vec<_> = made.iter().filter(|(key, _)| key == "KUBERNETES_SERVICE_HOST").collect();
        assert_eq!(hosts, [&("KUBERNETES_SERVICE_HOST".to_owned(), "own".to_owned())]);
    }
}
