// SPDX-License-Identifier: Apache-2.0
//! The options of a restore.

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, time::Duration};

use super::{LOG_LEVEL, ManageCgroups, Namespace, Tcp, base, bytes, ext_mounts, path, seconds};
use crate::proto::rpc::{CriuOpts, InheritFd, JoinNamespace};

/// What to restore, and into what.
///
/// Source of the fields: CRIU 4.2 images/rpc.proto, `criu_opts`; they have the same names there.
#[derive(Debug)]
pub struct RestoreOptions {
    /// The directory of the images. CRIU opens it through this process's `/proc/PID/fd`.
    pub images_dir: OwnedFd,
    /// CRIU's current directory: its log, `stats-restore`, `lazy-pages.socket`. Opened likewise.
    pub work_dir: OwnedFd,
    /// Name of CRIU's log in `work_dir`, without a slash.
    pub log_file: String,
    /// 0 (silent) to 4 (everything).
    pub log_level: i32,
    /// The root file system of the restored tree; must be a mount point.
    pub root: Option<PathBuf>,
    /// The restored init becomes a child of the caller of [`Swrk::spawn`](crate::Swrk::spawn).
    pub rst_sibling: bool,
    /// Key in the images (`pipe:[47029]`, `extRootNetNS`) and number in CRIU: 0 to 2 for its stdio, else
    /// what [`Swrk::inherit`](crate::Swrk::inherit) returned.
    pub inherit_fds: Vec<(OsString, i32)>,
    /// `ext_key` of an external mount and the host path that is mounted there.
    pub ext_mounts: Vec<(OsString, PathBuf)>,
    /// Other external resources, in CRIU's own notation.
    pub external: Vec<OsString>,
    /// Namespaces that init joins.
    pub join_ns: Vec<(Namespace, PathBuf)>,
    /// Make the network namespace but leave it empty.
    pub empty_net_ns: bool,
    /// What CRIU does about cgroups.
    pub manage_cgroups: ManageCgroups,
    /// Established TCP connections.
    pub tcp: Tcp,
    /// File locks are restored; must be as it was at the dump.
    pub file_locks: bool,
    /// Unix sockets with a peer outside of the tree are allowed.
    pub ext_unix_sk: bool,
    /// The session has its leader and terminal outside of the tree.
    pub shell_job: bool,
    /// A device file may be opened by any path that leads to the device.
    pub evasive_devices: bool,
    /// Masters of terminals are handed over with [`Event::OrphanPtsMaster`](crate::Event::OrphanPtsMaster).
    pub orphan_pts_master: bool,
    /// CRIU's first mount engine.
    pub mntns_compat_mode: bool,
    /// Do not compare the permission bits of files.
    pub skip_file_rwx_check: bool,
    /// Memory comes from the daemon at `lazy-pages.socket` in `work_dir`.
    pub lazy_pages: bool,
    /// A missing sysctl is not an error.
    pub weak_sysctls: bool,
    /// External mounts may be shared.
    pub ext_sharing: bool,
    /// External mounts may be slaves.
    pub ext_masters: bool,
    /// `apparmor:NAME`, `selinux:LABEL`, instead of what the images hold.
    pub lsm_profile: Option<String>,
    /// SELinux mount context, instead of what the images hold.
    pub lsm_mount_context: Option<String>,
    /// CRIU's own limit; sent in whole seconds, rounded up.
    pub timeout: Option<Duration>,
    /// Bits of the CPU checks (1 FPU, 2 CPU, 4 instructions).
    pub cpu_cap: Option<u32>,
    /// A configuration file; what it says wins over every field here.
    pub config_file: Option<PathBuf>,
}

impl RestoreOptions {
    /// A restore of the images in `images_dir` as they are, logging to `restore.log` in `work_dir`.
    #[must_use]
    pub fn new(images_dir: OwnedFd, work_dir: OwnedFd) -> Self {
        Self {
            images_dir,
            work_dir,
            log_file: "restore.log".to_owned(),
            log_level: LOG_LEVEL,
            root: None,
            rst_sibling: false,
            inherit_fds: Vec::new(),
            ext_mounts: Vec::new(),
            external: Vec::new(),
            join_ns: Vec::new(),
            empty_net_ns: false,
            manage_cgroups: ManageCgroups::default(),
            tcp: Tcp::default(),
            file_locks: false,
            ext_unix_sk: false,
            shell_job: false,
            evasive_devices: false,
            orphan_pts_master: false,
            mntns_compat_mode: false,
            skip_file_rwx_check: false,
            lazy_pages: false,
            weak_sysctls: false,
            ext_sharing: false,
            ext_masters: false,
            lsm_profile: None,
            lsm_mount_context: None,
            timeout: None,
            cpu_cap: None,
            config_file: None,
        }
    }

    /// CRIU's message.
    pub(crate) fn to_opts(&self) -> CriuOpts {
        CriuOpts {
            root: self.root.as_deref().map(path),
            rst_sibling: Some(self.rst_sibling),
            inherit_fd: self.inherit_fds.iter().map(inherit_fd).collect(),
            ext_mnt: ext_mounts(&self.ext_mounts),
            external: self.external.iter().map(|key| bytes(key)).collect(),
            join_ns: self.join_ns.iter().map(join_ns).collect(),
            empty_ns: self.empty_net_ns.then_some(CLONE_NEWNET),
            manage_cgroups_mode: Some(self.manage_cgroups as u32),
            tcp_established: Some(self.tcp == Tcp::Established),
            tcp_close: Some(self.tcp == Tcp::Close),
            file_locks: Some(self.file_locks),
            ext_unix_sk: Some(self.ext_unix_sk),
            shell_job: Some(self.shell_job),
            evasive_devices: Some(self.evasive_devices),
            orphan_pts_master: Some(self.orphan_pts_master),
            mntns_compat_mode: Some(self.mntns_compat_mode),
            skip_file_rwx_check: Some(self.skip_file_rwx_check),
            lazy_pages: Some(self.lazy_pages),
            weak_sysctls: Some(self.weak_sysctls),
            ext_sharing: Some(self.ext_sharing),
            ext_masters: Some(self.ext_masters),
            lsm_profile: self.lsm_profile.as_deref().map(|text| text.as_bytes().to_vec()),
            lsm_mount_context: self.lsm_mount_context.as_deref().map(|text| text.as_bytes().to_vec()),
            timeout: self.timeout.map(seconds),
            cpu_cap: self.cpu_cap,
            config_file: self.config_file.as_deref().map(path),
            ..base(&self.images_dir, &self.work_dir, &self.log_file, self.log_level)
        }
    }
}

/// The only flag that CRIU takes in `empty_ns`. Source: linux/sched.h.
const CLONE_NEWNET: u32 = 0x4000_0000;

fn inherit_fd((key, fd): &(OsString, i32)) -> InheritFd {
    InheritFd { key: Some(bytes(key)), fd: Some(*fd), ..InheritFd::default() }
}

fn join_ns((ns, file): &(Namespace, PathBuf)) -> JoinNamespace {
    JoinNamespace { ns: Some(ns.name().to_owned()), ns_file: Some(path(file)), ..JoinNamespace::default() }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use protobuf::Message;

    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn varint(number: u32, value: u8) -> Vec<u8> {
        assert!(value < 0x80);
        let mut bytes = tag(number << 3);
        bytes.push(value);
        bytes
    }

    fn text(number: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = tag(number << 3 | 2);
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend_from_slice(value);
        bytes
    }

    fn tag(tag: u32) -> Vec<u8> {
        if tag < 0x80 {
            vec![u8::try_from(tag).unwrap()]
        } else {
            vec![u8::try_from(tag & 0x7f | 0x80).unwrap(), u8::try_from(tag >> 7).unwrap()]
        }
    }

    #[test]
    fn all_options_become_the_fields_of_criu_opts() {
        let mut options = RestoreOptions::new(null(), null());
        options.root = Some("/run/root".into());
        options.rst_sibling = true;
        options.inherit_fds = vec![("pipe:[7]".into(), 1), ("extRootNetNS".into(), 4)];
        options.ext_mounts = vec![("/etc/hosts".into(), "/pods/hosts".into())];
        options.external = vec!["dev[1/3]:null".into()];
        options.join_ns = vec![(Namespace::Uts, "/ns/uts".into())];
        options.tcp = Tcp::Close;
        options.file_locks = true;
        options.evasive_devices = true;
        options.lsm_profile = Some("apparmor:p".to_owned());
        options.lsm_mount_context = Some("c".to_owned());
        options.timeout = Some(Duration::from_millis(1500));
        options.cpu_cap = Some(1);
        options.config_file = Some("/c".into());
        let images_dir = u8::try_from(options.images_dir.as_raw_fd()).unwrap();
        let work_dir = u8::try_from(options.work_dir.as_raw_fd()).unwrap();

        let want = [
            varint(1, images_dir),
            varint(4, 0),
            varint(5, 0),
            varint(6, 1),
            varint(7, 0),
            varint(8, 1),
            varint(9, 4),
            text(10, b"restore.log"),
            varint(12, 1),
            text(13, b"/run/root"),
            varint(17, work_dir),
            varint(20, 1),
            text(23, &[text(1, b"/etc/hosts"), text(2, b"/pods/hosts")].concat()),
            varint(26, 1),
            text(27, &[text(1, b"pipe:[7]"), varint(2, 1)].concat()),
            text(27, &[text(1, b"extRootNetNS"), varint(2, 4)].concat()),
            varint(29, 0),
            varint(30, 0),
            varint(34, 0),
            text(37, b"dev[1/3]:null"),
            text(39, &[text(1, b"uts"), text(2, b"/ns/uts")].concat()),
            varint(45, 2),
            varint(47, 0),
            varint(48, 0),
            varint(50, 0),
            text(51, b"/c"),
            varint(52, 1),
            text(53, b"apparmor:p"),
            text(63, b"c"),
            varint(65, 0),
            varint(66, 0),
        ];
        assert_eq!(options.to_opts().write_to_bytes().unwrap(), want.concat());
    }

    #[test]
    fn a_path_that_is_not_utf_8_is_sent_as_it_is() {
        use std::os::unix::ffi::OsStringExt;
        let mut options = RestoreOptions::new(null(), null());
        options.root = Some(OsString::from_vec(vec![b'/', 0xff]).into());
        assert_eq!(options.to_opts().root, Some(vec![b'/', 0xff]));
    }
}
