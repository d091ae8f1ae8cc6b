// SPDX-License-Identifier: Apache-2.0
//! What may go wrong at every step between CRIU and the pager.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use criu_rpc::image::Kind;
use linux_raw_sys::general::uffdio_api;
use pager::{Figures, ImagesError, PagesError, ServeError, Told};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::support::{Node, keep, message, pair};

const RESTORED: [u8; 4] = 0x5253_5446i32.to_ne_bytes();

struct Pager {
    _node: Node,
    served: JoinHandle<Result<Figures, ServeError>>,
    keeper: OwnedFd,
    criu: UnixStream,
}

impl Pager {
    fn connected() -> Self {
        let node = Node::new();
        let (served, keeper) = node.serve(1);
        let criu = UnixStream::connect(node.socket()).unwrap();
        Self { _node: node, served, keeper, criu }
    }

    /// CRIU says this and dies.
    fn after(mut self, said: &[u8]) -> Result<Figures, ServeError> {
        self.criu.write_all(said).unwrap();
        drop(self.criu);
        self.served.join().unwrap()
    }
}

#[test]
fn criu_may_die_at_any_step_before_its_mark() {
    for said in [&[][..], &(-3i32).to_ne_bytes()] {
        let served = Pager::connected().after(said);
        assert!(matches!(served, Err(ServeError::Abandoned)), "{said:?}: {served:?}");
    }
}

#[test]
fn a_pager_whose_criu_fails_says_that_nothing_has_run() {
    let node = Node::new();
    let (mut pager, keeper) = node.process(1);
    drop(UnixStream::connect(node.socket()).unwrap());
    let heard = keep(&keeper);
    assert!(heard.abandoned && heard.failed.is_none() && !heard.filled);
    assert!(!pager.wait().unwrap().success());
}

#[test]
fn a_number_cut_off_or_without_its_descriptor_is_an_error() {
    for said in [&[1, 0][..], &7i32.to_ne_bytes(), b"\x07\0\0\0x"] {
        let served = Pager::connected().after(said);
        assert!(matches!(served, Err(ServeError::Protocol(_))), "{said:?}: {served:?}");
    }
}

/// A userfaultfd of this process, as CRIU sends it: with one byte.
fn send_descriptor(criu: &UnixStream) {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: it only makes a descriptor; no memory is registered with it.
    let uffd = unsafe { userfaultfd(flags) }.unwrap();
    let mut api = uffdio_api { api: 0xaa, features: 0, ioctls: 0 };
    // SAFETY: UFFDIO_API writes the structure only.
    assert_eq!(unsafe { libc::ioctl(uffd.as_raw_fd(), 0xc018_aa3f, &mut api) }, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [uffd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(criu, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn criu_may_die_after_it_has_handed_over_a_process() {
    for more in [&[][..], &(-3i32).to_ne_bytes(), &[1, 0]] {
        let mut pager = Pager::connected();
        pager.criu.write_all(&7i32.to_ne_bytes()).unwrap();
        send_descriptor(&pager.criu);
        let Some(Told::Hold(_, _held)) = pager::hear(&pager.keeper).unwrap() else {
            panic!("nothing is held")
        };
        let served = pager.after(more);
        assert!(
            matches!(served, Err(ServeError::Abandoned | ServeError::Protocol(_))),
            "{more:?}: {served:?}"
        );
    }
}

#[test]
fn a_process_that_is_not_in_the_images_or_comes_twice_is_an_error() {
    for pids in [&[8][..], &[7, 7]] {
        let mut pager = Pager::connected();
        for pid in pids {
            pager.criu.write_all(&i32::to_ne_bytes(*pid)).unwrap();
            send_descriptor(&pager.criu);
        }
        let served = pager.served.join().unwrap();
        assert!(matches!(served, Err(ServeError::Stranger(7 | 8))), "{served:?}");
    }
}

/// The other end of a socket that a message with these bytes and so many descriptors came over, and no more.
fn said(bytes: &[u8], fds: usize) -> OwnedFd {
    let null = std::fs::File::open("/dev/null").unwrap();
    let (ours, theirs) = pair();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = vec![null.as_fd(); fds];
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&ours, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    theirs
}

#[test]
fn anything_but_images_and_then_a_setup_is_refused() {
    for (bytes, fds) in [(&[][..], 0), (&[1], 0), (&[1], 3), (&[2], 1), (&[1, 1], 1)] {
        assert!(pager::Saved::receive(said(bytes, fds)).is_err(), "{bytes:?}");
    }
    let threads = [2, 1, 0, 0, 0, 0, 0, 0, 0];
    for (bytes, fds) in [(&[][..], 0), (&threads, 1), (&threads, 4), (&threads[1..], 2), (&[1; 9], 2)] {
        assert!(pager::Setup::receive(said(bytes, fds)).is_err(), "{bytes:?}");
    }
    assert!(pager::Saved::receive(said(&[1], 2)).unwrap().order.is_some());
    assert_eq!(pager::Setup::receive(said(&threads, 2)).unwrap().threads, 1);
}

#[test]
fn a_mark_without_processes_is_the_end() {
    let figures = Pager::connected().after(&RESTORED).unwrap();
    assert_eq!(figures.faults, 0);
}

#[test]
fn a_keeper_that_dies_before_the_mark_ends_the_pager() {
    let pager = Pager::connected();
    drop(pager.keeper);
    assert!(matches!(pager.served.join().unwrap(), Err(ServeError::Abandoned)));
}

#[test]
fn a_keeper_that_dies_after_the_mark_changes_nothing() {
    let node = Node::new();
    let (served, keeper) = node.serve(1);
    let mut restored = node.restored(3, 60, 100);
    assert!(matches!(pager::hear(&keeper).unwrap(), Some(Told::Hold(..))));
    // The mark comes some milliseconds after the descriptor; before it the pager would give up.
    std::thread::sleep(std::time::Duration::from_millis(20));
    drop(keeper);
    match served.join().unwrap() {
        Ok(_) => assert!(restored.wait().unwrap().success()),
        Err(ServeError::Abandoned) => restored.kill().unwrap(),
        Err(error) => panic!("{error}"),
    }
    restored.wait().unwrap();
}

#[test]
fn images_that_are_missing_damaged_or_short_are_refused() {
    for (name, content) in [
        ("pagemap-7.img", None),
        ("pages-1.img", None),
        ("mm-7.img", Some(&b"none"[..])),
        ("pages-1.img", Some(&[0; 8192])),
    ] {
        let node = Node::new();
        let path = node.dir.path().join(name);
        match content {
            Some(content) => std::fs::write(path, content).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        let (served, _keeper) = node.serve(1);
        assert!(matches!(served.join().unwrap(), Err(ServeError::Images(_))), "{name}");
    }
}

#[test]
fn a_page_map_that_claims_more_than_its_file_is_refused_whoever_loads_the_pages() {
    // Source: CRIU 4.2 criu/include/image.h: PE_PRESENT, and PE_LAZY with it.
    for flags in [4, 6] {
        let node = Node::new();
        let run = message(&[(1, 0x10_0000_0000), (2, 0), (4, flags), (5, 1 << 40)]);
        node.write(Kind::Pagemap, "pagemap-7.img", vec![message(&[(1, 1)]), run]);
        let (served, _keeper) = node.serve(1);
        let refused = served.join().unwrap();
        let Err(ServeError::Images(ImagesError::Pages(PagesError::Short { .. }))) = refused else {
            panic!("{flags}: {refused:?}")
        };
    }
}

#[test]
fn pages_that_vanish_while_they_are_copied_end_it_with_their_place() {
    let node = Node::new();
    let (mut pager, keeper) = node.process(2);
    // The page map is read when the first process is named; by then the file is mapped.
    let mut restored = node.restored(5, 0, 2000);
    let Some(Told::Hold(_, _held)) = pager::hear(&keeper).unwrap() else { panic!("nothing is held") };
    std::fs::File::options()
        .write(true)
        .open(node.dir.path().join("pages-1.img"))
        .unwrap()
        .set_len(0)
        .unwrap();
    let heard = keep(&keeper);
    restored.kill().unwrap();
    restored.wait().unwrap();
    let reason = heard.failed.unwrap();
    assert!(reason.contains("pages-1.img"), "{reason}");
    assert!(!pager.wait().unwrap().success());
}
