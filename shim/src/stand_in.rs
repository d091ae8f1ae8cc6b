// SPDX-License-Identifier: Apache-2.0
//! Programs that CRIU runs by their names, and that this program stands in for: CRIU finds it under those names before
//! the real ones.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use criu_rpc::Swrk;

/// Where the names lie, in the restore's working directory.
const FOLDER: &str = "bin";

/// Lets CRIU find this program under `names`. `workspace` is the restore's own.
///
/// # Errors
/// When this program cannot be put there.
pub(crate) fn install(swrk: &mut Swrk, names: &[&str], workspace: &Path) -> io::Result<()> {
    let (folder, program) = (workspace.join(FOLDER), env::current_exe()?);
    std::fs::create_dir(&folder)?;
    // Where it has been replaced since, the names lead nowhere, and CRIU finds the real ones.
    names.iter().try_for_each(|name| std::os::unix::fs::symlink(&program, folder.join(name)))?;
    swrk.search_first(folder);
    Ok(())
}

/// Whether this process was started as `name`.
pub(crate) fn is_called(name: &str) -> bool {
    let called = env::args_os().next().map(PathBuf::from);
    called.and_then(|called| Some(called.file_name()? == name)).unwrap_or(false)
}

/// Becomes the real program of that name. Returns only why it could not.
pub(crate) fn become_real(name: &str, arguments: impl IntoIterator<Item = OsString>) -> io::Error {
    let path = env::var_os("PATH").unwrap_or_default();
    // The first folder is this program's.
    let mut others = env::split_paths(&path).skip(1).map(|folder| folder.join(name));
    match others.find(|program| program.is_file()) {
        Some(program) => Command::new(program).args(arguments).exec(),
        None => io::Error::new(io::ErrorKind::NotFound, format!("there is no program {name}")),
    }
}
