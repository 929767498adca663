//! What the texts of /proc/PID say about a process. Pure.

/// Longest command line that is sent.
const COMMAND_LINE_MAX: usize = 256;
/// Longest name that is sent.
const NAME_MAX: usize = 64;
/// Kernel thread, in the flags of /proc/PID/stat.
const PF_KTHREAD: u64 = 0x0020_0000;

/// The part of /proc/PID/stat that tells one process from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub comm: String,
    pub is_kernel_thread: bool,
    pub start_ticks: u64,
}

/// The name may hold spaces and parentheses: fields count behind the last one.
pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_ascii_whitespace();
    let flags: u64 = fields.nth(6)?.parse().ok()?;
    let start_ticks = fields.nth(12)?.parse().ok()?;
    Some(Stat { comm, is_kernel_thread: flags & PF_KTHREAD != 0, start_ticks })
}

pub(super) fn parse_user_id(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // The effective one.
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments of a /proc/PID/cmdline.
pub(super) fn arguments(cmdline: &[u8]) -> Vec<String> {
    cmdline
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .filter(|argument| !argument.is_empty())
        .collect()
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What people call a process: the name of its program, or of the script that an interpreter runs.
pub(super) fn name(comm: &str, arguments: &[String]) -> String {
    // A rewritten title (`nginx: master process`) counts up to its first word.
    let title =
        arguments.first().and_then(|argument| argument.trim_start_matches('-').split([' ', ':']).next());
    let program = title.map(base_name);
    let name = match program {
        // A process that renamed itself is called what it wants.
        Some(program) if program.starts_with(comm) && !comm.is_empty() => {
            script(program, &arguments[1..]).unwrap_or(program)
        }
        _ => comm,
    };
    crate::emit::truncate(name, NAME_MAX).to_owned()
}

/// The script, module or jar that an interpreter was started with; none for other programs.
fn script<'a>(program: &str, arguments: &'a [String]) -> Option<&'a str> {
    let family = program.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    // Options that take the next argument, and those after which there is no script.
    let (with_value, without_script): (&[&str], &[&str]) = match family {
        "python" | "pypy" => (&["-W", "-X", "-Q"], &["-c", "-"]),
        "node" | "nodejs" | "bun" => (&["-r", "--require", "--import", "--loader"], &["-e", "-p", "--eval"]),
        "ruby" => (&["-I", "-r", "-C"], &["-e"]),
        "perl" => (&["-I"], &["-e", "-E"]),
        "php" => (&["-c", "-d"], &["-r"]),
        "sh" | "bash" | "dash" | "zsh" => (&["-o", "+o", "--rcfile"], &["-c"]),
        "java" => (&["-cp", "-classpath", "--class-path", "-p", "--module-path", "--add-modules"], &[]),
        _ => return None,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let argument = argument.as_str();
        if matches!(argument, "-m" | "-jar" | "--module") {
            return rest.next().map(|module| base_name(module));
        }
        if without_script.contains(&argument) {
            return None;
        }
        if with_value.contains(&argument) {
            rest.next();
        } else if !argument.starts_with(['-', '+']) {
            return Some(base_name(argument));
        }
    }
    None
}

const SECRET_WORDS: [&str; 9] =
    ["password", "passwd", "passphrase", "secret", "token", "credential", "apikey", "api-key", "private-key"];
const HIDDEN: &str = "***";

fn names_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('_', "-");
    SECRET_WORDS.iter().any(|word| key.contains(word)) || key.ends_with("access-key") || key.ends_with("-pwd")
}

/// The command line without secrets, cut.
pub(super) fn command_line(arguments: &[String]) -> String {
    let is_mysql = arguments.first().is_some_and(|program| {
        let program = base_name(program);
        program.starts_with("mysql") || program.starts_with("mariadb")
    });
    let mut line = String::new();
    let mut hide_next = false;
    for argument in arguments {
        if !line.is_empty() {
            line.push(' ');
        }
        if std::mem::take(&mut hide_next) {
            line.push_str(HIDDEN);
        } else if let Some((key, _)) = argument.split_once('=').filter(|(key, _)| names_secret(key)) {
            line.push_str(key);
            line.push('=');
            line.push_str(HIDDEN);
        } else if is_mysql && argument.starts_with("-p") && argument.len() > 2 {
            line.push_str("-p");
            line.push_str(HIDDEN);
        } else {
            hide_next = argument.starts_with('-') && names_secret(argument);
            push_without_credentials(&mut line, argument);
        }
        if line.len() > COMMAND_LINE_MAX {
            break;
        }
    }
    crate::emit::truncate(&line, COMMAND_LINE_MAX).to_owned()
}

/// `scheme://user:password@host` keeps its user.
fn push_without_credentials(line: &mut String, argument: &str) {
    let parts = argument.split_once("://").and_then(|(scheme, rest)| {
        let (credentials, host) = rest.split_once('@')?;
        let user = credentials.split_once(':').filter(|_| !credentials.contains('/'))?.0;
        Some((scheme, user, host))
    });
    match parts {
        Some((scheme, user, host)) => line.push_str(&format!("{scheme}://{user}:{HIDDEN}@{host}")),
        None => line.push_str(argument),
    }
}

/// Where a process belongs, from its cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Belonging {
    pub unit: String,
    pub container_id: String,
    pub pod_uid: String,
}

/// Reads /proc/PID/cgroup of both hierarchies: docker, containerd, cri-o, podman, systemd.
pub(super) fn parse_cgroup(text: &str) -> Belonging {
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut belonging = Belonging::default();
    for component in paths().flat_map(|path| path.split(['/', ':'])) {
        if belonging.container_id.is_empty() {
            belonging.container_id = container_id(component).unwrap_or_default().to_owned();
        }
        if belonging.pod_uid.is_empty() {
            belonging.pod_uid = pod_uid(component).unwrap_or_default();
        }
    }
    if belonging.container_id.is_empty() {
        // The innermost service: a user's services run within `user@1000.service`.
        let service =
            paths().find_map(|path| path.rsplit('/').find_map(|part| part.strip_suffix(".service")));
        belonging.unit = service.unwrap_or_default().to_owned();
    }
    belonging
}

/// `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>.scope`, `libpod-<id>.scope`, or the id alone.
fn container_id(component: &str) -> Option<&str> {
    let component = component.strip_suffix(".scope").unwrap_or(component);
    let id = component.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// `pod<uid>`, or `kubepods-burstable-pod<uid>.slice` with underscores.
fn pod_uid(component: &str) -> Option<String> {
    let component = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match component.strip_prefix("pod") {
        Some(uid) => uid,
        None if component.starts_with("kubepods") => component.split_once("-pod")?.1,
        None => return None,
    };
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests;
