//! `metaflow completion` and `metaflow man`: what a shell and a reader of manuals want of the command line, made from it.

use std::{io, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::{Generator as _, Shell};

use crate::ctl;

/// Which shell.
#[derive(Debug, Args)]
pub(super) struct Completion {
    #[arg(value_enum)]
    shell: Shell,
}

/// Where to.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write a page for each verb into this folder, such as /usr/local/share/man/man1.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Prints the script, e.g. for `source <(metaflow completion bash)`.
pub(super) fn completion(arguments: &Completion, mut command: Command) -> anyhow::Result<()> {
    command.set_bin_name("metaflow");
    command.build();
    let mut script = Vec::new();
    arguments.shell.try_generate(&command, &mut script).context("failed to make the script")?;
    print(script)
}

/// Prints the page of the program, or writes all pages.
pub(super) fn man(arguments: &Man, command: Command) -> anyhow::Result<()> {
    let Some(directory) = &arguments.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).context("failed to make the page")?;
        return print(page);
    };
    let written: io::Result<()> =
        std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory));
    written.with_context(|| format!("failed to write to {}", directory.display()))
}

fn print(bytes: Vec<u8>) -> anyhow::Result<()> {
    Ok(ctl::print(&String::from_utf8(bytes).context("the text is not UTF-8")?)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{super::Cli, *};

    #[test]
    fn every_verb_that_is_not_hidden_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let to_folder = Man { directory: Some(folder.path().join("man1")) };
        man(&to_folder, Cli::command()).unwrap();
        let page =
            |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name)).unwrap_or_default();
        assert!(page("metaflow.1").contains("metaflow"));
        assert!(page("metaflow-ctl-member-list.1").contains("\\-\\-output"));
        assert_eq!(page("metaflow-store-engine.1"), "");
    }
}
