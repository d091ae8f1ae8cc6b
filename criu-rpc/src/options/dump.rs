// SPDX-License-Identifier: Apache-2.0
//! The options of a dump and of a pre-dump.

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, time::Duration};

use super::{LOG_LEVEL, ManageCgroups, NetworkLock, Tcp, base, bytes, ext_mounts, path, seconds};
use crate::proto::rpc::CriuOpts;

/// What to dump, and where to.
///
/// Source of the fields: CRIU 4.2 images/rpc.proto, `criu_opts`; they have the same names there.
#[derive(Debug)]
pub struct DumpOptions {
    /// The root of the process tree, in CRIU's pid namespace.
    pub pid: i32,
    /// The directory for the images. CRIU opens it through this process's `/proc/PID/fd`.
    pub images_dir: OwnedFd,
    /// CRIU's current directory: its log. Opened likewise.
    pub work_dir: OwnedFd,
    /// Name of CRIU's log in `work_dir`, without a slash.
    pub log_file: String,
    /// 0 (silent) to 4 (everything).
    pub log_level: i32,
    /// The root file system of the tree, as CRIU sees it.
    pub root: Option<PathBuf>,
    /// Let the processes go on; otherwise CRIU kills them at the end.
    pub leave_running: bool,
    /// Established TCP connections.
    pub tcp: Tcp,
    /// Connections that are still being established are left out.
    pub tcp_skip_in_flight: bool,
    /// File locks are dumped.
    pub file_locks: bool,
    /// Unix sockets with a peer outside of the tree are allowed.
    pub ext_unix_sk: bool,
    /// The session has its leader and terminal outside of the tree.
    pub shell_job: bool,
    /// Deleted files may be given a name again for the time of the dump.
    pub link_remap: bool,
    /// Masters of terminals are outside of the tree.
    pub orphan_pts_master: bool,
    /// CRIU's first mount engine.
    pub mntns_compat_mode: bool,
    /// External mounts may be shared.
    pub ext_sharing: bool,
    /// External mounts may be slaves.
    pub ext_masters: bool,
    /// Remember which pages change from now on.
    pub track_mem: bool,
    /// The images of the dump before, relative to `images_dir`; pages found there are not dumped again.
    pub parent_img: Option<PathBuf>,
    /// Mount point in the tree and the key that it gets in the images (`ext_key`).
    pub ext_mounts: Vec<(OsString, PathBuf)>,
    /// Other external resources, in CRIU's own notation (`net[4026531840]:extRootNetNS`).
    pub external: Vec<OsString>,
    /// The freezer cgroup that holds the tree.
    pub freeze_cgroup: Option<PathBuf>,
    /// How packets are held back.
    pub network_lock: NetworkLock,
    /// What CRIU does about cgroups.
    pub manage_cgroups: ManageCgroups,
    /// Largest deleted file that is copied into the images, in bytes; CRIU's default is 1 MiB.
    pub ghost_limit: Option<u32>,
    /// Folders of the tree in which files that are watched by inotify are searched, where the kernel does not tell
    /// their paths. CRIU walks them as a whole, into mounts too.
    pub irmap_scan_paths: Vec<PathBuf>,
    /// Limit for stopping the tree; sent in whole seconds, rounded up. CRIU's default is 10 s.
    pub timeout: Option<Duration>,
    /// A configuration file; what it says wins over every field here.
    pub config_file: Option<PathBuf>,
}

impl DumpOptions {
    /// A dump of the tree of `pid` that kills it at the end, logging to `dump.log` in `work_dir`.
    #[must_use]
    pub fn new(pid: i32, images_dir: OwnedFd, work_dir: OwnedFd) -> Self {
        Self {
            pid,
            images_dir,
            work_dir,
            log_file: "dump.log".to_owned(),
            log_level: LOG_LEVEL,
            root: None,
            leave_running: false,
            tcp: Tcp::default(),
            tcp_skip_in_flight: false,
            file_locks: false,
            ext_unix_sk: false,
            shell_job: false,
            link_remap: false,
            orphan_pts_master: false,
            mntns_compat_mode: false,
            ext_sharing: false,
            ext_masters: false,
            track_mem: false,
            parent_img: None,
            ext_mounts: Vec::new(),
            external: Vec::new(),
            freeze_cgroup: None,
            network_lock: NetworkLock::default(),
            manage_cgroups: ManageCgroups::default(),
            ghost_limit: None,
            irmap_scan_paths: Vec::new(),
            timeout: None,
            config_file: None,
        }
    }

    /// CRIU's message.
    pub(crate) fn to_opts(&self) -> CriuOpts {
        CriuOpts {
            pid: Some(self.pid),
            root: self.root.as_deref().map(path),
            leave_running: Some(self.leave_running),
            tcp_established: Some(self.tcp == Tcp::Established),
            tcp_close: Some(self.tcp == Tcp::Close),
            tcp_skip_in_flight: Some(self.tcp_skip_in_flight),
            file_locks: Some(self.file_locks),
            ext_unix_sk: Some(self.ext_unix_sk),
            shell_job: Some(self.shell_job),
            link_remap: Some(self.link_remap),
            orphan_pts_master: Some(self.orphan_pts_master),
            mntns_compat_mode: Some(self.mntns_compat_mode),
            ext_sharing: Some(self.ext_sharing),
            ext_masters: Some(self.ext_masters),
            track_mem: Some(self.track_mem),
            parent_img: self.parent_img.as_deref().map(path),
            ext_mnt: ext_mounts(&self.ext_mounts),
            external: self.external.iter().map(|key| bytes(key)).collect(),
            freeze_cgroup: self.freeze_cgroup.as_deref().map(path),
            network_lock: Some(self.network_lock as u32),
            manage_cgroups_mode: Some(self.manage_cgroups as u32),
            ghost_limit: self.ghost_limit,
            irmap_scan_paths: self.irmap_scan_paths.iter().map(|at| path(at)).collect(),
            timeout: self.timeout.map(seconds),
            config_file: self.config_file.as_deref().map(path),
            ..base(&self.images_dir, &self.work_dir, &self.log_file, self.log_level)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use protobuf::Message;

    use super::*;

    #[test]
    fn a_dump_becomes_the_fields_of_criu_opts() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut options = DumpOptions::new(300, null(), null());
        options.leave_running = true;
        options.tcp = Tcp::Established;
        options.network_lock = NetworkLock::Skip;
        options.manage_cgroups = ManageCgroups::Soft;
        options.freeze_cgroup = Some("/cg".into());
        options.ext_mounts = vec![("/m".into(), "/k".into())];
        options.parent_img = Some("../p".into());
        options.ghost_limit = Some(5);
        options.irmap_scan_paths = vec!["/s".into()];
        let images_dir = u8::try_from(options.images_dir.as_raw_fd()).unwrap();
        let work_dir = u8::try_from(options.work_dir.as_raw_fd()).unwrap();

        let mut want = vec![0x08, images_dir, 0x10, 0xac, 0x02, 0x18, 1, 0x20, 0, 0x28, 1, 0x38, 0, 0x40, 0];
        want.extend([0x48, 4, 0x52, 8]);
        want.extend(b"dump.log");
        want.extend([0x60, 1, 0x72, 4]);
        want.extend(b"../p");
        want.extend([0x78, 0, 0x88, 1, work_dir, 0x90, 1, 0]);
        want.extend([0xba, 1, 8, 0x0a, 2, b'/', b'm', 0x12, 2, b'/', b'k']);
        want.extend([0xe8, 1, 0, 0xf0, 1, 0, 0x90, 2, 3, 0x98, 2, 5]);
        want.extend([0xa2, 2, 2, b'/', b's']);
        want.extend([0xe2, 2, 3, b'/', b'c', b'g', 0xf0, 2, 0, 0x90, 3, 0]);
        want.extend([0xa0, 3, 0, 0x80, 4, 3, 0x88, 4, 0]);
        assert_eq!(options.to_opts().write_to_bytes().unwrap(), want);
    }
}
