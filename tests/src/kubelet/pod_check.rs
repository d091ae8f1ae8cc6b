// SPDX-License-Identifier: Apache-2.0
//! Reads a Pod: the API server's defaults, and the checks that kubelet relies on.

use std::collections::BTreeSet;

use super::pod_spec::{Container, Pod, Resources, Volume};

/// Why a Pod was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// It is not YAML, or has a field or a value that is not supported here.
    #[error("the pod cannot be read: {0}")]
    Yaml(serde_yaml_ng::Error),
    /// A value is not allowed.
    #[error("{field}: {reason}")]
    Value {
        /// The path of the field.
        field: String,
        /// What is wrong with it, and what is allowed.
        reason: String,
    },
}

impl Pod {
    /// Reads a Pod, fills in the API server's defaults, and checks what kubelet relies on.
    ///
    /// # Errors
    /// [`PodError`], naming the field.
    pub fn parse(yaml: &str) -> Result<Self, PodError> {
        let mut pod: Self = serde_yaml_ng::from_str(yaml).map_err(PodError::Yaml)?;
        for container in pod.spec.init_containers.iter_mut().chain(&mut pod.spec.containers) {
            let Resources { limits, requests } = &mut container.resources;
            requests.cpu = requests.cpu.take().or_else(|| limits.cpu.clone());
            requests.memory = requests.memory.take().or_else(|| limits.memory.clone());
        }
        pod.validate()?;
        Ok(pod)
    }

    /// Init containers and containers, in the order in which they start.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    /// The host name: `spec.hostname`, else the pod's name cut to what the kernel takes.
    #[must_use]
    pub fn hostname(&self) -> String {
        let name = self.spec.hostname.as_deref().unwrap_or(&self.metadata.name);
        let cut: String = name.chars().take(63).collect();
        cut.trim_end_matches(['-', '.']).to_owned()
    }

    fn validate(&self) -> Result<(), PodError> {
        if self.api_version != "v1" || self.kind != "Pod" {
            return Err(bad("kind", format!("{}/{} is not a v1 Pod", self.api_version, self.kind)));
        }
        check_name("metadata.name", &self.metadata.name, 253)?;
        check_name("metadata.namespace", &self.metadata.namespace, 63)?;
        if let Some(uid) = &self.metadata.uid {
            check_name("metadata.uid", uid, 63)?;
        }
        if let Some(handler) = &self.spec.runtime_class_name {
            check_name("spec.runtimeClassName", handler, 253)?;
        }
        let mut volumes = BTreeSet::new();
        for volume in &self.spec.volumes {
            volume.validate()?;
            if !volumes.insert(volume.name.as_str()) {
                return Err(bad("spec.volumes", format!("the name {} stands twice", volume.name)));
            }
        }
        if self.spec.containers.is_empty() {
            return Err(bad("spec.containers", "at least one container is needed".to_owned()));
        }
        let mut names = BTreeSet::new();
        for container in self.all_containers() {
            container.validate(&volumes)?;
            if !names.insert(container.name.as_str()) {
                return Err(bad("spec.containers", format!("the name {} stands twice", container.name)));
            }
        }
        Ok(())
    }
}

impl Volume {
    fn validate(&self) -> Result<(), PodError> {
        let field = format!("spec.volumes[{}]", self.name);
        check_name(&field, &self.name, 63)?;
        let sources = [
            self.empty_dir.is_some(),
            self.host_path.is_some(),
            self.config_map.is_some(),
            self.secret.is_some(),
        ];
        if sources.iter().filter(|given| **given).count() != 1 {
            return Err(bad(&field, "exactly one of emptyDir, hostPath, configMap, secret".to_owned()));
        }
        for object in [
            self.config_map.as_ref().map(|source| &source.name),
            self.secret.as_ref().map(|source| &source.secret_name),
        ] {
            object.map_or(Ok(()), |name| check_name(&field, name, 253))?;
        }
        match &self.host_path {
            Some(source) if !source.path.starts_with('/') => {
                Err(bad(&field, format!("hostPath {:?} is not absolute", source.path)))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Container {
    fn validate(&self, volumes: &BTreeSet<&str>) -> Result<(), PodError> {
        let field = format!("spec.containers[{}]", self.name);
        check_name(&field, &self.name, 63)?;
        for mount in &self.volume_mounts {
            if !volumes.contains(mount.name.as_str()) {
                return Err(bad(&field, format!("volumeMounts: there is no volume {:?}", mount.name)));
            }
            if !mount.mount_path.starts_with('/') {
                return Err(bad(&field, format!("mountPath {:?} is not absolute", mount.mount_path)));
            }
            if mount.sub_path.starts_with('/') || mount.sub_path.split('/').any(|part| part == "..") {
                return Err(bad(&field, format!("subPath {:?} is absolute or has ..", mount.sub_path)));
            }
        }
        for probe in self.liveness_probe.iter().chain(&self.readiness_probe) {
            if probe.exec.is_some() == probe.http_get.is_some() {
                return Err(bad(&field, "a probe has exactly one of exec, httpGet".to_owned()));
            }
        }
        for variable in &self.env {
            if variable.value.is_some() && variable.value_from.is_some() {
                return Err(bad(
                    &field,
                    format!("env {}: value and valueFrom exclude each other", variable.name),
                ));
            }
        }
        Ok(())
    }
}

fn bad(field: &str, reason: String) -> PodError {
    PodError::Value { field: field.to_owned(), reason }
}

/// Names become path components and parts of identifiers, so only the characters of a DNS name pass.
fn check_name(field: &str, name: &str, longest: usize) -> Result<(), PodError> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let allowed = name.chars().all(|c| edge(c) || c == '-' || c == '.');
    if name.is_empty() || name.len() > longest || !allowed || !name.starts_with(edge) || !name.ends_with(edge)
    {
        return Err(bad(field, format!("{name:?} is not a DNS name of at most {longest} characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: busybox
    volumeMounts: [{name: v, mountPath: /v}]
";

    fn error(yaml: &str) -> String {
        Pod::parse(yaml).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_api_server() {
        let pod = Pod::parse(MINIMAL).unwrap();
        assert_eq!(pod.metadata.namespace, "default");
        assert_eq!(pod.spec.termination_grace_period_seconds, 30);
        assert_eq!(pod.spec.containers[0].termination_message_path, "/dev/termination-log");
        assert!(pod.spec.automount_service_account_token);
    }

    #[test]
    fn a_request_left_out_is_the_limit() {
        let yaml = MINIMAL.replace("image: busybox", "image: busybox\n    resources: {limits: {cpu: 500m}}");
        let pod = Pod::parse(&yaml).unwrap();
        assert_eq!(pod.spec.containers[0].resources.requests.cpu.as_ref().unwrap().text(), "500m");
    }

    #[test]
    fn a_field_that_is_not_supported_is_named() {
        let yaml = MINIMAL.replace("image: busybox", "image: busybox\n    lifecycle: {}");
        assert!(error(&yaml).contains("lifecycle"), "{}", error(&yaml));
        let yaml = MINIMAL.replace("emptyDir: {}", "nfs: {}");
        assert!(error(&yaml).contains("nfs"), "{}", error(&yaml));
    }

    #[test]
    fn a_value_that_is_not_supported_is_named() {
        let yaml = MINIMAL.replace("image: busybox", "image: busybox\n    imagePullPolicy: Always");
        assert!(error(&yaml).contains("Always"), "{}", error(&yaml));
    }

    #[test]
    fn a_name_that_would_leave_its_directory_is_refused() {
        assert!(error(&MINIMAL.replace("name: p", "name: ../p")).contains("metadata.name"));
        assert!(
            error(&MINIMAL.replace("mountPath: /v", "mountPath: /v, subPath: a/../b")).contains("subPath")
        );
    }

    #[test]
    fn a_mount_of_a_volume_that_is_not_there_is_refused() {
        assert!(error(&MINIMAL.replace("name: v, mountPath", "name: w, mountPath")).contains("\"w\""));
    }

    #[test]
    fn a_pod_survives_the_way_through_json() {
        let pod = Pod::parse(MINIMAL).unwrap();
        let json = serde_json::to_string(&pod).unwrap();
        let again: Pod = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), json);
    }

    #[test]
    fn a_long_pod_name_is_cut_to_a_host_name() {
        let pod = Pod::parse(&MINIMAL.replace("name: p}", &format!("name: {}-b}}", "a".repeat(62)))).unwrap();
        assert_eq!(pod.hostname(), "a".repeat(62));
    }
}
