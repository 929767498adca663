//! Golden files: the statements that make the store, one file each, numbered in the order in which they run; and the reference page.
//!
//! `UPDATE_GOLDEN=1 cargo nextest run -p metaflow-schema` accepts what changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::Path};

use metaflow_schema::{ddl, reference};

#[test]
fn ddl_is_as_the_golden_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let fresh: BTreeMap<String, String> = ddl::statements()
        .into_iter()
        .enumerate()
        .map(|(at, statement)| (format!("{at:02}_{}.sql", subject(&statement)), format!("{statement};\n")))
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for name in files(&folder).keys().filter(|name| !fresh.contains_key(*name)) {
            fs::remove_file(folder.join(name)).unwrap();
        }
        for (name, statement) in &fresh {
            fs::write(folder.join(name), statement).unwrap();
        }
    }
    let golden = files(&folder);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&golden), names(&fresh), "UPDATE_GOLDEN=1 accepts");
    for (name, statement) in fresh {
        let line = golden[&name].lines().zip(statement.lines()).find(|(old, new)| old != new);
        assert!(golden[&name] == statement, "{name} changed at {line:?}; UPDATE_GOLDEN=1 accepts");
    }
}

#[test]
fn reference_page_says_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference.md");
    let fresh = reference::page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &fresh).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    let line = golden.lines().zip(fresh.lines()).find(|(old, new)| old != new);
    assert!(golden == fresh, "docs/reference.md changed at {line:?}; UPDATE_GOLDEN=1 accepts");
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// What a statement makes: the words behind `IF NOT EXISTS`.
fn subject(statement: &str) -> String {
    let (_, rest) = statement.split_once("IF NOT EXISTS ").unwrap();
    rest.split_whitespace().next().unwrap().replace('`', "")
}
