// SPDX-License-Identifier: Apache-2.0
//! One run of the benchmark: what it has measured, what failed, and how far it is.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::future::join_all;

use super::machine::Machine;
use super::record::{Record, Results};
use super::report::{Left, Report};
use crate::kubelet::Kubelet;
use crate::kubelet::settings::Settings;

/// How long one call may take: a checkpoint of gigabytes takes as long as the disk needs for several copies.
const CALL: Duration = Duration::from_secs(900);

/// What all groups of cases add to.
#[derive(Debug)]
pub struct Run {
    machine: Machine,
    results: Results,
    failed: Vec<Left>,
    skipped: Vec<Left>,
    began: Instant,
    /// Seconds that the whole run and what of it is done would take on the machine of docs/benchmarks.md.
    planned: f64,
    done: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            machine: Machine::look(),
            results: Results::default(),
            failed: Vec::new(),
            skipped: Vec::new(),
            began: Instant::now(),
            planned: 0.0,
            done: 0.0,
        }
    }
}

impl Run {
    /// A step that will take about so many seconds; more than a guess is not needed.
    pub(crate) fn plan(&mut self, seconds: f64) {
        self.planned += seconds;
    }

    /// Says that a step begins for which so many seconds were planned, and, where there is a plan, how long the rest
    /// will take.
    pub(crate) fn step(&mut self, what: &str, seconds: f64) {
        if self.planned > 0.0 {
            let left = time_left(self.began.elapsed().as_secs_f64(), self.done, self.planned);
            eprintln!("{what} ({left})");
        } else {
            eprintln!("{what}");
        }
        self.done += seconds;
    }

    /// Adds what one repetition of a case has measured.
    pub(crate) fn add(&mut self, case: &str, record: Record) {
        self.results.add(case, record);
    }

    /// Notes why a case has no number, and goes on.
    pub(crate) fn fail(&mut self, case: &str, error: &anyhow::Error) {
        eprintln!("FAILED: {case}: {error:#}");
        self.failed.push(Left { case: case.to_owned(), reason: format!("{error:#}") });
    }

    /// Notes that a case cannot be measured on this machine, once.
    pub(crate) fn skip(&mut self, case: &str, reason: &str) {
        let skipped = Left { case: case.to_owned(), reason: reason.to_owned() };
        if !self.skipped.contains(&skipped) {
            eprintln!("skipped: {case}: {reason}");
            self.skipped.push(skipped);
        }
    }

    /// Prints the tables and writes the JSON.
    ///
    /// # Errors
    /// When a case failed, after all that was measured has been shown; when the file cannot be written.
    pub fn finish(self, json: Option<&Path>) -> anyhow::Result<()> {
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        let left = (self.failed, self.skipped);
        let report = Report::new(self.machine, &command(), minutes, self.results.measured(), left);
        print!("{}", report.table());
        if let Some(file) = json {
            report.write(file)?;
        }
        match report.failed.len() {
            0 => Ok(()),
            failed => bail!("{failed} failed"),
        }
    }
}

/// The command line that people type, without the file that the results go to.
fn command() -> String {
    let mut words = vec!["scripts/bench".to_owned()];
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        if word == "--json" {
            arguments.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

/// A kubelet that gives each call the time that a large checkpoint takes.
pub(crate) async fn kubelet() -> anyhow::Result<Kubelet> {
    let settings = Settings { request_timeout: CALL, ..Settings::from_env() };
    Ok(Kubelet::connect(settings).await?)
}

/// Removes every pod whose name begins like this, whatever became of it: `bench-` for those of a repetition.
pub(crate) async fn remove_pods(kubelet: &Kubelet, prefix: &str) -> anyhow::Result<()> {
    let ours = kubelet.list()?.into_iter().filter(|state| state.pod.metadata.name.starts_with(prefix));
    let removed = join_all(ours.map(|state| async move { kubelet.remove(&state, Some(0)).await })).await;
    Ok(removed.into_iter().collect::<Result<(), _>>()?)
}

/// What is left of `planned` seconds, of which `done` have taken `elapsed`.
fn time_left(elapsed: f64, done: f64, planned: f64) -> String {
    if done <= 0.0 {
        return format!("about {:.0} min in all", (planned / 60.0).ceil());
    }
    let minutes = elapsed / done * (planned - done).max(0.0) / 60.0;
    format!("{:.0} %, {:.0} min left", 100.0 * (done / planned).min(1.0), minutes.ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_goes_by_the_pace_of_what_is_done() {
        assert_eq!(time_left(0.0, 0.0, 599.0), "about 10 min in all");
        assert_eq!(time_left(120.0, 60.0, 120.0), "50 %, 2 min left");
        assert_eq!(time_left(120.0, 180.0, 120.0), "100 %, 0 min left");
    }
}
