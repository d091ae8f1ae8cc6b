// SPDX-License-Identifier: Apache-2.0
//! Which Kubernetes a node runs, and where that keeps containerd's files.
//!
//! RKE2 and k3s bring a containerd of their own, generate its configuration at each start, and run it as a child.
//! Source: RKE2 1.36 and k3s 1.36, `pkg/agent/containerd` and `pkg/cli/cmds`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::tree::{Tree, TreeError};

/// Who brings containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// RKE2, server or agent
    Rke2,
    /// k3s, server or agent
    K3s,
    /// A containerd of its own, as with kubeadm
    Containerd,
}

/// A node's Kubernetes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Distribution {
    pub(crate) kind: Kind,
    /// Whether it is a server (control plane); false for an agent, and for containerd alone.
    pub(crate) server: bool,
    /// Where RKE2 or k3s keeps everything.
    #[serde(skip)]
    data: PathBuf,
}

/// The node's Kubernetes was not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DistributionError {
    #[error(
        "there is no RKE2, k3s or containerd on this node; where it keeps its data elsewhere, say so with --data-dir"
    )]
    None,
    #[error("this node has both RKE2 and k3s; say which one is meant with --distribution")]
    Several,
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl Distribution {
    /// Finds out, except for what the command line says already.
    pub(crate) fn find(
        tree: &Tree,
        kind: Option<Kind>,
        data: Option<&Path>,
    ) -> Result<Self, DistributionError> {
        let found = |kind| -> Result<Option<Self>, TreeError> {
            let data = match (data, data_dir(kind)) {
                (Some(data), _) => data.to_owned(),
                (None, None) => PathBuf::new(),
                (None, Some(default)) => configured_data_dir(tree, kind)?.unwrap_or_else(|| default.into()),
            };
            let server = is_server(tree, kind, &data);
            let this = Self { kind, server, data };
            let proof = match kind {
                Kind::Rke2 | Kind::K3s => this.data.join("agent"),
                Kind::Containerd => this.config(),
            };
            Ok((tree.exists(&proof) || this.containerd(tree)?.is_some()).then_some(this))
        };
        if let Some(kind) = kind {
            return found(kind)?.ok_or(DistributionError::None);
        }
        match (found(Kind::Rke2)?, found(Kind::K3s)?) {
            (Some(_), Some(_)) => Err(DistributionError::Several),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => found(Kind::Containerd)?.ok_or(DistributionError::None),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match (self.kind, self.server) {
            (Kind::Rke2, true) => "RKE2 server",
            (Kind::Rke2, false) => "RKE2 agent",
            (Kind::K3s, true) => "k3s server",
            (Kind::K3s, false) => "k3s agent",
            (Kind::Containerd, _) => "containerd",
        }
    }

    /// The systemd unit that containerd runs in.
    pub(crate) fn service(&self) -> &'static str {
        match (self.kind, self.server) {
            (Kind::Rke2, true) => "rke2-server",
            (Kind::Rke2, false) => "rke2-agent",
            (Kind::K3s, true) => "k3s",
            (Kind::K3s, false) => "k3s-agent",
            (Kind::Containerd, _) => "containerd",
        }
    }

    /// Whether containerd's configuration is generated, so that it must not be edited.
    pub(crate) fn generates(&self) -> bool {
        self.kind != Kind::Containerd
    }

    /// containerd's configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.config_file("config.toml")
    }

    /// A file beside containerd's configuration.
    pub(crate) fn config_file(&self, name: &str) -> PathBuf {
        match self.kind {
            Kind::Rke2 | Kind::K3s => self.data.join("agent/etc/containerd").join(name),
            Kind::Containerd => Path::new("/etc/containerd").join(name),
        }
    }

    pub(crate) fn socket(&self) -> &'static Path {
        Path::new(match self.kind {
            Kind::Rke2 | Kind::K3s => "/run/k3s/containerd/containerd.sock",
            Kind::Containerd => "/run/containerd/containerd.sock",
        })
    }

    /// The containerd program that runs, or would run, here.
    pub(crate) fn containerd(&self, tree: &Tree) -> Result<Option<PathBuf>, TreeError> {
        let mut places = match self.kind {
            Kind::Rke2 => vec![self.data.join("bin")],
            Kind::K3s => vec![self.data.join("data/current/bin")],
            Kind::Containerd => vec!["/usr/local/bin".into(), "/usr/bin".into()],
        };
        if self.generates() {
            // Unpacked releases; without the link to the current one the last in order is the best guess.
            let releases = tree.names(&self.data.join("data"))?;
            places.extend(releases.iter().rev().map(|name| self.data.join("data").join(name).join("bin")));
        }
        Ok(places.into_iter().map(|place| place.join("containerd")).find(|program| tree.exists(program)))
    }
}

/// Where a distribution keeps its data unless it is told otherwise.
fn data_dir(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Rke2 => Some("/var/lib/rancher/rke2"),
        Kind::K3s => Some("/var/lib/rancher/k3s"),
        Kind::Containerd => None,
    }
}

/// `data-dir` in the distribution's own configuration; the last one counts.
fn configured_data_dir(tree: &Tree, kind: Kind) -> Result<Option<PathBuf>, TreeError> {
    let folder = Path::new(match kind {
        Kind::Rke2 => "/etc/rancher/rke2",
        Kind::K3s => "/etc/rancher/k3s",
        Kind::Containerd => return Ok(None),
    });
    let mut files = vec![folder.join("config.yaml")];
    let drop_ins = folder.join("config.yaml.d");
    files.extend(
        tree.names(&drop_ins)?.iter().filter(|name| name.ends_with(".yaml")).map(|n| drop_ins.join(n)),
    );
    let mut found = None;
    for file in files {
        let text = tree.read(&file)?.unwrap_or_default();
        let values = text.lines().filter_map(|line| line.strip_prefix("data-dir:"));
        found = values.map(|value| value.trim().trim_matches(['"', '\'']).into()).next_back().or(found);
    }
    Ok(found)
}

/// Which of the two units is switched on decides; both may be installed.
fn is_server(tree: &Tree, kind: Kind, data: &Path) -> bool {
    let wants = |unit| tree.exists(&Path::new("/etc/systemd/system/multi-user.target.wants").join(unit));
    let (server, agent) = match kind {
        Kind::Rke2 => ("rke2-server.service", "rke2-agent.service"),
        Kind::K3s => ("k3s.service", "k3s-agent.service"),
        Kind::Containerd => return false,
    };
    wants(server) || (!wants(agent) && tree.exists(&data.join("server")))
}
