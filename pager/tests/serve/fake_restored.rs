// SPDX-License-Identifier: Apache-2.0
//! Does what CRIU does with a process that it restores lazily, then lives that process's life: touches, writes,
//! drops, unmaps, moves and protects memory, forks, and compares every page with what must be in it.
//!
//! `fake_restored SOCKET SEED STEPS [DELAY_US [PAGER_PID]]`; with the pager's pid, it also moves memory while that is
//! stopped. It ends with 0 when all memory was right, else says what was not.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]
#![allow(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block, clippy::too_many_lines)]
#![allow(clippy::cast_possible_wrap, clippy::expect_used)]

mod layout;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use layout::{PAGE, REGIONS, mark, word};
use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EVENT_UNMAP,
    UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_range, uffdio_register,
};
use rustix::io::write;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, UserfaultfdFlags, madvise, mmap_anonymous,
    mprotect, mremap_fixed, munmap, userfaultfd,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Where moved memory goes, 64 MB apart from everything.
const ELSEWHERE: usize = 0x20_0000_0000;

/// The last region is left alone by the steps: threads read it all the time.
const STEADY: usize = REGIONS.len() - 1;

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below.max(1)
    }
}

/// Which mark each page must have; pages that are not mapped are not in it.
type Pages = Vec<(usize, u64)>;

fn pause(random: &mut Random, limit: u64) {
    if limit > 0 {
        std::thread::sleep(Duration::from_micros(random.next(limit as usize) as u64));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| -> u64 { arguments.get(at).map_or(0, |text| text.parse().unwrap()) };
    let (seed, steps, delay) = (number(2), number(3), number(4));
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);

    let socket = UnixStream::connect(&arguments[1]).unwrap();
    let uffd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }.unwrap();
    let features = UFFD_FEATURE_EVENT_FORK
        | UFFD_FEATURE_EVENT_REMAP
        | UFFD_FEATURE_EVENT_REMOVE
        | UFFD_FEATURE_EVENT_UNMAP;
    let mut api = uffdio_api { api: 0xaa, features: features.into(), ioctls: 0 };
    assert_eq!(unsafe { libc::ioctl(uffd.as_raw_fd(), 0xc018_aa3f, &mut api) }, 0);
    pause(&mut random, delay);
    write(&socket, &7i32.to_ne_bytes()).unwrap();
    pause(&mut random, delay);
    send_fd(&socket, uffd.as_fd());
    pause(&mut random, delay);

    let mut pages: Pages = Vec::new();
    for region in REGIONS {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        let at = ptr::without_provenance_mut(region.start);
        unsafe { mmap_anonymous(at, region.pages * PAGE, ProtFlags::READ | ProtFlags::WRITE, flags) }
            .unwrap();
        // CRIU has put some pages there itself, as the pagemap says or not: what is there stays.
        let early = random.next(region.pages);
        fill(region.start + early * PAGE, 0x77);
        let range = uffdio_range { start: region.start as u64, len: (region.pages * PAGE) as u64 };
        let mut register = uffdio_register { range, mode: UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
        assert_eq!(unsafe { libc::ioctl(uffd.as_raw_fd(), 0xc020_aa00, &mut register) }, 0);
        for page in 0..region.pages {
            let address = region.start + page * PAGE;
            let image = if region.holds(page) { mark(address) } else { 0 };
            pages.push((address, if page == early { 0x77 } else { image }));
        }
        pause(&mut random, delay);
    }
    // Some touch memory before all is registered, as the last steps of CRIU do.
    check(&pages[random.next(pages.len())..][..1]);
    if number(5) != 0 {
        move_onto_what_moves(&mut pages, number(5) as libc::pid_t);
    }
    drop(uffd);
    write(&socket, &0x5253_5446i32.to_ne_bytes()).unwrap();
    drop(socket);

    let stop = AtomicBool::new(false);
    let first_steady = pages.len() - REGIONS[STEADY].pages;
    let steady: Pages = pages.split_off(first_steady);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (steady, stop) = (&steady, &stop);
            let mut random = Random(seed.wrapping_add(reader + 99) | 1);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    check(&steady[random.next(steady.len())..][..1]);
                    std::thread::sleep(Duration::from_micros(random.next(300) as u64));
                }
            });
        }
        let mut moved = 0;
        for _ in 0..steps {
            step(&mut pages, &mut random, &mut moved);
            pause(&mut random, delay);
        }
        stop.store(true, Ordering::Relaxed);
    });
    check(&pages);
    check(&steady);
}

/// One thread moves memory away, another moves other memory there, before the first has told that nothing is left.
fn move_onto_what_moves(pages: &mut Pages, pager: libc::pid_t) {
    const LENGTH: usize = 40;
    let first = pages.len() - REGIONS[STEADY].pages - REGIONS[STEADY - 1].pages;
    let (a, b, c) = (pages[first].0, ELSEWHERE, pages[first + LENGTH].0);
    let shift = |from: usize, to: usize| {
        let [from, to] = [from, to].map(ptr::without_provenance_mut);
        unsafe { mremap_fixed(from, LENGTH * PAGE, LENGTH * PAGE, MremapFlags::MAYMOVE, to) }.unwrap();
    };
    // What the kernel tells of each move lies there until the pager goes on.
    let told = || std::thread::sleep(Duration::from_millis(50));
    assert_eq!(unsafe { libc::kill(pager, libc::SIGSTOP) }, 0);
    told();
    std::thread::scope(|scope| {
        scope.spawn(|| shift(a, b));
        told();
        scope.spawn(|| shift(c, a));
        told();
        assert_eq!(unsafe { libc::kill(pager, libc::SIGCONT) }, 0);
    });
    let gone: Pages = pages.drain(first..first + LENGTH).collect();
    for (n, (_, mark)) in gone.into_iter().enumerate() {
        pages[first + n].0 = a + n * PAGE;
        // The steady region stays the last.
        let at = pages.len() - REGIONS[STEADY].pages;
        pages.insert(at, (b + n * PAGE, mark));
    }
}

/// Adjacent pages in `pages` from a random one on, at most `limit`.
fn stretch(pages: &Pages, random: &mut Random, limit: usize) -> std::ops::Range<usize> {
    let first = random.next(pages.len());
    let wanted = 1 + random.next(limit);
    let mut end = first + 1;
    while end < pages.len() && end - first < wanted && pages[end].0 == pages[end - 1].0 + PAGE {
        end += 1;
    }
    first..end
}

fn step(pages: &mut Pages, random: &mut Random, moved: &mut usize) {
    let range = stretch(pages, random, 40);
    let (start, length) = (pages[range.start].0, range.len() * PAGE);
    let at = ptr::without_provenance_mut(start);
    match random.next(9) {
        0 | 1 => check(&pages[range]),
        2 => {
            let value = 0x1_0000 + random.next(1 << 30) as u64;
            for page in &mut pages[range] {
                fill(page.0, value);
                page.1 = value;
            }
        }
        3 => {
            // A size that is no multiple of what a copy moves, over several mappings of the kernel.
            unsafe { madvise(at, length, Advice::LinuxDontNeed) }.unwrap();
            pages[range].iter_mut().for_each(|page| page.1 = 0);
        }
        4 => {
            unsafe { munmap(at, length) }.unwrap();
            pages.drain(range);
        }
        5 => {
            // Onto fresh addresses, or onto memory that is owed as well.
            let to = if random.next(2) == 0 || pages.len() < 4000 {
                *moved += 1;
                ELSEWHERE + *moved * 0x10_0000
            } else {
                pages[random.next(pages.len())].0
            };
            let overlap = to < start + length && start < to + length;
            // A mapping that was split cannot be moved as one.
            let onto_steady = to + length > REGIONS[STEADY].start && to < REGIONS[STEADY].start + 0x1000_0000;
            if overlap || onto_steady {
                return;
            }
            let target = ptr::without_provenance_mut(to);
            if unsafe { mremap_fixed(at, length, length, MremapFlags::MAYMOVE, target) }.is_ok() {
                let marks: Vec<u64> = pages[range.clone()].iter().map(|page| page.1).collect();
                pages.drain(range);
                pages.retain(|page| page.0 < to || page.0 >= to + length);
                pages.extend(marks.into_iter().enumerate().map(|(n, mark)| (to + n * PAGE, mark)));
                pages.sort_unstable();
            } else {
                // The kernel may have unmapped the target before it failed.
                let still = |page: &(usize, u64)| {
                    let mut resident = MaybeUninit::<u8>::uninit();
                    let address = ptr::without_provenance_mut(page.0);
                    unsafe { libc::mincore(address, PAGE, resident.as_mut_ptr()) == 0 }
                };
                pages.retain(|page| page.0 < to || page.0 >= to + length || still(page));
            }
        }
        6 => {
            // Splits the mapping.
            unsafe { mprotect(at, length, MprotectFlags::READ) }.unwrap();
            check(&pages[range.clone()]);
            if random.next(2) == 0 {
                unsafe { mprotect(at, length, MprotectFlags::READ | MprotectFlags::WRITE) }.unwrap();
            } else {
                // Stays so; nobody writes there again.
                unsafe { munmap(at, length) }.unwrap();
                pages.drain(range);
            }
        }
        7 => fork(pages, random, 0),
        _ => {
            let far = random.next(pages.len());
            check(&pages[far..][..1]);
        }
    }
}

/// Children compare all their memory, or a part; some fork again, some are killed half way, some write first.
fn fork(pages: &Pages, random: &mut Random, depth: u32) {
    let kind = random.next(4);
    let sample = random.next(pages.len());
    let grandchild = depth < 2 && random.next(3) == 0;
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // Nothing here may take a lock that another thread held at the fork.
            if grandchild {
                fork(pages, random, depth + 1);
            }
            match kind {
                0 => check(pages),
                1 => check(&pages[sample..]),
                2 => {
                    for page in pages.iter().skip(sample).take(64) {
                        fill(page.0, 5);
                    }
                    check(&pages[..sample]);
                }
                _ => check(&pages[..sample.min(50)]),
            }
            unsafe { libc::_exit(0) }
        }
        child => {
            if kind == 1 && depth == 0 && random.next(2) == 0 {
                unsafe { libc::kill(child, libc::SIGKILL) };
                unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
                return;
            }
            if depth > 0 || random.next(2) == 0 {
                let mut status = 0;
                unsafe { libc::waitpid(child, &mut status, 0) };
                if status != 0 {
                    complain(b"a child found wrong memory\n");
                }
            }
        }
    }
}

fn fill(address: usize, mark: u64) {
    let page = ptr::without_provenance_mut::<u64>(address);
    for index in 0..PAGE / 8 {
        unsafe { page.add(index).write_volatile(word(mark, index)) };
    }
}

fn check(pages: &[(usize, u64)]) {
    for (address, mark) in pages {
        let page = ptr::without_provenance::<u64>(*address);
        for index in 0..PAGE / 8 {
            let found = unsafe { page.add(index).read_volatile() };
            if found != word(*mark, index) {
                let mut line = *b"wrong: 0000000000000000 0000000000000000 0000000000000000\n";
                for (slot, value) in [*address as u64, found, word(*mark, index)].into_iter().enumerate() {
                    for digit in 0..16 {
                        let nibble = (value >> (60 - 4 * digit)) & 15;
                        line[7 + slot * 17 + digit] = b"0123456789abcdef"[nibble as usize];
                    }
                }
                complain(&line);
            }
        }
    }
}

/// Without an allocation: also in a forked child.
fn complain(line: &[u8]) -> ! {
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    unsafe { libc::_exit(9) }
}

fn send_fd(socket: &UnixStream, fd: rustix::fd::BorrowedFd<'_>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
}
