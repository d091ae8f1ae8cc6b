// SPDX-License-Identifier: Apache-2.0
//! Real programs go on in another pod, twice: Jupyter, PostgreSQL, Redis, nginx, a JVM, Node.js, R, NumPy, pools of
//! processes, bash on a terminal, a virtual desktop.
//!
//! `scripts/test apps` makes their image and runs this.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::apps::{App, IMAGE};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{Need, Node, Tested, examples, process};

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim, Need::Image(IMAGE)];

/// Freezes a program, removes its pod, restores it in a new one, and all that again.
async fn lives_on(name: &str) -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let app = App::named(name).unwrap();
    let mut state = node.run(node.app_pod(app, "life-0")?).await?;
    app.started(&state).await?;
    app.goes_on(&state).await?;
    for life in ["life-1", "life-2"] {
        let imported = node.freeze_into_store(&state).await?;
        node.remove(&state).await?;
        state = node.run(node.app_pod(app, life)?.annotated(RESTORE, &imported.reference())).await?;
        app.goes_on(&state).await?;
        app.serves_others(&state)?;
    }
    node.remove(&state).await?;
    node.leave().await
}

/// One test for each program.
macro_rules! apps {
    ($($app:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            #[ignore = "needs an image of 2 GB; run it with scripts/test apps"]
            async fn $app() -> Tested {
                lives_on(stringify!($app)).await
            }
        )+
        const TESTED: &[&str] = &[$(stringify!($app)),+];
    };
}

apps!(jupyter, postgresql, redis, nginx, java, nodejs, r, training, pool, bash, xserver);

/// The notebook of the documentation, used as its reader would; Debian has the server without Jupyter Lab's page.
#[tokio::test]
#[ignore = "needs an image of 2 GB; run it with scripts/test apps"]
async fn the_notebook_of_the_documentation_goes_on() -> Tested {
    const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/fidelity/outside.py");
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pod =
        node.example("notebook", &examples::workload("notebook")?, IMAGE)?.with_containers(|container| {
            assert_eq!(container.command.drain(..2).collect::<Vec<_>>(), ["jupyter", "lab"]);
            container.command.insert(0, "jupyter-server".to_owned());
            container.command.push("--allow-root".to_owned());
        });
    let state = node.run(pod.clone()).await?;
    process::output("python3", &["-B", CLIENT, "notebook", &state.ip])?;
    node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    let state = node.run(pod).await?;
    process::output("python3", &["-B", CLIENT, "jupyter", &state.ip])?;
    node.remove(&state).await?;
    node.leave().await
}

#[test]
fn every_program_has_a_test() {
    let all: Vec<_> = thaw_tests::harness::apps::ALL.iter().map(|app| app.name).collect();
    assert_eq!(all, TESTED);
}
