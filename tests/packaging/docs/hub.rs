// SPDX-License-Identifier: Apache-2.0
//! What the documentation tells JupyterHub, read by the real KubeSpawner.

use std::process::Command;

use serde_json::Value;

use super::pages::{blocks, tree};

fn python(script: &str, arguments: &[&str]) -> String {
    let output = Command::new(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_users_pod_resumes_under_its_name_and_with_the_token_that_it_had() {
    let settings: Vec<_> = blocks().into_iter().filter(|block| block.language == "python").collect();
    assert_eq!(settings.len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jupyterhub_config.py");
    std::fs::write(&file, &settings[0].text).unwrap();

    let here = tree().join("tests/packaging/docs");
    let venv = tree().join("scripts/venv");
    let packages = here.join("requirements.txt");
    let program = python(venv.to_str().unwrap(), &[packages.to_str().unwrap()]) + "/bin/python";
    let hub = here.join("hub.py");
    let pods = python(&program, &[hub.to_str().unwrap(), file.to_str().unwrap()]);
    let [first, second] = serde_json::from_str::<[Value; 2]>(&pods).unwrap();

    for pod in [&first, &second] {
        assert_eq!(pod["spec"]["runtimeClassName"], "thaw", "{pod:#}");
        assert_eq!(pod["metadata"]["annotations"]["thaw.dev/restore"], "latest", "{pod:#}");
        assert_eq!(token(pod), "the first token");
    }
    assert_eq!(first["metadata"]["name"], second["metadata"]["name"]);
    assert!(first["metadata"]["name"].as_str().unwrap().contains("alice"), "{first:#}");
}

fn token(pod: &Value) -> &str {
    let variables = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    let token = variables.iter().find(|variable| variable["name"] == "JUPYTERHUB_API_TOKEN").unwrap();
    token["value"].as_str().unwrap()
}
