// SPDX-License-Identifier: Apache-2.0
//! The pod's directory: `<root>/pods/<uid>/`, laid out as kubelet does it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

use super::error::KubeletError;
use super::mountinfo;

/// One pod's directory.
#[derive(Debug, Clone)]
pub struct PodDir {
    path: PathBuf,
}

impl PodDir {
    /// The directory of the pod with this uid; it need not exist.
    #[must_use]
    pub fn new(root: &Path, uid: &str) -> Self {
        Self { path: pods(root).join(uid) }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `etc-hosts`, mounted at `/etc/hosts`.
    #[must_use]
    pub fn etc_hosts(&self) -> PathBuf {
        self.path.join("etc-hosts")
    }

    /// A volume of a plugin; the plugin's slashes are tildes, as in `kubernetes.io~empty-dir`.
    #[must_use]
    pub fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.path.join("volumes").join(plugin).join(name)
    }

    /// Where the sub path of a container's `index`th volume mount is bound.
    #[must_use]
    pub fn sub_path(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        self.path.join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// [`KubeletError::File`], also when it exists already.
    pub fn create(&self) -> Result<(), KubeletError> {
        if let Some(pods) = self.path.parent() {
            make_dir(pods, 0o750)?;
        }
        for dir in [self.path.clone(), self.path.join("volumes"), self.path.join("plugins")] {
            DirBuilder::new()
                .mode(0o750)
                .create(&dir)
                .map_err(|source| KubeletError::file("make", &dir, source))?;
        }
        Ok(())
    }

    /// Writes `etc-hosts` again, as kubelet does at each start of a container.
    ///
    /// # Errors
    /// [`KubeletError::File`].
    pub fn write_etc_hosts(&self, text: &str) -> Result<(), KubeletError> {
        let path = self.etc_hosts();
        fs::write(&path, text).map_err(|source| KubeletError::file("write", &path, source))?;
        set_mode(&path, 0o644)
    }

    /// Makes a new file for a container's termination message: eight random hexadecimal digits.
    ///
    /// # Errors
    /// [`KubeletError::File`].
    pub fn new_termination_log(&self, container: &str) -> Result<PathBuf, KubeletError> {
        let dir = self.path.join("containers").join(container);
        make_dir(&dir, 0o750)?;
        let path = dir.join(random_text(8, b"0123456789abcdef"));
        File::create_new(&path).map_err(|source| KubeletError::file("make", &path, source))?;
        set_mode(&path, 0o666)?;
        Ok(path)
    }

    /// Unmounts what is mounted beneath and removes the directory. Nothing is removed while a mount is left:
    /// it may lead to a directory of the node.
    ///
    /// # Errors
    /// [`KubeletError::StillMounted`]; [`KubeletError::File`].
    pub fn remove(&self) -> Result<(), KubeletError> {
        let points = || {
            mountinfo::mount_points_beneath(&self.path)
                .map_err(|source| KubeletError::file("read", "/proc/self/mountinfo", source))
        };
        for point in points()? {
            // A mount that stays is reported below, by what is then really left.
            let _ = rustix::mount::unmount(&point, UnmountFlags::NOFOLLOW);
        }
        let left = points()?;
        if !left.is_empty() {
            let left = left.iter().map(|point| point.display().to_string()).collect();
            return Err(KubeletError::StillMounted { dir: self.path.clone(), left });
        }
        remove_dir(&self.path)
    }
}

/// The directory of all pods.
#[must_use]
pub fn pods(root: &Path) -> PathBuf {
    root.join("pods")
}

/// The directory of a pod's logs.
#[must_use]
pub fn logs(pod_logs_dir: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
}

/// The text of `/etc/hosts` for a pod with this address. Source: kubelet, `pkg/kubelet/kubelet_pods.go`.
#[must_use]
pub fn etc_hosts_text(ip: &str, hostname: &str) -> String {
    format!(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n\
         {ip}\t{hostname}\n"
    )
}

/// `length` random characters of `alphabet`.
#[must_use]
pub fn random_text(length: usize, alphabet: &[u8]) -> String {
    let mut bytes = vec![0_u8; length];
    // The kernel's generator cannot fail once it is seeded, and it is long before there are containers.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let pick = |byte: u8| alphabet.get(usize::from(byte) % alphabet.len().max(1)).copied().unwrap_or(b'0');
    bytes.into_iter().map(|byte| char::from(pick(byte))).collect()
}

/// A random uid in the form of the API server's: a version 4 UUID.
#[must_use]
pub fn random_uid() -> String {
    let hex = |length| random_text(length, b"0123456789abcdef");
    format!("{}-{}-4{}-{}{}-{}", hex(8), hex(4), hex(3), random_text(1, b"89ab"), hex(3), hex(12))
}

/// Makes a directory and what is missing above it.
///
/// # Errors
/// [`KubeletError::File`].
pub fn make_dir(path: &Path, mode: u32) -> Result<(), KubeletError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| KubeletError::file("make", path, source))
}

/// Sets permissions, whatever the umask was.
///
/// # Errors
/// [`KubeletError::File`].
pub fn set_mode(path: &Path, mode: u32) -> Result<(), KubeletError> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| KubeletError::file("set the mode of", path, source))
}

/// Removes a directory with its contents, where it exists.
///
/// # Errors
/// [`KubeletError::File`].
pub fn remove_dir(path: &Path) -> Result<(), KubeletError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(KubeletError::file("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a file so that a reader sees the old text or the new one, never a part.
///
/// # Errors
/// [`KubeletError::File`].
pub fn write_atomically(path: &Path, text: &[u8]) -> Result<(), KubeletError> {
    let next = path.with_extension("next");
    let write = || {
        let mut file = File::create(&next)?;
        file.write_all(text)?;
        fs::rename(&next, path)
    };
    write().map_err(|source| KubeletError::file("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etc_hosts_ends_with_the_pods_own_address() {
        assert!(etc_hosts_text("10.88.0.7", "p").ends_with("fe00::2\tip6-allrouters\n10.88.0.7\tp\n"));
    }

    #[test]
    fn random_names_have_their_form_and_differ() {
        let (one, two) = (random_uid(), random_uid());
        assert_ne!(one, two);
        assert_eq!(one.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(one.as_bytes()[14], b'4');
    }

    #[test]
    fn each_termination_log_is_a_new_file() {
        let root = tempfile::tempdir().unwrap();
        let dir = PodDir::new(root.path(), "u");
        dir.create().unwrap();
        let (one, two) = (dir.new_termination_log("c").unwrap(), dir.new_termination_log("c").unwrap());
        assert_ne!(one, two);
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o666);
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }
}
