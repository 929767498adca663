//! Another agent on this host: whose programs are in the kernel already.

use std::fmt;
use std::fs;

use aya::Ebpf;
use aya::programs::{ProgramInfo, loaded_programs};

/// How the names of programs begin that an agent loads in any case.
const MARK: &str = "set_state";

/// Another agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// None where it cannot be seen from here (another namespace of processes).
    pub pid: Option<u32>,
}

impl fmt::Display for Rival {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(formatter, "another agent (process {pid}) looks into the processes of this host"),
            None => formatter.write_str(
                "another agent, whose process cannot be seen from here, looks into the processes of this host",
            ),
        }
    }
}

impl Rival {
    /// Who uses eBPF as an agent does. Without the right to look, there is no right to load either.
    pub fn find() -> Option<Self> {
        find(&[], u32::MAX)
    }

    /// Whether there is one, without looking for its process, which takes much longer.
    pub fn is_there() -> bool {
        programs_of(&[MARK], &[], u32::MAX).next().is_some()
    }
}

/// The same, for one that has programs itself: others with smaller numbers than `before`.
pub(super) fn find(own: &[u32], before: u32) -> Option<Rival> {
    let theirs = programs_of(&[MARK], own, before).next()?;
    Some(Rival { pid: holder(theirs.id()) })
}

/// Programs that an agent loaded, by how their names begin: with smaller numbers than `before`, and none of `own`.
pub(super) fn programs_of(marks: &[&str], own: &[u32], before: u32) -> impl Iterator<Item = ProgramInfo> {
    loaded_programs().filter_map(Result::ok).filter(move |program| {
        let is_agents =
            program.name_as_str().is_some_and(|name| marks.iter().any(|mark| name.starts_with(mark)));
        is_agents && program.id() < before && !own.contains(&program.id())
    })
}

/// The kernel's numbers of the programs that are loaded.
pub(super) fn ids(ebpf: &Ebpf) -> Vec<u32> {
    ebpf.programs().filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
}

/// Numbers of all programs in the kernel, whoever loaded them.
pub fn loaded_program_ids() -> Vec<u32> {
    loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}

/// A process with a descriptor of a program.
pub fn holder(program: u32) -> Option<u32> {
    let line = format!("prog_id:\t{program}");
    let holds = |pid: u32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
        descriptors.flatten().any(|descriptor| {
            fs::read_to_string(descriptor.path()).is_ok_and(|text| text.lines().any(|other| other == line))
        })
    };
    super::libraries::processes().into_iter().find(|pid| holds(*pid))
}
