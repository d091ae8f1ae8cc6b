// SPDX-License-Identifier: Apache-2.0
//! A pod's volumes on the node: made before its sandbox, gone with its directory.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::error::KubeletError;
use super::payload;
use super::pod_dir::{PodDir, make_dir, random_text, set_mode};
use super::pod_spec::{EmptyDir, HostPath, HostPathType, Medium, MountPropagation, Pod, Volume, VolumeMount};
use super::settings::Settings;

/// Where containers find their service account. Source: Kubernetes, the service account admission plugin.
const SERVICE_ACCOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The characters of random name endings. Source: Kubernetes, `apimachinery/pkg/util/rand`.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The authority in `ca.crt`. Nothing holds its key; it is there to be parsed.
const CA: &str = include_str!("ca.crt");

/// Adds the projected volume with the service account's token to a pod and mounts it in each container that
/// mounts nothing of its own there, as the API server does at admission.
pub fn name_service_account(pod: &mut Pod) -> Option<String> {
    if !pod.spec.automount_service_account_token {
        return None;
    }
    let name = format!("kube-api-access-{}", random_text(5, NAME_ALPHABET));
    for container in pod.spec.init_containers.iter_mut().chain(&mut pod.spec.containers) {
        if container.volume_mounts.iter().all(|mount| mount.mount_path != SERVICE_ACCOUNT_PATH) {
            container.volume_mounts.push(VolumeMount {
                name: name.clone(),
                mount_path: SERVICE_ACCOUNT_PATH.to_owned(),
                sub_path: String::new(),
                mount_propagation: MountPropagation::None,
                read_only: true,
            });
        }
    }
    Some(name)
}

/// Makes every volume of the pod and returns where each is on the node. `service_account` is the name from
/// [`name_service_account`].
///
/// # Errors
/// [`KubeletError::File`] and [`KubeletError::NoConfig`].
pub fn set_up(
    pod: &Pod,
    service_account: Option<&str>,
    dir: &PodDir,
    settings: &Settings,
) -> Result<BTreeMap<String, PathBuf>, KubeletError> {
    let mut paths = BTreeMap::new();
    for volume in &pod.spec.volumes {
        paths.insert(volume.name.clone(), make(pod, volume, dir, settings)?);
    }
    if let Some(name) = service_account {
        let path = dir.volume("kubernetes.io~projected", name);
        make_tmpfs(&path, None)?;
        payload::write(&path, &service_account_files(pod))?;
        own(pod, &path, 0o440)?;
        paths.insert(name.to_owned(), path);
    }
    Ok(paths)
}

fn make(pod: &Pod, volume: &Volume, dir: &PodDir, settings: &Settings) -> Result<PathBuf, KubeletError> {
    if let Some(host) = &volume.host_path {
        return check_host_path(host);
    }
    let (plugin, mask) = if volume.empty_dir.is_some() {
        ("kubernetes.io~empty-dir", 0o660)
    } else if volume.secret.is_some() {
        ("kubernetes.io~secret", 0o440)
    } else {
        ("kubernetes.io~configmap", 0o440)
    };
    let path = dir.volume(plugin, &volume.name);
    match &volume.empty_dir {
        Some(EmptyDir { medium: Medium::Memory, size_limit }) => {
            make_tmpfs(&path, size_limit.as_ref().and_then(super::quantity::Quantity::units))?;
        }
        None if volume.secret.is_some() => make_tmpfs(&path, None)?,
        Some(_) | None => make_open_dir(&path)?,
    }
    let config = volume.config_map.as_ref().map(|source| ("configmap", &source.name));
    let secret = volume.secret.as_ref().map(|source| ("secret", &source.secret_name));
    if let Some((kind, name)) = config.or(secret) {
        let Some(root) = &settings.config_dir else {
            return Err(KubeletError::NoConfig { volume: volume.name.clone(), kind, name: name.clone() });
        };
        payload::write(&path, &files_of(&root.join(kind).join(name))?)?;
    }
    own(pod, &path, mask)?;
    Ok(path)
}

fn check_host_path(host: &HostPath) -> Result<PathBuf, KubeletError> {
    let path = PathBuf::from(&host.path);
    if host.kind == HostPathType::DirectoryOrCreate {
        make_dir(&path, 0o755)?;
    }
    let metadata = fs::metadata(&path);
    let right = match host.kind {
        HostPathType::Unchecked => return Ok(path),
        HostPathType::Directory | HostPathType::DirectoryOrCreate => metadata.map(|found| found.is_dir()),
        HostPathType::File => metadata.map(|found| found.is_file()),
    };
    match right {
        Ok(true) => Ok(path),
        Ok(false) => Err(KubeletError::file(
            "use as hostPath of the given type",
            &path,
            std::io::ErrorKind::InvalidInput,
        )),
        Err(source) => Err(KubeletError::file("use as hostPath", &path, source)),
    }
}

/// A directory that everybody may write to. Source: kubelet, `pkg/volume/emptydir`, mode 0777.
fn make_open_dir(path: &Path) -> Result<(), KubeletError> {
    if let Some(plugin) = path.parent() {
        make_dir(plugin, 0o750)?;
    }
    make_dir(path, 0o777)?;
    set_mode(path, 0o777)
}

fn make_tmpfs(path: &Path, size_bytes: Option<i64>) -> Result<(), KubeletError> {
    make_open_dir(path)?;
    let options = size_bytes.map(|bytes| CString::new(format!("size={bytes}"))).transpose();
    let options = options.map_err(|source| KubeletError::file("mount a tmpfs at", path, source))?;
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_deref())
        .map_err(|source| KubeletError::file("mount a tmpfs at", path, source))?;
    set_mode(path, 0o777)
}

fn service_account_files(pod: &Pod) -> Vec<payload::File> {
    // Source: kubelet, pkg/volume/projected: with an fsGroup the token is for its owner and that group alone.
    let token_mode = if pod.spec.security_context.fs_group.is_some() { 0o600 } else { 0o644 };
    // No API server stands behind it, so it is random text of a token's form and size.
    let part =
        |length| random_text(length, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_");
    let token = format!("{}.{}.{}", part(88), part(680), part(342));
    let file = |name: &str, content: &str, mode| payload::File {
        name: name.to_owned(),
        content: content.as_bytes().to_vec(),
        mode,
    };
    vec![
        file("ca.crt", CA, 0o644),
        file("namespace", &pod.metadata.namespace, 0o644),
        file("token", &token, token_mode),
    ]
}

fn files_of(dir: &Path) -> Result<Vec<payload::File>, KubeletError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| KubeletError::file("list", dir, source))? {
        let entry = entry.map_err(|source| KubeletError::file("list", dir, source))?;
        let content =
            fs::read(entry.path()).map_err(|source| KubeletError::file("read", entry.path(), source))?;
        files.push(payload::File {
            name: entry.file_name().to_string_lossy().into_owned(),
            content,
            mode: 0o644,
        });
    }
    Ok(files)
}

/// Gives the volume to the pod's fsGroup, where it has one: `mask` is added to the permissions of files, and
/// directories hand their group on. Source: kubelet, `pkg/volume/volume_linux.go`.
fn own(pod: &Pod, path: &Path, mask: u32) -> Result<(), KubeletError> {
    let Some(group) = pod.spec.security_context.fs_group else { return Ok(()) };
    own_tree(path, group, mask)
}

fn own_tree(path: &Path, group: u32, mask: u32) -> Result<(), KubeletError> {
    let found = fs::symlink_metadata(path).map_err(|source| KubeletError::file("look at", path, source))?;
    lchown(path, None, Some(group))
        .map_err(|source| KubeletError::file("change the group of", path, source))?;
    if found.is_symlink() {
        return Ok(());
    }
    if !found.is_dir() {
        return set_mode(path, found.mode() & 0o7777 | mask);
    }
    set_mode(path, found.mode() & 0o7777 | mask | 0o2110)?;
    for entry in fs::read_dir(path).map_err(|source| KubeletError::file("list", path, source))?.flatten() {
        own_tree(&entry.path(), group, mask)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        Pod::parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, \
             spec: {{{spec} containers: [{{name: c, image: i}}]}}}}"
        ))
        .unwrap()
    }

    #[test]
    fn the_service_account_is_mounted_last_and_read_only() {
        let mut pod = pod("");
        let name = name_service_account(&mut pod).unwrap();
        assert_eq!(name.len(), "kube-api-access-".len() + 5);
        let mount = pod.spec.containers[0].volume_mounts.last().unwrap();
        assert!(mount.read_only && mount.name == name && mount.mount_path == SERVICE_ACCOUNT_PATH);
    }

    #[test]
    fn without_automount_there_is_no_service_account() {
        let mut pod = pod("automountServiceAccountToken: false,");
        assert_eq!(name_service_account(&mut pod), None);
        assert!(pod.spec.containers[0].volume_mounts.is_empty());
    }

    #[test]
    fn a_config_map_without_a_configuration_folder_is_an_error_that_names_it() {
        let pod = pod("volumes: [{name: v, configMap: {name: app}}],");
        let root = tempfile::tempdir().unwrap();
        let dir = PodDir::new(root.path(), "u");
        let error = set_up(&pod, None, &dir, &Settings::default()).unwrap_err().to_string();
        assert!(error.contains("configmap app"), "{error}");
    }

    #[test]
    fn a_host_path_of_another_type_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |kind| HostPath { path: file.path().to_str().unwrap().to_owned(), kind };
        assert!(check_host_path(&of(HostPathType::File)).is_ok());
        assert!(check_host_path(&of(HostPathType::Directory)).is_err());
    }
}
