// SPDX-License-Identifier: Apache-2.0
//! Processes that live while their memory arrives. Every page of every one is compared with what must be in it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::Child;
use std::time::{Duration, Instant};

use pager::{FaultOrder, Told, hear};

use crate::support::{Heard, Node, keep};

/// What a restored process says at its end; empty when all its memory was right.
fn end(mut child: Child) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    if status.success() { said } else { format!("{said}{status}") }
}

fn live(seeds: std::ops::Range<u64>, threads: usize, steps: u64, delay: u64) {
    let node = Node::new();
    for seed in seeds {
        let (served, keeper) = node.serve(threads);
        let heard = std::thread::spawn(move || keep(&keeper));
        let mut restored = node.restored(seed, steps, delay);
        // The memory is there long before the process is done with it.
        let figures = served.join().unwrap().inspect_err(|_| restored.kill().unwrap()).unwrap();
        assert_eq!(end(restored), "", "seed {seed}");
        assert!(figures.bytes > 0 && figures.faults > 0, "{figures:?}");
        assert!(heard.join().unwrap().held.is_empty(), "seed {seed}");
    }
}

#[test]
fn memory_is_right_that_comes_from_the_disk() {
    for (seed, threads) in (100..106).zip([1, 2, 3, 1, 2, 3]) {
        let node = Node::on_disk();
        let (served, keeper) = node.serve(threads);
        let heard = std::thread::spawn(move || keep(&keeper));
        let restored = node.restored(seed, 200, 100);
        served.join().unwrap().unwrap();
        assert_eq!(end(restored), "", "seed {seed}");
        assert!(heard.join().unwrap().held.is_empty());
    }
}

#[test]
fn memory_is_right_while_one_thread_fills() {
    live(1..9, 1, 150, 0);
}

#[test]
fn memory_is_right_while_two_threads_fill_and_every_step_waits() {
    live(10..16, 2, 150, 400);
}

#[test]
fn memory_is_right_while_four_threads_fill() {
    live(20..28, 4, 300, 20);
}

#[test]
fn memory_is_right_that_moves_to_where_other_memory_has_just_left() {
    let node = Node::new();
    let (mut pager, keeper) = node.process(2);
    let restored = node.restored_by(pager.id(), 3, 100, 0);
    let heard = keep(&keeper);
    assert_eq!(end(restored), "");
    assert!(heard.filled && heard.held.is_empty(), "{heard:?}");
    assert!(pager.wait().unwrap().success());
}

#[test]
fn several_restores_are_served_at_once() {
    std::thread::scope(|scope| {
        for seed in [40, 50, 60] {
            scope.spawn(move || live(seed..seed + 2, 2, 120, 50));
        }
    });
}

/// One life of a process, whose memory is compared; the pager knows the order of faults or writes it down.
fn live_with(seed: u64, order: Option<&File>, wanted: Option<&File>) {
    let node = Node::new();
    let [order, wanted] = [order, wanted].map(|file| file.map(|file| file.try_clone().unwrap()));
    let (served, keeper) = node.serve_with(2, order, wanted);
    let heard = std::thread::spawn(move || keep(&keeper));
    let restored = node.restored(seed, 150, 20);
    served.join().unwrap().unwrap();
    assert_eq!(end(restored), "", "seed {seed}");
    heard.join().unwrap();
}

#[test]
fn what_a_process_waits_for_is_written_down_and_the_next_one_is_right_with_it() {
    let mut file = tempfile::tempfile().unwrap();
    live_with(30, None, Some(&file));
    file.rewind().unwrap();
    assert_ne!(FaultOrder::read(&file), FaultOrder::default());
    for seed in 30..33 {
        file.rewind().unwrap();
        live_with(seed, Some(&file), None);
    }
}

#[test]
fn an_order_of_faults_that_is_wrong_in_any_way_changes_no_page() {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for seed in 33..36 {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"thawflt1").unwrap();
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Pages of the file, pages beyond it, and files that are not there.
            let (id, page) = (1 + u32::from(random >> 60 == 0), (random >> 20) % 20_000);
            file.write_all(&id.to_le_bytes()).unwrap();
            file.write_all(&page.to_le_bytes()).unwrap();
        }
        file.rewind().unwrap();
        live_with(seed, Some(&file), None);
    }
}

#[test]
fn a_process_that_is_killed_ends_its_pager() {
    for seed in 70..76 {
        let node = Node::new();
        let (served, keeper) = node.serve(1);
        let mut restored = node.restored(seed, 1_000_000, 0);
        // Its userfaultfd has come; the mark may have or not.
        assert!(matches!(hear(&keeper).unwrap(), Some(Told::Hold(..))));
        std::thread::sleep(Duration::from_micros(seed * 137 % 3000));
        restored.kill().unwrap();
        restored.wait().unwrap();
        let heard = std::thread::spawn(move || while hear(&keeper).unwrap().is_some() {});
        // Both are right: all was there, or nobody wanted it any more.
        drop(served.join().unwrap());
        heard.join().unwrap();
    }
}

#[test]
fn a_pager_that_is_killed_leaves_nobody_with_wrong_memory() {
    let mut waited = 0;
    for seed in 80..92 {
        let node = Node::new();
        let (mut pager, keeper) = node.process(1);
        let heard = std::thread::spawn(move || keep(&keeper));
        let mut restored = node.restored(seed, 5, 300);
        std::thread::sleep(Duration::from_micros(seed * 731 % 9000));
        pager.kill().unwrap();
        pager.wait().unwrap();
        // As a keeper that has not seen the end yet.
        let Heard { held, filled, .. } = heard.join().unwrap();
        let deadline = Instant::now() + Duration::from_millis(300);
        while restored.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let over = restored.try_wait().unwrap().is_some();
        waited += u32::from(!over);
        let _ = restored.kill();
        let said = end(restored);
        assert!(!said.contains("wrong"), "seed {seed}: {said}");
        assert!(over || !filled, "seed {seed}: all memory was there, and it does not end");
        drop(held);
    }
    assert!(waited > 0, "the pager was never killed before its work was done");
}

#[test]
fn a_pager_whose_restore_never_begins_ends_with_its_keeper() {
    let node = Node::new();
    let (mut waiting, keeper) = node.waiting();
    std::thread::sleep(Duration::from_millis(50));
    assert!(waiting.try_wait().unwrap().is_none());
    drop(keeper);
    waiting.wait().unwrap();
}
