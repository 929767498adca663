//! What the programs in the kernel cost: its verifier, which gives up on one that takes it too long, and whoever runs them, where the kernel
//! counts that (`kernel.bpf_stats_enabled`).

use aya::Ebpf;
use aya::programs::loaded_programs;

/// A program's instructions, each as often as the verifier looked at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub program: String,
    pub instructions: u32,
}

/// Of programs that are loaded; none before Linux 5.16, which does not tell.
pub(super) fn verified(ebpf: &Ebpf) -> Vec<Verified> {
    let of = |(name, program): (&str, &aya::programs::Program)| {
        let instructions = program.info().ok()?.verified_instruction_count()?;
        Some(Verified { program: name.to_owned(), instructions })
    };
    ebpf.programs().filter_map(of).collect()
}

/// Runs of all programs of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    pub name: String,
    pub runs: u64,
    pub nanoseconds: u64,
}

/// Costs of all tracing programs in the kernel, whoever loaded them, since counting began.
pub fn program_costs() -> Vec<ProgramCost> {
    let mut costs: Vec<ProgramCost> = Vec::new();
    for program in loaded_programs().filter_map(Result::ok) {
        let Some(name) = program.name_as_str() else { continue };
        let runs = program.run_count();
        let nanoseconds = u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX);
        match costs.iter_mut().find(|cost| cost.name == name) {
            Some(cost) => {
                cost.runs += runs;
                cost.nanoseconds += nanoseconds;
            }
            None => costs.push(ProgramCost { name: name.to_owned(), runs, nanoseconds }),
        }
    }
    costs
}
