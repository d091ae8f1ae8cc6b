// SPDX-License-Identifier: Apache-2.0
//! A checkpoint's images, a pager over them, and what it tells its keeper.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::JoinHandle;

use criu_rpc::image::{ImageFile, Kind, Message, Tag};
use pager::{Figures, Ready, Saved, ServeError, Setup, Told, hear, send_saved, send_setup};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tempfile::TempDir;

use crate::layout::{PAGE, REGIONS, Region, mark, word};

/// The pid of the only process. 7 is what `fake_restored` says.
const PID: u32 = 7;

pub(crate) fn message(fields: &[(u32, u64)]) -> Message {
    let mut message = Message::default();
    fields.iter().for_each(|(number, value)| message.set_u64(Tag::new(*number, "test"), *value));
    message
}

/// The pages file; making it takes a while.
static PAGES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let content = |address| (0..PAGE / 8).flat_map(move |index| word(mark(address), index).to_ne_bytes());
    vec![0xee; 3 * PAGE].into_iter().chain(REGIONS.into_iter().flat_map(held).flat_map(content)).collect()
});

/// The addresses of the pages that the image holds.
fn held(region: Region) -> impl Iterator<Item = usize> {
    (0..region.pages).filter(move |page| region.holds(*page)).map(move |page| region.start + page * PAGE)
}

/// A directory with images of the layout's memory and the socket.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    fn within(dir: TempDir) -> Self {
        let node = Self { dir };
        let pstree = message(&[(1, PID.into()), (2, 0), (3, PID.into()), (4, PID.into()), (5, PID.into())]);
        node.write(Kind::Pstree, "pstree.img", vec![pstree]);
        // A run that CRIU loads itself comes first, so that offsets are not those of the lazy pages alone.
        let mut runs = vec![message(&[(1, 1)]), message(&[(1, 0x1000_0000), (2, 0), (4, 4), (5, 3)])];
        let mut vmas = Vec::new();
        for region in REGIONS {
            let end = region.start + region.pages * PAGE;
            vmas.push(message(&[(1, region.start as u64), (2, end as u64)]));
            runs.extend(held(region).map(|address| message(&[(1, address as u64), (2, 0), (4, 6), (5, 1)])));
        }
        let mut mm = Message::default();
        mm.set_all_bytes(Tag::new(14, "vmas"), vmas.iter().map(Message::as_bytes));
        node.write(Kind::Mm, "mm-7.img", vec![mm]);
        node.write(Kind::Pagemap, "pagemap-7.img", runs);
        std::fs::write(node.dir.path().join("pages-1.img"), &*PAGES).unwrap();
        node
    }

    /// The same on the disk, and nothing of it in the page cache.
    pub(crate) fn on_disk() -> Self {
        let program = std::env::current_exe().unwrap();
        let node = Self::within(tempfile::tempdir_in(program.parent().unwrap()).unwrap());
        let pages = File::open(node.dir.path().join("pages-1.img")).unwrap();
        pages.sync_all().unwrap();
        rustix::fs::fadvise(&pages, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        node
    }

    pub(crate) fn write(&self, kind: Kind, name: &str, entries: Vec<Message>) {
        std::fs::write(self.dir.path().join(name), ImageFile::new(kind, entries).to_bytes()).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(pager::SOCKET)
    }

    fn listener(&self) -> OwnedFd {
        let _ = std::fs::remove_file(self.socket());
        UnixListener::bind(self.socket()).unwrap().into()
    }

    /// A pager in a thread; also the keeper's end.
    pub(crate) fn serve(&self, threads: usize) -> Served {
        self.serve_with(threads, None, None)
    }

    /// The same, that knows the order of faults or is to write it down.
    pub(crate) fn serve_with(&self, threads: usize, order: Option<File>, wanted: Option<File>) -> Served {
        let (ours, keeper) = pair();
        let saved = Saved { images: File::open(self.dir.path()).unwrap().into(), order };
        let lock = File::open("/dev/null").unwrap().into();
        let setup = Setup { listener: self.listener(), lock, keeper, threads, wanted };
        (std::thread::spawn(move || Ready::new(saved)?.serve(setup)), ours)
    }

    /// A pager in a process of its own.
    pub(crate) fn process(&self, threads: usize) -> (Child, OwnedFd) {
        let (child, ours) = self.waiting();
        let lock = File::open("/dev/null").unwrap();
        send_setup(&ours, self.listener().as_fd(), lock.as_fd(), threads, None).unwrap();
        (child, ours)
    }

    /// One that has its images and no restore yet.
    pub(crate) fn waiting(&self) -> (Child, OwnedFd) {
        let (ours, keeper) = pair();
        let child = Command::new(example("pager_process")).stdin(keeper).spawn().unwrap();
        send_saved(&ours, File::open(self.dir.path()).unwrap().as_fd(), None).unwrap();
        (child, ours)
    }

    /// A restored process.
    pub(crate) fn restored(&self, seed: u64, steps: u64, delay: u64) -> Child {
        self.restored_by(0, seed, steps, delay)
    }

    /// The same, that stops the process `pager` for a while; 0: nobody.
    pub(crate) fn restored_by(&self, pager: u32, seed: u64, steps: u64, delay: u64) -> Child {
        let mut command = Command::new(example("fake_restored"));
        command.arg(self.socket()).args([seed, steps, delay, pager.into()].map(|n| n.to_string()));
        command.stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// A pager in a thread, and its keeper's end.
pub(crate) type Served = (JoinHandle<Result<Figures, ServeError>>, OwnedFd);

pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn example(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build -p pager --examples", path.display());
    path
}

/// What a keeper has heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Not released.
    pub(crate) held: HashMap<u32, OwnedFd>,
    pub(crate) filled: bool,
    pub(crate) failed: Option<String>,
    pub(crate) abandoned: bool,
}

/// Keeps what a pager holds, until it ends.
pub(crate) fn keep(keeper: &OwnedFd) -> Heard {
    let mut heard = Heard::default();
    while let Some(told) = hear(keeper).unwrap() {
        match told {
            Told::Hold(id, uffd) => assert!(heard.held.insert(id, uffd).is_none()),
            Told::Release(id) => assert!(heard.held.remove(&id).is_some()),
            Told::Filled(_) => heard.filled = true,
            Told::Failed(reason) => heard.failed = Some(reason),
            Told::Abandoned => heard.abandoned = true,
        }
    }
    heard
}
