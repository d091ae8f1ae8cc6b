// SPDX-License-Identifier: Apache-2.0
//! The log that containerd writes of a container that runs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens the log of the container called `name` of the pod whose logs are in `directory`; `None`: it has none.
///
/// It is `NAME/ATTEMPT.log`, and of several the one with the highest number, for the others are of containers before it;
/// rotated ones have the time in their names. Source: Kubernetes pkg/kubelet/kuberuntime/helpers.go and logs.
///
/// # Errors
/// When it cannot be looked for, or is no regular file.
pub(crate) fn open(directory: &Path, name: &str) -> io::Result<Option<File>> {
    let directory = directory.join(name);
    let entries = match std::fs::read_dir(&directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut last = None;
    for entry in entries {
        let name = entry?.file_name();
        let attempt = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok());
        last = last.max(attempt);
    }
    let Some(attempt) = last else { return Ok(None) };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let log =
        OpenOptions::new().read(true).custom_flags(flags).open(directory.join(format!("{attempt}.log")))?;
    if log.metadata()?.is_file() {
        Ok(Some(log))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::read_to_string;

    use super::*;

    #[test]
    fn the_last_attempt_s_log_is_the_one_and_nothing_else_is_opened() {
        let logs = tempfile::tempdir().unwrap();
        let said =
            |name: &str| open(logs.path(), name).map(|log| log.map(|log| read_to_string(log).unwrap()));
        assert_eq!(said("main").unwrap(), None, "crictl's pods may have no logs");
        let main = logs.path().join("main");
        std::fs::create_dir(&main).unwrap();
        assert_eq!(said("main").unwrap(), None);
        for name in ["9.log", "10.log", "10.log.20260101-000000", "11.log.20260101-000000.gz", "latest.log"] {
            std::fs::write(main.join(name), name).unwrap();
        }
        assert_eq!(said("main").unwrap().as_deref(), Some("10.log"));
        std::os::unix::fs::symlink("/etc/passwd", main.join("11.log")).unwrap();
        assert!(said("main").is_err());
        std::fs::remove_file(main.join("11.log")).unwrap();
        std::fs::create_dir(main.join("11.log")).unwrap();
        assert!(said("main").is_err());
    }
}
