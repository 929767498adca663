//! What the programs in the kernel cost, where the kernel counts it (`kernel.bpf_stats_enabled`).

use aya::programs::loaded_programs;

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
