//! Sample texts of /proc and what they mean.

use super::*;

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(ToString::to_string).collect()
}

#[test]
fn a_stat_is_read_past_any_name() {
    let tail = "S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 98765 1000 200";
    let stat = parse_stat(&format!("7 (a) R (b) {tail}")).unwrap();
    assert_eq!(stat, Stat { comm: "a) R (b".into(), is_kernel_thread: false, start_ticks: 98_765 });
    let thread = parse_stat("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 1 0 0 20 0 1 0 4 0 0").unwrap();
    assert!(thread.is_kernel_thread);
    for damaged in ["", "7", "7 (", "7 (a) S 1"] {
        assert_eq!(parse_stat(damaged), None, "{damaged}");
    }
    assert_eq!(parse_user_id("Name:\tx\nUid:\t1000\t33\t1000\t1000\n"), Some(33));
}

#[test]
fn interpreters_are_called_by_their_script() {
    let check = |comm: &str, arguments: &[&str], expected: &str| {
        assert_eq!(name(comm, &strings(arguments)), expected, "{arguments:?}");
    };
    check("nginx", &["nginx: master process /usr/sbin/nginx"], "nginx");
    check("redis-server", &["/usr/bin/redis-server 127.0.0.1:6379"], "redis-server");
    check("python3", &["python3", "-u", "/srv/shop/app.py", "--port", "80"], "app.py");
    check("python3.11", &["/usr/bin/python3.11", "-m", "http.server"], "http.server");
    check("python3", &["python3", "-c", "print()"], "python3");
    check("gunicorn", &["/usr/bin/python3", "/usr/bin/gunicorn"], "gunicorn");
    check("node", &["node", "-r", "dotenv", "/app/server.js"], "server.js");
    check("java", &["java", "-Xmx1g", "-jar", "/opt/billing.jar"], "billing.jar");
    check("java", &["java", "-cp", "a.jar:b.jar", "org.example.Main", "x"], "org.example.Main");
    check("bash", &["-bash"], "bash");
    check("sh", &["/bin/sh", "-c", "sleep 1"], "sh");
    check("sh", &["/bin/sh", "/usr/bin/backup.sh"], "backup.sh");
    check("a-program-with-", &["/usr/bin/a-program-with-a-long-name"], "a-program-with-a-long-name");
    check("renamed", &["/usr/bin/original"], "renamed");
    check("kworker", &[], "kworker");
}

#[test]
fn command_lines_carry_no_secrets_and_are_cut() {
    let check = |arguments: &[&str], expected: &str| {
        assert_eq!(command_line(&strings(arguments)), expected);
    };
    check(&["app", "--port=80", "-v"], "app --port=80 -v");
    check(&["app", "--db-password=hunter2", "DB_PASSWORD=x"], "app --db-password=*** DB_PASSWORD=***");
    check(&["app", "--api-key", "abc", "x"], "app --api-key *** x");
    check(&["mysql", "-uroot", "-phunter2"], "mysql -uroot -p***");
    check(&["app", "postgres://shop:hunter2@db/x"], "app postgres://shop:***@db/x");
    check(&["curl", "http://host/a:b@c"], "curl http://host/a:b@c");
    let long = command_line(&strings(&["app", &"ä".repeat(500)]));
    assert!(long.len() <= 256 && long.starts_with("app ä"));
}

#[test]
fn cgroups_tell_unit_container_and_pod() {
    let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let check = |text: &str, unit: &str, container: &str, pod: &str| {
        let expected = Belonging { unit: unit.into(), container_id: container.into(), pod_uid: pod.into() };
        assert_eq!(parse_cgroup(text), expected, "{text}");
    };
    check("0::/system.slice/nginx.service\n", "nginx", "", "");
    check("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", "web", "", "");
    check("0::/user.slice/user-0.slice/session-1.scope", "", "", "");
    check("0::/", "", "", "");
    check(&format!("0::/system.slice/docker-{id}.scope"), "", id, "");
    check(&format!("12:cpu:/docker/{id}\n1:name=systemd:/docker/{id}\n"), "", id, "");
    check("4:memory:/system.slice/cron.service\n1:name=systemd:/system.slice/cron.service", "cron", "", "");
    let uid = "01234567-89ab-cdef-0123-456789abcdef";
    let slice = uid.replace('-', "_");
    check(
        &format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{id}.scope"
        ),
        "",
        id,
        uid,
    );
    check(&format!("0::/kubepods/besteffort/pod{uid}/{id}"), "", id, uid);
    check(&format!("0::/kubepods.slice/kubepods-pod{slice}.slice/crio-{id}.scope"), "", id, uid);
    check(&format!("0::/machine.slice/libpod-{id}.scope/container"), "", id, "");
    check(
        &format!(
            "0::/system.slice/containerd.service/kubepods-besteffort-pod{slice}.slice:cri-containerd:{id}"
        ),
        "",
        id,
        uid,
    );
}
