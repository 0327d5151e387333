# Sourced by the scripts beside it: installs the programs that are missing.
export PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin

die() { echo "scripts/${0##*/}: $*" >&2; exit 1; }

# What the lab needs, before anything is installed or built.
need_root_and_tun() {
    [[ $EUID = 0 ]] || die "needs root for network namespaces: try sudo -E scripts/${0##*/}"
    [[ -c /dev/net/tun ]] || die "/dev/net/tun is missing: modprobe tun; in a container, add the device and NET_ADMIN"
    command -v cargo >/dev/null || die "cargo is missing: install Rust first"
}

# need_tools PROGRAM:PACKAGE…
need_tools() {
    local tool missing=()
    for tool; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
    ((${#missing[@]})) || return 0
    echo "installing ${missing[*]}"
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Without recommendations: wireguard-tools recommends a kernel.
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}

# need_daemons "PROGRAM:PACKAGE:UNIT…"…   What the tests run in namespaces must not begin to run on this machine, neither
# when it is installed nor when the machine starts again.
need_daemons() {
    local daemon rest packages=() units=() policy=/usr/sbin/policy-rc.d
    for daemon; do
        command -v "${daemon%%:*}" >/dev/null && continue
        rest=${daemon#*:}
        packages+=("${daemon%%:*}:${rest%%:*}")
        # shellcheck disable=SC2206
        units+=(${rest#*:})
    done
    ((${#packages[@]})) || return 0
    (
        # Asked by the packages' scripts before they start anything (invoke-rc.d(8)).
        if [[ ! -e $policy ]]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod +x "$policy"
        fi
        need_tools "${packages[@]}"
    )
    ! command -v systemctl >/dev/null || systemctl disable --quiet "${units[@]}" 2>/dev/null || true
}

# What the topology, the agent and the build need; the tests need more.
lab_tools=(nft:nftables ip:iproute2 ss:iproute2 ping:iputils-ping wg:wireguard-tools iperf3:iperf3 conntrack:conntrack
    curl:curl jq:jq socat:socat iptables:iptables tcpdump:tcpdump sysctl:procps nsenter:util-linux cc:gcc make:make pkg-config:pkg-config)

# The programs that meshd is tested against and measured beside, built once.
export MESHD_INTEROP_BIN=${MESHD_INTEROP_BIN:-$PWD/target/interop/bin}
install_others() {
    local crate
    for crate in boringtun-cli:boringtun-cli@0.7.1 gotatun:gotatun-cli@0.10.2; do
        [[ ! -x $MESHD_INTEROP_BIN/${crate%%:*} ]] || continue
        echo "installing ${crate##*:}, to compare with"
        CARGO_TARGET_DIR=$PWD/target/interop/build \
            cargo install --locked --quiet --root "${MESHD_INTEROP_BIN%/bin}" "${crate##*:}"
    done
    rm -rf target/interop/build
}

# systemd-resolved is only unpacked: once installed, it would become the name server of this machine.
unpack_resolved() {
    local folder=${MESHD_INTEROP_BIN%/bin}/resolved
    [[ ! -d $folder && ! -x /usr/lib/systemd/systemd-resolved ]] || return 0
    rm -rf "$folder.new"
    mkdir -p "$folder.new"
    (
        cd "$folder.new"
        apt-get download -qq systemd-resolved 2>/dev/null || { apt-get update -qq && apt-get download -qq systemd-resolved; }
        dpkg -x systemd-resolved_*.deb .
        rm systemd-resolved_*.deb
    )
    mv "$folder.new" "$folder"
}
