// SPDX-License-Identifier: Apache-2.0
//! Everything in one run, one group of cases after the other.

use clap::{Args, ValueEnum};

use super::machine::Machine;
use super::restore::{Case, parse_size};
use super::{
    AppsArgs, CrowdArgs, RestoreArgs, RootfsArgs, Run, ShimArgs, apps, crowd, restore, rootfs, shim,
};
use crate::harness::apps::ALL;

/// What is measured, and how thoroughly.
#[derive(Debug, Args)]
pub struct AllArgs {
    /// Fewer sizes and repetitions: a quarter of an hour instead of one.
    #[arg(long)]
    quick: bool,
    /// Which groups of cases.
    #[arg(long, value_delimiter = ',', default_values_t = Group::value_variants().to_vec(), value_enum)]
    groups: Vec<Group>,
    /// Memory of the restored program, MB, multiples of 16. Default: 64, 512, 2048, and 8192 or 4096 where that fits
    /// the memory twice.
    #[arg(long, value_delimiter = ',', value_parser = parse_size)]
    sizes: Vec<u64>,
    /// Which restores.
    #[arg(long, value_delimiter = ',', default_values_t = Case::value_variants().to_vec(), value_enum)]
    cases: Vec<Case>,
    /// How many pods at once, where many are.
    #[arg(long, value_delimiter = ',')]
    pods: Vec<u32>,
}

/// A group of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Restores of one program.
    Restore,
    /// Many restores at once.
    Crowd,
    /// The shim.
    Shim,
    /// Writable layers.
    Rootfs,
    /// Real programs.
    Apps,
}

/// A group with how much of it is measured.
enum Planned {
    Restore(RestoreArgs),
    Crowd(CrowdArgs),
    Shim(ShimArgs),
    Rootfs(RootfsArgs),
    Apps(AppsArgs),
}

/// Measures all groups. A group that fails as a whole is noted and passed over.
pub async fn all(run: &mut Run, args: &AllArgs) {
    let planned: Vec<_> = args.groups.iter().map(|group| args.plan(*group)).collect();
    for group in &planned {
        run.plan(match group {
            Planned::Restore(args) => args.seconds(),
            Planned::Crowd(args) => args.seconds(),
            Planned::Shim(args) => args.seconds(),
            Planned::Rootfs(args) => args.seconds(),
            Planned::Apps(args) => args.seconds(),
        });
    }
    for group in &planned {
        let (name, measured) = match group {
            Planned::Restore(args) => ("restore", restore(run, args).await),
            Planned::Crowd(args) => ("crowd", crowd(run, args).await),
            Planned::Shim(args) => ("shim", shim(run, args).await),
            Planned::Rootfs(args) => ("rootfs", rootfs(run, args).await),
            Planned::Apps(args) => ("apps", apps(run, args).await),
        };
        if let Err(error) = measured {
            run.fail(name, &error);
        }
    }
}

impl AllArgs {
    /// How much of a group is measured. The numbers are such that all of it takes less than an hour on two processors,
    /// and a quarter of it where it is to be quick.
    fn plan(&self, group: Group) -> Planned {
        let or = |given: &[u32], default: &[u32]| {
            if given.is_empty() { default.to_vec() } else { given.to_vec() }
        };
        match group {
            Group::Restore => Planned::Restore(RestoreArgs {
                runs: self.of(2, 5),
                large_image_runs: self.of(1, 2),
                huge_runs: self.of(2, 5),
                sizes: self.sizes(),
                cases: self.cases.clone(),
                frozen_by: "runc".to_owned(),
            }),
            Group::Crowd => Planned::Crowd(CrowdArgs {
                runs: self.of(1, 3),
                pods: or(&self.pods, self.of(&[1, 10][..], &[1, 2, 5, 10, 20, 50])),
                size: 64,
            }),
            Group::Shim => Planned::Shim(ShimArgs {
                runs: self.of(5, 20),
                pods: self.of(vec![10], vec![1, 10, 100]),
                restored: self.of(0, 10),
            }),
            Group::Rootfs => Planned::Rootfs(RootfsArgs {
                runs: self.of(2, 5),
                sizes: self.of(vec![0, 1000], vec![0, 100, 1000, 10_000]),
                files: self.of(10_000, 100_000),
            }),
            Group::Apps => Planned::Apps(AppsArgs {
                runs: self.of(1, 3),
                apps: ALL.iter().map(|app| app.name.to_owned()).collect(),
            }),
        }
    }

    fn of<T>(&self, quick: T, thorough: T) -> T {
        if self.quick { quick } else { thorough }
    }

    fn sizes(&self) -> Vec<u64> {
        if !self.sizes.is_empty() {
            return self.sizes.clone();
        }
        if self.quick {
            return vec![64, 2048];
        }
        let largest = largest(Machine::look().memory_bytes);
        [64, 512, 2048].into_iter().chain(largest).collect()
    }
}

/// The largest program whose memory and images fit a machine's memory, with 2 GB for everything else.
fn largest(memory_bytes: u64) -> Option<u64> {
    [8192, 4096].into_iter().find(|megabytes| (2 * megabytes + 2048) << 20 <= memory_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_program_fits_the_machines_memory_twice() {
        assert_eq!(largest(24 << 30), Some(8192));
        assert_eq!(largest(16 << 30), Some(4096));
        assert_eq!(largest(8 << 30), None);
    }
}
