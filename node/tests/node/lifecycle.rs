//! Starts that cannot be, and ends of every kind.

use std::process::Stdio;

use tokio::process::Command;

use crate::kit::{Node, PATIENCE, configure, program};

/// Runs a node that must fail to start; gives what it says.
async fn refused(arguments: &[&std::ffi::OsStr], engine: Option<&str>) -> String {
    let mut command = Command::new(program());
    command.arg("node").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(engine) = engine {
        command.env("METAFLOW_ENGINE", engine);
    }
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_second_node_on_the_folder_or_the_ports_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let config = folder.path().join("node.toml");
    let text = refused(&["--config".as_ref(), config.as_ref()], None).await;
    assert!(text.contains("in use by process"), "{text}");
    let elsewhere = folder.path().join("elsewhere");
    let arguments = ["--config".as_ref(), config.as_os_str(), "--data-dir".as_ref(), elsewhere.as_os_str()];
    let text = refused(&arguments, None).await;
    assert!(text.contains("http.listen") && text.contains("in use"), "{text}");
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test]
async fn a_missing_engine_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let (config, ..) = configure(folder.path());
    let text = refused(&["--config".as_ref(), config.as_ref()], Some("/no/such/libchdb.so")).await;
    assert!(text.contains("/no/such/libchdb.so") && text.contains("./dev engine"), "{text}");
}

#[tokio::test]
async fn kill_9_leaves_a_folder_that_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut node = Node::start(folder.path()).await;
        let agent = node.agent_id("machine-1").await;
        assert_eq!(agent, node.agent_id("machine-1").await);
        node.child.kill().await.unwrap();
    }
    let node = Node::start(folder.path()).await;
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test]
async fn shells_and_manuals_get_what_they_need() {
    for (arguments, part) in [
        (&["completion", "bash"][..], "complete -F _metaflow"),
        (&["completion", "zsh"], "#compdef metaflow"),
        (&["completion", "fish"], "complete -c metaflow"),
        (&["man"], ".TH metaflow 1"),
    ] {
        let output = Command::new(program()).args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(part), "{arguments:?}: {}", &text[..text.len().min(300)]);
    }
}
