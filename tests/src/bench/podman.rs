// SPDX-License-Identifier: Apache-2.0
//! The case `podman`: Podman's own restore, from the directory into which it froze its container. It runs and freezes the
//! same program by itself, with runc, and restores that.

use std::net::IpAddr;
use std::process::Command;

use anyhow::Context;

use super::record::Record;
use super::restore::LOCAL_IMAGE;
use super::{Bench, command, workload};

/// The network of its container; the default one would be that of the node's pods.
const NETWORK: &str = "bench";
const SUBNET: &str = "10.89.0.0/24";
/// The container's name.
const NAME: &str = "bench-podman";

/// Podman's own frozen program; removed on drop.
#[derive(Debug)]
pub(crate) struct Podman<'a> {
    bench: &'a Bench,
    megabytes: u64,
    /// Its address and the checksum of its memory, once it is frozen.
    frozen: Option<(IpAddr, String)>,
}

impl<'a> Podman<'a> {
    /// With so much memory; nothing is done before the first restore.
    pub(crate) fn new(bench: &'a Bench, megabytes: u64) -> Self {
        Self { bench, megabytes, frozen: None }
    }

    /// Restores once; the reason where there is no Podman.
    pub(crate) async fn measure(&mut self, record: &mut Record) -> anyhow::Result<Option<String>> {
        if let Err(error) = command::run("podman", &["--version"]) {
            return Ok(Some(format!("{error:#}")));
        }
        let (address, checksum) = match self.frozen.take() {
            Some(frozen) => frozen,
            None => self.freeze(record).await?,
        };
        let restore = async { self.run(&["container", "restore", "--keep", NAME]) };
        record.until_beat("podman.running", &self.bench.heartbeat, restore).await?;
        let verified = workload::verify(&address.to_string(), &checksum).await;
        self.run(&["kill", NAME])?;
        self.run(&["wait", NAME])?;
        self.frozen = Some((address, checksum));
        verified.map(|()| None)
    }

    /// Runs the program and freezes it; with `--keep` the images stay for all restores.
    async fn freeze(&self, record: &mut Record) -> anyhow::Result<(IpAddr, String)> {
        // What an earlier size left.
        let _ = self.run(&["rm", "--force", NAME]);
        if self.run(&["image", "exists", LOCAL_IMAGE]).is_err() {
            let archive = self.bench.work.join("image.tar");
            let exported = ["-n", "k8s.io", "images", "export", &archive.to_string_lossy(), LOCAL_IMAGE];
            command::run("ctr", &exported)?;
            self.run(&["load", "--quiet", "--input", &archive.to_string_lossy()])?;
            self.run(&["network", "create", "--subnet", SUBNET, NETWORK])?;
        }
        let volume = format!("{}:/heartbeat", self.bench.heartbeat.dir().display());
        let command = workload::command(self.megabytes);
        // Among the node's own, which goes with it.
        let parent = format!("/{}/podman", self.bench.kubelet.settings.cgroup_parent);
        let mut run = vec!["run", "--detach", "--name", NAME, "--network", NETWORK, "--volume", &volume];
        run.extend(["--cgroup-parent", &parent, LOCAL_IMAGE]);
        run.extend(command.iter().map(String::as_str));
        let watch = self.bench.heartbeat.watch()?;
        self.run(&run)?;
        watch.beat()?;
        let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = self.run(&["inspect", "--format", address, NAME])?;
        let checksum = workload::checksum(&address).await?;
        let freeze = async { self.run(&["container", "checkpoint", "--keep", NAME]) };
        record.step("podman.checkpoint", super::record::timed(freeze)).await?;
        Ok((address.parse().context("the container has no address")?, checksum))
    }

    /// Its data is on the disk, beside that of the node's runtime.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let root = self.bench.work.join("podman");
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(root).args(["--runroot", "/run/thaw-bench/podman", "--runtime", "runc"]);
        podman.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]).args(arguments);
        // It would be said with every command, on stderr.
        podman.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        command::finish(&mut podman)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Best effort: the node goes when the benchmark has ended.
        let _ = self.run(&["rm", "--force", NAME]);
    }
}
