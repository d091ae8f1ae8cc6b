// SPDX-License-Identifier: Apache-2.0
//! The case `image`: what one does without thaw. The archive becomes an image by buildah, is pushed to a
//! registry, pulled by the node, and restored by containerd.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use anyhow::Context;

use super::frozen::Frozen;
use super::record::{Record, timed};
use super::registry::ADDRESS;
use super::steps::Steps;
use super::{Bench, command, workload};
use crate::kubelet::cri::api::{ImageSpec, PullImageRequest, RemoveImageRequest};

/// Tells containerd that the image is a checkpoint. Source: containerd, `internal/cri/annotations`.
const MARK: &str = "org.criu.checkpoint.container.name";

/// Goes the whole way once; the registry is empty but for the base image.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let name = format!("{ADDRESS}/thaw/frozen:1");
    let buildah = Buildah::new(bench)?;
    let made = make_image(&buildah, frozen, &name, record).await;
    let pushed = match made {
        Ok(()) => {
            let push = async { buildah.run(&["push", "--tls-verify=false", &name]) };
            record.step("image.push", timed(push)).await
        }
        Err(error) => Err(error),
    };
    // Nothing of buildah's is needed any more.
    let removed = buildah.run(&["rmi", "--all", "--force"]);
    pushed.and(removed)?;

    let image = Some(ImageSpec { image: name.clone(), ..ImageSpec::default() });
    let pull = async { Ok(bench.kubelet.cri.pull_image(PullImageRequest { image: image.clone() }).await?) };
    record.step("image.pull", timed(pull)).await?;
    let restored = restore(bench, frozen, &name, record).await;
    let removed = bench.kubelet.cri.remove_image(RemoveImageRequest { image }).await;
    restored?;
    removed?;

    let making = ["image.buildah_add", "image.buildah_commit", "image.buildah_rm", "image.push"];
    let using = ["image.pull", "image.sandbox", "image.create", "image.running"];
    record.sum("image.from_registry", &using);
    record.sum("image.all", &[making, using].concat());
    Ok(())
}

async fn make_image(
    buildah: &Buildah,
    frozen: &Frozen,
    name: &str,
    record: &mut Record,
) -> anyhow::Result<()> {
    let add = async {
        let container = buildah.run(&["from", "scratch"])?;
        buildah.run(&["add".as_ref(), container.as_ref(), frozen.archive.as_os_str(), "/".as_ref()])?;
        Ok(container)
    };
    let container = record.step("image.buildah_add", timed(add)).await?;
    let commit = async {
        let mark = format!("--annotation={MARK}={}", workload::CONTAINER);
        buildah.run(&["config", &mark, &container])?;
        buildah.run(&["commit", &container, name])
    };
    record.step("image.buildah_commit", timed(commit)).await?;
    record.step("image.buildah_rm", timed(async { buildah.run(&["rm", &container]) })).await?;
    Ok(())
}

async fn restore(bench: &Bench, frozen: &Frozen, image: &str, record: &mut Record) -> anyhow::Result<()> {
    let steps = Steps::sandbox(bench, "image", frozen.pod(bench, "image", "runc", image)?, record).await?;
    let restored = steps.restore(image, &frozen.checksum, record).await;
    // The image cannot go while a container is made from it.
    bench.kubelet.remove(&steps.state, Some(0)).await?;
    restored.map(drop)
}

/// buildah with its data on the disk.
#[derive(Debug)]
struct Buildah {
    config: std::path::PathBuf,
}

impl Buildah {
    fn new(bench: &Bench) -> anyhow::Result<Self> {
        let config = bench.work.join("storage.conf");
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}/containers\"\n\
             runroot = \"/run/thaw-bench/containers\"\n",
            bench.work.display()
        );
        fs::write(&config, text).context("cannot write buildah's configuration")?;
        Ok(Self { config })
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<String> {
        let mut buildah = Command::new("buildah");
        buildah
            .args(arguments)
            .env("CONTAINERS_STORAGE_CONF", &self.config)
            .env("BUILDAH_ISOLATION", "chroot");
        command::finish(&mut buildah)
    }
}
