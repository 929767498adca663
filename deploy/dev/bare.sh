# shellcheck shell=bash
# ./dev bare: the newcomer's two commands in a Debian that has nothing of ours, made with debootstrap in a folder.
# Read by ./dev, whose functions it uses. The mounts live in a mount namespace of their own and end with it.

BARE_SUITE=${BARE_SUITE:-bookworm}

bare_usage="usage: ./dev bare [--keep] [VERB...]   verbs to run there, each a word: setup engine build demo test (default: demo test)"

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

verb_bare() {
    local keep=0 verb
    if [ "${1:-}" = --keep ]; then
        keep=1
        shift
    fi
    [[ "${1:-}" != -* ]] || fail "$1 is not known" "$bare_usage"
    setup_packages debootstrap git ca-certificates
    BARE_ROOT=$CACHE/bare
    say "bare $BARE_SUITE in $BARE_ROOT"
    as_root rm -rf --one-file-system "$BARE_ROOT"
    mkdir -p "$BARE_ROOT"
    # shellcheck disable=SC2064 # the folder of this run
    [ $keep = 1 ] || trap "as_root rm -rf --one-file-system '$BARE_ROOT'" EXIT
    logged "debootstrap $BARE_SUITE" as_root debootstrap --variant=minbase "$BARE_SUITE" "$BARE_ROOT"
    as_root cp /etc/resolv.conf "$BARE_ROOT/etc/resolv.conf"
    as_root mkdir -p "$BARE_ROOT/usr/local/share/ca-certificates"
    as_root cp -r /usr/local/share/ca-certificates/. "$BARE_ROOT/usr/local/share/ca-certificates/" 2>/dev/null || true
    for verb in $(grep -rlsi proxy /etc/apt/apt.conf.d || true); do
        as_root cp "$verb" "$BARE_ROOT/etc/apt/apt.conf.d/"
    done
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
