// SPDX-License-Identifier: Apache-2.0
//! `thaw-nri` beside a plugin that gives out devices, under a real runtime: what a restored container needs is there
//! before it runs, and every way in which the plugin may be missing.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::io::Read;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use thaw_tests::harness::nri::{DEVICES, FILES, HOOKS, Injector, Program};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::Imported;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// Numbers of stand-ins: /dev/null, and /dev/kmsg, which no container may open unless it is given.
const NULL: &str = "1:3";
const KMSG: &str = "1:11";

/// A program that holds a device open and opens it again whenever it is asked to.
const HOLDER: &str = "exec 3>/dev/gpu0; while :; do sleep 0.2; \
    [ -e /tmp/ask ] && rm /tmp/ask && (: >/dev/gpu0) && echo opened >/tmp/answer; done";

fn holder(node: &Node, name: &str, devices: &str) -> Result<Pod, HarnessError> {
    Ok(node.shell_pod(name, HOLDER)?.annotated(DEVICES, devices))
}

async fn shell(node: &Node, state: &PodState, script: &str) -> Result<String, HarnessError> {
    let command = ["sh", "-c", script].map(str::to_owned);
    Ok(node.kubelet.exec(state, "", &command, 10).await?.stdout)
}

/// What the program, and no new process, says when it opens its device again.
async fn opens_again(node: &Node, state: &PodState) -> Result<String, HarnessError> {
    shell(node, state, "rm -f /tmp/answer; touch /tmp/ask").await?;
    let began = Instant::now();
    loop {
        let said = shell(node, state, "cat /tmp/answer 2>/dev/null; true").await?;
        if !said.is_empty() || began.elapsed() > Duration::from_secs(20) {
            return Ok(said);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a program's descriptor 3 is, and the numbers of what is at `path`.
async fn looks(node: &Node, state: &PodState, path: &str) -> Result<String, HarnessError> {
    let script = format!("stat -Lc %t:%T /proc/1/fd/3; stat -c %t:%T {path}");
    Ok(shell(node, state, &script).await?.replace('\n', " "))
}

async fn checkpoint(node: &Node, pod: Pod) -> Result<Imported, HarnessError> {
    let state = node.run(pod).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    Ok(imported)
}

/// What the runtime says when it refuses a pod, which is removed.
async fn refused(node: &Node, pod: Pod) -> Result<String, HarnessError> {
    let name = pod.metadata.name.clone();
    let Some(error) = node.kubelet.run(pod).await.err() else { panic!("{name} started") };
    let message = error.cri_message().unwrap_or_default().to_owned();
    node.remove(&node.kubelet.find(&node.namespace, &name)?).await?;
    println!("{message}");
    Ok(message)
}

#[tokio::test]
async fn a_program_goes_on_with_another_device_under_the_old_path_and_the_new_one() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let program = Program::start()?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;

    let after =
        holder(&node, "after", &format!("/dev/gpu3={KMSG}"))?.annotated(RESTORE, &imported.reference());
    let after = node.run(after).await?;
    assert_eq!(looks(&node, &after, "/dev/gpu3").await?, "1:b 1:b ");
    assert_eq!(looks(&node, &after, "/dev/gpu0").await?, "1:b 1:b ");
    assert_eq!(opens_again(&node, &after).await?, "opened\n");
    program.wait_for("prepared", 1)?;
    // With the notes that it got it can be frozen again, and resumed from that.
    let again = node.freeze_into_store(&after).await?;
    node.remove(&after).await?;
    let last = holder(&node, "last", &format!("/dev/gpu0={NULL}"))?.annotated(RESTORE, &again.reference());
    let last = node.run(last).await?;
    assert_eq!(looks(&node, &last, "/dev/gpu0").await?, "1:3 1:3 ");
    node.remove(&last).await?;
    drop((program, injecting));
    node.leave().await
}

#[tokio::test]
async fn a_device_that_the_new_pod_was_not_given_is_not_there_and_cannot_be_opened() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let program = Program::start()?;
    let pod = node
        .shell_pod("before", "while :; do sleep 1; done")?
        .annotated(DEVICES, "/dev/gpu0=1:11,/dev/x=1:3");
    let imported = checkpoint(&node, pod).await?;

    let none = node.shell_pod("none", "while :; do sleep 1; done")?.annotated(RESTORE, &imported.reference());
    let message = refused(&node, none.clone()).await?;
    assert!(
        message.contains("\\\"/dev/x\\\", \\\"/dev/gpu0\\\"")
            || message.contains("\"/dev/x\", \"/dev/gpu0\""),
        "{message}"
    );

    // Given as the same numbers under another family: still no /dev/gpu0, and nothing of it that opens.
    let other = node.shell_pod("other", "while :; do sleep 1; done")?;
    let other =
        other.annotated(DEVICES, "/dev/gpu0=1:3,/dev/x=1:3").annotated(RESTORE, &imported.reference());
    let other = node.run(other).await?;
    let said =
        shell(&node, &other, "stat -c %t:%T /dev/gpu0; mknod /dev/k c 1 11; (: >/dev/k) 2>&1; true").await?;
    assert!(said.starts_with("1:3\n") && said.contains("not permitted"), "{said}");
    node.remove(&other).await?;
    drop((program, injecting));
    node.leave().await
}

#[tokio::test]
async fn driver_files_that_the_checkpoint_knows_are_mounted_where_the_administrator_allows_it() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let drivers = tempfile::tempdir_in("/var/tmp").unwrap();
    for file in ["driver.so", "secret"] {
        std::fs::write(drivers.path().join(file), "from the node").unwrap();
    }
    let source = |file: &str| drivers.path().join(file).display().to_string();
    let sleeper = |name| node.shell_pod(name, "while :; do sleep 1; done");
    let files = |list: &[&str]| {
        let pairs = list.iter().map(|file| format!("/lib/{file}={}", source(file)));
        pairs.collect::<Vec<_>>().join(",")
    };
    let with_both =
        checkpoint(&node, sleeper("both")?.annotated(FILES, &files(&["driver.so", "secret"]))).await?;
    let with_one = checkpoint(&node, sleeper("one")?.annotated(FILES, &files(&["driver.so"]))).await?;

    let program = Program::start_with(&format!("driver_files = [{:?}]", source("driver.so")))?;
    let message = refused(&node, sleeper("a")?.annotated(RESTORE, &with_both.reference())).await?;
    assert!(message.contains("/lib/secret") && !message.contains("/lib/driver.so"), "{message}");
    assert!(!message.contains("thaw-nri is not running"), "{message}");
    let state = node.run(sleeper("b")?.annotated(RESTORE, &with_one.reference())).await?;
    let said = shell(&node, &state, "cat /lib/driver.so; touch /lib/driver.so 2>&1; true").await?;
    assert!(said.starts_with("from the node") && said.contains("Read-only"), "{said}");
    node.remove(&state).await?;

    drop(program);
    let message = refused(&node, sleeper("c")?.annotated(RESTORE, &with_both.reference())).await?;
    for word in ["/lib/secret", "/lib/driver.so", "thaw-nri is not running on this node"] {
        assert!(message.contains(word), "{message}");
    }
    drop((injecting, drivers));
    node.leave().await
}

#[tokio::test]
async fn without_the_plugin_a_restore_that_needs_it_says_so_and_one_that_does_not_works() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;
    let moved =
        holder(&node, "moved", &format!("/dev/gpu3={KMSG}"))?.annotated(RESTORE, &imported.reference());
    let message = refused(&node, moved).await?;
    assert!(message.contains("thaw-nri is not running on this node"), "{message}");
    assert!(message.contains("/dev/gpu0"), "{message}");

    let same = holder(&node, "same", &format!("/dev/gpu0={KMSG}"))?.annotated(RESTORE, &imported.reference());
    let same = node.run(same).await?;
    assert_eq!(looks(&node, &same, "/dev/gpu0").await?, "1:b 1:b ");
    assert_eq!(opens_again(&node, &same).await?, "opened\n");
    node.remove(&same).await?;
    drop(injecting);
    node.leave().await
}

#[tokio::test]
async fn a_pod_that_forges_notes_of_the_node_gets_nothing_from_them() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;
    let forged = |name: &str, devices: &str| {
        let pod = holder(&node, name, devices)?.annotated(RESTORE, &imported.reference());
        let pod = pod.annotated("thaw.dev/internal.prepared", "another/checkpoint/x");
        Ok::<_, HarnessError>(pod.annotated("thaw.dev/internal.gpu-map", "a=b"))
    };
    // Without the plugin nobody strips them, and the shim refuses the pod that set them.
    let message = refused(&node, forged("alone", &format!("/dev/gpu0={NULL}"))?).await?;
    assert!(message.contains("thaw.dev/internal.prepared") && message.contains("reserved"), "{message}");

    // With it they are its own, or gone; a device that was not given stays away.
    let program = Program::start()?;
    let message = refused(&node, forged("without", "")?).await?;
    assert!(message.contains("/dev/gpu0"), "{message}");
    program.wait_for("removed annotations", 1)?;
    drop((program, injecting));
    node.leave().await
}

/// A pod that listens on its own addresses, holds /dev/gpu0 open and reads a volume.
fn place(node: &Node, name: &str, families: &str, devices: &str, volume: &Path) -> Result<Pod, HarnessError> {
    let mut pod = node.workload_pod(name, "place.py")?;
    let volume: serde_json::Value = serde_json::json!({"name": "data", "hostPath": {"path": volume}});
    pod.spec.volumes.push(serde_json::from_value(volume).unwrap());
    for container in &mut pod.spec.containers {
        container.set_env("FAMILIES", families);
        let mount = serde_json::json!({"name": "data", "mountPath": "/data"});
        container.volume_mounts.push(serde_json::from_value(mount).unwrap());
    }
    Ok(pod.annotated(DEVICES, devices))
}

/// The addresses of each family that the runtime gave the pod. The kernel lists them in no certain order, and those that
/// were kept of an old pod are among them, each alone in its network.
async fn addresses(node: &Node, state: &PodState) -> Result<[IpAddr; 2], HarnessError> {
    let listed = shell(node, state, "cat /proc/net/if_inet6").await?;
    let given = listed.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [digits, _, prefix, scope, _, "eth0"] = fields[..] else { return None };
        (scope == "00" && prefix != "80").then(|| u128::from_str_radix(digits, 16).unwrap())
    });
    let Some(given) = given else { panic!("the pod has no IPv6 address: {listed}") };
    Ok([state.ip.parse().unwrap(), std::net::Ipv6Addr::from(given).into()])
}

/// What the program says at this address.
fn ask(address: IpAddr) -> Option<serde_json::Value> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let connected = TcpStream::connect_timeout(&(address, 7100).into(), Duration::from_secs(2));
        let mut said = String::new();
        if connected.and_then(|mut stream| stream.read_to_string(&mut said)).is_ok() && !said.is_empty() {
            return Some(serde_json::from_str(&said).unwrap());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

#[tokio::test]
async fn a_pod_with_other_devices_mount_sources_and_addresses_goes_on_with_either_family_and_both() -> Tested
{
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let program = Program::start()?;
    let volumes = ["old", "new"].map(|name| {
        let volume = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(volume.path().join("name"), name).unwrap();
        volume
    });
    for (families, address) in [("4", "rewrite"), ("6", "rewrite"), ("46", "rewrite"), ("46", "keep")] {
        let name = |which: &str| format!("{which}-{families}-{address}");
        let devices = format!("/dev/gpu0={NULL}");
        let before = node.run(place(&node, &name("before"), families, &devices, volumes[0].path())?).await?;
        let old = addresses(&node, &before).await?;
        let wanted: Vec<usize> = families.chars().map(|family| usize::from(family == '6')).collect();
        let was = ask(old[wanted[0]]).unwrap();
        assert_eq!((&was["held"], &was["mount"]), (&NULL.into(), &"old".into()));
        let imported = node.freeze_into_store(&before).await?;
        node.remove(&before).await?;

        let devices = format!("/dev/gpu3={KMSG}");
        let after = place(&node, &name("after"), families, &devices, volumes[1].path())?;
        let after = after.annotated(RESTORE, &imported.reference()).annotated("thaw.dev/address", address);
        let after = node.run(after).await?;
        let new = addresses(&node, &after).await?;
        assert!(
            old[0] != new[0] && old[1] != new[1],
            "the new pod has addresses of its own: {old:?} {new:?}"
        );
        for which in wanted {
            let at = if address == "keep" { old[which] } else { new[which] };
            let Some(is) = ask(at) else { panic!("nobody answers at {at}") };
            assert_eq!(is["started"], was["started"], "it is another program");
            assert_eq!((&is["held"], &is["again"]), (&KMSG.into(), &KMSG.into()));
            assert_eq!((&is["mount"], &is["address"]), (&"new".into(), &at.to_string().into()));
        }
        node.remove(&after).await?;
    }
    drop((program, injecting, volumes));
    node.leave().await
}

#[tokio::test]
async fn an_address_that_somebody_else_has_is_not_taken_away_from_him() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let program = Program::start()?;
    let sleeper = |name: &str| node.shell_pod(name, "while :; do sleep 1; done");
    let before = node.run(sleeper("before")?).await?;
    let [v4, v6] = addresses(&node, &before).await?;
    let imported = node.freeze_into_store(&before).await?;
    let kept = |name: &str| {
        Ok::<_, HarnessError>(
            sleeper(name)?.annotated(RESTORE, &imported.reference()).annotated("thaw.dev/address", "keep"),
        )
    };
    // The old pod still runs, and the plugin knows it.
    let message = refused(&node, kept("beside")?).await?;
    let owner = format!("{v4} belongs to pod {}/before of this node", node.namespace);
    assert!(message.contains(&owner) && message.contains(&v6.to_string()), "{message}");
    node.remove(&before).await?;

    // Somebody on the pods' network of whom no runtime tells.
    let link = "ip netns add other && ip link add other0 type veth peer name eth0 netns other && \
                ip link set other0 master cni0 up && ip -n other link set eth0 address 02:00:00:00:00:77 up";
    process::output("sh", &["-c", link])?;
    for address in [v4, v6] {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let address = format!("{address}/{length}");
        process::output("ip", &["-n", "other", "address", "add", &address, "dev", "eth0", "nodad"])?;
        let message = refused(&node, kept("taken")?).await?;
        assert!(message.contains("is in use on the pod's network, by 02:00:00:00:00:77"), "{message}");
        process::output("ip", &["-n", "other", "address", "del", &address, "dev", "eth0"])?;
    }
    // `ip` mounts the folder of namespaces on itself.
    process::output("sh", &["-c", "ip netns del other && umount /run/netns"])?;
    let alone = node.run(kept("alone")?).await?;
    let seen = shell(&node, &alone, "ip -o address show dev eth0").await?;
    assert!(seen.contains(&format!("{v4}/32")) && seen.contains(&format!("{v6}/128")), "{seen}");
    node.remove(&alone).await?;
    drop(program);
    node.leave().await
}

/// Restores a pod that needs the plugin, which gets `signal` when the pod comes to `hook`.
async fn faulty_at(node: &Node, imported: &Imported, hook: &'static str, signal: Signal) -> Tested {
    let program = Program::start()?;
    let mut injecting = Injector::register(Some(hook)).await?;
    let moved = |name: String| {
        let pod = holder(node, &name, &format!("/dev/gpu3={KMSG}"))?;
        Ok::<_, HarnessError>(pod.annotated(RESTORE, &imported.reference()))
    };
    let name = format!("at-{hook}-{}", signal.as_raw());
    let pod = moved(name.clone())?;
    let life = async {
        let result = node.kubelet.run(pod).await;
        let removed = node.remove(&node.kubelet.find(&node.namespace, &name)?).await;
        Ok::<_, HarnessError>((result, removed?).0)
    };
    let fault = async {
        injecting.reached().await?;
        program.signal(signal)?;
        injecting.go_on();
        Tested::Ok(())
    };
    let (result, fault) = tokio::join!(life, fault);
    fault?;
    let too_early = ["run-pod", "create"].contains(&hook);
    match result? {
        Ok(_) => assert!(!too_early, "{hook}: it was restored without its device"),
        Err(error) => {
            let message = error.cri_message().unwrap_or_default();
            assert!(
                too_early && message.contains("thaw-nri is not running on this node"),
                "{hook}: {message}"
            );
        }
    }
    // One that was only slow comes back by itself.
    let again = if signal == Signal::STOP {
        program.signal(Signal::CONT)?;
        // The runtime has dropped it at the next event that it waited for.
        program.wait_for("synchronized", 2)?;
        program
    } else {
        drop(program);
        Program::start()?
    };
    let next = node.run(moved(format!("{name}-next"))?).await?;
    assert_eq!(looks(node, &next, "/dev/gpu0").await?, "1:b 1:b ");
    node.remove(&next).await?;
    again.stop()?;
    Ok(())
}

async fn faulty(signal: Signal) -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;
    drop(injecting);
    for hook in HOOKS {
        println!("{hook}");
        faulty_at(&node, &imported, hook, signal).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn a_plugin_that_is_killed_at_any_hook_costs_no_more_than_a_restore_that_needs_it() -> Tested {
    faulty(Signal::KILL).await
}

#[tokio::test]
async fn a_plugin_that_is_too_slow_at_any_hook_costs_no_more_and_comes_back() -> Tested {
    faulty(Signal::STOP).await
}
