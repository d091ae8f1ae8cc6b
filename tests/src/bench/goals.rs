// SPDX-License-Identifier: Apache-2.0
//! What this project wants to reach, as ratios, and whether a run has shown it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A ratio and the most that it may be. Where names stand in one row the first that was measured counts: the largest
/// program depends on the machine's memory.
const GOALS: [(&[&str], f64, &str); 13] = [
    (
        &["lazy.8192.vs_64", "lazy.4096.vs_64"],
        1.3,
        "the first answer comes as soon, however large the program",
    ),
    (&["lazy.2048.vs_criu_eager"], 0.12, "the first answer, beside bare CRIU"),
    (&["lazy.2048.vs_image_path"], 0.005, "the first answer, beside the way by an image"),
    (&["lazy.2048.residency_vs_criu_eager"], 0.7, "all memory, beside bare CRIU"),
    (&["lazy.2048.residency_vs_uffd_limit"], 1.18, "all memory, beside what the machine can copy"),
    (&["restore.64.vs_fresh_sleep"], 1.0, "a restored program, beside the start of `sleep` under runc"),
    (&["shim.rss.vs_go"], 0.25, "the shim's memory, beside containerd's own: resident"),
    (&["shim.pss.vs_go"], 0.2, "its proportional share"),
    (&["shim.private_dirty.vs_go"], 0.15, "what one more pod costs"),
    (&["shim.start.vs_go"], 1.0, "the start of a pod"),
    (&["shim.exec.vs_go"], 1.0, "a command in a pod"),
    (&["rootfs.1000.vs_0"], 1.1, "a restore with 1 GB in its writable layer, beside none; a tenth is noise"),
    (&["rootfs.files.vs_0"], 1.1, "the same with many small files"),
];

/// A goal, and whether it is met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// The ratio.
    pub(crate) name: String,
    pub(crate) meaning: String,
    pub(crate) at_most: f64,
    /// Nothing where it was not measured.
    pub(crate) ratio: Option<f64>,
    pub(crate) met: Option<bool>,
}

impl Goal {
    /// `met`, `not met`, or `not measured`.
    pub(crate) fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "not met",
            None => "not measured",
        }
    }
}

/// All goals beside these ratios.
pub(crate) fn judge(ratios: &BTreeMap<String, f64>) -> Vec<Goal> {
    let judged = GOALS.iter().filter_map(|(names, at_most, meaning)| {
        let known = names.iter().find(|name| ratios.contains_key(**name));
        let name = known.into_iter().chain(*names).next()?;
        let ratio = ratios.get(*name).copied();
        let met = ratio.map(|ratio| ratio <= *at_most);
        Some(Goal { name: (*name).to_owned(), meaning: (*meaning).to_owned(), at_most: *at_most, ratio, met })
    });
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_missed_or_not_measured_and_the_largest_size_may_be_the_smaller_one() {
        let ratios = [("lazy.4096.vs_64", 1.3), ("shim.rss.vs_go", 0.26)];
        let judged = judge(&ratios.map(|(name, ratio)| (name.to_owned(), ratio)).into());
        let verdict = |name: &str| judged.iter().find(|goal| goal.name == name).map(Goal::verdict);
        assert_eq!(judged.len(), GOALS.len());
        assert_eq!(verdict("lazy.4096.vs_64"), Some("met"));
        assert_eq!(verdict("lazy.8192.vs_64"), None);
        assert_eq!(verdict("shim.rss.vs_go"), Some("not met"));
        assert_eq!(verdict("shim.pss.vs_go"), Some("not measured"));
    }
}
