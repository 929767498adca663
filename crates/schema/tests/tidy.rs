//! Rules of the whole repository that no compiler or linter checks: size and head of files, who may import what, what
//! pure code may not touch, where `unsafe` may stand. It lives in this crate because this crate builds in seconds. Length of
//! functions and plain style are clippy's; who may depend on which crate is `deny.toml`'s.

use std::fs;
use std::path::{Path, PathBuf};

/// A file that cannot be read in one sitting is split: `name.rs` becomes `name.rs` + `name/`.
const FILE_LINES_MAX: usize = 600;

/// Outside systems: the one folder whose code may name the crate, and whether only one file in it may.
const IMPORTS: &[(&str, &[&str], bool)] = &[
    ("rocksdb", &["actors/src/"], true),
    ("clickhouse", &["actors/src/"], true),
    ("chitchat", &["node/src/"], true),
    ("libloading", &["node/src/"], true),
    ("consistent_hash", &["actors/src/placement/"], true),
    ("sqlparser", &["crates/query/"], false),
    ("rustls", &["crates/tls/"], false),
    (
        "rcgen",
        &[
            "node/src/ctl/",
            "crates/tls/src/tests.rs",
            "crates/tls/src/validity.rs",
            "agent/src/sender/connect/tests.rs",
            "agent/tests/ebpf_capture/tls.rs",
        ],
        false,
    ),
    ("aya", &["agent/src/probes"], false),
    ("aya_ebpf", &["bpf/probes/"], false),
    ("bpf_abi", &["bpf/probes/", "agent/src/probes", "agent/src/events"], false),
    ("axum", &["node/", "cluster-tests/"], false),
    ("clap", &["node/src/", "actors/examples/", "agent/src/main.rs", "chaos/src/"], false),
];

/// Code that only computes: what it needs to know of time, files or peers is handed to it.
const PURE: &[&str] = &[
    "crates/query/src/",
    "crates/schema/src/",
    "agent/src/protocol",
    "agent/src/session",
    "agent/src/flow",
    "agent/src/packet",
    "agent/src/sockets",
    "agent/src/events",
    "actors/src/labeler/",
    "actors/src/placement",
];

const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::thread",
    "std::env",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "SystemTime::now",
    "Instant::now",
];

/// What `actors` may not know: listening sockets and command lines are `node`'s.
const NOT_IN_ACTORS: &[&str] =
    &["TcpListener", "UdpSocket", "UnixListener", "std::env::args", "tonic::transport::Server"];

const UNSAFE: &[&str] = &[
    "bpf/",
    "agent/src/probes",
    "agent/src/events",
    "agent/src/capture/ring.rs",
    "agent/src/heap.rs",
    "node/src/engine/library.rs",
];

/// Manifests of workspaces: the eBPF programs are one of their own.
const ROOTS: &[&str] = &["Cargo.toml", "bpf/probes/Cargo.toml"];

struct Source {
    /// Path from the root of the workspace, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
    }

    /// The lines with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or("")))
    }

    /// The same, up to the tests that stand at the end of a file.
    fn code_without_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code().take_while(|(_, line)| line.trim() != "#[cfg(test)]")
    }

    fn starts_with_any(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files below the root that end with `suffix`; hidden folders and build output are left out.
fn files(suffix: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the workspace can be read") {
            let path = entry.expect("a folder entry can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(suffix) {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8 text");
                let path =
                    path.strip_prefix(&root).expect("found below the root").to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no file ends with {suffix} below {}: the walk is broken", root.display());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn check(what_to_do: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{what_to_do}\n  {}", violations.join("\n  "));
}

/// True when `line` names the crate: `use name`, `name::`, not `other_name::`.
fn names_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    line.match_indices(&path)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_:.\"".contains(c)))
        || line.trim_start().starts_with(&format!("use {name};"))
}

#[test]
fn files_are_short_enough_to_read() {
    let violations: Vec<_> = files(".rs")
        .iter()
        .filter(|source| source.text.lines().count() > FILE_LINES_MAX)
        .map(|source| format!("{}: {} lines", source.path, source.text.lines().count()))
        .collect();
    check(
        "split these files (600 lines is the wall): move a part to name/part.rs, long tests to name/tests.rs",
        &violations,
    );
}

#[test]
fn files_open_with_what_they_are() {
    let violations: Vec<_> = files(".rs")
        .into_iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    check("begin these files with `//!`: what it is, why it exists, what it leaves out", &violations);
}

#[test]
fn modules_are_named_after_their_file() {
    let violations: Vec<_> =
        files(".rs").into_iter().map(|source| source.path).filter(|path| path.ends_with("/mod.rs")).collect();
    check("rename name/mod.rs to name.rs beside the folder", &violations);
}

#[test]
fn nothing_is_left_for_later() {
    let unfinished = [
        concat!("#[", "ignore"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
    ];
    let mut violations = Vec::new();
    for source in files(".rs") {
        for (number, line) in source.code() {
            for word in unfinished.iter().filter(|word| line.contains(**word)) {
                violations.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    check(
        "finish it, or leave it out; a test that needs something of the machine looks for it and says so",
        &violations,
    );
}

#[test]
fn each_outside_system_has_one_door() {
    let sources = files(".rs");
    let mut violations = Vec::new();
    for &(name, folders, one_file) in IMPORTS {
        let users: Vec<_> =
            sources.iter().filter(|source| source.code().any(|(_, line)| names_crate(line, name))).collect();
        for user in users.iter().filter(|user| !user.starts_with_any(folders)) {
            violations.push(format!("{}: {name} may only be used in {}", user.path, folders.join(", ")));
        }
        if one_file && users.len() > 1 {
            let paths: Vec<_> = users.iter().map(|user| user.path.as_str()).collect();
            violations.push(format!("{name} is used in several files: {}", paths.join(", ")));
        }
    }
    check("go through the one file that wraps the crate; add to its interface what is missing", &violations);
}

#[test]
fn pure_code_touches_nothing_outside() {
    let mut violations = Vec::new();
    for source in files(".rs").iter().filter(|source| source.starts_with_any(PURE) && !source.is_test()) {
        for (number, line) in source.code_without_tests() {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                violations.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    check("take time, bytes and names as arguments; let the actor or the caller do the IO", &violations);
}

#[test]
fn actors_know_no_socket_and_no_command_line() {
    let mut violations = Vec::new();
    for source in
        files(".rs").iter().filter(|source| source.path.starts_with("actors/src/") && !source.is_test())
    {
        for (number, line) in source.code_without_tests() {
            for word in NOT_IN_ACTORS.iter().filter(|word| line.contains(**word)) {
                violations.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    check("move it to node and hand the result to the actor", &violations);
}

#[test]
fn unsafe_code_stands_where_it_is_expected_and_says_why() {
    let forms = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code"];
    let mut violations = Vec::new();
    for source in files(".rs").iter().filter(|source| source.path != "crates/schema/tests/tidy.rs") {
        let lines: Vec<_> = source.text.lines().collect();
        for (number, line) in source.code() {
            if !forms.iter().any(|form| line.contains(form)) {
                continue;
            }
            if !source.starts_with_any(UNSAFE) {
                violations.push(format!("{}:{number}: no unsafe code in this file", source.path));
            }
            let above = &lines[number.saturating_sub(6)..number];
            if line.contains("unsafe {") && !above.iter().any(|line| line.contains("SAFETY:")) {
                violations.push(format!("{}:{number}: no SAFETY comment above", source.path));
            }
        }
    }
    check(
        "use a safe crate (rustix, socket2, bytemuck), or move it to a file that tidy.rs allows and say why it holds",
        &violations,
    );
}

#[test]
fn versions_stand_in_the_root_manifest_alone() {
    let mut violations = Vec::new();
    for source in files("Cargo.toml").iter().filter(|source| !ROOTS.contains(&source.path.as_str())) {
        let mut in_dependencies = false;
        for (index, line) in source.text.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies && line.contains('=') && !line.contains("workspace = true") {
                violations.push(format!("{}:{}: {line}", source.path, index + 1));
            }
        }
    }
    check(
        "put the version into [workspace.dependencies] and write `name.workspace = true` here",
        &violations,
    );
}

#[test]
fn a_crate_is_recognised_by_its_path_and_not_by_its_letters() {
    let cases = [
        ("use sample::Door;", true),
        ("    sample::Options::default()", true),
        ("let x = Box::<sample::Door>::new(y);", true),
        ("use crate::sample::Store;", false),
        ("use my_sample::Store;", false),
        ("let sample = 1;", false),
    ];
    for (line, expected) in cases {
        assert_eq!(names_crate(line, "sample"), expected, "{line}");
    }
}
