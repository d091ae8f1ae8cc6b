// SPDX-License-Identifier: Apache-2.0
//! What a pager costs as a process of its own and as threads of one process, side by side:
//!
//! ```sh
//! cargo build --release -p pager --examples
//! cargo test --release -p pager --test serve_pager -- --ignored --nocapture process_model
//! ```
//!
//! Prints a line for each number of restores and each model: memory of a waiting pager that is its own (anonymous memory, and
//! page tables), and the time from the start of all restored processes until all have all of their memory, 31 MB each.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::support::{Heard, Node, Served, keep};

const ROUNDS: usize = 5;
/// How long a pager may take to get its images ready, beside 99 others.
const SETTLED: Duration = Duration::from_secs(2);
const FILL_THREADS: usize = 2;

/// A pager, and where it is told what it does.
enum Pager {
    Process(Child),
    Thread(Served),
}

#[derive(Debug, Clone, Copy)]
enum Model {
    Processes,
    Threads,
}

/// KiB of anonymous memory and of page tables that a process has for itself.
fn own_memory(pid: u32) -> u64 {
    let fields = [("smaps_rollup", "Anonymous:"), ("status", "VmPTE:")];
    let field = |(file, field): (&str, &str)| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    fields.into_iter().map(field).sum()
}

/// KiB for each pager, and the time until all memory is there.
fn measure(model: Model, nodes: &[Node]) -> (u64, Duration) {
    let before = own_memory(std::process::id());
    let (mut pagers, mut keepers): (Vec<Pager>, Vec<OwnedFd>) = Default::default();
    for node in nodes {
        let (pager, keeper) = match model {
            Model::Processes => {
                let (child, keeper) = node.process(FILL_THREADS);
                (Pager::Process(child), keeper)
            }
            Model::Threads => {
                let (thread, keeper) = node.serve(FILL_THREADS);
                let told = keeper.try_clone().unwrap();
                (Pager::Thread((thread, keeper)), told)
            }
        };
        pagers.push(pager);
        keepers.push(keeper);
    }
    std::thread::sleep(SETTLED);
    let memory = match model {
        Model::Threads => own_memory(std::process::id()).saturating_sub(before),
        Model::Processes => pagers
            .iter()
            .map(|pager| if let Pager::Process(child) = pager { own_memory(child.id()) } else { 0 })
            .sum(),
    };
    let began = Instant::now();
    let restored: Vec<Child> = nodes.iter().map(|node| node.restored(7, 0, 0)).collect();
    let heard: Vec<Heard> = std::thread::scope(|scope| {
        let keepers: Vec<_> = keepers.iter().map(|keeper| scope.spawn(move || keep(keeper))).collect();
        keepers.into_iter().map(|keeper| keeper.join().unwrap()).collect()
    });
    let time = began.elapsed();
    assert!(heard.iter().all(|heard| heard.held.is_empty()));
    for pager in pagers {
        match pager {
            Pager::Process(mut child) => assert!(child.wait().unwrap().success()),
            Pager::Thread((thread, _)) => drop(thread.join().unwrap().unwrap()),
        }
    }
    for mut restored in restored {
        assert!(restored.wait().unwrap().success());
    }
    (memory / nodes.len() as u64, time)
}

#[test]
#[ignore = "a measurement"]
fn process_model() {
    for count in [1, 10, 100] {
        let nodes: Vec<Node> = (0..count).map(|_| Node::new()).collect();
        for model in [Model::Processes, Model::Threads] {
            let mut rounds: Vec<_> = (0..ROUNDS).map(|_| measure(model, &nodes)).collect();
            rounds.sort_by_key(|round| round.1);
            let (memory, _) = rounds[ROUNDS / 2];
            let milliseconds = rounds[ROUNDS / 2].1.as_millis();
            println!("{count:>4} restores  {model:<9?}  {memory:>6} KiB each  {milliseconds:>6} ms");
        }
    }
}
