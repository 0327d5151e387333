//! The faults, as data.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::field::Field;
use crate::lab::{VPS, VPS6, nat, secs, wait_for};

/// One fault. Shell lines run as root in the network namespace of who they name.
pub struct Fault {
    /// As the figures call it.
    pub name: &'static str,
    /// How often it comes in the long campaign, beside the others.
    pub weight: u32,
    /// Within which all must be well again.
    pub limit: Duration,
    /// Brings it about.
    pub inject: Step,
    /// What is expected until the restoration.
    pub meanwhile: Meanwhile,
    /// Takes it away.
    pub restore: Step,
}

/// Something that is done to the lab.
#[derive(Clone, Copy)]
pub enum Step {
    Nothing,
    Home(&'static str),
    Vps(&'static str),
    Isp(&'static str),
    Do(fn(&Field)),
}

/// Between injection and restoration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// The plan is in order and traffic flows soon after the injection.
    Heals,
    /// Nothing can flow for this time; all is well soon after the restoration.
    Dead(Duration),
}

use Meanwhile::{Dead, Heals};
use Step::{Do, Home, Isp, Nothing, Vps};

/// Restored within a second, says issue and documentation.
const SOON: Duration = secs(1);
/// Beside the agent's own work: a start, a handshake.
const RESTART: Duration = secs(2);
/// WireGuard notices a peer that lost its session, or a path that is gone, only by its own timers.
const PATH: Duration = secs(8);
const MOMENT: Duration = Duration::from_millis(60);

const fn theft(name: &'static str, inject: Step) -> Fault {
    Fault { name, weight: 4, limit: SOON, inject, meanwhile: Heals, restore: Nothing }
}

const fn crash(name: &'static str, inject: Step) -> Fault {
    Fault { name, weight: 3, limit: RESTART, inject, meanwhile: Dead(MOMENT), restore: Do(up) }
}

const fn change(name: &'static str, inject: Step, restore: Step) -> Fault {
    Fault { name, weight: 2, limit: RESTART, inject, meanwhile: Heals, restore }
}

const fn outage(name: &'static str, inject: Step, restore: Step) -> Fault {
    Fault { name, weight: 2, limit: PATH, inject, meanwhile: Dead(MOMENT), restore }
}

/// All of them.
pub const FAULTS: &[Fault] = &[
    // Foreign flushes, as of firewalls and network managers.
    theft("nft flush ruleset", Do(Field::reload_firewall)),
    theft("nft: the guard deleted", Home("nft delete table inet meshd_guard")),
    theft("nft: the guard emptied", Home("nft flush chain inet meshd_guard from-br0")),
    theft("nft: the filter deleted", Home("nft delete table inet meshd")),
    theft("ip rule flush", Home(concat!("ip rule flush; ", "ip rule add pref 32766 lookup main"))),
    theft("ip -6 rule flush", Home("ip -6 rule flush; ip -6 rule add pref 32766 lookup main")),
    theft("ip rule del", Home("ip rule del pref 88; ip rule del pref 89")),
    theft("ip -6 rule del", Home("ip -6 rule del pref 88; ip -6 rule del pref 89")),
    theft("ip route flush table", Home("ip route flush table $TABLE")),
    theft("ip -6 route flush table", Home("ip -6 route flush table $TABLE")),
    theft("a default beside the tunnel", Home("ip route replace default via 192.168.1.1 dev eth0 table $TABLE")),
    theft("the same over IPv6", Home("ip -6 route add default via 2001:db8:168::1 dev eth0 metric 1 table $TABLE")),
    theft(
        "networkd: foreign rules and routes",
        Home(
            "for family in -4 -6; do ip $family -details rule | grep -v kernel | sed 's/:.*//' | \
             grep -vxE '0|32766|32767' | while read pref; do ip $family rule del pref $pref; done; \
             ip $family route flush table all proto 88; done",
        ),
    ),
    theft("addresses of the tunnel", Home("ip address flush dev mesh0 scope global")),
    theft("the tunnel set down", Home("ip link set mesh0 down")),
    theft("the tunnel deleted", Home("ip link del mesh0")),
    theft("forwarding off", Home("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ip_forward=0")),
    theft("forwarding off on the bridge", Home("sysctl -qw net.ipv4.conf.br0.forwarding=0")),
    theft(
        "forwarding of IPv6 off",
        Home("sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.br0.force_forwarding=0"),
    ),
    theft("exit: nft flush ruleset", Vps("nft flush ruleset")),
    theft(
        "exit: forwarding off",
        Vps("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ip_forward=0 net.ipv6.conf.mesh0.force_forwarding=0"),
    ),
    // The agent.
    crash("kill -9", Do(|field| field.lab.home.end(Signal::SIGKILL))),
    crash("SIGTERM", Do(|field| field.lab.home.end(Signal::SIGTERM))),
    crash(
        "kill -9, then nft flush ruleset",
        Do(|field| {
            field.lab.home.end(Signal::SIGKILL);
            field.reload_firewall();
        }),
    ),
    crash(
        "ip rule flush, then kill -9",
        Do(|field| {
            field.lab.home.end(Signal::SIGKILL);
            field.home("for f in -4 -6; do ip $f rule flush; ip $f rule add pref 32766 lookup main; done");
        }),
    ),
    Fault {
        name: "suspended (SIGSTOP)",
        weight: 1,
        limit: RESTART,
        inject: Do(|field| field.lab.home.signal(Signal::SIGSTOP)),
        meanwhile: Dead(Duration::from_millis(1500)),
        restore: Do(|field| field.lab.home.signal(Signal::SIGCONT)),
    },
    Fault {
        name: "started without DNS",
        weight: 1,
        // The name is asked for again every five seconds.
        limit: secs(12),
        inject: Do(|field| {
            field.resolve(false);
            field.lab.home.end(Signal::SIGKILL);
            field.lab.home.up();
        }),
        meanwhile: Dead(MOMENT),
        restore: Do(|field| field.resolve(true)),
    },
    // The bridge and the WAN.
    Fault {
        name: "bridge deleted and made anew",
        // A hundred times in a campaign.
        weight: 14,
        limit: SOON,
        inject: Home("ip link del br0"),
        meanwhile: Dead(MOMENT),
        restore: Home(
            "ip link add br0 type bridge mcast_snooping 0; ip link set nextcloud master br0; ip link set br0 up; \
             ip address add 10.89.2.1/24 dev br0; ip address add fd89:2::1/64 dev br0 nodad",
        ),
    },
    outage(
        "WAN down and up",
        Home("ip link set eth0 down"),
        Home(
            "ip link set eth0 up; ip route add default via 192.168.1.1; \
             ip address replace 2001:db8:168::20/64 dev eth0 nodad; ip -6 route add default via 2001:db8:168::1",
        ),
    ),
    change(
        "new WAN address",
        Home(
            "ip address add 192.168.1.21/24 dev eth0; ip address del 192.168.1.20/24 dev eth0; \
             ip address add 192.168.1.21/24 dev eth0 2>/dev/null; ip route replace default via 192.168.1.1; \
             ip address add 2001:db8:168::21/64 dev eth0 nodad; ip address del 2001:db8:168::20/64 dev eth0",
        ),
        Home(
            "ip address add 192.168.1.20/24 dev eth0; ip address del 192.168.1.21/24 dev eth0; \
             ip address add 192.168.1.20/24 dev eth0 2>/dev/null; ip route replace default via 192.168.1.1; \
             ip address add 2001:db8:168::20/64 dev eth0 nodad; ip address del 2001:db8:168::21/64 dev eth0",
        ),
    ),
    change(
        "new gateway",
        Home("ip route replace default via 192.168.1.66; ip -6 route replace default via 2001:db8:168::66"),
        Home("ip route replace default via 192.168.1.1; ip -6 route replace default via 2001:db8:168::1"),
    ),
    change(
        "NAT: another address and port",
        Do(|field| nat::rebind(&field.lab.isp, "198.51.100.8:41000-41100")),
        Do(|field| nat::rebind(&field.lab.isp, "198.51.100.7")),
    ),
    change("exit: conntrack forgets", Vps("conntrack -F 2>/dev/null"), Nothing),
    change(
        "endpoint to IPv6 and back",
        Do(|field| field.move_endpoint(&format!("[{VPS6}]"), "[2001:db8:168::2")),
        Do(|field| field.move_endpoint(VPS, "198.51.100.")),
    ),
    // Hostile networks.
    change(
        "DHCP option 121",
        Home(
            "ip route add 0.0.0.0/1 via 192.168.1.66; ip route add 128.0.0.0/1 via 192.168.1.66; \
             ip route add 192.0.2.80 via 192.168.1.66; ip route add 203.0.113.10 via 192.168.1.66; \
             ip route add 10.89.1.0/25 via 192.168.1.66",
        ),
        Home(
            "ip route del 0.0.0.0/1; ip route del 128.0.0.0/1; ip route del 192.0.2.80; \
             ip route del 203.0.113.10; ip route del 10.89.1.0/25",
        ),
    ),
    change(
        "DHCP: an address in a peer's subnet",
        Home("ip address add 10.89.1.50/24 dev eth0; ip address add fd89:1::50/64 dev eth0 nodad"),
        Home("ip address del 10.89.1.50/24 dev eth0; ip address del fd89:1::50/64 dev eth0"),
    ),
    change(
        "router advertisement",
        Isp(concat!(
            // High preference, half an hour; the prefix 2001:db8:bad::/64; the route 2000::/3.
            r"printf '\206\0\0\0\100\010\007\010\0\0\0\0\0\0\0\0",
            r"\003\004\100\300\0\0\016\020\0\0\016\020\0\0\0\0\040\001\015\270\013\255\0\0\0\0\0\0\0\0\0\0",
            r"\030\002\003\010\0\0\007\010\040\0\0\0\0\0\0\0' | ",
            "socat -u - 'IP6-SENDTO:[ff02::1%lan]:58,setsockopt-int=41:18:255'"
        )),
        Home("sleep 0.05; ip -6 route flush proto ra; ip -6 address flush dev eth0 dynamic; true"),
    ),
    change(
        "rp_filter and src_valid_mark",
        Home("for d in /proc/sys/net/ipv4/conf/*; do echo 1 >$d/rp_filter; echo 1 >$d/src_valid_mark; done"),
        Home("for d in /proc/sys/net/ipv4/conf/*; do echo 0 >$d/src_valid_mark; done"),
    ),
    change("path MTU 1280, ICMP dropped", Do(|field| field.narrow(true)), Do(|field| field.narrow(false))),
    // Other VPNs and firewalls.
    change(
        "wg-quick with a default route, later",
        Home(
            "for f in -4 -6; do ip $f rule add not fwmark 51820 table 51820; \
             ip $f rule add table main suppress_prefixlength 0; done; \
             ip route add default via 192.168.1.66 table 51820; ip -6 route add default via 2001:db8:168::66 table 51820",
        ),
        Home(
            "for f in -4 -6; do ip $f rule del table 51820; ip $f rule del table main suppress_prefixlength 0; \
             ip $f route flush table 51820; done",
        ),
    ),
    change(
        "Tailscale with an exit node",
        Home(
            "for f in -4 -6; do ip $f rule add pref 5210 fwmark 0x80000/0xff0000 lookup main; \
             ip $f rule add pref 5230 fwmark 0x80000/0xff0000 lookup default; \
             ip $f rule add pref 5250 fwmark 0x80000/0xff0000 unreachable; ip $f rule add pref 5270 lookup 52; done; \
             ip route add default via 192.168.1.66 table 52; ip -6 route add default via 2001:db8:168::66 table 52",
        ),
        Home(
            "for f in -4 -6; do for p in 5210 5230 5250 5270; do ip $f rule del pref $p; done; \
             ip $f route flush table 52; done",
        ),
    ),
    outage(
        "Docker's FORWARD DROP",
        Home("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"),
        Home("iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT"),
    ),
];

impl Step {
    /// Does it.
    pub fn run(self, field: &Field) {
        match self {
            Nothing => {}
            Home(line) => field.home(line),
            Vps(line) => drop(field.lab.vps.run(line)),
            Isp(line) => drop(field.lab.isp.run(line)),
            Do(f) => f(field),
        }
    }
}

fn up(field: &Field) {
    field.lab.home.up();
    wait_for("the agent answers", secs(5), || field.in_order().then_some(()));
}
