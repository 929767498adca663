# shellcheck shell=bash
# ./dev bare: the newcomer's two commands in a Debian that has nothing of ours, made with debootstrap in a folder.
# Read by ./dev, whose functions it uses. The mounts live in a mount namespace of their own and end with it.

BARE_SUITE=${BARE_SUITE:-bookworm}

bare_usage="usage: ./dev bare [--keep|--again] [VERB...]
  --keep    leave the system when done
  --again   use the system that --keep left, with the present tree
  VERB      what to run there: setup engine build demo test ... (default: demo test)"

# The part that runs inside the new mount namespace: $1 the root folder, then the command.
bare_inside() {
    local root=$1
    shift
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" /usr/bin/env -i HOME=/root USER=root TERM="${TERM:-dumb}" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
        /bin/bash -c 'cd /src && exec "$@"' bash "$@"
}

bare_run() {
    say "bare $BARE_SUITE: ./dev $*"
    as_root unshare --mount --propagation private \
        bash -c "set -euo pipefail; $(declare -f bare_inside); bare_inside \"\$@\"" bash "$BARE_ROOT" ./dev "$@" ||
        fail "./dev $* in the bare system" "read the lines above; --keep leaves the system in $BARE_ROOT"
}

# A new system below BARE_ROOT, with the certificates and the proxy settings of this machine's site.
bare_make() {
    local file
    as_root rm -rf --one-file-system "$BARE_ROOT"
    mkdir -p "$BARE_ROOT"
    logged "debootstrap $BARE_SUITE" as_root debootstrap --variant=minbase "$BARE_SUITE" "$BARE_ROOT"
    as_root cp /etc/resolv.conf "$BARE_ROOT/etc/resolv.conf"
    as_root mkdir -p "$BARE_ROOT/usr/local/share/ca-certificates"
    as_root cp -r /usr/local/share/ca-certificates/. "$BARE_ROOT/usr/local/share/ca-certificates/" 2>/dev/null || true
    for file in $(grep -rlsi proxy /etc/apt/apt.conf.d || true); do
        as_root cp "$file" "$BARE_ROOT/etc/apt/apt.conf.d/"
    done
}

verb_bare() {
    local keep=0 again=0 verb
    while [[ "${1:-}" == -* ]]; do
        case $1 in
            --keep) keep=1 ;;
            --again) again=1 keep=1 ;;
            *) fail "$1 is not known" "$bare_usage" ;;
        esac
        shift
    done
    setup_packages debootstrap git ca-certificates
    BARE_ROOT=$CACHE/bare-$BARE_SUITE
    say "bare $BARE_SUITE in $BARE_ROOT"
    # shellcheck disable=SC2064 # the folder of this run
    [ $keep = 1 ] || trap "as_root rm -rf --one-file-system '$BARE_ROOT'" EXIT
    if [ $again = 0 ] || [ ! -x "$BARE_ROOT/bin/bash" ]; then bare_make; fi
    as_root rm -rf "$BARE_ROOT/src"
    as_root mkdir -p "$BARE_ROOT/src"
    # shellcheck disable=SC2153 # set by ./dev
    (cd "$ROOT" && git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- --ignore-failed-read) |
        as_root tar -x -C "$BARE_ROOT/src"
    [ $# -gt 0 ] || set -- demo test
    for verb in "$@"; do
        case $verb in
            demo) bare_run demo --once ;;
            *) bare_run "$verb" ;;
        esac
    done
    say "bare $BARE_SUITE: all of it worked ($*)"
}
