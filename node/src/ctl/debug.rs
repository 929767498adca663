//! `metaflow ctl debug`: what somebody needs who is to find out what is wrong and has no access to the machines.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

use super::{Client, Failure, pages, print};
use crate::clock;

/// Pages that go into the bundle as they are.
const PAGES: [(&str, &str); 9] = [
    ("status.json", "/v1/status"),
    ("members.json", "/v1/cluster/members"),
    ("agents.json", "/v1/agents"),
    ("balance.json", "/v1/balance"),
    ("wal.json", "/v1/wal"),
    ("dictionary.json", "/v1/dictionary/stats"),
    ("doctor.json", "/v1/doctor"),
    ("events.json", "/v1/events"),
    ("settings.json", "/v1/settings"),
];
/// Pages of which each node's answer becomes a text file of its own: the field that is the text, none for the answer itself.
const TEXTS: [(&str, &str, Option<&str>); 3] = [
    ("metrics.txt", "/v1/metrics", None),
    ("log.txt", "/v1/logs", Some("lines")),
    ("configuration.txt", "/v1/settings", Some("configuration")),
];

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write one .tar.gz with state, members, placement, metrics, configuration without secrets, latest events and log lines of every
    /// node. It names hosts and services; passwords, tokens and the cluster's secret are not in it. Exit code 3 when something is missing.
    Bundle {
        /// Where to; it must not be there yet. Default: metaflow-bundle-TIME.tar.gz.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    let Verb::Bundle { file } = verb;
    let now = clock::seconds();
    let file = file.unwrap_or_else(|| PathBuf::from(format!("metaflow-bundle-{now}.tar.gz")));
    let (files, missing) = collect(client).await?;
    write(&file, &files, &missing, now)
        .map_err(|error| Failure::Usage(format!("failed to write {}: {error}", file.display())))?;
    let names = files.len() + 1;
    print(&format!("{}: {names} files; look through it before you hand it on\n", file.display()))?;
    if missing.is_empty() { Ok(()) } else { Err(Failure::Degraded(missing.join("; "))) }
}

/// The files of the bundle, and what could not be had. A node that does not answer at all is an error.
async fn collect(client: &Client) -> Result<(Vec<(String, String)>, Vec<String>), Failure> {
    let mut files = Vec::new();
    let mut missing = Vec::new();
    for (name, path) in PAGES {
        match client.get::<Value>(path).await {
            Ok(page) => {
                missing.extend(pages::nodes(&page).trouble.map(|trouble| format!("{name}: {trouble}")));
                files.push((name.to_owned(), format!("{page:#}\n")));
            }
            Err(failure @ (Failure::Unreachable(_) | Failure::Usage(_))) => return Err(failure),
            Err(failure) => missing.push(format!("{name}: {failure}")),
        }
    }
    for (name, path, field) in TEXTS {
        match client.get::<Value>(path).await {
            Ok(page) => files.extend(texts(&page, name, field)),
            Err(failure) => missing.push(format!("{name}: {failure}")),
        }
    }
    Ok((files, missing))
}

/// A file of each node that answered.
fn texts(page: &Value, name: &str, field: Option<&str>) -> Vec<(String, String)> {
    let nodes = page["nodes"].as_array().into_iter().flatten();
    let named = nodes.filter_map(|node| {
        let answer = node.get("answer")?;
        let value = field.map_or(answer, |field| &answer[field]);
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(lines) => {
                lines.iter().filter_map(Value::as_str).map(|line| format!("{line}\n")).collect()
            }
            other => format!("{other}\n"),
        };
        // By number: a node's name may hold a slash.
        Some((format!("node-{}/{name}", node["node_id"]), text))
    });
    named.collect()
}

fn write(path: &Path, files: &[(String, String)], missing: &[String], now: u32) -> std::io::Result<()> {
    // It tells what hosts say to each other: for its owner alone.
    let file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let about = format!(
        "MetaFlow {} debug bundle, made at {now} (seconds since 1970).\nMissing:\n{}\n",
        env!("CARGO_PKG_VERSION"),
        if missing.is_empty() { "nothing".to_owned() } else { missing.join("\n") }
    );
    let about = ("about.txt".to_owned(), about);
    for (name, text) in [&about].into_iter().chain(files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now.into());
        archive.append_data(&mut header, format!("metaflow-bundle/{name}"), text.as_bytes())?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_bundle_is_read_back_whole_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar.gz");
        let page = json!({ "nodes": [
            { "node_id": 1, "name": "n1", "answer": { "lines": ["one", "two"] } },
            { "node_id": 2, "name": "n2", "unanswered": "it is dead" },
        ]});
        let files = texts(&page, "log.txt", Some("lines"));
        write(&path, &files, &["n2 is dead".to_owned()], 7).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().display().to_string(), text));
        }
        assert!(found[0].1.contains("n2 is dead"), "{found:?}");
        assert_eq!(found[1], ("metaflow-bundle/node-1/log.txt".to_owned(), "one\ntwo\n".to_owned()));
        assert_eq!(found.len(), 2);
        assert_eq!(write(&path, &[], &[], 7).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    }
}
