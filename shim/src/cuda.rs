// SPDX-License-Identifier: Apache-2.0
//! Brings what was in the memory of one GPU of NVIDIA's to another one.
//!
//! CRIU's plugin runs `cuda-checkpoint`, which it looks for in PATH, and CRIU 4.2 cannot be told of other GPUs. So CRIU
//! finds this program under that name, which runs the real one and adds `--device-map` where it restores.
//!
//! ```text
//! shim ──▶ CRIU ──▶ plugin ──▶ cuda-checkpoint --action restore --pid N         (this program)
//!                               └─▶ cuda-checkpoint --action restore --pid N --device-map OLD=NEW,...
//! ```
//!
//! Source: CRIU 4.2 plugins/cuda/cuda_plugin.c, launch_cuda_checkpoint; cuda-checkpoint 580.65.06, `--help`.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use criu_rpc::Swrk;

/// What the plugin runs.
const PROGRAM: &str = "cuda-checkpoint";
/// `OLD=NEW` for each GPU, by UUID, commas between them.
const MAP: &str = "THAW_CUDA_DEVICE_MAP";
/// Where the name under which CRIU finds this program lies, in the restore's working directory.
const FOLDER: &str = "bin";

/// Lets CRIU's plugin put what was on one GPU on the other one of each pair. `workspace` is the restore's own.
///
/// # Errors
/// When this program cannot be put there.
pub(crate) fn remap(swrk: &mut Swrk, map: &[(String, String)], workspace: &Path) -> io::Result<()> {
    if map.is_empty() {
        return Ok(());
    }
    let folder = workspace.join(FOLDER);
    std::fs::create_dir(&folder)?;
    std::os::unix::fs::symlink(env::current_exe()?, folder.join(PROGRAM))?;
    let pairs: Vec<_> = map.iter().map(|(old, new)| format!("{old}={new}")).collect();
    swrk.search_first(folder).env(MAP, pairs.join(","));
    Ok(())
}

/// Whether this process was started as `cuda-checkpoint`.
pub(crate) fn is_called() -> bool {
    let name = env::args_os().next().map(PathBuf::from);
    name.and_then(|name| Some(name.file_name()? == PROGRAM)).unwrap_or(false)
}

/// Becomes the real `cuda-checkpoint`. Returns only why it could not.
pub(crate) fn run() -> io::Error {
    let path = env::var_os("PATH").unwrap_or_default();
    // The first folder is this program's.
    let mut others = env::split_paths(&path).skip(1).map(|folder| folder.join(PROGRAM));
    let Some(program) = others.find(|program| program.is_file()) else {
        return io::Error::new(io::ErrorKind::NotFound, format!("there is no program {PROGRAM}"));
    };
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let map = env::var_os(MAP).filter(|_| is_restore(&arguments));
    let mut command = Command::new(program);
    command.args(&arguments).args(map.map(|map| [OsString::from("--device-map"), map]).into_iter().flatten());
    command.exec()
}

fn is_restore(arguments: &[OsString]) -> bool {
    let is = |word: &OsString, text: &str| word.as_os_str() == OsStr::new(text);
    arguments.windows(2).any(|pair| matches!(pair, [key, word] if is(key, "--action") && is(word, "restore")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_restore_gets_the_map() {
        let said = |line: &str| is_restore(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(said("--action restore --pid 7"));
        for line in ["--action unlock --pid 7", "--get-state --pid 7", "-h", "--pid 7 --action checkpoint"] {
            assert!(!said(line), "{line}");
        }
    }
}
