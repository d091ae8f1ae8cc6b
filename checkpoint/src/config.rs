// SPDX-License-Identifier: Apache-2.0
//! The administrator's settings: `/etc/thaw/config.toml`.
//!
//! A missing file means the defaults; a key that is not known is an error.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::annotation::Memory;
use crate::reference::is_dns_label;

/// The longest configuration file that is read, in bytes.
const LIMIT_BYTES: u64 = 1024 * 1024;

/// The most threads that fill one container's memory.
const THREADS: u8 = 64;

/// Settings of one node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories that hold checkpoints; searched in this order, written to the first. Absolute paths.
    pub roots: Vec<PathBuf>,
    /// Namespaces whose checkpoints every pod may restore (golden images for a warm start).
    pub shared_namespaces: Vec<String>,
    /// Where CRIU is; `None`: look it up on PATH.
    pub criu: Option<PathBuf>,
    /// When the memory of restored containers comes back, where their pods do not say.
    pub memory: Memory,
    /// How many threads bring the memory of one lazily restored container, 1 to 64; `None`: as many as the node has
    /// processors, at most 4.
    pub fill_threads: Option<u8>,
    /// Files and directories of the node that a restored container may get, read-only, where its checkpoint had them
    /// and the new pod's spec has not. Absolute paths.
    pub driver_files: Vec<PathBuf>,
    /// Where `thaw-nri` answers `/healthz` and `/metrics`.
    pub metrics: Metrics,
    /// With whose rights `thaw-nri` writes events of pods; `None`: it writes none.
    pub events: Option<Events>,
}

/// Who is to write events. In the file: the absolute path of a kubeconfig, or `in-cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Events {
    /// Whom this kubeconfig names.
    Kubeconfig(PathBuf),
    /// The service account of the pod in which `thaw-nri` runs.
    InCluster,
}

impl TryFrom<String> for Events {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "in-cluster" => Ok(Self::InCluster),
            path if path.starts_with('/') => Ok(Self::Kubeconfig(path.into())),
            _ => Err(format!("{text:?} is neither the absolute path of a kubeconfig nor in-cluster")),
        }
    }
}

/// Where figures can be asked for. In the file: an absolute path, or an address and a port of this host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Metrics {
    /// A unix socket.
    Socket(PathBuf),
    /// A port of a loopback address.
    Port(SocketAddr),
}

impl Default for Metrics {
    fn default() -> Self {
        Self::Socket("/run/thaw/metrics.sock".into())
    }
}

impl TryFrom<String> for Metrics {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Socket(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Port(address)),
            _ => {
                Err(format!("{text:?} is neither an absolute path nor a port of this host (127.0.0.1:9464)"))
            }
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roots: vec!["/var/lib/thaw/checkpoints".into()],
            shared_namespaces: Vec::new(),
            criu: None,
            memory: Memory::Eager,
            fill_threads: None,
            driver_files: Vec::new(),
            metrics: Metrics::default(),
            events: None,
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists but cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML, or has a key or type that is not expected.
    #[error("{path} is not a valid configuration (known keys: roots, shared_namespaces, criu, memory, fill_threads, driver_files, metrics, events)", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{path}: `{key}` {problem}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with the bad value.
        key: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
}

impl Config {
    /// Where the file is on a node.
    pub const PATH: &str = "/etc/thaw/config.toml";

    /// Reads the file at `path`; one that does not exist means the defaults.
    ///
    /// # Errors
    /// `Read`, `Parse` and `Value`, each with the file and, where there is one, the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let bytes = match std::fs::File::open(path) {
            Ok(file) => crate::beneath::read_to_limit(file, LIMIT_BYTES).map_err(read)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(read(error)),
        };
        let config: Self = toml::from_slice(&bytes)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|(key, problem)| ConfigError::Value {
            path: path.to_owned(),
            key,
            problem,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.roots.is_empty() {
            return Err(("roots", "is empty: name at least one directory".into()));
        }
        if let Some(root) = self.roots.iter().find(|root| !root.is_absolute()) {
            return Err(("roots", format!("has {root:?}: it must be an absolute path")));
        }
        if let Some(namespace) = self.shared_namespaces.iter().find(|name| !is_dns_label(name)) {
            return Err((
                "shared_namespaces",
                format!("has {namespace:?}: it must be the name of a namespace"),
            ));
        }
        if self.fill_threads.is_some_and(|threads| !(1..=THREADS).contains(&threads)) {
            return Err(("fill_threads", format!("is out of range: it must be 1 to {THREADS}")));
        }
        if let Some(path) = self.driver_files.iter().find(|path| !path.is_absolute()) {
            return Err(("driver_files", format!("has {path:?}: it must be an absolute path")));
        }
        match &self.criu {
            Some(criu) if !criu.is_absolute() => {
                Err(("criu", format!("is {criu:?}: it must be an absolute path, or absent to use PATH")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(error.to_string().contains("config.toml"), "{error}");
            format!("{error}: {source}")
        })
    }

    #[test]
    fn a_missing_file_means_the_defaults() {
        let config = Config::load(Path::new("/nonexistent/config.toml")).unwrap();
        assert_eq!(config.roots, [PathBuf::from("/var/lib/thaw/checkpoints")]);
        assert_eq!(load("").unwrap(), config);
    }

    #[test]
    fn all_keys_are_read() {
        let config = load(
            "roots = [\"/a\", \"/b\"]\nshared_namespaces = [\"golden\"]\ncriu = \"/usr/sbin/criu\"\n\
             memory = \"lazy\"\nfill_threads = 3\n\
             driver_files = [\"/usr/bin/nvidia-smi\"]\nmetrics = \"[::1]:9464\"\nevents = \"in-cluster\"",
        )
        .unwrap();
        assert_eq!(config.roots.len(), 2);
        assert_eq!(config.shared_namespaces, ["golden"]);
        assert_eq!((config.memory, config.fill_threads), (Memory::Lazy, Some(3)));
        assert_eq!(config.criu.unwrap(), Path::new("/usr/sbin/criu"));
        assert_eq!(config.driver_files, [PathBuf::from("/usr/bin/nvidia-smi")]);
        assert_eq!(config.metrics, Metrics::Port("[::1]:9464".parse().unwrap()));
    }

    #[test]
    fn every_bad_file_is_refused_and_the_key_named() {
        for (text, key) in [
            ("root = [\"/a\"]", "root"),
            ("roots = 1", "roots"),
            ("roots = []", "roots"),
            ("roots = [\"a\"]", "roots"),
            ("shared_namespaces = [\"../x\"]", "shared_namespaces"),
            ("criu = \"criu\"", "criu"),
            ("memory = \"soon\"", "memory"),
            ("fill_threads = 0", "fill_threads"),
            ("driver_files = [\"lib\"]", "driver_files"),
            ("metrics = \"0.0.0.0:9464\"", "metrics"),
            ("events = \"kubelet.conf\"", "events"),
            ("roots = [", "roots"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
