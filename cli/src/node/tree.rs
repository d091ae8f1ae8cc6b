// SPDX-License-Identifier: Apache-2.0
//! The files of a node, beneath a root directory: `/`, or a tree that is laid out like one.
//!
//! Paths are absolute and meant within the tree; links in them never lead out of it. Files appear and change by one
//! rename.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

/// The longest configuration file that is read, in bytes.
const LIMIT_BYTES: u64 = 1024 * 1024;

/// A directory that holds a node's files.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// A file of the node could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}", path = path.display())]
pub(crate) struct TreeError {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(Errno) -> TreeError {
    move |errno| TreeError { verb, path: path.to_owned(), source: errno.into() }
}

impl Tree {
    /// Opens the tree at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open the directory", path))?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Whether this is the machine that runs us: only then kernel, services and sockets are the node's.
    pub(crate) fn is_this_machine(&self) -> bool {
        let (Ok(root), Ok(ours)) =
            (rustix::fs::fstat(&self.root), rustix::fs::statat(CWD, "/", AtFlags::empty()))
        else {
            return false;
        };
        (root.st_dev, root.st_ino) == (ours.st_dev, ours.st_ino)
    }

    fn at(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT)
    }

    fn stat(&self, path: &Path) -> Option<Stat> {
        rustix::fs::fstat(self.at(path, OFlags::PATH, Mode::empty()).ok()?).ok()
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.stat(path).is_some()
    }

    /// Where `path` really is on this machine, with all links followed within the tree.
    pub(crate) fn real(&self, path: &Path) -> PathBuf {
        let fd = self.at(path, OFlags::PATH, Mode::empty());
        let real =
            fd.ok().and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok());
        real.unwrap_or_else(|| self.path.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// Reads a text file; `None` where there is none.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<String>, TreeError> {
        let fd = match self.at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(failed("read", path)(errno)),
        };
        let mut text = String::new();
        let read = File::from(fd).take(LIMIT_BYTES + 1).read_to_string(&mut text);
        let error = |source| TreeError { verb: "read", path: path.to_owned(), source };
        if read.map_err(error)? as u64 > LIMIT_BYTES {
            return Err(error(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        Ok(Some(text))
    }

    /// The names in a directory, sorted; none where there is no directory.
    pub(crate) fn names(&self, path: &Path) -> Result<Vec<String>, TreeError> {
        let fd = match self.at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(failed("read", path)(errno)),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(fd).map_err(failed("read", path))? {
            let entry = entry.map_err(failed("read", path))?;
            names.extend(entry.file_name().to_str().ok().map(str::to_owned));
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// Those of the directories above `path` that do not exist, the outermost first.
    pub(crate) fn missing_folders(&self, path: &Path) -> Vec<PathBuf> {
        let above = path.ancestors().skip(1).take_while(|folder| !self.exists(folder));
        let mut missing: Vec<PathBuf> = above.map(Path::to_owned).collect();
        missing.reverse();
        missing
    }

    /// Makes one directory, readable by all.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<(), TreeError> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(failed("make", path))
    }

    /// Removes a directory if it is empty, and says whether it was.
    pub(crate) fn remove_folder(&self, path: &Path) -> Result<bool, TreeError> {
        if !self.exists(path) {
            return Ok(true);
        }
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(failed("remove", path)(errno)),
        }
    }

    /// Writes a whole file in the place of the one that is there, whose owner and mode it gets.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), TreeError> {
        let (parent, name) = self.parent(path)?;
        // Names that end otherwise are no drop-ins: containerd reads *.toml only.
        let temporary = format!(".{}.{}", name.display(), std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let error = |source| TreeError { verb: "write", path: path.to_owned(), source };
        let file = rustix::fs::openat(&parent, &temporary, flags, Mode::from_raw_mode(0o600))
            .map_err(failed("write", path))?;
        let written = self.fill(File::from(file), path, text).and_then(|()| {
            rustix::fs::renameat(&parent, &temporary, &parent, name)?;
            rustix::fs::fsync(&parent).or_else(ignore_unsupported).map_err(io::Error::from)
        });
        written.map_err(|source| {
            let _ = rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty());
            error(source)
        })
    }

    fn fill(&self, mut file: File, path: &Path, text: &str) -> io::Result<()> {
        file.write_all(text.as_bytes())?;
        let mode = match self.stat(path) {
            None => Mode::from_raw_mode(0o644),
            Some(old) => {
                rustix::fs::fchown(&file, Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)))?;
                Mode::from_raw_mode(old.st_mode)
            }
        };
        rustix::fs::fchmod(&file, mode)?;
        file.sync_all()
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), TreeError> {
        if !self.exists(path) {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("remove", path)(errno)),
        }
    }

    /// The open directory that holds `path`, and its name in there.
    fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a Path), TreeError> {
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let name = path.file_name().map_or(path, Path::new);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok((self.at(folder, flags, Mode::empty()).map_err(failed("open", folder))?, name))
    }

    /// Runs a program of the tree, and returns what it prints.
    pub(crate) fn run(&self, program: &Path, arguments: &[&str]) -> io::Result<String> {
        let name = program.file_name().unwrap_or(program.as_os_str());
        // Some are one program of many names (k3s), so it gets the name that was asked for.
        let output = Command::new(self.real(program)).arg0(name).args(arguments).output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("it ended with {}", output.status)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Room that is left on the file system of `path`, or of the nearest directory above it that exists, in bytes.
    pub(crate) fn free_bytes(&self, path: &Path) -> Option<u64> {
        let there = path.ancestors().find(|folder| self.exists(folder))?;
        let fd = self.at(there, OFlags::PATH, Mode::empty()).ok()?;
        let stat = rustix::fs::fstatvfs(fd.as_fd()).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The SELinux label of a file.
    pub(crate) fn label(&self, path: &Path) -> Option<String> {
        let mut label = [0; 256];
        let length = rustix::fs::getxattr(self.real(path), "security.selinux", &mut label).ok()?;
        let bytes = label.get(..length)?;
        Some(std::ffi::OsStr::from_bytes(bytes).to_string_lossy().trim_end_matches('\0').to_owned())
    }
}

/// Some file systems cannot make a directory durable.
fn ignore_unsupported(errno: Errno) -> rustix::io::Result<()> {
    if errno == Errno::INVAL { Ok(()) } else { Err(errno) }
}
