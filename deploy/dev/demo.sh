# shellcheck shell=bash
# ./dev demo: one node, one agent and some traffic of its own on the loopback interface; shows what the agent sees.
# Read by ./dev, whose functions it uses. Each child is the leader of its own process group, known by its id, and ended by
# that id alone; data, sockets and logs live in one temporary folder that goes when the demo goes.

demo_usage="usage: ./dev demo [--once] [--seconds N]"

# Protocols of the demo's own traffic: --once says that all is well when each of them has a named service with requests.
DEMO_EXPECTED=()
DEMO_NAMES=()
DEMO_PIDS=()

# The first port from $1 upwards on which nothing answers.
free_port() {
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

# start NAME COMMAND...: in the background, in a session of its own so that Ctrl-C reaches only this script.
start() {
    local name=$1
    shift
    setsid "$@" >"$DEMO/log/$name" 2>&1 </dev/null &
    DEMO_NAMES+=("$name")
    DEMO_PIDS+=("$!")
}

# The agent needs rights that a user lacks; through sudo its process is a child of sudo, which passes the signal on.
demo_kill() { kill "$@" 2>/dev/null || { [ "$(id -u)" = 0 ] || sudo -n kill "$@" 2>/dev/null; } || true; }

# Ends the children, the latest first: traffic, then the agent (flushes to the node), then the node (flushes to the store).
demo_stop() {
    trap '' INT TERM
    trap - EXIT ERR
    local at pid tries
    for ((at = ${#DEMO_PIDS[@]} - 1; at >= 0; at--)); do
        pid=${DEMO_PIDS[at]}
        demo_kill -TERM "$pid"
        for ((tries = 0; tries < 150; tries++)); do
            [ -d "/proc/$pid" ] || break
            sleep 0.1
        done
        demo_kill -KILL -- "-$pid"
        wait "$pid" 2>/dev/null || true
    done
    # Through sudo the agent's files belong to root.
    rm -rf "$DEMO" 2>/dev/null || as_root rm -rf --one-file-system "$DEMO"
}

# demo_fail WHAT NAME: shows the end of the log of the child that did not do what it should.
demo_fail() {
    printf '\n--- last lines of %s:\n' "$2" >&2
    tail -n 20 "$DEMO/log/$2" >&2
    fail "$1" "read the lines above; ./dev demo leaves no files behind, so copy what you need"
}

alive() {
    local at
    for at in "${!DEMO_PIDS[@]}"; do
        [ -d "/proc/${DEMO_PIDS[at]}" ] || demo_fail "${DEMO_NAMES[at]} ended by itself" "${DEMO_NAMES[at]}"
    done
}

have() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null || return 1; done
}

# --- traffic ----------------------------------------------------------------------------------------------------

# Two servers in one nginx: a shop that answers itself and asks its back end, so that a service has a caller.
traffic_http() {
    have nginx curl || { say "traffic: no nginx, so no HTTP"; return; }
    local front back user=""
    front=$(free_port 18080)
    back=$(free_port $((front + 1)))
    [ "$(id -u)" != 0 ] || user="user root;"
    mkdir -p "$DEMO/nginx"
    cat >"$DEMO/nginx/nginx.conf" <<END
daemon off; worker_processes 1; pid $DEMO/nginx/pid; error_log $DEMO/log/nginx-error; $user
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path $DEMO/nginx/body; proxy_temp_path $DEMO/nginx/proxy; fastcgi_temp_path $DEMO/nginx/fastcgi;
    uwsgi_temp_path $DEMO/nginx/uwsgi; scgi_temp_path $DEMO/nginx/scgi;
    server {
        listen 127.0.0.1:$front;
        location /orders { proxy_pass http://127.0.0.1:$back; }
        location /missing { return 404 "no such page\n"; }
        location /broken { return 500 "out of order\n"; }
        location / { return 200 "welcome\n"; }
    }
    server { listen 127.0.0.1:$back; location / { return 200 "42 orders\n"; } }
}
END
    # Thirty requests a second over one connection for two seconds, then a new one.
    local number path
    for ((number = 0; number < 60; number++)); do
        case $((number % 20)) in 7) path=missing ;; 13) path=broken ;; 1 | 4 | 9 | 15) path=orders/$number ;; *) path=items/$number ;; esac
        printf 'url = "http://127.0.0.1:%s/%s"\noutput = "/dev/null"\n' "$front" "$path"
    done >"$DEMO/nginx/requests"
    start nginx nginx -p "$DEMO/nginx" -c "$DEMO/nginx/nginx.conf" -e "$DEMO/log/nginx-error"
    start http-client bash -c "while :; do curl -sS --rate 30/s -K '$DEMO/nginx/requests'; sleep 0.1; done"
    DEMO_EXPECTED+=(HTTP)
    say "traffic: HTTP, nginx on 127.0.0.1:$front and :$back, 30 requests/s"
}

traffic_redis() {
    have redis-server redis-cli || { say "traffic: no redis-server, so no Redis"; return; }
    local port
    port=$(free_port 16379)
    mkdir -p "$DEMO/redis"
    start redis redis-server --bind 127.0.0.1 --port "$port" --save "" --appendonly no --dir "$DEMO/redis"
    start redis-client bash -c "until redis-cli -p $port SET visits 0; do sleep 0.1; done
        redis-cli -p $port -r -1 -i 0.05 INCR visits & redis-cli -p $port -r -1 -i 1 LPUSH visits wrong-type & wait"
    DEMO_EXPECTED+=(Redis)
    say "traffic: Redis, redis-server on 127.0.0.1:$port, 20 requests/s"
}

# Queries for a name and for one that does not exist, ten times a second.
traffic_dns() {
    have dnsmasq || { say "traffic: no dnsmasq, so no DNS"; return; }
    local port
    port=$(free_port 15353)
    start dnsmasq dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --port="$port" --listen-address=127.0.0.1 \
        --bind-interfaces --no-resolv --no-hosts --local=/demo/ --address=/shop.demo/127.0.0.1 --log-facility=-
    start dns-client python3 -c "
import socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(0.2)
client.connect(('127.0.0.1', $port))
for number in range(1 << 60):
    name = b'\\x04lost' if number % 3 == 2 else b'\\x04shop'
    head = (number & 0xffff).to_bytes(2, 'big') + b'\\x01\\x00\\x00\\x01' + bytes(6)
    client.send(head + name + b'\\x04demo\\x00\\x00\\x01\\x00\\x01')
    try:
        client.recv(512)
    except OSError:
        pass
    time.sleep(0.1)
"
    DEMO_EXPECTED+=(DNS)
    say "traffic: DNS, dnsmasq on 127.0.0.1:$port, 10 requests/s"
}

# --- node and agent ---------------------------------------------------------------------------------------------

start_node() {
    HTTP_PORT=$(free_port 20416)
    GRPC_PORT=$(free_port 20035)
    [ "$HTTP_PORT" = 20416 ] || say "port 20416 is taken: the HTTP API is on $HTTP_PORT"
    [ "$GRPC_PORT" = 20035 ] || say "port 20035 is taken: gRPC is on $GRPC_PORT"
    cat >"$DEMO/node.toml" <<END
data_dir = "$DEMO/node"

[http]
listen = "127.0.0.1:$HTTP_PORT"

[grpc]
listen = "127.0.0.1:$GRPC_PORT"
END
    start node "$CARGO_TARGET_DIR/release/metaflow" node --config "$DEMO/node.toml"
    local started=$SECONDS
    until curl -fs -o /dev/null "http://127.0.0.1:$HTTP_PORT/health/ready"; do
        alive
        ((SECONDS - started < 60)) || demo_fail "the node was not ready within 60 s" node
        sleep 0.1
    done
    say "node: ready, HTTP API on http://127.0.0.1:$HTTP_PORT"
}

start_agent() {
    local command=("$CARGO_TARGET_DIR/release/metaflow-agent" --config "$DEMO/agent.toml")
    cat >"$DEMO/agent.toml" <<END
data_dir = "$DEMO/agent"
servers = ["127.0.0.1:$GRPC_PORT"]

[capture]
# The HTTP API of this demo's node; its gRPC port is left out by itself.
excluded_ports = [$HTTP_PORT]
END
    if [ "$(id -u)" != 0 ]; then
        say "the agent needs root for packet sockets"
        sudo -v || fail "no root rights for the agent" "run ./dev demo as root or as a user who may use sudo"
        command=(sudo "${command[@]}")
    fi
    start agent "${command[@]}"
    say "agent: started"
}

how_to_ask() {
    local sql='SELECT auto_service_1, Sum(request) AS requests, Avg(rrt) FROM application WHERE time > now() - 300 GROUP BY auto_service_1 ORDER BY requests DESC'
    cat <<END
HTTP API: http://127.0.0.1:$HTTP_PORT   ask it yourself, from another terminal:

  $CARGO_TARGET_DIR/release/metaflow ctl --url http://127.0.0.1:$HTTP_PORT query "$sql"
  curl -d db=flow_metrics --data-urlencode "sql=$sql" http://127.0.0.1:$HTTP_PORT/v1/query/

END
}

# The table, refreshed in place below the lines that say how to ask; $1 seconds, 0 is until Ctrl-C.
show_refreshed() {
    local end=$((SECONDS + $1)) how
    how=$(how_to_ask)
    if [ -t 1 ]; then printf '\033[2J'; else printf '%s\n' "$how"; fi
    while (($1 == 0 || SECONDS < end)); do
        alive
        # A table without services yet is no failure.
        metaflow_ctl top --seconds 10 --once >"$DEMO/table" 2>&1 || true
        if [ -t 1 ]; then
            printf '\033[H%s\n\n%s\n\n(Ctrl-C stops all of it)\033[J\n' "$how" "$(sed 's/$/\x1b[K/' "$DEMO/table")"
        else
            printf '\n%s\n' "$(cat "$DEMO/table")"
        fi
        sleep 1
    done
}

# Asks for the table until every protocol that the demo feeds has a service with a name (not an address) and requests.
show_once() {
    local started=$SECONDS protocol missing
    while :; do
        alive
        missing=""
        metaflow_ctl top --seconds 10 --once >"$DEMO/table" 2>"$DEMO/log/ctl" || missing="an answer of the node"
        for protocol in "${DEMO_EXPECTED[@]}"; do
            grep -qE "^[A-Za-z].* +$protocol +[0-9.]*[1-9]" "$DEMO/table" || missing+=" $protocol"
        done
        [ -n "$missing" ] || break
        if ((SECONDS - started >= 60)); then
            cat "$DEMO/table"
            tail -n 15 "$DEMO/log/agent" "$DEMO/log/node" "$DEMO/log/ctl" >&2
            fail "after 60 s the table still lacks:$missing" "read the logs above"
        fi
        sleep 0.5
    done
    cat "$DEMO/table"
}

metaflow_ctl() { "$CARGO_TARGET_DIR/release/metaflow" ctl --url "http://127.0.0.1:$HTTP_PORT" "$@"; }

verb_demo() {
    local once=0 seconds=0
    while [ $# -gt 0 ]; do
        case $1 in
            --once) once=1 ;;
            --seconds) shift; seconds=${1:-} ;;
            *) fail "$1 is not known" "$demo_usage" ;;
        esac
        shift
    done
    [[ "$seconds" =~ ^[0-9]+$ ]] || fail "--seconds wants a number" "$demo_usage"
    verb_setup
    verb_engine
    verb_build
    DEMO=$(mktemp -d "$CACHE/demo.XXXXXX")
    mkdir -p "$DEMO/log"
    trap demo_stop EXIT
    trap 'echo; say "stopping"; exit 0' INT
    trap 'exit 143' TERM HUP
    traffic_http
    traffic_redis
    traffic_dns
    start_node
    start_agent
    if [ $once = 1 ]; then
        how_to_ask
        show_once
    else
        show_refreshed "$seconds"
    fi
    say "stopping"
}
