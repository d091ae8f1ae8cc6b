// SPDX-License-Identifier: Apache-2.0
//! What processes hold against what the spec allows.

use super::*;

#[test]
fn users_and_groups_must_be_allowed() {
    refused("ran as user 0", |frozen, _| frozen.threads[0].uids = [0; 4]);
    refused("saved 0", |frozen, _| frozen.threads[0].uids[2] = 0);
    refused("groups 0,", |frozen, _| frozen.threads[0].gids[3] = 0);
    refused("groups 7, 9,", |frozen, _| frozen.threads[0].groups = vec![9, 2000, 7]);
    let root = |spec: &mut Value, capabilities: Value| {
        process(spec)["user"] = json!({ "uid": 0, "gid": 0 });
        process(spec)["capabilities"]["bounding"] = capabilities;
    };
    allowed(|_, spec| root(spec, json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"])));
    refused("ran as user 1000", |_, spec| root(spec, json!(["CAP_CHOWN", "CAP_SETGID"])));
    refused("groups 1000, 2000,", |_, spec| root(spec, json!(["CAP_CHOWN", "CAP_SETUID"])));
}

#[test]
fn capabilities_must_be_allowed_in_every_set() {
    let admin = 1 << 21;
    type Set = fn(&mut Capabilities) -> &mut u64;
    let sets: [(&str, Set); 5] = [
        ("inheritable", |set| &mut set.inheritable),
        ("permitted", |set| &mut set.permitted),
        ("effective", |set| &mut set.effective),
        ("bounding", |set| &mut set.bounding),
        ("ambient", |set| &mut set.ambient),
    ];
    for (name, set) in sets {
        refused(&format!("CAP_SYS_ADMIN in the {name} set"), |frozen, _| {
            *set(&mut frozen.threads[0].capabilities) = admin;
        });
    }
    // Within the bounding set, but not to be had without root or a file that gives it.
    refused("CAP_CHOWN in the permitted set", |frozen, _| frozen.threads[0].capabilities.permitted = 1);
    allowed(|frozen, spec| {
        frozen.threads[0].capabilities.permitted = 1;
        process(spec)["capabilities"]["ambient"] = json!(["CAP_CHOWN"]);
    });
    allowed(|frozen, spec| {
        frozen.threads[0].capabilities.permitted = 1;
        process(spec)["noNewPrivileges"] = false.into();
    });
    refused("CAP_CHOWN in the bounding set", |_, spec| {
        drop(process(spec).as_object_mut().unwrap().remove("capabilities"));
    });
}

#[test]
fn secure_bits_need_the_right_to_set_them() {
    refused("secure bits 0x3", |frozen, _| frozen.threads[0].secure_bits = 3);
    refused("secure bits 0x30", |frozen, _| frozen.threads[0].secure_bits = 0x30);
    // SECBIT_KEEP_CAPS, which any thread may set.
    allowed(|frozen, _| frozen.threads[0].secure_bits = 1 << 4);
    allowed(|frozen, spec| {
        frozen.threads[0].secure_bits = 3;
        process(spec)["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_SETPCAP"]);
    });
}

#[test]
fn no_new_privs_and_seccomp_must_be_kept() {
    refused("without no_new_privs", |frozen, _| frozen.threads[0].no_new_privs = false);
    refused("without a seccomp filter", |frozen, _| frozen.threads[0].seccomp_mode = 0);
    allowed(|frozen, spec| {
        (frozen.threads[0].no_new_privs, frozen.threads[0].seccomp_mode) = (false, 0);
        process(spec)["noNewPrivileges"] = false.into();
        drop(spec["linux"].as_object_mut().unwrap().remove("seccomp"));
    });
}

#[test]
fn a_seccomp_filter_may_allow_no_more_than_the_new_profile() {
    let open = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    refused("allows calls that it does not name, which", |frozen, _| {
        frozen.seccomp = serde_json::from_value(open.clone()).unwrap();
    });
    allowed(|_, spec| spec["linux"]["seccomp"] = open.clone());
    // The filter is the program's own.
    refused("frozen without a seccomp profile", |frozen, _| frozen.seccomp = None);
    allowed(|frozen, spec| {
        frozen.seccomp = None;
        drop(spec["linux"].as_object_mut().unwrap().remove("seccomp"));
    });
}

#[test]
fn equal_claims_of_many_threads_are_one_reason() {
    refused("12 threads, the first of process 3 (py\\nthon3),", |frozen, _| {
        let thread = Claims { pid: 3, comm: "py\nthon3".into(), seccomp_mode: 0, ..thread() };
        frozen.threads.extend(vec![thread; 12]);
    });
}

#[test]
fn a_security_module_that_cannot_be_applied_is_a_reason() {
    let (mut frozen, mut spec) = (frozen(), spec());
    process(&mut spec)["apparmorProfile"] = "cri-containerd.apparmor.d".into();
    assert_eq!(run(&frozen, &spec, &host()).unwrap().lsm_profile, None);
    let host = Host { lsm: Lsm::Apparmor, ..host() };
    let Refused(reasons) = run(&frozen, &spec, &host).unwrap_err();
    assert!(matches!(&reasons[..], [Reason::Lsm { module: "apparmor", .. }]), "{reasons:?}");
    frozen.lsm = Lsm::Apparmor;
    for unconfined in [None, Some(String::new()), Some("unconfined".to_owned())] {
        frozen.threads = vec![Claims { lsm_profile: unconfined, ..thread() }; 2];
        let Refused(reasons) = run(&frozen, &spec, &host).unwrap_err();
        let [Reason::Claim { who, held: Held::Unconfined }] = &reasons[..] else { panic!("{reasons:?}") };
        assert_eq!(who.threads, 2);
    }
    frozen.threads = vec![Claims { lsm_profile: Some("old".into()), ..thread() }];
    let profile = run(&frozen, &spec, &host).unwrap().lsm_profile;
    assert_eq!(profile.as_deref(), Some("apparmor:cri-containerd.apparmor.d"));
}

#[test]
fn a_privileged_checkpoint_gives_every_reason_to_a_restricted_pod_at_once() {
    let reasons = reasons(|frozen, _| {
        let capabilities =
            Capabilities { permitted: 1 << 21, effective: 1 << 21, bounding: 1 << 21, ..Default::default() };
        frozen.threads[0] = Claims {
            uids: [0; 4],
            gids: [0; 4],
            capabilities,
            no_new_privs: false,
            seccomp_mode: 0,
            ..thread()
        };
        frozen.mounts.truncate(6);
        frozen.mounts[3].flags = 14;
        frozen.image = "other".into();
    });
    for part in [
        "image",
        "/sys",
        "kcore",
        "scsi",
        "bus",
        "user 0",
        "groups 0",
        "permitted",
        "effective",
        "bounding",
        "no_new_privs",
        "seccomp",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:#?}");
    }
    assert_eq!(reasons.len(), 11, "{reasons:#?}");
}
