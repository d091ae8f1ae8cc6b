// SPDX-License-Identifier: Apache-2.0
//! What may go wrong at every step between CRIU and the pager.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use pager::{Figures, ServeError, Told};

use crate::support::{Node, keep};

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
fn a_number_cut_off_or_without_its_descriptor_is_an_error() {
    for said in [&[1, 0][..], &7i32.to_ne_bytes(), b"\x07\0\0\0x"] {
        let served = Pager::connected().after(said);
        assert!(matches!(served, Err(ServeError::Protocol(_))), "{said:?}: {served:?}");
    }
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
