// SPDX-License-Identifier: Apache-2.0
//! The device rules of a container as a BPF program, which is what cgroup v2 has in the place of `devices.allow`. Pure.
//!
//! For each kind of access the last rule that speaks of the device and of that access decides; what no rule speaks
//! of is denied. The program goes through the rules from the last to the first, and keeps in a register which of the
//! wanted kinds no rule has allowed yet.
//!
//! Source: OCI runtime specification, `config-linux.md`, "Allowed Device list"; Linux `include/uapi/linux/bpf.h`,
//! `struct bpf_cgroup_dev_ctx`.

use oci_spec::runtime::{LinuxDeviceType, Spec};

use crate::bpf::Instruction;

/// Source: `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// Source: `BPF_DEVCG_ACC_*`.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// One rule; `None` stands for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// What every container may use beside what its spec says, and the node that stands for it.
///
/// Source: runc `libcontainer/specconv/spec_linux.go`, `AllowedDevices`. A spec that lists a node itself speaks for
/// it alone.
const ALWAYS: [(&str, Option<i32>, Option<i32>, i32); 10] = [
    ("", None, None, MKNOD),
    ("/dev/null", Some(1), Some(3), ALL),
    ("/dev/random", Some(1), Some(8), ALL),
    ("/dev/full", Some(1), Some(7), ALL),
    ("/dev/tty", Some(5), Some(0), ALL),
    ("/dev/zero", Some(1), Some(5), ALL),
    ("/dev/urandom", Some(1), Some(9), ALL),
    // Pseudo terminals, their multiplexer, tunnels.
    ("", Some(136), None, ALL),
    ("", Some(5), Some(2), ALL),
    ("", Some(10), Some(200), ALL),
];

/// The program that lets through what `spec` allows.
pub(crate) fn program(spec: &Spec) -> Vec<Instruction> {
    assemble(&rules(spec))
}

fn rules(spec: &Spec) -> Vec<Rule> {
    let linux = spec.linux().as_ref();
    let stated = linux.and_then(|linux| linux.resources().as_ref()?.devices().as_ref());
    let nodes = linux.and_then(|linux| linux.devices().as_ref());
    let listed = |path: &str| nodes.into_iter().flatten().any(|node| node.path().to_str() == Some(path));
    let always = ALWAYS
        .iter()
        .filter(|(path, ..)| path.is_empty() || !listed(path))
        .map(|&(_, major, minor, access)| Rule { allow: true, kind: Some(CHAR), major, minor, access });
    let make_block_nodes = Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD };
    stated.into_iter().flatten().filter_map(rule).chain(always).chain([make_block_nodes]).collect()
}

/// A rule of the spec. One without access allows nothing, or denies all; one for FIFOs says nothing about devices.
fn rule(stated: &oci_spec::runtime::LinuxDeviceCgroup) -> Option<Rule> {
    let kind = match stated.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHAR),
        LinuxDeviceType::P => return None,
    };
    let letters = stated.access().as_deref().unwrap_or_else(|| if stated.allow() { "" } else { "rwm" });
    let access = [('m', MKNOD), ('r', READ), ('w', WRITE)];
    let access = access.iter().filter(|(letter, _)| letters.contains(*letter)).map(|(_, bit)| bit).sum();
    // No device has a number that the kernel's 12 and 20 bits do not hold; an allowance for one is for none.
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Some(None),
        Some(number) => i32::try_from(number).ok().map(Some),
    };
    let (major, minor) = (number(stated.major())?, number(stated.minor())?);
    Some(Rule { allow: stated.allow(), kind, major, minor, access })
}

/// Registers of the program: its result, its context, and what is read out of that.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// The kinds of access that are wanted and not yet allowed.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    // The first word of the context is access << 16 | kind, the others are the device's numbers.
    let mut program = vec![
        load(KIND, 0),
        Instruction { code: 0xbc, registers: KIND << 4 | WANTED, offset: 0, immediate: 0 },
        and(KIND, 0xffff),
        Instruction { code: 0x74, registers: WANTED, offset: 0, immediate: 16 },
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev().filter(|rule| rule.access != 0) {
        let (conditions, verdict) = block(rule);
        let whole = conditions.is_empty() && rule.access == ALL;
        // Each condition leaves the block for the next one.
        let mut left = conditions.len() + verdict.len();
        for (register, value) in conditions {
            left -= 1;
            program.push(unless_equal(register, value, left));
        }
        program.extend(verdict);
        if whole {
            // It decides all that is left, and the kernel takes no code that cannot be reached.
            return program;
        }
    }
    program.extend(end(false));
    program
}

/// What must hold for a rule to apply, and what it does then. Pure.
fn block(rule: &Rule) -> (Vec<(u8, i32)>, Vec<Instruction>) {
    let conditions = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let conditions: Vec<_> =
        conditions.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
    let verdict = match (rule.allow, rule.access == ALL) {
        (allow, true) => end(allow).to_vec(),
        (true, false) => {
            let [result, exit] = end(true);
            vec![and(WANTED, ALL & !rule.access), unless_equal(WANTED, 0, 2), result, exit]
        }
        (false, false) => {
            let [result, exit] = end(false);
            // Over the jump that leaves the block, if any of the bits is wanted.
            let if_any = Instruction { code: 0x45, registers: WANTED, offset: 1, immediate: rule.access };
            let leave = Instruction { code: 0x05, registers: 0, offset: 2, immediate: 0 };
            vec![if_any, leave, result, exit]
        }
    };
    (conditions, verdict)
}

fn end(allow: bool) -> [Instruction; 2] {
    let exit = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };
    [Instruction { code: 0xb4, registers: RESULT, offset: 0, immediate: allow.into() }, exit]
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: CONTEXT << 4 | register, offset, immediate: 0 }
}

fn and(register: u8, immediate: i32) -> Instruction {
    Instruction { code: 0x54, registers: register, offset: 0, immediate }
}

/// Jumps over `skip` instructions; a block has fewer than ten.
fn unless_equal(register: u8, immediate: i32, skip: usize) -> Instruction {
    Instruction { code: 0x55, registers: register, offset: i16::try_from(skip).unwrap_or(0), immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program's verdict, by a reading of its instructions that is not the kernel's but as narrow as possible.
    fn allows(program: &[Instruction], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i32; 6];
        let mut at = 0usize;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            let leap = usize::try_from(offset).unwrap();
            match code {
                0x61 => registers[to] = context[leap / 4],
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = immediate,
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0x05 => at += leap,
                0x45 if registers[to] & immediate != 0 => at += leap,
                0x55 if registers[to] != immediate => at += leap,
                0x45 | 0x55 => {}
                0x95 => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn spec(linux: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion": "1.2.0", "linux": {linux}}}"#)).unwrap()
    }

    fn with_rules(rules: &str) -> Vec<Instruction> {
        program(&spec(&format!(r#"{{"resources": {{"devices": {rules}}}}}"#)))
    }

    /// What containerd's CRI gives a container with two devices of its own.
    const ORDINARY: &str = r#"[
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}
    ]"#;

    #[test]
    fn a_device_is_open_for_what_its_rule_says_and_for_nothing_else() {
        let program = with_rules(ORDINARY);
        let cases = [
            ((CHAR, 10, 229, READ), true),
            ((CHAR, 10, 229, READ | WRITE), true),
            ((BLOCK, 8, 0, READ), true),
            ((BLOCK, 8, 0, READ | WRITE), false),
            ((BLOCK, 8, 1, READ), false),
            ((CHAR, 8, 0, READ), false),
            ((CHAR, 10, 228, READ), false),
        ];
        for ((kind, major, minor, access), wanted) in cases {
            assert_eq!(
                allows(&program, kind, major, minor, access),
                wanted,
                "{kind} {major}:{minor} {access}"
            );
        }
    }

    #[test]
    fn what_every_container_has_is_allowed_and_any_node_may_be_made() {
        for program in [with_rules(ORDINARY), program(&spec("{}"))] {
            for (major, minor) in
                [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 7), (10, 200)]
            {
                assert!(allows(&program, CHAR, major, minor, ALL), "{major}:{minor}");
                assert!(!allows(&program, BLOCK, major, minor, READ), "{major}:{minor}");
            }
            assert!(allows(&program, CHAR, 240, 1, MKNOD) && allows(&program, BLOCK, 240, 1, MKNOD));
            assert!(!allows(&program, CHAR, 240, 1, MKNOD | READ));
            // The console and the machine's memory.
            assert!(!allows(&program, CHAR, 5, 1, READ) && !allows(&program, CHAR, 1, 1, READ));
        }
    }

    #[test]
    fn a_privileged_container_may_use_everything() {
        let program = with_rules(r#"[{"allow": true, "access": "rwm"}]"#);
        assert!(allows(&program, BLOCK, 259, 3, ALL) && allows(&program, CHAR, 1, 1, READ));
    }

    #[test]
    fn the_last_rule_that_speaks_of_an_access_decides() {
        let all_but_one = with_rules(
            r#"[{"allow": true, "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "w"}]"#,
        );
        assert!(allows(&all_but_one, BLOCK, 8, 0, READ) && allows(&all_but_one, BLOCK, 8, 1, WRITE));
        assert!(
            !allows(&all_but_one, BLOCK, 8, 0, WRITE) && !allows(&all_but_one, BLOCK, 8, 0, READ | WRITE)
        );
        let pieces = with_rules(
            r#"[{"allow": true, "type": "c", "major": 7, "access": "r"},
                {"allow": true, "type": "c", "major": 7, "minor": 1, "access": "w"}]"#,
        );
        assert!(allows(&pieces, CHAR, 7, 1, READ | WRITE) && !allows(&pieces, CHAR, 7, 2, WRITE));
        let closed = with_rules(
            r#"[{"allow": true, "type": "c", "major": 7, "access": "rwm"}, {"allow": false, "access": "rwm"}]"#,
        );
        assert!(!allows(&closed, CHAR, 7, 1, READ) && allows(&closed, CHAR, 1, 3, READ));
    }

    #[test]
    fn a_rule_that_says_too_little_gives_nothing() {
        let rules = r#"[{"allow": true, "type": "c", "major": 7},
                        {"allow": true, "type": "p", "access": "rwm"},
                        {"allow": true, "type": "c", "major": 1099511627776, "access": "rwm"}]"#;
        assert!(!allows(&with_rules(rules), CHAR, 7, 1, READ));
        assert!(!allows(&with_rules(rules), CHAR, 0, 1, READ));
        let denied = r#"[{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 7}]"#;
        assert!(!allows(&with_rules(denied), CHAR, 7, 1, READ));
    }

    #[test]
    fn a_spec_that_lists_a_common_node_speaks_for_it_alone() {
        let linux = r#"{"devices": [{"path": "/dev/full", "type": "c", "major": 1, "minor": 7}],
                        "resources": {"devices": [{"allow": true, "type": "c", "major": 1, "minor": 7, "access": "r"}]}}"#;
        let program = program(&spec(linux));
        assert!(allows(&program, CHAR, 1, 7, READ) && !allows(&program, CHAR, 1, 7, WRITE));
    }

    #[test]
    fn every_instruction_can_be_reached_so_that_the_kernel_takes_it() {
        for rules in
            ["[]", ORDINARY, r#"[{"allow": true, "access": "rwm"}, {"allow": false, "access": "rwm"}]"#]
        {
            let program = with_rules(rules);
            let mut reached = vec![false; program.len()];
            let mut open = vec![0usize];
            while let Some(at) = open.pop() {
                if std::mem::replace(&mut reached[at], true) {
                    continue;
                }
                let Instruction { code, offset, .. } = program[at];
                let target = at + 1 + usize::try_from(offset).unwrap();
                match code {
                    0x95 => {}
                    0x05 => open.push(target),
                    0x45 | 0x55 => open.extend([at + 1, target]),
                    _ => open.push(at + 1),
                }
            }
            assert!(reached.iter().all(|reached| *reached), "{rules}");
        }
    }
}
