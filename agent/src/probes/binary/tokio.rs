//! Programs with tokio in them: functions by which its tasks are told apart, as long as there is a table of symbols.
//!
//! Functions are found by parts of their mangled names, which both ways of mangling have in common; what is generic has a symbol for each kind
//! of task. All of them stand in tables of functions, or are called from other crates, so that optimised programs have them, too.

use std::collections::HashSet;

use super::elf::Elf;
use super::{Error, Findings, Point};

/// Parts of a name, and the program that stands at the function's entry.
const FUNCTIONS: [(&[&str], &str); 6] = [
    (&[POLL], "tokio_poll"),
    (&["5tokio7runtime4task5waker11wake_by_ref"], "tokio_wake"),
    (&["5tokio7runtime4task5waker11wake_by_val"], "tokio_wake"),
    (&["5tokio4sync4task12atomic_waker", "11AtomicWaker4wake"], "tokio_send"),
    (&["5tokio4sync4task12atomic_waker", "11AtomicWaker15register_by_ref"], "tokio_wait"),
    (&["34schedule_option_task_without_yield"], "tokio_spawn"),
];
/// Without it nothing is known of tasks.
pub(super) const POLL: &str = "5tokio7runtime4task3raw4poll";
pub(in crate::probes) const PROGRAMS: [&str; 5] =
    ["tokio_poll", "tokio_wake", "tokio_send", "tokio_wait", "tokio_spawn"];

/// Kinds of tasks of one program; each is a probe.
const POINTS_MAX: usize = 1_024;

pub(super) fn find(elf: &Elf, findings: &mut Findings) -> Result<(), Error> {
    let mut points = Vec::new();
    let mut known = HashSet::new();
    elf.each_function(POLL, |name, function| {
        let program = FUNCTIONS.iter().find(|(parts, _)| has(name, parts)).map(|(_, program)| *program);
        if let Some(program) = program
            && known.insert(function.offset)
        {
            points.push(Point { program, offset: function.offset });
        }
    })?;
    if points.len() > POINTS_MAX {
        return Err(Error::Form("it has more kinds of tasks than are probed"));
    }
    findings.points.extend(points);
    Ok(())
}

/// The first way of mangling ends a name with `17h` and a hash; functions inside of one that is wanted have its name before theirs.
fn has(name: &str, parts: &[&str]) -> bool {
    let mut rest = name;
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    !name.starts_with("_ZN") || rest.starts_with("17h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_known_by_their_mangled_names() {
        let check = |name: &str, expected: Option<&str>| {
            let found = FUNCTIONS.iter().find(|(parts, _)| has(name, parts)).map(|(_, program)| *program);
            assert_eq!(found, expected, "{name}");
        };
        check("_ZN5tokio7runtime4task3raw4poll17h0f127f7b9cbdcaebE", Some("tokio_poll"));
        check(
            "_ZN5tokio7runtime4task3raw4poll17h88ccef36ed9c0c8aE.llvm.11470064899301464504",
            Some("tokio_poll"),
        );
        check("_ZN5tokio7runtime4task3raw4poll28_$u7b$$u7b$closure$u7d$$u7d$17h00E", None);
        check(
            "_RINvNtNtNtNtCs9aXa_5tokio7runtime4task3raw4pollNtCs1_4main4TaskINtB6_3ArcEEB8_",
            Some("tokio_poll"),
        );
        check("_ZN5tokio7runtime4task3raw8schedule17h192c11d0dc7eda69E", None);
        check("_ZN5tokio7runtime4task5waker11wake_by_val17h6cfb9fd5e25712c7E", Some("tokio_wake"));
        check("_ZN5tokio4sync4task12atomic_waker11AtomicWaker4wake17h44df0f1c45735503E", Some("tokio_send"));
        check("_RNvMNtNtNtCs9_5tokio4sync4task12atomic_wakerNtB2_11AtomicWaker4wake", Some("tokio_send"));
        check(
            "_ZN5tokio4sync4task12atomic_waker11AtomicWaker15register_by_ref17h7b87ffd7c18f9549E",
            Some("tokio_wait"),
        );
        check("_ZN12futures_core4task10__internal12atomic_waker11AtomicWaker4wake17h7921fce0304014f3E", None);
        let spawn = "_ZN5tokio7runtime9scheduler12multi_thread6worker73_$LT$impl$u20$tokio..runtime..scheduler..multi_thread..handle..Handle$GT$34schedule_option_task_without_yield17h538b90c7ee3bd640E";
        check(spawn, Some("tokio_spawn"));
    }
}
