// SPDX-License-Identifier: Apache-2.0
//! A pod that is brought up call by call, each one measured: RunPodSandbox, CreateContainer, StartContainer.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Bench;
use super::record::{Record, timed};
use super::workload;
use crate::kubelet::container::{Instance, log_path, mount};
use crate::kubelet::cri::api::{
    CreateContainerRequest, Image, ImageSpec, ImageStatusRequest, LinuxContainerResources, Mount,
    StartContainerRequest,
};
use crate::kubelet::pod_dir::make_dir;
use crate::kubelet::pod_spec::{Container, Pod};
use crate::kubelet::resources::Amounts;
use crate::kubelet::sandbox;
use crate::kubelet::state::PodState;

/// Where containers find their service account. Source: Kubernetes, the service account admission plugin.
const SERVICE_ACCOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// As kubelet sets it for pods without requests. Source: kubelet, `pkg/kubelet/qos/policy.go`.
const OOM_SCORE_ADJ: i64 = 1000;

/// A pod whose one container is restored in steps.
#[derive(Debug)]
pub(crate) struct Steps<'a> {
    bench: &'a Bench,
    /// `thaw`, for the metrics `thaw.sandbox`, `thaw.create`, `thaw.running` and their sum `thaw.pod`.
    case: &'static str,
    pub(crate) state: PodState,
    container: Container,
}

impl<'a> Steps<'a> {
    /// Runs the sandbox of `pod`; its container comes later.
    pub(crate) async fn sandbox(
        bench: &'a Bench,
        case: &'static str,
        mut pod: Pod,
        record: &mut Record,
    ) -> anyhow::Result<Self> {
        let container = pod.spec.containers.pop().context("the pod has no container")?;
        let step = async {
            bench.kubelet.cri.take_times();
            let state = bench.kubelet.run(pod).await?;
            let times = bench.kubelet.cri.take_times();
            let call =
                times.iter().find(|time| time.call == "RunPodSandbox").context("no sandbox was run")?;
            Ok((state, Duration::from_secs_f64(call.ms / 1e3)))
        };
        let state = record.step(&format!("{case}.sandbox"), step).await?;
        Ok(Self { bench, case, state, container })
    }

    /// Creates the container from `image`, a name or what the runtime takes for one. Returns its id.
    pub(crate) async fn create(&self, image: &str, record: &mut Record) -> anyhow::Result<String> {
        let request = self.create_request(image).await?;
        let cri = &self.bench.kubelet.cri;
        let create = timed(async { Ok(cri.create_container(request).await?.container_id) });
        record.step(&format!("{}.create", self.case), create).await
    }

    /// Starts it, until its first beat; `began` becomes the moment of the call.
    pub(crate) async fn start(
        &self,
        container_id: &str,
        began: &Cell<Instant>,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let case = self.case;
        let request = StartContainerRequest { container_id: container_id.to_owned() };
        let start = async {
            began.set(Instant::now());
            Ok(self.bench.kubelet.cri.start_container(request).await?)
        };
        record.until_beat(&format!("{case}.running"), &self.bench.heartbeat, start).await?;
        let steps = ["sandbox", "create", "running"].map(|step| format!("{case}.{step}"));
        record.sum(&format!("{case}.pod"), &steps.each_ref().map(String::as_str));
        Ok(())
    }

    /// Fails when its memory is not the frozen one.
    pub(crate) async fn verify(&self, checksum: &str) -> anyhow::Result<()> {
        workload::verify(&self.state.ip, checksum).await
    }

    /// Creates the container, starts it, and verifies its memory. Returns its id.
    pub(crate) async fn restore(
        &self,
        image: &str,
        checksum: &str,
        record: &mut Record,
    ) -> anyhow::Result<String> {
        let container_id = self.create(image, record).await?;
        self.start(&container_id, &Cell::new(Instant::now()), record).await?;
        self.verify(checksum).await?;
        Ok(container_id)
    }

    async fn create_request(&self, image: &str) -> anyhow::Result<CreateContainerRequest> {
        let (kubelet, state) = (&self.bench.kubelet, &self.state);
        let instance = Instance {
            pod: &state.pod,
            uid: &state.uid,
            container: &self.container,
            attempt: 0,
            target_id: None,
            image: &self.image(image).await?,
            env: Vec::new(),
            mounts: self.mounts()?,
            resources: LinuxContainerResources {
                oom_score_adj: OOM_SCORE_ADJ,
                ..LinuxContainerResources::default()
            },
            seccomp_default: false,
        };
        let config = instance.config();
        let amounts = Amounts::of_pod(&state.pod)?;
        let sandbox = sandbox::config(&state.pod, &state.uid, &state.cgroup, &amounts, &kubelet.settings);
        if let Some(log) = Path::new(&sandbox.log_directory).join(log_path(&self.container, 0)).parent() {
            make_dir(log, 0o755)?;
        }
        Ok(CreateContainerRequest {
            pod_sandbox_id: state.sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        })
    }

    /// A path stands for itself: containerd takes an archive for an image, though kubelet does not.
    async fn image(&self, name: &str) -> anyhow::Result<Image> {
        if name.starts_with('/') {
            return Ok(Image { id: name.to_owned(), ..Image::default() });
        }
        let spec = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
        let request = ImageStatusRequest { image: Some(spec) };
        let found = self.bench.kubelet.cri.image_status(request).await?.image;
        found.with_context(|| format!("image {name} is not on the node"))
    }

    fn mounts(&self) -> anyhow::Result<Vec<Mount>> {
        let dir = self.bench.kubelet.pod_dir(&self.state);
        dir.write_etc_hosts(&crate::kubelet::pod_dir::etc_hosts_text(
            &self.state.ip,
            &self.state.pod.hostname(),
        ))?;
        let mut mounts = Vec::new();
        for (name, path) in &self.state.volumes {
            match self.container.volume_mounts.iter().find(|mount| mount.name == *name) {
                Some(wanted) => mounts.push(mount(&wanted.mount_path, path, wanted.read_only)),
                None if name.starts_with("kube-api-access-") => {
                    mounts.push(mount(SERVICE_ACCOUNT_PATH, path, true));
                }
                None => bail!("nothing mounts volume {name}"),
            }
        }
        mounts.push(mount("/etc/hosts", &dir.etc_hosts(), false));
        let log = dir.new_termination_log(&self.container.name)?;
        mounts.push(mount(&self.container.termination_message_path, &log, false));
        Ok(mounts)
    }
}
