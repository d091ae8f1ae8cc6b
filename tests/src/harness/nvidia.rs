// SPDX-License-Identifier: Apache-2.0
//! GPUs of NVIDIA's as its container toolkit describes them, with devices that every machine has in their place.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

/// Where containerd looks for specifications.
const SPECIFICATION: &str = "/etc/cdi/nvidia.json";
/// As the toolkit's: it finds the root file system by the state that it reads.
const HOOK: &str = "#!/bin/sh\nbundle=$(sed -n 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/p')\n\
    echo \"$1\" >>\"${0%/*}/ran\"\n\
    [ \"$1\" != create-symlinks ] || ln -sf \"${3%%::*}\" \"$bundle/rootfs${3##*::}\"\n";

/// A specification of the form that `nvidia-ctk cdi generate` writes, of two GPUs; removed when this is dropped.
#[derive(Debug)]
pub struct Nvidia(tempfile::TempDir);

impl Nvidia {
    /// Tells the node of them: `nvidia.com/gpu=0` is /dev/null, and 1 /dev/zero.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn new() -> io::Result<Self> {
        let dir = tempfile::tempdir_in("/var/tmp")?;
        let (hook, library) = (dir.path().join("nvidia-cdi-hook"), dir.path().join("libcuda.so.1"));
        std::fs::write(&hook, HOOK)?;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
        std::fs::write(&library, "the driver's")?;
        let specification = Path::new(SPECIFICATION);
        specification.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(specification, described(&hook, &library).to_string())?;
        Ok(Self(dir))
    }

    /// How often a hook has run.
    #[must_use]
    pub fn runs(&self) -> usize {
        std::fs::read_to_string(self.0.path().join("ran")).unwrap_or_default().lines().count()
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(SPECIFICATION);
    }
}

fn described(hook: &Path, library: &Path) -> Value {
    let run = |verb: &str, rest: &[&str]| {
        let args: Vec<_> = ["nvidia-cdi-hook", verb].iter().chain(rest).copied().collect();
        json!({"hookName": "createContainer", "path": hook, "args": args})
    };
    let node = |path: &str, like: &str| json!({"deviceNodes": [{"path": path, "hostPath": like}]});
    json!({
        "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
        "devices": [
            {"name": "0", "containerEdits": node("/dev/nvidia0", "/dev/null")},
            {"name": "1", "containerEdits": node("/dev/nvidia1", "/dev/zero")},
        ],
        "containerEdits": {
            "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/dev/full"}],
            "mounts": [{"hostPath": library, "containerPath": "/lib/libcuda.so.1",
                        "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}],
            "hooks": [
                run("create-symlinks", &["--link", "libcuda.so.1::/lib/libcuda.so"]),
                run("update-ldcache", &["--folder", "/lib"]),
            ],
        },
    })
}
