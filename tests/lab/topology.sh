#!/usr/bin/env bash
# The picture of the worked example in network namespaces; the tests and scripts/demo both build it from here.
#
#   topology.sh up ID DIR      vps, home behind its ISP's NAT, an internet, a container on each bridge
#   topology.sh pair ID DIR    two hosts on one cable, for measuring: vps 192.0.2.1 and 2001:db8:3::1, home .2 and ::2
#   topology.sh host ID DIR NAME N   one more host for `up`, on the internet at 198.18.N.2 and 2001:db8:N::2
#   topology.sh third ID DIR   for `up`: lab behind a NAT of its own, dsl, at 198.18.9.9, with the container runner
#   topology.sh neighbour ID DIR   the same behind home's router, on another of its networks
#   topology.sh bridge ID HOST BRIDGE NAME N   one more bridge on a host, with the container NAME at 10.89.N.10
#   topology.sh down ID        kill what runs in the namespaces of ID and delete them
#   topology.sh sweep          the same for every lab whose owner died
#   topology.sh list [WORD]    the IDs that exist, those with WORD in them
#
#     nextcloud ── home ── isp (NAT) ── internet ── vps ── proxy        namespace meshd-ID-NAME
#
# ID begins with the process ID of the lab's owner, so that `sweep` can tell an orphan. All namespaces share /run, so
# each host gets a mount namespace with a /run/wireguard of its own, held by a process whose ID is in DIR/HOST/holder:
# `nsenter -t $(cat DIR/home/holder) -n -m wg show` looks at home.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

die() { echo "topology.sh: $*" >&2; exit 1; }

ids() {
    local path name
    for path in /run/netns/meshd-*; do
        [[ -e $path ]] || continue
        name=${path##*/meshd-}
        echo "${name%-*}"
    done | sort -u
}

# In a fresh namespace: loopback, IPv6 usable at once, strict reverse-path filtering, the commands of standard input.
# $1 is the namespace, $2 is 1 for a router.
configure() {
    ip netns exec "$1" bash -euc '
        for dir in /proc/sys/net/ipv6/conf/*; do echo 0 >"$dir/accept_dad"; done
        for dir in /proc/sys/net/ipv4/conf/*; do echo 1 >"$dir/rp_filter"; done
        echo "$1" >/proc/sys/net/ipv4/ip_forward
        echo "$1" >/proc/sys/net/ipv6/conf/all/forwarding
        ip -batch -' configure "$2"
}

# Keeps a mount namespace for the host $1 alive.
hold() {
    mkdir -p "$dir/$1"/{etc/peers,run,state} /run/wireguard
    ip netns exec "$ns-$1" bash -euc '
        mount -t tmpfs -o mode=0755 tmpfs /run/wireguard
        echo $$ >"$1/holder.new" && mv "$1/holder.new" "$1/holder"
        exec sleep infinity' hold "$dir/$1" </dev/null >/dev/null 2>&1 &
    disown
}

# A host's bridge $3, or br0, with the container $1 on it; $2 tells the subnets apart.
bridge() {
    local name=${3:-br0}
    cat <<END
link set lo up
link add $name type bridge mcast_snooping 0
link set $1 master $name
link set $1 up
link set $name up
address add 10.89.$2.1/24 dev $name
address add fd89:$2::1/64 dev $name nodad
END
}

container() {
    cat <<END
link set lo up
link set eth0 up
address add 10.89.$1.10/24 dev eth0
address add fd89:$1::10/64 dev eth0 nodad
route add default via 10.89.$1.1
route add default via fd89:$1::1
END
}

up() {
    ip -batch - <<END
netns add $ns-internet
netns add $ns-isp
netns add $ns-vps
netns add $ns-home
netns add $ns-proxy
netns add $ns-nextcloud
link add eth0 netns $ns-vps type veth peer name vps netns $ns-internet
link add wan netns $ns-isp type veth peer name isp netns $ns-internet
link add eth0 netns $ns-home type veth peer name lan netns $ns-isp
link add eth0 netns $ns-proxy type veth peer name proxy netns $ns-vps
link add eth0 netns $ns-nextcloud type veth peer name nextcloud netns $ns-home
END
    hold vps
    hold home

    # The web server's addresses, a cloud's metadata service and a private network of the VPS's provider are all here.
    configure "$ns-internet" 1 <<END &
link set lo up
link set vps up
link set isp up
address add 192.0.2.80/32 dev lo
address add 2001:db8:80::80/128 dev lo nodad
address add 169.254.169.254/32 dev lo
address add 10.55.0.1/32 dev lo
address add 203.0.113.1/24 dev vps
address add 2001:db8:1::1/64 dev vps nodad
address add 198.51.100.1/24 dev isp
address add 2001:db8:2::1/64 dev isp nodad
route add 2001:db8:168::/64 via 2001:db8:2::7
END

    # A home router: IPv4 behind one address, IPv6 by a routed prefix, nothing let in that nobody asked for.
    configure "$ns-isp" 1 <<END &
link set lo up
link set wan up
link set lan up
address add 198.51.100.7/24 dev wan
address add 198.51.100.8/24 dev wan
address add 2001:db8:2::7/64 dev wan nodad
address add 192.168.1.1/24 dev lan
address add 2001:db8:168::1/64 dev lan nodad
route add default via 198.51.100.1
route add default via 2001:db8:2::1
END
    ip netns exec "$ns-isp" nft -f - <<'END' &
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat;
        oifname "wan" snat to 198.51.100.7
    }
}
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" accept
    }
}
END

    { bridge proxy 1; cat <<END; } | configure "$ns-vps" 0 &
link set eth0 up
address add 203.0.113.10/24 dev eth0
address add 2001:db8:1::10/64 dev eth0 nodad
route add default via 203.0.113.1
route add default via 2001:db8:1::1
route add 169.254.169.254 via 203.0.113.1
END
    { bridge nextcloud 2; cat <<END; } | configure "$ns-home" 0 &
link set eth0 up
address add 192.168.1.20/24 dev eth0
address add 2001:db8:168::20/64 dev eth0 nodad
route add default via 192.168.1.1
route add default via 2001:db8:168::1
END
    container 1 | configure "$ns-proxy" 0 &
    container 2 | configure "$ns-nextcloud" 0 &
}

pair() {
    ip -batch - <<END
netns add $ns-vps
netns add $ns-home
link add eth0 netns $ns-vps type veth peer name eth0 netns $ns-home
END
    hold vps
    hold home
    configure "$ns-vps" 0 <<END &
link set lo up
link set eth0 up
address add 192.0.2.1/24 dev eth0
address add 2001:db8:3::1/64 dev eth0 nodad
END
    configure "$ns-home" 0 <<END &
link set lo up
link set eth0 up
address add 192.0.2.2/24 dev eth0
address add 2001:db8:3::2/64 dev eth0 nodad
END
}

host() {
    ip -batch - <<END
netns add $ns-$name
link add eth0 netns $ns-$name type veth peer name $name netns $ns-internet
END
    hold "$name"
    ip -netns "$ns-internet" -batch - <<END &
link set $name up
address add 198.18.$number.1/24 dev $name
address add 2001:db8:$number::1/64 dev $name nodad
END
    configure "$ns-$name" 0 <<END &
link set lo up
link set eth0 up
address add 198.18.$number.2/24 dev eth0
address add 2001:db8:$number::2/64 dev eth0 nodad
route add default via 198.18.$number.1
route add default via 2001:db8:$number::1
END
}

# Lab with its container, at the interface $2 of the router $1, 192.168.9.1.
lab() {
    ip -batch - <<END
netns add $ns-lab
netns add $ns-runner
link add eth0 netns $ns-lab type veth peer name $2 netns $ns-$1
link add eth0 netns $ns-runner type veth peer name runner netns $ns-lab
END
    hold lab
    { bridge runner 3; cat <<END; } | configure "$ns-lab" 0 &
link set eth0 up
address add 192.168.9.20/24 dev eth0
route add default via 192.168.9.1
END
    container 3 | configure "$ns-runner" 0 &
}

third() {
    ip -batch - <<END
netns add $ns-dsl
link add wan netns $ns-dsl type veth peer name dsl netns $ns-internet
END
    lab dsl lan
    ip -netns "$ns-internet" -batch - <<END &
link set dsl up
address add 198.18.9.1/24 dev dsl
END
    configure "$ns-dsl" 1 <<END &
link set lo up
link set wan up
link set lan up
address add 198.18.9.9/24 dev wan
address add 192.168.9.1/24 dev lan
route add default via 198.18.9.1
END
    # Both routers swallow what nobody asked for. Where one answers it, Linux holds the sender's port for taken and
    # gives the other side's first packet another one.
    ip netns exec "$ns-dsl" nft -f - <<'END' &
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat;
        oifname "wan" snat to 198.18.9.9
    }
}
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" accept
    }
    chain input {
        type filter hook input priority filter;
        iifname "wan" drop
    }
}
END
    ip netns exec "$ns-isp" nft 'add chain inet filter input { type filter hook input priority filter; }
        add rule inet filter input iifname "wan" meta l4proto udp drop' &
}

neighbour() {
    lab isp lan2
    ip -netns "$ns-isp" -batch - <<END &
link set lan2 up
address add 192.168.9.1/24 dev lan2
END
    ip netns exec "$ns-isp" nft 'add rule inet filter forward iifname "lan2" accept' &
}

one_bridge() {
    ip -batch - <<END
netns add $ns-$name
link add eth0 netns $ns-$name type veth peer name $name netns $ns-$host
END
    bridge "$name" "$number" "$interface" | ip -netns "$ns-$host" -batch -
    ip netns exec "$ns-$host" bash -euc 'echo 1 >"/proc/sys/net/ipv4/conf/$1/rp_filter"' rp "$interface"
    container "$number" | configure "$ns-$name" 0
}

# Waits for the background jobs of the command; fails when one of them did. The hosts that it made are its arguments.
settle() {
    local pid host
    for pid in $jobs_started; do wait "$pid" || die "could not build the lab $id"; done
    for host; do
        for _ in {1..500}; do [[ -e $dir/$host/holder ]] && break; sleep 0.01; done
        [[ -e $dir/$host/holder ]] || die "no mount namespace for $host"
    done
}

down() {
    local path proc link pids='' batch=''
    declare -A doomed=()
    for path in "/run/netns/meshd-$1"-*; do
        [[ -e $path ]] || continue
        doomed["net:[$(stat -L -c %i "$path")]"]=1
        batch+="netns delete ${path##*/}"$'\n'
    done
    [[ -n $batch ]] || return 0
    while read -r proc link; do
        if [[ -n $link && -n ${doomed[$link]:-} ]]; then pids+=" ${proc//[!0-9]/}"; fi # a zombie has no link
    done < <(find /proc/[0-9]*/ns/net -maxdepth 0 -printf '%p %l\n' 2>/dev/null)
    # shellcheck disable=SC2086
    [[ -z $pids ]] || kill -KILL $pids 2>/dev/null || true
    ip -force -batch - <<<"$batch" 2>/dev/null || true
}

sweep() {
    local id
    for id in $(ids); do
        [[ -d /proc/${id%%-*} ]] || { echo "removing the lab $id, whose owner is gone" >&2; down "$id"; }
    done
    # What users of such a lab run (tests/lab/podman.rs): containers have network namespaces of their own.
    local uid
    for uid in $(stat -c %u /proc/[0-9]* 2>/dev/null | sort -u); do
        ((uid >= 2010000000 && uid < 2144217728)) || continue
        [[ -d /proc/$(((uid - 2010000000) >> 5)) ]] ||
            setpriv --reuid "$uid" --regid "$uid" --clear-groups sh -c 'kill -KILL -1' || true
    done
}

command=${1:-}
id=${2:-}
ns=meshd-$id
case $command in
up | pair)
    dir=${3:?a folder for the hosts\' files}
    [[ $id =~ ^[0-9]+-[a-z0-9]+$ ]] || die "ID is PID-WORD, not \"$id\""
    trap '[[ $? = 0 ]] || down "$id"' EXIT
    $command
    jobs_started=$(jobs -p)
    settle vps home
    ;;
host)
    dir=${3:?a folder for the hosts\' files}
    name=${4:?a name}
    number=${5:?a number}
    host
    jobs_started=$(jobs -p)
    settle "$name"
    ;;
third | neighbour)
    dir=${3:?a folder for the hosts\' files}
    $command
    jobs_started=$(jobs -p)
    settle lab
    ;;
bridge)
    host=${3:?a host}
    interface=${4:?a bridge}
    name=${5:?a name}
    number=${6:?a number}
    one_bridge
    ;;
down) down "${id:?an ID}" ;;
sweep) sweep ;;
list) ids | { grep -F -- "$id" || true; } ;;
*) die "usage: topology.sh up ID DIR | pair ID DIR | host ID DIR NAME N | third ID DIR | neighbour ID DIR | bridge ID HOST BRIDGE NAME N | down ID | sweep | list [WORD]" ;;
esac
