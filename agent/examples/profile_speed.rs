//! What profiling and events of a host cost: time of the kernel's programs a run, and CPU time of this process, in hundredths of one CPU.
//!
//! Every CPU is kept busy by a shell, and a pipe between two programs switches between threads as fast as it can: more than real work does.
//! Needs root. Run it with `./dev bench profile_speed`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use metaflow_agent::{
    clock,
    events::host::{self, Event},
    incidents::Incidents,
    probes::{
        host::{EventSettings, HostProbes, ProfileSettings},
        program_costs,
    },
    profile::{Profile, Symbols},
};

const SECONDS: u64 = 15;
const FREQUENCY: u32 = 99;
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

struct Load(Vec<Child>);

impl Load {
    fn start() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let shell = |program: &str| Command::new("sh").args(["-c", program]).stdout(Stdio::null()).spawn();
        let mut children: Vec<Child> = (0..cpus).map(|_| shell("while :; do :; done").unwrap()).collect();
        let mut yes = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
        let pipe = yes.stdout.take().unwrap();
        children.push(yes);
        children.push(Command::new("cat").stdin(pipe).stdout(Stdio::null()).spawn().unwrap());
        Self(children)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// CPU time of this process.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

fn measure(name: &str, profile: Option<ProfileSettings>, events: Option<EventSettings>, programs: &[&str]) {
    let mut sampled = profile.map(|settings| HostProbes::profile(&settings).0.unwrap());
    let mut watched = events.map(|settings| HostProbes::events(&settings).0.unwrap());
    if let Some(probes) = &mut sampled {
        probes.set_odds(u32::MAX / 100);
    }
    let (mut sums, mut symbols, mut incidents) =
        (Profile::new(FREQUENCY), Symbols::default(), Incidents::default());
    let (started, own) = (Instant::now(), own_time());
    let (mut samples, mut rows) = (0, 0);
    while started.elapsed().as_secs() < SECONDS {
        symbols.tick(u64::try_from(started.elapsed().as_millis()).unwrap());
        for probes in [&mut sampled, &mut watched].into_iter().flatten() {
            samples += probes.poll(&mut |record| match host::read(record).unwrap() {
                Event::Stack(stack) => sums.stack(stack, &mut symbols),
                Event::Wake { time, thread } => sums.wake(thread, time),
                Event::File(call) => rows += usize::from(incidents.file(call).is_some()),
                Event::Life(life) => rows += usize::from(incidents.life(life).is_some()),
            });
        }
        if started.elapsed().as_secs() % 5 == 4 {
            rows += sums.take(clock::monotonic_ns(), [0, 1], |_, _| true, |_| "it".into()).len();
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let percent = |time: f64| 100.0 * time / started.elapsed().as_secs_f64();
    println!(
        "{name}: {samples} records, {rows} rows; agent {:.2} % of a CPU",
        percent((own_time() - own).as_secs_f64())
    );
    for cost in
        program_costs().into_iter().filter(|cost| programs.contains(&cost.name.as_str()) && cost.runs > 0)
    {
        let each = cost.nanoseconds / cost.runs;
        let share = percent(cost.nanoseconds as f64 / 1e9);
        println!("  {}: {} runs, {each} ns each, {share:.2} % of a CPU", cost.name, cost.runs);
    }
}

fn main() {
    std::fs::write(STATISTICS, "1").unwrap();
    let load = Load::start();
    let profile =
        |on_cpu, off_cpu| ProfileSettings { on_cpu, off_cpu, frequency: FREQUENCY, only_listed: false };
    measure("on-cpu", Some(profile(true, false)), None, &["on_cpu"]);
    measure("off-cpu, one wait of a hundred", Some(profile(false, true)), None, &["off_cpu"]);
    let lives = EventSettings { processes: true, files_from_us: None };
    measure(
        "lives of processes",
        None,
        Some(lives),
        &["life_start", "life_exec", "life_exit", "life_signal"],
    );
    let files = EventSettings { processes: false, files_from_us: Some(10_000) };
    measure("slow files", None, Some(files), &["file_enter", "file_exit"]);
    drop(load);
    std::fs::write(STATISTICS, "0").unwrap();
}
