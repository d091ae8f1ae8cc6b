// SPDX-License-Identifier: Apache-2.0
//! Checkpoint archives taken apart and put together again, as other programs write them and as no honest one
//! does.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{HarnessError, process};

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As by `gzip`.
    Gzip,
    /// As by `zstd`.
    Zstd,
}

/// An archive's files in a folder of their own, which goes with this value.
#[derive(Debug)]
pub struct Unpacked {
    folder: tempfile::TempDir,
}

impl Unpacked {
    /// Takes an archive apart.
    ///
    /// # Errors
    /// When it is not a tar.
    pub fn new(archive: &Path) -> Result<Self, HarnessError> {
        let folder = tempfile::tempdir_in("/var/tmp")
            .map_err(|source| HarnessError::file("make a folder in", "/var/tmp", source))?;
        let file = fs::File::open(archive).map_err(|source| HarnessError::file("open", archive, source))?;
        tar::Archive::new(file)
            .unpack(folder.path())
            .map_err(|source| HarnessError::file("unpack", archive, source))?;
        Ok(Self { folder })
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Turns containerd's layer of changed files into that of CRI-O and Podman: a plain tar without whiteouts,
    /// and the deleted names as JSON beside it.
    ///
    /// # Errors
    /// When the layer cannot be read or written.
    pub fn as_cri_o_writes_it(&self) -> Result<(), HarnessError> {
        let layer = self.path().join("rootfs-diff.tar");
        let compressed =
            fs::File::open(&layer).map_err(|source| HarnessError::file("open", &layer, source))?;
        let (mut plain, mut deleted) = (Builder::new(Vec::new()), Vec::new());
        let mut old = tar::Archive::new(flate2::read::GzDecoder::new(compressed));
        let failed = |source| HarnessError::file("rewrite", &layer, source);
        for entry in old.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let path = entry.path().map_err(failed)?.into_owned();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(gone) = name.strip_prefix(".wh.") {
                deleted.push(path.with_file_name(gone).to_string_lossy().into_owned());
                continue;
            }
            let (mut header, mut content) = (entry.header().clone(), Vec::new());
            entry.read_to_end(&mut content).map_err(failed)?;
            let link = entry.link_name().map_err(failed)?.map(std::borrow::Cow::into_owned);
            match link {
                Some(target) => plain.append_link(&mut header, &path, target).map_err(failed)?,
                None => plain.append_data(&mut header, &path, content.as_slice()).map_err(failed)?,
            }
        }
        fs::write(&layer, plain.into_inner().map_err(failed)?).map_err(failed)?;
        let list = self.path().join("deleted.files");
        let json = serde_json::Value::from(deleted).to_string();
        fs::write(&list, json).map_err(|source| HarnessError::file("write", &list, source))
    }

    /// Puts the files together again.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn pack(&self, archive: &Path, compression: Compression) -> Result<(), HarnessError> {
        self.pack_with(archive, compression, |_| Ok(()))
    }

    /// Puts the files together again, with one more entry that no honest archive has: `path` is written as it
    /// stands, and `target` makes a link of that type.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn pack_with_entry(
        &self,
        archive: &Path,
        path: &str,
        kind: EntryType,
        target: &str,
    ) -> Result<(), HarnessError> {
        self.pack_with(archive, Compression::None, |builder| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o600);
            // Written past the checks of `set_path`, which would refuse the very names that are wanted.
            let gnu = header.as_gnu_mut().ok_or(std::io::ErrorKind::InvalidInput)?;
            write_name(&mut gnu.name, path)?;
            write_name(&mut gnu.linkname, target)?;
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, std::io::empty())
        })
    }

    fn pack_with(
        &self,
        archive: &Path,
        compression: Compression,
        more: impl FnOnce(&mut Builder<Vec<u8>>) -> std::io::Result<()>,
    ) -> Result<(), HarnessError> {
        let build = || {
            let mut builder = Builder::new(Vec::new());
            builder.append_dir_all("", self.path())?;
            more(&mut builder)?;
            let plain = builder.into_inner()?;
            fs::write(archive, compressed(&plain, compression)?)
        };
        build().map_err(|source| HarnessError::file("write", archive, source))
    }
}

fn write_name(field: &mut [u8], name: &str) -> std::io::Result<()> {
    let mut field = field;
    field.write_all(name.as_bytes())
}

fn compressed(plain: &[u8], compression: Compression) -> std::io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(plain.to_vec()),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::encode_all(plain, 1),
    }
}

/// Cuts a file to half its length.
///
/// # Errors
/// When there is no such file.
pub fn halve(path: &Path) -> Result<(), HarnessError> {
    let length = fs::metadata(path).map_err(|source| HarnessError::file("look at", path, source))?.len();
    cut(path, length / 2)
}

/// Overwrites the second half of a file, whose length stays.
///
/// # Errors
/// When there is no such file.
pub fn scramble(path: &Path) -> Result<(), HarnessError> {
    let failed = |source| HarnessError::file("scramble", path, source);
    let mut bytes = fs::read(path).map_err(failed)?;
    let middle = bytes.len() / 2;
    bytes.iter_mut().skip(middle).for_each(|byte| *byte = 0xff);
    fs::write(path, bytes).map_err(failed)
}

/// Cuts a file to a length in bytes.
///
/// # Errors
/// When there is no such file.
pub fn cut(path: &Path, length: u64) -> Result<(), HarnessError> {
    let opened = fs::OpenOptions::new().write(true).open(path);
    opened.and_then(|file| file.set_len(length)).map_err(|source| HarnessError::file("cut", path, source))
}

/// Every path beneath a folder with size, times and checksum, to see whether anything was written.
///
/// # Errors
/// When the folder cannot be read.
pub fn fingerprint(folder: &Path) -> Result<String, HarnessError> {
    let script = "cd \"$0\" && find . -printf '%p %y %m %U %G %s %T@ %C@\\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum";
    process::output("sh", &["-c", script, &folder.to_string_lossy()])
}

/// A path for an archive of this test.
#[must_use]
pub fn path(namespace: &str, name: &str) -> PathBuf {
    Path::new("/var/tmp").join(format!("{namespace}-{name}.tar"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = Header::new_gnu();
            header.set_size(content.len().try_into().unwrap());
            header.set_mode(0o644);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<_> =
            entries.map(|entry| String::from_utf8_lossy(&entry.path_bytes()).into_owned()).collect();
        names.sort();
        names
    }

    /// An archive as containerd writes it, taken apart.
    fn unpacked(folder: &Path) -> Unpacked {
        let layer = tar_of(&[("made/file", "x"), ("bin/.wh.wget", "")]);
        let archive = folder.join("a.tar");
        let inner = folder.join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("rootfs-diff.tar"), compressed(&layer, Compression::Gzip).unwrap()).unwrap();
        let mut builder = Builder::new(fs::File::create(&archive).unwrap());
        builder.append_dir_all("", &inner).unwrap();
        builder.finish().unwrap();
        Unpacked::new(&archive).unwrap()
    }

    #[test]
    fn whiteouts_become_a_list_of_deleted_files() {
        let folder = tempfile::tempdir().unwrap();
        let unpacked = unpacked(folder.path());
        unpacked.as_cri_o_writes_it().unwrap();
        assert_eq!(fs::read_to_string(unpacked.path().join("deleted.files")).unwrap(), "[\"bin/wget\"]");
        assert_eq!(names(&fs::read(unpacked.path().join("rootfs-diff.tar")).unwrap()), ["made/file"]);
    }

    #[test]
    fn a_hostile_entry_is_written_as_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let (unpacked, archive) = (unpacked(folder.path()), folder.path().join("b.tar"));
        unpacked.pack_with_entry(&archive, "../escaped", EntryType::Symlink, "/etc/shadow").unwrap();
        assert!(names(&fs::read(&archive).unwrap()).contains(&"../escaped".to_owned()));
    }

    #[test]
    fn a_compressed_archive_begins_as_its_kind_does() {
        let folder = tempfile::tempdir().unwrap();
        let (unpacked, archive) = (unpacked(folder.path()), folder.path().join("b.tar"));
        for (compression, magic) in
            [(Compression::Gzip, &b"\x1f\x8b"[..]), (Compression::Zstd, b"\x28\xb5\x2f\xfd")]
        {
            unpacked.pack(&archive, compression).unwrap();
            assert!(fs::read(&archive).unwrap().starts_with(magic), "{compression:?}");
        }
    }
}
