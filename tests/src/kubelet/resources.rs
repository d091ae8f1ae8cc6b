// SPDX-License-Identifier: Apache-2.0
//! Requests and limits: the pod's quality-of-service class, and what the runtime and the cgroups get to see.
//!
//! Pure. Source of every number: kubelet, `pkg/kubelet/cm/helpers_linux.go` and `pkg/kubelet/qos/policy.go`.

use super::cri::api::LinuxContainerResources;
use super::pod_spec::{Container, Pod, Resources};
use super::quantity::Quantity;

/// A quantity that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("container {container}: {quantity:?} is not a quantity of {resource}")]
pub struct ResourceError {
    container: String,
    resource: &'static str,
    quantity: String,
}

/// The quality-of-service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Every container has limits for both resources and requests that equal them.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Class {
    /// The cgroup of the class beneath the kubelet's own; guaranteed pods stand directly beneath it.
    #[must_use]
    pub fn cgroup(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// What one container, or a whole pod, asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu_request: Option<i64>,
    /// Thousandths of a CPU.
    pub cpu_limit: Option<i64>,
    /// Bytes.
    pub memory_request: Option<i64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
}

const SHARES_PER_CPU: i64 = 1024;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const PERIOD_US: i64 = 100_000;
const MIN_QUOTA_US: i64 = 1000;

impl Amounts {
    /// What one container asks for.
    ///
    /// # Errors
    /// When one of its quantities is not one.
    pub fn of_container(container: &Container) -> Result<Self, ResourceError> {
        let Resources { limits, requests } = &container.resources;
        let read = |quantity: &Option<Quantity>, resource, value: fn(&Quantity) -> Option<i64>| match quantity
        {
            None => Ok(None),
            Some(quantity) => value(quantity).map(Some).ok_or_else(|| ResourceError {
                container: container.name.clone(),
                resource,
                quantity: quantity.text().to_owned(),
            }),
        };
        Ok(Self {
            cpu_request: read(&requests.cpu, "cpu", Quantity::millis)?,
            cpu_limit: read(&limits.cpu, "cpu", Quantity::millis)?,
            memory_request: read(&requests.memory, "memory", Quantity::units)?,
            memory_limit: read(&limits.memory, "memory", Quantity::units)?,
        })
    }

    /// What the pod's containers ask for together. A limit counts only when every container has it.
    /// Init containers are left out, though kubelet takes the larger of the two.
    ///
    /// # Errors
    /// When a quantity is not one.
    pub fn of_pod(pod: &Pod) -> Result<Self, ResourceError> {
        let each = pod.spec.containers.iter().map(Self::of_container).collect::<Result<Vec<_>, _>>()?;
        let any = |field: fn(&Self) -> Option<i64>| each.iter().filter_map(field).reduce(i64::saturating_add);
        let all = |field: fn(&Self) -> Option<i64>| {
            each.iter()
                .map(field)
                .collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().reduce(i64::saturating_add))
        };
        Ok(Self {
            cpu_request: any(|amounts| amounts.cpu_request),
            cpu_limit: all(|amounts| amounts.cpu_limit),
            memory_request: any(|amounts| amounts.memory_request),
            memory_limit: all(|amounts| amounts.memory_limit),
        })
    }

    /// The weight of the request.
    #[must_use]
    pub fn shares(&self) -> i64 {
        let millis = self.cpu_request.unwrap_or_default();
        (millis.saturating_mul(SHARES_PER_CPU) / 1000).clamp(MIN_SHARES, MAX_SHARES)
    }

    /// CFS quota and period in microseconds, where the CPU is limited.
    #[must_use]
    pub fn quota(&self) -> Option<(i64, i64)> {
        let millis = self.cpu_limit?;
        Some(((millis.saturating_mul(PERIOD_US) / 1000).max(MIN_QUOTA_US), PERIOD_US))
    }

    /// As the runtime wants it; `oom_score_adj` 0 for a sandbox.
    #[must_use]
    pub fn to_linux(&self, oom_score_adj: i64) -> LinuxContainerResources {
        let quota = self.quota();
        LinuxContainerResources {
            cpu_period: quota.map_or(0, |(_, period)| period),
            cpu_quota: quota.map_or(0, |(quota, _)| quota),
            cpu_shares: self.shares(),
            memory_limit_in_bytes: self.memory_limit.unwrap_or_default(),
            oom_score_adj,
        }
    }

    fn is_guaranteed(&self) -> bool {
        self.cpu_limit.is_some()
            && self.memory_limit.is_some()
            && self.cpu_limit == self.cpu_request
            && self.memory_limit == self.memory_request
    }
}

/// The pod's class.
///
/// # Errors
/// When a quantity is not one.
pub fn class(pod: &Pod) -> Result<Class, ResourceError> {
    let each = pod.all_containers().map(Amounts::of_container).collect::<Result<Vec<_>, _>>()?;
    Ok(if each.iter().all(|amounts| *amounts == Amounts::default()) {
        Class::BestEffort
    } else if each.iter().all(Amounts::is_guaranteed) {
        Class::Guaranteed
    } else {
        Class::Burstable
    })
}

/// How readily the kernel kills the container when the node runs out of memory; `capacity` is the node's
/// memory in bytes.
#[must_use]
pub fn oom_score_adj(class: Class, amounts: &Amounts, capacity: i64) -> i64 {
    match class {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let request = amounts.memory_request.unwrap_or_default();
            (1000 - request.saturating_mul(1000) / capacity.max(1)).clamp(3, 999)
        }
    }
}

/// The node's memory in bytes, from the text of `/proc/meminfo`.
#[must_use]
pub fn memory_capacity(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &str) -> Pod {
        Pod::parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, \
             spec: {{containers: [{{name: c, image: i, resources: {resources}}}]}}}}"
        ))
        .unwrap()
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        assert_eq!(class(&pod("{}")).unwrap(), Class::BestEffort);
        assert_eq!(class(&pod("{requests: {cpu: 1}}")).unwrap(), Class::Burstable);
        assert_eq!(class(&pod("{limits: {memory: 1Gi}}")).unwrap(), Class::Burstable);
        assert_eq!(class(&pod("{limits: {cpu: 1, memory: 1Gi}}")).unwrap(), Class::Guaranteed);
    }

    #[test]
    fn cpu_becomes_shares_and_quota() {
        let amounts = Amounts::of_pod(&pod("{limits: {cpu: 250m}, requests: {cpu: 100m}}")).unwrap();
        assert_eq!((amounts.shares(), amounts.quota()), (102, Some((25_000, 100_000))));
        assert_eq!(Amounts::default().shares(), 2);
        assert_eq!(Amounts { cpu_limit: Some(1), ..Amounts::default() }.quota(), Some((1000, 100_000)));
    }

    #[test]
    fn the_more_a_burstable_container_requests_the_later_it_is_killed() {
        let of = |request| {
            let amounts = Amounts { memory_request: Some(request), ..Amounts::default() };
            oom_score_adj(Class::Burstable, &amounts, 1000)
        };
        assert_eq!((of(0), of(250), of(1000)), (999, 750, 3));
    }

    #[test]
    fn a_bad_quantity_is_named_with_its_container() {
        let error = class(&pod("{limits: {memory: lots}}")).unwrap_err().to_string();
        assert_eq!(error, "container c: \"lots\" is not a quantity of memory");
    }
}
