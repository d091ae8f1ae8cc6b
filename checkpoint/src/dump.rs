// SPDX-License-Identifier: Apache-2.0
//! The small JSON files that come with a container's images: `config.dump`, `spec.dump`, `status.dump`,
//! `network.status`, `checkpoint/descriptors.json`, `checkpoint/thaw-network.json`, `checkpoint/thaw-state.json` and
//! `deleted.files`.
//!
//! Only what thaw uses is read; everything else in them is tolerated. Source for the names and keys:
//! checkpointctl lib/metadata.go; containerd, CRI-O and Podman write them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The longest of these files that is read, in bytes.
pub const LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// The container's configuration.
pub const CONFIG: &str = "config.dump";
/// The container's OCI spec.
pub const SPEC: &str = "spec.dump";
/// The container's CRI status.
pub const STATUS: &str = "status.dump";
/// What the standard streams were, among the CRIU images. Source: runc libcontainer/criu_linux.go.
pub const DESCRIPTORS: &str = "descriptors.json";
/// The pod's addresses, among the CRIU images: thaw's own file.
pub const NETWORK: &str = "thaw-network.json";
/// The addresses in archives of Podman.
pub const NETWORK_STATUS: &str = "network.status";
/// What the threads were like, among the CRIU images: thaw's own file.
pub const STATE: &str = "thaw-state.json";
/// The container's log.
pub const LOG: &str = "container.log";
/// What the container had deleted, in archives of CRI-O and Podman.
pub const DELETED_FILES: &str = "deleted.files";
/// The difference of the container's root file system to its image.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";

/// `config.dump`, as containerd, CRI-O and Podman all write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigDump {
    /// The container's id.
    pub id: String,
    /// The container's name; under CRI-O and Podman not the one in the pod's spec.
    pub name: String,
    /// The image's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_image_name: Option<String>,
    /// The image's id, or its name, by producer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_image: Option<String>,
    /// Name and digest, or the image's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_image_ref: Option<String>,
    /// The OCI runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// When it was frozen, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointed_time: Option<String>,
}

/// `spec.dump`: the annotations of the OCI spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SpecDump {
    /// The annotations.
    pub annotations: BTreeMap<String, String>,
}

/// `status.dump`: the CRI `ContainerStatus`, written by containerd from 2.1 on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StatusDump {
    /// Labels, with the pod's name and namespace among them.
    pub labels: BTreeMap<String, String>,
    /// The name of the image by which the container was created.
    pub image: Option<StatusImage>,
}

/// The image in `status.dump`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StatusImage {
    /// The name.
    pub image: String,
}

/// `thaw-network.json`: what the network namespace had when the container was frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkDump {
    /// Its addresses but for those of the loopback interface, in the order of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// Its interfaces. Packet sockets are bound to their numbers.
    pub interfaces: Vec<Link>,
}

/// An interface of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// The address of its card, if it has one of that length.
    pub mac: Option<[u8; 6]>,
}

/// `thaw-state.json`: what CRIU's images do not say of the processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateDump {
    /// When the container stood still.
    #[serde(with = "time::serde::rfc3339::option")]
    pub frozen: Option<OffsetDateTime>,
    /// Threads that differ from what a started one is like, by their number in the container's PID namespace.
    pub threads: BTreeMap<u32, ThreadDump>,
}

/// What one thread had chosen for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThreadDump {
    /// The processors that it wanted to run on, where these were not all of the container's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Vec<u32>>,
    /// How late its timers might be, in nanoseconds, where that was not the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timer_slack: Option<u64>,
}

/// `network.status`: by the name of each of Podman's networks. Source: containers/common libnetwork/types, StatusBlock.
pub type NetworkStatus = BTreeMap<String, NetworkBlock>;

/// One network in `network.status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetworkBlock {
    interfaces: BTreeMap<String, Interface>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Interface {
    subnets: Vec<Subnet>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Subnet {
    /// Address and prefix length, `10.88.0.5/16`.
    ipnet: String,
}

impl NetworkBlock {
    /// The addresses of all its interfaces.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let subnets = self.interfaces.values().flat_map(|interface| &interface.subnets);
        subnets.filter_map(|subnet| subnet.ipnet.split('/').next()?.parse().ok())
    }
}

/// One of the files is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{file} cannot be understood")]
pub struct DumpError {
    /// Which file.
    pub file: &'static str,
    /// Why.
    pub source: serde_json::Error,
}

/// Reads one of these files from its JSON.
///
/// # Errors
/// When it is not JSON or has a field of another type.
pub fn parse<T: DeserializeOwned>(file: &'static str, json: &[u8]) -> Result<T, DumpError> {
    serde_json::from_slice(json).map_err(|source| DumpError { file, source })
}

/// What descriptors 0, 1 and 2 were, from `descriptors.json`: `pipe:[47029]`, `/dev/null`, ... or `None` if not open.
///
/// # Errors
/// When it is not a JSON list of strings and nulls.
pub fn stdio(json: &[u8]) -> Result<[Option<String>; 3], DumpError> {
    let mut names = parse::<Vec<Option<String>>>(DESCRIPTORS, json)?.into_iter();
    Ok(std::array::from_fn(|_| names.next().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_three_descriptors_are_the_standard_streams() {
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(
            stdio(br#"["/dev/null","pipe:[47029]","pipe:[47033]","socket:[1]"]"#).unwrap(),
            [named("/dev/null"), named("pipe:[47029]"), named("pipe:[47033]")]
        );
        assert_eq!(stdio(br#"[null,"pipe:[1]"]"#).unwrap(), [None, named("pipe:[1]"), None]);
        assert!(stdio(br#"{"0":"pipe:[1]"}"#).is_err());
        assert!(stdio(br#"[1,2,3]"#).is_err());
    }

    #[test]
    fn podman_s_addresses_are_found() {
        let json =
            br#"{"podman":{"interfaces":{"eth0":{"subnets":[{"ipnet":"10.88.0.5/16","gateway":"10.88.0.1"},
            {"ipnet":"fd88::5/64"}],"mac_address":"aa"}}}}"#;
        let status: NetworkStatus = parse(NETWORK_STATUS, json).unwrap();
        let addresses: Vec<_> = status["podman"].addresses().map(|address| address.to_string()).collect();
        assert_eq!(addresses, ["10.88.0.5", "fd88::5"]);
    }

    #[test]
    fn unknown_keys_of_a_config_are_tolerated() {
        let config: ConfigDump =
            parse(CONFIG, br#"{"id":"a","name":"b","rootfsImageName":"c","runtime":"runc","x":[1]}"#)
                .unwrap();
        assert_eq!(config.rootfs_image_name.as_deref(), Some("c"));
        assert_eq!(config.runtime.as_deref(), Some("runc"));
        assert!(parse::<ConfigDump>(CONFIG, b"[").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>, list in "[\\[\\]\",:a-z0-9]{0,40}") {
            let _ = stdio(&bytes);
            let _ = stdio(list.as_bytes());
            let _ = parse::<ConfigDump>(CONFIG, &bytes);
        }
    }
}
