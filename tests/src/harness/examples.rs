// SPDX-License-Identifier: Apache-2.0
//! Examples of the documentation, made into pods of a node.

use std::path::Path;

use serde_yaml_ng::Value;

use super::{HarnessError, Node};
use crate::kubelet::error::KubeletError;
use crate::kubelet::pod_check::PodError;
use crate::kubelet::pod_spec::Pod;

/// The text of a file below docs/.
///
/// # Errors
/// When it is not there.
pub fn page(name: &str) -> Result<String, HarnessError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).map_err(|source| HarnessError::file("read", path, source))
}

/// The blocks of a language on a page.
#[must_use]
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let rest = page.split(fence.as_str()).skip(1);
    rest.filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

/// An object of Kubernetes'.
///
/// # Errors
/// When it is not YAML.
pub fn object(yaml: &str) -> Result<Value, HarnessError> {
    serde_yaml_ng::from_str(yaml).map_err(|error| KubeletError::from(PodError::Yaml(error)).into())
}

/// The example on `workloads.md` with this name.
///
/// # Errors
/// When there is none.
pub fn workload(name: &str) -> Result<Value, HarnessError> {
    for block in blocks(&page("use/workloads.md")?, "yaml") {
        let example = object(&block)?;
        if example.get("metadata").and_then(|metadata| metadata.get("name")).is_some_and(|has| has == name) {
            return Ok(example);
        }
    }
    Err(HarnessError::answer("docs/use/workloads.md", format!("no example is called {name}")))
}

impl Node {
    /// A pod with the metadata and the spec of an example, in the test's namespace: with the name that it has in a cluster,
    /// and with an image of this node.
    ///
    /// # Errors
    /// When that is no pod.
    pub fn example(&self, name: &str, parts: &Value, image: &str) -> Result<Pod, HarnessError> {
        let mut whole = serde_yaml_ng::Mapping::new();
        whole.insert("apiVersion".into(), "v1".into());
        whole.insert("kind".into(), "Pod".into());
        let mut metadata = parts.get("metadata").and_then(Value::as_mapping).cloned().unwrap_or_default();
        metadata.insert("name".into(), name.into());
        metadata.insert("namespace".into(), self.namespace.as_str().into());
        whole.insert("metadata".into(), metadata.into());
        whole.insert("spec".into(), parts.get("spec").cloned().unwrap_or_default());
        let yaml =
            serde_yaml_ng::to_string(&whole).map_err(|error| KubeletError::from(PodError::Yaml(error)))?;
        let pod: Pod = Pod::parse(&yaml).map_err(KubeletError::from)?;
        Ok(pod.with_containers(|container| image.clone_into(&mut container.image)))
    }
}
