// SPDX-License-Identifier: Apache-2.0
//! Files that appear in a volume all at once, as kubelet writes projected volumes, ConfigMaps and Secrets.
//!
//! The files stand in a directory named after the time. `..data` is a link to it, and each visible name is a
//! link through `..data`. A process that holds a file open holds it by the directory's name, which no other pod
//! has.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use time::OffsetDateTime;
use time::macros::format_description;

use super::error::KubeletError;
use super::pod_dir::{random_text, set_mode};

/// One file of a volume.
#[derive(Debug)]
pub struct File {
    /// Its name, without a slash.
    pub name: String,
    /// What is in it.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Writes `files` into an empty volume.
///
/// # Errors
/// [`KubeletError::File`] naming the file.
pub fn write(volume: &Path, files: &[File]) -> Result<(), KubeletError> {
    // Source: kubelet, pkg/volume/util/atomic_writer.go: the time to the second, then random digits.
    let form = format_description!("..[year]_[month]_[day]_[hour]_[minute]_[second]");
    let time = OffsetDateTime::now_utc().format(form).map_err(KubeletError::Time)?;
    let dir_name = format!("{time}.{}", random_text(10, b"0123456789"));
    let dir = volume.join(&dir_name);
    DirBuilder::new().mode(0o755).create(&dir).map_err(|source| KubeletError::file("make", &dir, source))?;
    set_mode(&dir, 0o755)?;
    for file in files {
        let path = dir.join(&file.name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut new| new.write_all(&file.content))
            .map_err(|source| KubeletError::file("write", &path, source))?;
        set_mode(&path, file.mode)?;
    }
    let (next, data) = (volume.join("..data_tmp"), volume.join("..data"));
    symlink(&dir_name, &next).map_err(|source| KubeletError::file("link", &next, source))?;
    fs::rename(&next, &data).map_err(|source| KubeletError::file("rename", &next, source))?;
    for file in files {
        let visible = volume.join(&file.name);
        let target = Path::new("..data").join(&file.name);
        symlink(target, &visible).map_err(|source| KubeletError::file("link", &visible, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_reached_through_two_links_to_a_directory_named_after_the_time() {
        let volume = tempfile::tempdir().unwrap();
        write(volume.path(), &[File { name: "token".into(), content: b"t".to_vec(), mode: 0o640 }]).unwrap();
        assert_eq!(fs::read(volume.path().join("token")).unwrap(), b"t");
        assert_eq!(fs::read_link(volume.path().join("token")).unwrap(), Path::new("..data/token"));
        let dir = fs::read_link(volume.path().join("..data")).unwrap();
        assert!(dir.to_str().unwrap().starts_with("..20"), "{}", dir.display());
    }
}
