# shellcheck shell=bash
# ./dev kernels: the agent in kernels that this machine does not run, booted in QEMU without any help of the processor.
# Read by ./dev, whose functions it uses. Kernel and shell of the small system are fetched from Debian, not installed; everything else in it
# is this machine's: the agent, the test program, Python, and the libraries of all three.

# The release of Debian that has a kernel.
declare -A KERNEL_SUITES=([5.10]=bullseye [6.1]=bookworm [6.12]=trixie)
# The one that is part of the tests: without the first step of the ladder, and widespread.
KERNEL_OF_TESTS=6.1
# With what the programs that the tests look into are built from.
KERNEL_PACKAGES=(qemu-system-x86 curl g++ golang-go golang-github-lib-pq-dev)
# Boots take 4 s and the rest 40 s to 90 s on an idle core; the machine may be busy.
KERNEL_PATIENCE=900
KERNEL_CPUS=2
# What of tests/ebpf_capture.rs runs there: what needs no more than Python, curl and programs that are built before.
KERNEL_TESTS=(ladder:: programs:: left_out ipv6 a_killed_agent each_message requests_inside_tls_are requests_inside_tls_of_go rust::a_server rust::a_client unix::unix_sockets)

# Why kernels cannot be tried on this machine; empty: they can.
kernels_problem() {
    if [ "$(uname -m)" != x86_64 ]; then
        echo "the images are for x86_64"
    elif ! command -v apt-get >/dev/null || [ -z "$(kernel_sources bookworm)" ]; then
        echo "no mirror of Debian's packages is among this machine's sources"
    fi
}

# Sources of a release, on the mirrors that this machine uses already.
kernel_sources() {
    local uri label suite
    # shellcheck disable=SC2016 # the fields are apt's
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | sort -u |
        sed -n 's/^Debian|//p' | while IFS='|' read -r label uri; do
        suite=$1
        [ "$label" != Debian-Security ] || suite=$1-security
        echo "deb $uri $suite main"
    done
}

# fetch_kernel VERSION: the newest of that version, and the shell that goes with it, into the cache.
fetch_kernel() {
    local folder=$CACHE/kernels/fetch.$1 package name
    rm -rf "$folder"
    mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$folder/unpacked"
    kernel_sources "${KERNEL_SUITES[$1]}" >"$folder/sources.list"
    local apt=(-o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$folder/lists"
        -o Dir::State::Status=/dev/null -o Dir::Cache="$folder" -o APT::Sandbox::User= -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Languages=none)
    apt-get "${apt[@]}" update || return 1
    package=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n1)
    [ -n "$package" ] || { echo "no linux-image-cloud-amd64 in ${KERNEL_SUITES[$1]}"; return 1; }
    (cd "$folder" && apt-get "${apt[@]}" download "$package" busybox-static) || return 1
    for name in "$folder"/*.deb; do
        dpkg-deb --fsys-tarfile "$name" | tar -x -C "$folder/unpacked" --wildcards --exclude='./lib/modules' './boot/vmlinuz-*' './bin/busybox' \
            './usr/bin/busybox' 2>/dev/null || true
    done
    mkdir -p "$CACHE/kernels/$1"
    mv "$folder"/unpacked/boot/vmlinuz-* "$CACHE/kernels/$1/vmlinuz" || return 1
    mv "$(find "$folder/unpacked" -name busybox | head -n1)" "$CACHE/kernels/$1/busybox" || return 1
    rm -rf "$folder"
}

# setup_kernels VERSION...: false, with a line, where kernels cannot be tried at all.
setup_kernels() {
    local problem version
    problem=$(kernels_problem)
    if [ -n "$problem" ]; then
        say "other kernels: not tried, $problem"
        return 1
    fi
    setup_packages "${KERNEL_PACKAGES[@]}"
    for version in "$@"; do
        [ -n "${KERNEL_SUITES[$version]:-}" ] || fail "there is no kernel '$version' to try" "take of: ${!KERNEL_SUITES[*]}"
        if [ ! -r "$CACHE/kernels/$version/vmlinuz" ] || [ ! -x "$CACHE/kernels/$version/busybox" ]; then
            if ! (logged "fetch Linux $version" fetch_kernel "$version"); then
                say "other kernels: not tried, Linux $version cannot be had from the mirrors of Debian's packages that this machine uses"
                return 1
            fi
        fi
    done
    say "kernels: $CACHE/kernels ($*)"
}

# What is part of the tests.
setup_test_kernel() { setup_kernels "$KERNEL_OF_TESTS" || true; }

# kernel_add TREE FILE [PLACE]: a program or library with the libraries that it needs, without what is for debuggers alone.
kernel_add() {
    local tree=$1 file=$2 place=${3:-$2} library
    mkdir -p "$tree$(dirname "$place")"
    strip --strip-debug -o "$tree$place" "$(readlink -f "$file")" || return 1
    ldd "$file" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
        [ -e "$tree$library" ] || { mkdir -p "$tree$(dirname "$library")" && cp -L "$library" "$tree$library"; }
    done
}

# kernel_image BUSYBOX FILE: what the kernel finds as its first file system, made of KERNEL_*.
kernel_image() {
    local tree library python
    tree=$(mktemp -d "$CACHE/kernels/image.XXXXXX")
    mkdir -p "$tree"/{bin,dev,etc,proc,root,sys,tmp,usr/bin,var/tmp}
    cp "$1" "$tree/bin/busybox"
    cp "$ROOT/deploy/dev/kernel-init.sh" "$tree/init"
    chmod 755 "$tree/init" "$tree/bin/busybox"
    printf '%s\n' "${KERNEL_TESTS[@]}" >"$tree/etc/tests"
    kernel_add "$tree" "$KERNEL_AGENT" /usr/bin/metaflow-agent || return 1
    kernel_add "$tree" "$KERNEL_CAPTURE_TESTS" /usr/bin/ebpf-capture || return 1
    kernel_add "$tree" "$KERNEL_HOST_TESTS" /usr/bin/host-events || return 1
    kernel_add "$tree" "$(readlink -f /usr/bin/python3)" /usr/bin/python3 || return 1
    kernel_add "$tree" /usr/bin/curl || return 1
    kernel_peers "$tree/usr/bin" || return 1
    python=$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    mkdir -p "$tree$python"
    tar -C "$python" -c --exclude='./config-*' --exclude=./ensurepip --exclude=./lib2to3 --exclude=./pydoc_data --exclude=./test \
        --exclude=./idlelib --exclude=./distutils --exclude=./dist-packages --exclude=./site-packages . | tar -C "$tree$python" -x
    for library in "$python"/lib-dynload/*.so; do kernel_add "$tree" "$library"; done
    (cd "$tree" && find . | "$1" cpio -o -H newc 2>/dev/null) >"$2"
    rm -rf "$tree"
}

# kernel_peers FOLDER: the programs that the tests look into, which they build themselves elsewhere.
kernel_peers() {
    local name
    for name in busy idle; do
        cc -O0 -fno-omit-frame-pointer -pthread -o "$1/$name" "$ROOT/agent/tests/host_events/$name.c" || return 1
    done
    GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS='' GOCACHE="$CACHE/kernels/go-build" \
        go build -o "$1/shop" "$ROOT/agent/tests/ebpf_capture/go/shop.go"
}

# boot_kernel VERSION: the verdict is the last word on the console.
boot_kernel() {
    local image=$CACHE/kernels/$1.cpio log=$CACHE/log/kernel-$1.log started=$SECONDS
    kernel_image "$CACHE/kernels/$1/busybox" "$image" || fail "the image for Linux $1" "read the lines above"
    mkdir -p "$CACHE/log"
    timeout "$KERNEL_PATIENCE" qemu-system-x86_64 -accel tcg -cpu max,la57=off -smp "$KERNEL_CPUS" -m 1024 -display none -monitor none \
        -no-reboot -nic none -serial "file:$log" -kernel "$CACHE/kernels/$1/vmlinuz" -initrd "$image" -append "console=ttyS0 quiet panic=-1" \
        </dev/null || say "Linux $1: QEMU did not end by itself"
    sed -i 's/\r$//' "$log"
    rm -f "$image"
    if ! grep -qx 'verdict: good' "$log"; then
        tail -n 60 "$log" >&2
        fail "the agent in Linux $1" "read the lines above; the whole console is in $log"
    fi
    say "Linux $1: $(grep -c '^ok: ' "$log") checks and $(awk '/^test result: ok/ { passed += $4 } END { print passed }' "$log") tests in $((SECONDS - started)) s"
}

# The programs, built as `./dev test` builds them: sets KERNEL_AGENT, KERNEL_CAPTURE_TESTS and KERNEL_HOST_TESTS.
kernel_programs() {
    cd "$ROOT" || return 1
    KERNEL_AGENT=$CARGO_TARGET_DIR/release/metaflow-agent
    cargo build --release --locked --workspace --bins || return 1
    KERNEL_CAPTURE_TESTS=$(kernel_tests ebpf_capture)
    KERNEL_HOST_TESTS=$(kernel_tests host_events)
    [ -x "$KERNEL_CAPTURE_TESTS" ] && [ -x "$KERNEL_HOST_TESTS" ]
}

# kernel_tests NAME: where the tests of that name are.
kernel_tests() {
    cargo test --release --locked --workspace --test "$1" --no-run --message-format json |
        sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -n1
}

verb_kernels() {
    local versions=("$@") version
    case ${1:-} in
        "") versions=(5.10 6.1 6.12) ;;
        --of-tests) versions=("$KERNEL_OF_TESTS") ;;
    esac
    if ! setup_kernels "${versions[@]}"; then
        [ "${1:-}" != --of-tests ] || return 0
        fail "other kernels" "read the line above"
    fi
    setup_rust
    setup_rocksdb
    kernel_programs || fail "the build" "read the compiler's message above"
    for version in "${versions[@]}"; do boot_kernel "$version"; done
}
