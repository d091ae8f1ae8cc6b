// SPDX-License-Identifier: Apache-2.0
//! Whether a seccomp filter that processes bring along allows no more than the new pod's profile would.
//!
//! The images hold compiled filters, of which nobody can say what the new profile would make of them: libraries compile
//! differently. So the profiles are compared, that of the spec under which the container ran and the new one. All that
//! ran in it had at least that filter.
//!
//! Where it cannot be told, the filter counts as allowing more.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

use super::{Claims, Reason, claims};

/// The node's own architecture, which a runtime always adds.
const NATIVE: Option<Arch> = if cfg!(target_arch = "x86_64") {
    Some(Arch::ScmpArchX86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(Arch::ScmpArchAarch64)
} else {
    None
};
/// How many calls a reason names.
const NAMED: usize = 8;

/// Adds a reason if processes under `frozen` could do more than `new` allows.
pub(super) fn check(
    frozen: Option<&LinuxSeccomp>,
    new: Option<&LinuxSeccomp>,
    threads: &[Claims],
    reasons: &mut Vec<Reason>,
) {
    let Some(new) = new else { return };
    match frozen {
        // That a thread has no filter at all is a reason of its own.
        None if threads.iter().all(claims::has_filter) => reasons.push(Reason::SeccompOwn),
        None => {}
        Some(frozen) => {
            let more = more(frozen, new);
            if !more.is_empty() {
                reasons.push(Reason::Seccomp { more: named(&more) });
            }
        }
    }
}

fn named(more: &[String]) -> String {
    let (named, others) = more.split_at(more.len().min(NAMED));
    let others = if others.is_empty() { String::new() } else { format!(" and {} others", others.len()) };
    format!("{}{others}", named.join(", "))
}

/// What `frozen` allows and `new` does not: calls by name, and what is not about single calls.
fn more(frozen: &LinuxSeccomp, new: &LinuxSeccomp) -> Vec<String> {
    let mut more = Vec::new();
    let (old_default, new_default) = (freedom(frozen.default_action()), freedom(new.default_action()));
    if old_default > new_default {
        more.push("calls that it does not name".to_owned());
    }
    let set = |profile: &LinuxSeccomp| profile.architectures().clone().unwrap_or_default();
    let (old, allowed) = (set(frozen), set(new));
    let foreign = old.iter().filter(|arch| Some(**arch) != NATIVE && !allowed.contains(arch));
    more.extend(foreign.map(|arch| format!("calls of {arch}")));
    let speculation = LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow;
    let has = |profile: &LinuxSeccomp| profile.flags().iter().flatten().any(|flag| *flag == speculation);
    if has(frozen) && !has(new) {
        more.push("speculation".to_owned());
    }
    let (old, new) = (rules(frozen), rules(new));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let none = BTreeSet::new();
    let fits = |name: &str| {
        let (old, new) = (old.get(name).unwrap_or(&none), new.get(name).unwrap_or(&none));
        fits((old_default, old), (new_default, new))
    };
    more.extend(names.into_iter().filter(|name| !fits(name)).map(ToString::to_string));
    more
}

/// How much an action lets through: a call that is logged is let through as well, one that a tracer or an agent is asked
/// about may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Freedom {
    Denied,
    Asked,
    Logged,
    Allowed,
}

fn freedom(action: LinuxSeccompAction) -> Freedom {
    match action {
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap
        | LinuxSeccompAction::ScmpActErrno => Freedom::Denied,
        LinuxSeccompAction::ScmpActNotify | LinuxSeccompAction::ScmpActTrace => Freedom::Asked,
        LinuxSeccompAction::ScmpActLog => Freedom::Logged,
        LinuxSeccompAction::ScmpActAllow => Freedom::Allowed,
    }
}

/// One rule for a call: what it lets through, and the conditions on its arguments, which must all hold.
type Rule = (Freedom, Vec<(usize, u32, u64, u64)>);
type Rules = BTreeSet<Rule>;

/// The rules of each call. Rules of one call apply side by side; where none does, the default action applies.
fn rules(profile: &LinuxSeccomp) -> BTreeMap<String, Rules> {
    let mut all: BTreeMap<String, Rules> = BTreeMap::new();
    for call in profile.syscalls().iter().flatten() {
        let arguments = call.args().iter().flatten();
        let mut conditions: Vec<_> = arguments
            .map(|arg| (arg.index(), arg.op() as u32, arg.value(), arg.value_two().unwrap_or_default()))
            .collect();
        conditions.sort_unstable();
        for name in call.names() {
            all.entry(name.clone()).or_default().insert((freedom(call.action()), conditions.clone()));
        }
    }
    all
}

/// Whether what a call may do by the old default and rules, it may do by the new ones.
fn fits((old_default, old): (Freedom, &Rules), (new_default, new): (Freedom, &Rules)) -> bool {
    // The default never applies beside a rule without conditions.
    let possible = |default: Freedom, rules: &Rules| -> BTreeSet<Freedom> {
        let always = rules.iter().any(|(_, conditions)| conditions.is_empty());
        rules.iter().map(|(freedom, _)| *freedom).chain((!always).then_some(default)).collect()
    };
    let most = possible(old_default, old).last().copied().unwrap_or(Freedom::Allowed);
    let least = possible(new_default, new).first().copied().unwrap_or(Freedom::Denied);
    most <= least
        || (old_default <= new_default
            && old.iter().all(|rule| rule.0 <= new_default || new.contains(rule))
            && new.iter().all(|rule| rule.0 >= most || old.contains(rule)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn profile(default: &str, calls: &Value) -> LinuxSeccomp {
        serde_json::from_value(json!({ "defaultAction": default, "syscalls": calls })).unwrap()
    }

    fn call(names: &[&str], action: &str) -> Value {
        json!({ "names": names, "action": action })
    }

    /// `clone` with a mask of flags that must not be set.
    fn masked(mask: u64) -> Value {
        json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] })
    }

    const DENY: &str = "SCMP_ACT_ERRNO";
    const ALLOW: &str = "SCMP_ACT_ALLOW";

    #[test]
    fn a_profile_that_allows_the_same_or_less_fits() {
        let narrow = profile(DENY, &json!([call(&["read", "write"], ALLOW), masked(7)]));
        let wide = profile(DENY, &json!([masked(7), call(&["write"], ALLOW), call(&["read", "bpf"], ALLOW)]));
        assert_eq!(more(&narrow, &narrow), [""; 0]);
        assert_eq!(more(&narrow, &wide), [""; 0]);
        assert_eq!(more(&wide, &narrow), ["bpf"]);
        assert_eq!(more(&narrow, &profile(ALLOW, &json!([]))), [""; 0]);
        assert_eq!(more(&narrow, &profile(ALLOW, &json!([call(&["mkdir"], "SCMP_ACT_KILL")]))), [""; 0]);
        assert_eq!(more(&narrow, &profile(ALLOW, &json!([call(&["read"], DENY)]))), ["read"]);
    }

    #[test]
    fn lists_of_what_is_denied_are_compared_as_well() {
        let (few, many) = (call(&["mkdir"], DENY), call(&["mkdir", "unlink"], "SCMP_ACT_TRAP"));
        let (few, many) = (profile(ALLOW, &json!([few])), profile(ALLOW, &json!([many])));
        assert_eq!(more(&many, &few), [""; 0]);
        assert_eq!(more(&few, &many), ["unlink"]);
        let closed = profile(DENY, &json!([call(&["read"], ALLOW)]));
        assert_eq!(more(&few, &closed), ["calls that it does not name"]);
    }

    #[test]
    fn conditions_on_arguments_must_be_the_same_unless_the_call_is_free() {
        let one = |rule: Value| profile(DENY, &json!([rule]));
        assert_eq!(more(&one(masked(7)), &one(masked(3))), ["clone"]);
        assert_eq!(more(&one(call(&["clone"], ALLOW)), &one(masked(7))), ["clone"]);
        assert_eq!(more(&one(masked(7)), &one(call(&["clone"], ALLOW))), [""; 0]);
        let both = profile(DENY, &json!([masked(7), masked(3)]));
        assert_eq!(more(&one(masked(7)), &both), [""; 0]);
    }

    #[test]
    fn what_is_logged_or_asked_about_is_less_than_what_is_allowed() {
        let of = |action: &str| profile(DENY, &json!([call(&["open"], action)]));
        for action in ["SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY", DENY] {
            assert_eq!(more(&of(action), &of(ALLOW)), [""; 0], "{action}");
            assert_eq!(more(&of(ALLOW), &of(action)), ["open"], "{action}");
        }
    }

    #[test]
    fn further_architectures_and_flags_count() {
        let of = |more: Value| -> LinuxSeccomp {
            let mut profile = json!({ "defaultAction": DENY });
            profile.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(profile).unwrap()
        };
        let foreign = of(json!({ "architectures": ["SCMP_ARCH_S390X"] }));
        assert_eq!(more(&foreign, &of(json!({}))).len(), 1);
        assert_eq!(more(&of(json!({})), &foreign), [""; 0]);
        let open = of(json!({ "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"] }));
        assert_eq!(more(&open, &of(json!({}))), ["speculation"]);
    }

    #[test]
    fn a_long_list_is_shortened() {
        let names: Vec<_> = (0..11).map(|number| format!("call{number:02}")).collect();
        assert!(named(&names).ends_with("call07 and 3 others"), "{}", named(&names));
    }
}
