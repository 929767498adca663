#!/bin/busybox sh
# shellcheck shell=busybox
# The first process of the small system that `./dev kernels` boots: the agent and tests of it, in the kernel that is to be tried. The
# verdict is the last line on the console.

/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tracefs tracing /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
echo "127.0.0.1 localhost" >/etc/hosts
echo "root:x:0:0:root:/root:/bin/sh" >/etc/passwd

FAILED=0
# check WHAT COMMAND...
check() {
    local what=$1
    shift
    if "$@"; then echo "ok: $what"; else echo "FAILED: $what"; FAILED=1; fi
}

# await COMMAND...: until it is so; two minutes are enough for all that follows here, also on a busy machine.
await() {
    local left=600
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 0.2
    done
}

has() { grep -qsF -- "$1" "$2"; }
has_not() { ! has "$1" "$2"; }

CONFIG=/etc/agent.toml
# agent NAME OPTIONS...: with a folder of its own. No node answers: what is seen here stays here.
agent() {
    local name=$1
    shift
    exec metaflow-agent --config "$CONFIG" --data-dir "/tmp/$name" --machine-id "$name" "$@" >"/tmp/$name.out" 2>"/tmp/$name.err"
}

# Without the processor's help all takes twenty times as long, so the agent's ceiling is higher by as much: else it would stop to look.
printf 'servers = ["127.0.0.1:9"]\n[ebpf]\nenabled = "required"\n[guard]\ndisk_free_min = "1 MiB"\ncpu_percent_max = 2000\n' >/etc/agent.toml

echo "--- what works here"
metaflow-agent capabilities | tee /tmp/capabilities
if python3 -c 'import sys; sys.exit(b"\0btf_trace_sock_send_length\0" not in open("/sys/kernel/btf/vmlinux", "rb").read())'; then
    STEP="socket tracepoints"
else
    STEP="end of system calls"
    check "the missing step is named with its reason" \
        has "eBPF, socket tracepoints (sock_send_length, sock_recv_length): no (this kernel has no tracepoint sock_send_length)" /tmp/capabilities
fi
check "requests are seen by the best step of this kernel" has "eBPF: requests are seen in processes, by $STEP" /tmp/capabilities
case $(uname -r) in
    5.10.*) check "what probes cannot carry is named, too" \
        has "goroutines from the first one of a process on (numbers of uprobes): no (probes carry no numbers before Linux 5.15)" /tmp/capabilities ;;
    *) check "goroutines from the first one on" has "goroutines from the first one of a process on (numbers of uprobes): yes" /tmp/capabilities ;;
esac
for ability in "packet capture: yes" "TLS libraries (uprobes): yes" "goroutines and TLS of Go (uprobes): yes" \
    "ends of threads, new programs (sched_process_exit, sched_process_exec): yes" \
    "functions that compute (perf_event: cpu-clock): yes" "functions that wait (sched_switch): yes" \
    "lives of processes (sched_process_fork, sched_process_exec, sched_process_exit, signal_generate): yes" \
    "lack of memory (mark_victim): yes" "slow calls on files (sys_enter, sys_exit): yes"; do
    check "$ability" has "$ability" /tmp/capabilities
done

echo "--- the agent beside another one, and killed"
(agent one) &
first=$!
check "the agent begins" await has "eBPF: requests are seen in processes" /tmp/one.err
(agent two)
check "a second agent refuses" test $? = 1
check "and names the first" has "another agent (process $first) looks into the processes of this host" /tmp/two.err
metaflow-agent capabilities >/tmp/capabilities
check "capabilities name it, too" has "another agent (process $first)" /tmp/capabilities
sed 's/"required"/"auto"/' /etc/agent.toml >/etc/patient.toml
(CONFIG=/etc/patient.toml agent patient) &
patient=$!
check "one that may keep to packets does so" await has "keeps to packets until that one ends" /tmp/patient.err
kill -9 "$first"
check "and takes over when the first one is killed" await has "eBPF: requests are seen in processes" /tmp/patient.err
kill -9 "$patient"
gone() { metaflow-agent capabilities >/tmp/capabilities && has_not "another agent" /tmp/capabilities; }
check "of an agent that is killed nothing stays" await gone
remains() { cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -q '^prog_id:'; }
check "no process holds a program" eval '! remains'

echo "--- requests"
(agent three --status-json) &
third=$!
check "the next agent begins" await has "eBPF: requests are seen in processes" /tmp/three.err
check "an HTTP server and its client" python3 -c '
import http.client, http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = http.client.HTTPConnection("127.0.0.1", server.server_port)
for number in range(20):
    client.request("GET", f"/{number}")
    assert client.getresponse().read() == b""
'
kill -TERM "$third"
check "the agent ends in order" await has '"sessions":' /tmp/three.out
# Each of twenty requests is seen by its client, by its server and on the wire.
check "all requests are seen at each point" python3 -c 'import json, sys; sys.exit(json.load(open("/tmp/three.out"))["sessions"] < 60)'

echo "--- tests"
export METAFLOW_TEST_PROGRAMS=/usr/bin
# shellcheck disable=SC2046 # one word a filter
ebpf-capture --test-threads=1 $(cat /etc/tests)
check "the tests of requests" test $? = 0
host-events --test-threads=1
check "the tests of stacks, files and processes" test $? = 0

if [ $FAILED = 0 ]; then echo "verdict: good"; else
    tail -n 20 /tmp/*.err
    echo "verdict: bad"
fi
poweroff -f
