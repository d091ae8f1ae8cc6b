// SPDX-License-Identifier: Apache-2.0
//! The two calls of bpf(2) that put a device filter onto a cgroup v2: load a program, attach it.
//!
//! Source: Linux `include/uapi/linux/bpf.h`. There is no maintained crate for so little: those that have it bring
//! libbpf's C code, or an ELF loader.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    /// What it does: `BPF_*` of class, size or source, and operation.
    pub(crate) code: u8,
    /// Destination in the low four bits, source in the high four (little-endian bit fields).
    pub(crate) registers: u8,
    /// Of a jump or a load.
    pub(crate) offset: i16,
    /// The constant.
    pub(crate) immediate: i32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Others may attach theirs as well, and all must allow: runc and systemd attach theirs the same way.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is needed; the kernel takes what is missing for zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Puts a device filter onto the cgroup at `directory`. It stays there until the cgroup is removed.
///
/// # Errors
/// When the directory is no cgroup v2, or the kernel refuses the program.
pub(crate) fn attach_device_filter(directory: &Path, program: &[Instruction]) -> io::Result<()> {
    let cgroup = File::open(directory)?;
    let program = load(program)?;
    let number = |fd: std::os::fd::BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
    let request = Attach {
        target_fd: number(cgroup.as_fd()),
        attach_bpf_fd: number(program.as_fd()),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `request` is a `union bpf_attr` of this command, and its size is what is passed.
    unsafe { bpf(BPF_PROG_ATTACH, &request) }.map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let request = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `request` is a `union bpf_attr` of this command; the instructions and the licence that it points to
    // live until the call returns, and the kernel only reads them.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &request) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The system call.
///
/// # Safety
/// `request` is what `command` wants, and what it points to is valid.
unsafe fn bpf<T>(command: libc::c_long, request: &T) -> io::Result<i32> {
    // SAFETY: the caller answers for the request; its size is right by its type.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(request), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: [Instruction; 2] = [
        Instruction { code: 0xb4, registers: 0, offset: 0, immediate: 1 },
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];

    #[test]
    fn the_kernel_takes_the_filters_and_no_code_without_an_end() {
        match load(&ALLOW) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => println!("SKIP no right to load BPF programs"),
            loaded => drop(loaded.unwrap()),
        }
        if load(&ALLOW).is_err() {
            return;
        }
        let ordinary: oci_spec::runtime::Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "linux": {"resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "access": "rw"},
                {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "w"}
            ]}}}"#,
        )
        .unwrap();
        load(&crate::device_filter::program(&ordinary)).unwrap();
        assert!(load(&ALLOW[..1]).is_err());
    }

    #[test]
    fn a_folder_that_is_no_cgroup_gets_no_filter() {
        let folder = tempfile::tempdir().unwrap();
        assert!(attach_device_filter(folder.path(), &ALLOW).is_err());
    }
}
