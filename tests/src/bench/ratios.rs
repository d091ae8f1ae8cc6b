// SPDX-License-Identifier: Apache-2.0
//! Median over median: thaw over each of the others, or over the machine's limits.

use std::collections::BTreeMap;

use super::measured::Measured;
use super::{apps, crowd, rootfs, shim};

/// The smallest program, which lazy restores of all others are compared with; of the largest, in turns with it.
const SMALLEST: &str = "restore.64";

/// All ratios of what was measured, by their names.
pub(crate) fn all(measured: &Measured) -> BTreeMap<String, f64> {
    let groups = [restores(measured), crowd::ratios(measured), shim::ratios(measured)];
    let mut ratios: BTreeMap<_, _> = groups.into_iter().flatten().collect();
    ratios.extend(rootfs::ratios(measured));
    ratios.extend(apps::ratios(measured));
    ratios
}

/// Where the other's clock begins before the pod does, thaw's begins with it.
fn restores(measured: &Measured) -> Vec<(String, f64)> {
    let eager = [
        ("vs_runc", "thaw.running", "runc.running"),
        ("vs_criu", "thaw.running", "criu.running"),
        ("vs_podman", "thaw.pod", "podman.running"),
        ("vs_archive", "thaw.pod", "archive.pod"),
        ("vs_registry", "thaw.pod", "image.from_registry"),
        ("vs_image_path", "thaw.pod", "image.all"),
        ("vs_fresh_sleep", "lazy.running", "fresh.running"),
        ("vs_pread_limit", "thaw.running", "limit.pread"),
    ];
    let lazy = [
        ("vs_criu_eager", "lazy.running", "criu.running"),
        ("vs_criu_lazy", "lazy.running", "criu_lazy.running"),
        ("vs_image_path", "lazy.pod", "image.all"),
        ("residency_vs_criu_eager", "lazy.filled", "criu.running"),
        ("residency_vs_criu_lazy", "lazy.filled", "criu_lazy.filled"),
        ("residency_vs_uffd_limit", "lazy.filled", "limit.uffd_copy"),
        ("cold_vs_hot", "cold.running", "lazy.running"),
        ("cold_residency_vs_hot", "cold.filled", "lazy.filled"),
        ("known_vs_first", "slow.running", "slow_first.running"),
    ];
    let mut ratios = Vec::new();
    for size in measured.numbers("restore") {
        let case = format!("restore.{size}");
        for (group, compared) in [("restore", eager.as_slice()), ("lazy", lazy.as_slice())] {
            ratios.extend(compared.iter().filter_map(|(name, ours, theirs)| {
                Some((format!("{group}.{size}.{name}"), measured.ratio(&case, ours, theirs)?))
            }));
        }
        let median = |metric| measured.median(&case, metric);
        if let (Some(import), Some(pod), Some(image)) =
            (median("import"), median("thaw.pod"), median("image.all"))
        {
            ratios.push((format!("{case}.with_import_vs_image_path"), (import + pod) / image));
        }
        let smallest = measured.median(SMALLEST, "lazy.running").filter(|_| case != SMALLEST);
        if let (Some(ours), Some(smallest)) = (median("lazy.running"), median("small.running").or(smallest)) {
            ratios.push((format!("lazy.{size}.vs_64"), ours / smallest));
        }
    }
    ratios
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, Results};
    use super::*;

    fn ratios(cases: &[(&str, &str, f64)]) -> Vec<(String, f64)> {
        let mut results = Results::default();
        for (case, metric, seconds) in cases {
            let mut record = Record::default();
            record.seconds(metric, *seconds);
            results.add(case, record);
        }
        all(&results.measured()).into_iter().collect()
    }

    #[test]
    fn ratios_are_named_by_their_case_and_only_of_what_was_measured() {
        let measured = [
            ("restore.64", "thaw.running", 0.5),
            ("restore.64", "thaw.pod", 1.0),
            ("restore.64", "criu.running", 0.25),
        ];
        assert_eq!(ratios(&measured), [("restore.64.vs_criu".to_owned(), 2.0)]);
    }

    #[test]
    fn a_lazy_restore_is_compared_with_the_smallest_and_with_the_machine() {
        let measured = [
            ("restore.64", "lazy.running", 0.5),
            ("restore.64", "fresh.running", 1.0),
            ("restore.2048", "lazy.running", 0.25),
            ("restore.2048", "lazy.filled", 3.0),
            ("restore.2048", "limit.uffd_copy", 2.0),
            ("restore.8192", "lazy.running", 0.75),
            ("restore.8192", "small.running", 0.625),
        ];
        let expected = [
            ("lazy.2048.residency_vs_uffd_limit", 1.5),
            ("lazy.2048.vs_64", 0.5),
            ("lazy.8192.vs_64", 1.2),
            ("restore.64.vs_fresh_sleep", 0.5),
        ];
        assert_eq!(ratios(&measured), expected.map(|(name, ratio)| (name.to_owned(), ratio)));
    }
}
