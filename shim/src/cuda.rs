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
use std::{env, io};

use criu_rpc::Swrk;

use crate::stand_in;

/// What the plugin runs.
pub(crate) const PROGRAM: &str = "cuda-checkpoint";
/// `OLD=NEW` for each GPU, by UUID, commas between them.
const MAP: &str = "THAW_CUDA_DEVICE_MAP";

/// Lets CRIU's plugin, which is to find this program, put what was on one GPU on the other one of each pair.
pub(crate) fn remap(swrk: &mut Swrk, map: &[(String, String)]) {
    let pairs: Vec<_> = map.iter().map(|(old, new)| format!("{old}={new}")).collect();
    swrk.env(MAP, pairs.join(","));
}

/// Becomes the real `cuda-checkpoint`. Returns only why it could not.
pub(crate) fn run() -> io::Error {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let map = env::var_os(MAP).filter(|_| is_restore(&arguments));
    let map = map.map(|map| [OsString::from("--device-map"), map]);
    stand_in::become_real(PROGRAM, arguments.into_iter().chain(map.into_iter().flatten()))
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
