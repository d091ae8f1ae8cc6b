// SPDX-License-Identifier: Apache-2.0
//! That `docs/fidelity.md` names every row that is tested, and that every row has its test.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    fn read(path: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    /// The rows that a group's program sets up.
    fn rows(group: &str) -> BTreeSet<String> {
        let program = read(&format!("workloads/fidelity/{group}.py"));
        let name = |text: &str| text.trim_start().strip_prefix("def ")?.split('(').next().map(str::to_owned);
        program.split("@row\n").skip(1).filter_map(name).collect()
    }

    #[test]
    fn each_row_has_a_test_and_is_named_in_the_documentation() {
        let page = read("../docs/fidelity.md");
        let sections = [("processes", "Processes"), ("files", "Files"), ("rootfs", "Root file system")];
        for (group, title) in sections {
            let rows = rows(group);
            assert!(rows.len() > 5, "{group}: {rows:?}");
            let tests = read(&format!("e2e/fidelity/{group}.rs"));
            let words: BTreeSet<_> = tests.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
            let section = page.split(&format!("## {title}\n")).nth(1).unwrap();
            let section = section.split("\n## ").next().unwrap();
            for row in rows {
                assert!(words.contains(row.as_str()), "{row} has no test");
                assert!(section.contains(&format!("`{row}`")), "{row} is not in docs/fidelity.md, {title}");
            }
        }
    }
}
