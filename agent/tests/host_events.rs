//! Real programs, their stacks, files and ends, seen by the eBPF programs in this machine's kernel. The tests need root and BPF, so their
//! names have `as_root` in them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "host_events/watch.rs"]
mod watch;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use metaflow_agent::events::host::Doing;
use metaflow_agent::incidents::LifeRow;
use metaflow_agent::probes::host::EventSettings;
use metaflow_agent::probes::loaded_program_ids;
use metaflow_agent::profile::Row;
use watch::{Program, Sampled, Witness, compile, until};

fn micros(rows: &[Row], part: &str) -> u64 {
    rows.iter().filter(|row| row.folded.contains(part)).map(|row| row.value).sum()
}

#[test]
fn functions_of_a_busy_program_are_named_and_timed_as_root() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "busy");
    let mut sampled = Sampled::start(true, false);
    let busy = Program::start(&program);
    // 450 samples: fewer leave the ratio so much to chance that it leaves its bounds now and then.
    let rows = sampled.until(busy.id(), |rows| micros(rows, "main;compute_") > 4_500_000);
    let (much, little) = (micros(&rows, "main;compute_much;turn"), micros(&rows, "main;compute_little;turn"));
    let ratio = much as f64 / little as f64;
    assert!((1.4..2.8).contains(&ratio), "{much} us against {little} us");
    // Nearly all of it is there, below the thread.
    let known = micros(&rows, "[t] busy;") as f64;
    assert!((much + little) as f64 > known * 0.9, "{rows:#?}");
    assert!(rows.iter().all(|row| row.doing == Doing::Computing));

    let ids = sampled.program_ids();
    assert!(!ids.is_empty());
    // Before Linux 5.15 the descriptors of clocks go to children, which keep them; an agent has none.
    drop(busy);
    drop(sampled);
    let left = || loaded_program_ids().into_iter().filter(|id| ids.contains(id)).count();
    // The kernel lets go of a clock's program a moment after the clock.
    until("programs stay in the kernel", || left() == 0);
}

#[test]
fn waits_are_timed_while_they_last_as_root() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "idle");
    let mut sampled = Sampled::start(false, true);
    let started = Instant::now();
    let idle = Program::start(&program);
    let rows = sampled.until(idle.id(), |rows| {
        micros(rows, "main;wait_shortly") > 500_000 && micros(rows, "thread;wait_long") > 500_000
    });
    let (shortly, long) = (micros(&rows, "main;wait_shortly"), micros(&rows, "thread;wait_long"));
    // Both threads wait nearly all the time; of many waits some may find no room while the names of functions are read.
    assert!((0.2..2.0).contains(&(shortly as f64 / long as f64)), "{shortly} us and {long} us");
    let passed = u64::try_from(started.elapsed().as_micros()).unwrap();
    assert!(shortly <= passed && long <= passed, "{shortly} us and {long} us of {passed} us");
    let kernel = rows.iter().filter(|row| row.folded.contains("wait_long") && row.folded.contains(";[k] "));
    assert!(kernel.count() > 0, "{rows:#?}");
    assert!(rows.iter().all(|row| row.doing == Doing::Waiting));
}

/// Writes a file, makes it durable and reads it.
const FILES: &str = r#"
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.write(descriptor, b"x" * 5000)
os.fsync(descriptor)
os.pread(descriptor, 3000, 0)
"#;

#[test]
fn calls_on_files_have_path_size_and_latency_and_fast_ones_are_left_out_as_root() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let directory = folder.path().to_str().unwrap();
    let path = folder.path().join("data.bin");
    let run = |witness: &mut Witness| {
        let done = Command::new("/usr/bin/python3").args(["-c", FILES]).arg(&path).status();
        assert!(done.unwrap().success());
        witness.look();
    };
    let mut all = Witness::start(&EventSettings { processes: false, files_from_us: Some(0) });
    run(&mut all);
    let own = |witness: &Witness| -> Vec<(String, &'static str, u64)> {
        let rows = witness.files.iter().filter(|row| row.directory == directory);
        rows.map(|row| (row.file.clone(), row.event_type, row.bytes)).collect()
    };
    all.until(|witness| own(witness).len() >= 3);
    let expected = [("write", 5_000), ("sync", 0), ("read", 3_000)];
    assert_eq!(own(&all), expected.map(|(event, bytes)| ("data.bin".to_owned(), event, bytes)));
    let synced = all.files.iter().find(|row| row.directory == directory && row.event_type == "sync").unwrap();
    assert!(synced.duration > 0 && synced.end - synced.start <= synced.duration + 1, "{synced:?}");
    assert!(synced.thread_name.starts_with("python3") && synced.pid == synced.thread, "{synced:?}");
    drop(all);

    let mut slow = Witness::start(&EventSettings { processes: true, files_from_us: Some(60_000_000) });
    run(&mut slow);
    // The end of the program came after its calls.
    slow.until(|witness| witness.lives.iter().any(|row| row.event_type == "exit" && row.name == "python3"));
    assert!(own(&slow).is_empty(), "{:#?}", slow.files);
}

const LIVES: EventSettings = EventSettings { processes: true, files_from_us: None };

fn of(witness: &Witness, pid: u32) -> Vec<&LifeRow> {
    witness.lives.iter().filter(|row| row.pid == pid).collect()
}

fn has_ended(pid: u32) -> impl Fn(&Witness) -> bool {
    move |witness| of(witness, pid).iter().any(|row| row.event_type == "exit")
}

#[test]
fn processes_start_run_programs_get_signals_and_end_as_root() {
    let mut witness = Witness::start(&LIVES);
    // What this process starts itself is the agent's own matter.
    let mut outer = Command::new("/bin/sh").args(["-c", "/bin/sh -c 'exit 3'; exit 0"]).spawn().unwrap();
    let parent = outer.id();
    outer.wait().unwrap();
    witness.until(has_ended(parent));
    let pid = witness.lives.iter().find(|row| row.parent == parent).unwrap().pid;
    let rows = of(&witness, pid);
    let turns: Vec<_> = rows.iter().map(|row| row.event_type).collect();
    assert_eq!(turns, ["start", "exec", "exit"], "{rows:#?}");
    assert_eq!((rows[1].program.as_str(), rows[1].name.as_str()), ("/bin/sh", "sh"));
    assert_eq!((rows[0].parent, rows[2].exit_code, rows[2].signal), (parent, 3, 0));
    assert!(rows[2].lived > 0 && rows[2].time >= rows[0].time, "{rows:#?}");

    let mut sleeper = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let mut killer = Command::new("/bin/sh");
    killer.args(["-c", &format!("kill -TERM {}", sleeper.id())]);
    let mut killer = killer.spawn().unwrap();
    killer.wait().unwrap();
    sleeper.wait().unwrap();
    witness.until(has_ended(sleeper.id()));
    let rows = of(&witness, sleeper.id());
    let signal = rows.iter().find(|row| row.event_type == "signal").unwrap();
    assert_eq!((signal.signal, signal.sender, signal.sender_name.as_str()), (15, killer.id(), "sh"));
    let exit = rows.iter().find(|row| row.event_type == "exit").unwrap();
    assert_eq!((exit.signal, exit.exit_code), (15, 0));
}

/// A memory cgroup with a limit, taken away when dropped.
struct Confined {
    folder: std::path::PathBuf,
}

impl Confined {
    fn new() -> Result<Self, String> {
        let root = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let (root, limit) =
            if root[0].is_dir() { (root[0], "memory.limit_in_bytes") } else { (root[1], "memory.max") };
        let folder = root.join(format!("metaflow-test-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let confined = Self { folder };
        let file = confined.folder.join(limit);
        std::fs::write(&file, "33554432").map_err(|error| format!("{}: {error}", file.display()))?;
        // Without swap to go to, where there is any.
        for file in ["memory.swap.max", "memory.swappiness"] {
            std::fs::write(confined.folder.join(file), "0").ok();
        }
        Ok(confined)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.folder).ok();
    }
}

#[test]
fn a_process_that_runs_out_of_memory_is_told_as_root() {
    let confined = match Confined::new() {
        Ok(confined) => confined,
        Err(problem) => {
            eprintln!("no cgroup of memory can be made here, so this is not tried: {problem}");
            return;
        }
    };
    let mut witness = Witness::start(&LIVES);
    let eat = format!(
        "echo $$ > {}/cgroup.procs; exec /usr/bin/python3 -c 'held = bytearray(1 << 28)'",
        confined.folder.display()
    );
    let mut child = Command::new("/bin/sh").args(["-c", &eat]).spawn().unwrap();
    assert!(!child.wait().unwrap().success());
    witness.until(has_ended(child.id()));
    let turns: Vec<_> =
        of(&witness, child.id()).into_iter().map(|row| (row.event_type, row.signal)).collect();
    assert!(turns.contains(&("oom", 0)) && turns.contains(&("exit", 9)), "{turns:?}");
}
