// SPDX-License-Identifier: Apache-2.0
//! Directories that a checkpoint's layer holds only because something below them changed: CRI-O's and Podman's
//! diffs leave such a directory itself out, so its mode in the layer is made up. The container's own upper
//! directory gets each of them with the mode and owner of the image, which then covers the made-up one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Stat, chmodat, chownat, fstat, mkdirat, open, openat2,
};
use rustix::io::Errno;

/// Creates `directories` (relative paths) in the overlay's upper directory, as the image's layers have them.
///
/// # Errors
/// When the overlay's options name no directories, or one cannot be read or written.
pub(crate) fn create(options: &[String], directories: &[String]) -> std::io::Result<()> {
    if directories.is_empty() {
        return Ok(());
    }
    let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
    let (Some(upper), Some(lower)) = (value("upperdir="), value("lowerdir=")) else {
        return Err(std::io::Error::other("the overlay's options name no upper and lower directories"));
    };
    let directory =
        |path: &str| open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let upper = directory(upper)?;
    let layers = lower.split(':').map(directory).collect::<Result<Vec<_>, _>>()?;
    for path in directories {
        for above in Path::new(path).ancestors().collect::<Vec<_>>().into_iter().rev() {
            if let (Some(name), Some(parent)) = (above.file_name(), above.parent()) {
                one(upper.as_fd(), &layers, above, parent, name)?;
            }
        }
    }
    Ok(())
}

fn one(
    upper: BorrowedFd<'_>,
    layers: &[OwnedFd],
    path: &Path,
    parent: &Path,
    name: &std::ffi::OsStr,
) -> std::io::Result<()> {
    // The uppermost layer that has it decides, as in the overlay itself.
    let Some(image) = layers.iter().find_map(|layer| beneath(layer.as_fd(), path).ok()) else {
        return Ok(());
    };
    let Stat { st_mode, st_uid, st_gid, .. } = fstat(&image)?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = beneath(upper, parent)?;
    match mkdirat(&parent, name, Mode::RWXU) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let owner = (rustix::fs::Uid::from_raw(st_uid), rustix::fs::Gid::from_raw(st_gid));
    chownat(&parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(chmodat(&parent, name, Mode::from_raw_mode(st_mode), AtFlags::empty())?)
}

fn beneath(dir: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(dir, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_comes_with_the_mode_of_the_image_and_not_of_the_checkpoint_s_layer() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["upper", "top", "base/tmp/deep"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::set_permissions(at("base/tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        let options = [
            format!("upperdir={}", at("upper").display()),
            format!("lowerdir={}:{}", at("top").display(), at("base").display()),
        ];
        create(&options, &["tmp/deep".into(), "not-in-the-image".into()]).unwrap();
        let mode = std::fs::metadata(at("upper/tmp")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        assert!(at("upper/tmp/deep").is_dir());
        assert!(!at("upper/not-in-the-image").exists());
    }

    #[test]
    fn a_snapshot_without_directories_is_an_error_only_when_they_are_needed() {
        assert!(create(&[], &[]).is_ok());
        assert!(create(&[], &["tmp".into()]).is_err());
    }
}
