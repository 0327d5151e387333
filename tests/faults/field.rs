//! The lab under faults: traffic, the oracle, and what tells that all is well.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd::control::client::Client;
use meshd::plan::tables;

use crate::lab::capture::Capture;
use crate::lab::host::Host;
use crate::lab::netns::Namespace;
use crate::lab::traffic::{MARKER, Probes};
use crate::lab::{Lab, WEB, WEB6, secs, wait_for};
use crate::table::{Fault, Meanwhile};

/// A lab whose containers would leave beside the tunnel if only they could, and whose agents run.
pub struct Field {
    pub lab: Lab,
    flow: Flow,
    probes: Probes,
    _echo: Echo,
    oracle: Capture,
}

/// How one fault went.
#[derive(Debug, Clone, Copy)]
pub struct Result {
    /// Until the kernel was as planned.
    pub plan: Duration,
    /// Until traffic flowed, both families.
    pub flow: Duration,
    /// Frames beside the tunnel.
    pub leaks: u64,
}

impl Field {
    /// Shows first that the oracle sees plaintext in both families, then starts the agents.
    pub fn new(lab: Lab) -> Self {
        lab.masquerade_at_home_like_podman();
        // A second gateway for networks that want another; and advertisements taken, as by a host that is no router.
        lab.isp.run("ip address add 192.168.1.66/24 dev lan; ip address add 2001:db8:168::66/64 dev lan nodad");
        lab.home.run("sysctl -qw net.ipv6.conf.eth0.accept_ra=2");
        let echo = Echo::start(&lab.internet);
        let oracle = Capture::start(&lab.home, "eth0", MARKER);
        let flow = Flow::start(&lab.nextcloud);
        for what in [WEB, WEB6] {
            let seen = || oracle.seen().leaks.keys().any(|leak| leak.contains(what));
            wait_for(format!("the oracle sees plaintext to {what}"), secs(5), || seen().then_some(()));
        }
        drop((flow, oracle));

        lab.home.replace("peers/vps.toml", "203.0.113.10:51820", "vps.example.net:51820");
        fs::write(lab.path("resolv"), "nameserver 127.0.0.1\n").expect("write");
        fs::write(lab.path("hosts"), hosts(true)).expect("write");
        for file in ["hosts", "resolv"] {
            let to = if file == "hosts" { "/etc/hosts" } else { "/etc/resolv.conf" };
            lab.home.run(&format!("mount --bind {} {to}", lab.path(file).display()));
        }
        lab.start();
        let oracle = Capture::start(&lab.home, "eth0", MARKER);
        let flow = Flow::start(&lab.nextcloud);
        let probes = Probes::every(&lab.nextcloud, Duration::from_millis(8));
        let field = Self { lab, flow, probes, _echo: echo, oracle };
        let now = Instant::now();
        field.recovered(now, now, secs(10)).expect("traffic flows before the first fault");
        field
    }

    /// Injects and restores one fault.
    pub fn suffer(&self, fault: &Fault) -> std::result::Result<Result, String> {
        let before = self.leaks();
        let mut since = Instant::now();
        fault.inject.run(self);
        let mut sent_after = Instant::now();
        let healed = match fault.meanwhile {
            Meanwhile::Heals => Some(self.recovered(since, sent_after, fault.limit)?),
            Meanwhile::Dead(time) => {
                std::thread::sleep(time);
                None
            }
        };
        since = Instant::now();
        fault.restore.run(self);
        if healed.is_none() {
            sent_after = since;
        } else {
            sent_after = Instant::now();
        }
        let restored = self.recovered(since, sent_after, fault.limit)?;
        let (plan, flow) = healed.unwrap_or(restored);
        Ok(Result { plan, flow, leaks: self.leaks() - before })
    }

    /// What passed beside the tunnel so far, by description.
    pub fn leaked(&self) -> String {
        format!("{:?}", self.oracle.seen().leaks)
    }

    /// Ends; panics when the oracle missed a frame.
    pub fn finish(self) -> u64 {
        let Self { flow, probes, oracle, .. } = self;
        drop((flow, probes));
        oracle.finish().leaks.values().sum()
    }

    /// Both agents answer and have nothing to change.
    pub fn in_order(&self) -> bool {
        let in_order = |host: &Host| {
            let plan = Client::connect(&host.run_file("")).and_then(|mut agent| agent.plan());
            plan.is_ok_and(|plan| plan.changes.is_empty())
        };
        in_order(&self.lab.home) && in_order(&self.lab.vps)
    }

    /// A shell line at home.
    pub fn home(&self, line: &str) {
        let table = tables::number("mesh0", "br0");
        self.lab.home.run(&line.replace("$TABLE", &table.to_string()));
    }

    /// `flush ruleset` and a masquerading table in one transaction, as when a firewall is loaded again.
    pub fn reload_firewall(&self) {
        self.home(
            "printf 'flush ruleset\\ntable inet podman { chain post { type nat hook postrouting priority srcnat; \
             iifname br0 oifname eth0 masquerade; }; }\\n' | nft -f -",
        );
    }

    /// Whether home can look up the exit's name.
    pub fn resolve(&self, can: bool) {
        fs::write(self.lab.path("hosts"), hosts(can)).expect("write");
    }

    /// Lets home talk to another address of the exit until the exit sees it come from `seen`. The old way closes meanwhile: an
    /// answer that is under way there would move it back, as in every WireGuard.
    pub fn move_endpoint(&self, to: &str, seen: &str) {
        let key = self.lab.vps.public_key();
        let old = if to.starts_with('[') { "ipv4" } else { "ipv6" };
        let closed = "type filter hook forward priority filter; meta nfproto";
        self.lab.isp.run(&format!("nft 'table inet old {{ chain way {{ {closed} {old} udp dport 51820 drop; }}; }}'"));
        wait_for(format!("the exit follows to {to}"), secs(5), || {
            self.lab.home.run(&format!("wg set mesh0 peer {key} endpoint {to}:51820"));
            self.lab
                .vps
                .wg_show("endpoints")
                .values()
                .flatten()
                .any(|endpoint| endpoint.starts_with(seen))
                .then_some(())
        });
        self.lab.isp.run("nft delete table inet old");
    }

    /// As [`narrow_path`].
    pub fn narrow(&self, narrow: bool) {
        narrow_path(&self.lab, narrow);
    }

    /// Frames beside the tunnel so far.
    pub fn leaks(&self) -> u64 {
        self.oracle.seen().leaks.values().sum()
    }

    /// Waits until all is well: as planned, and a probe that was sent after `sent_after` was answered, in both families.
    /// Returns both times since `since`.
    fn recovered(
        &self,
        since: Instant,
        sent_after: Instant,
        limit: Duration,
    ) -> std::result::Result<(Duration, Duration), String> {
        // What a busy machine adds is in the figures; here only what never comes is an error.
        let deadline = since + 3 * limit;
        let until = |done: &dyn Fn() -> bool| {
            while Instant::now() < deadline {
                if done() {
                    return Some(since.elapsed());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            None
        };
        let (plan, flow) = std::thread::scope(|scope| {
            let plan = scope.spawn(|| until(&|| self.in_order()));
            let flow = until(&|| self.flow.answered_since(sent_after));
            (plan.join().expect("no panic"), flow)
        });
        if let (Some(plan), Some(flow)) = (plan, flow) {
            return Ok((plan, flow));
        }
        let state = crate::lab::host::describe(&self.lab.home.try_meshd(&["plan"]));
        Err(format!("not well within {:?}: plan after {plan:?}, traffic after {flow:?}\n{state}", 3 * limit))
    }
}

/// A link between router and internet that carries 1280 bytes, and nobody who says so.
pub fn narrow_path(lab: &Lab, narrow: bool) {
    for (namespace, link) in [(&lab.isp, "wan"), (&lab.internet, "isp")] {
        let mtu = if narrow { 1280 } else { 1500 };
        namespace.run(&format!("ip link set {link} mtu {mtu}"));
        let hole = "table inet hole { chain out { type filter hook output priority filter; \
                    icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }";
        namespace.run(&if narrow { format!("nft '{hole}'") } else { "nft delete table inet hole".to_owned() });
    }
}

fn hosts(with_the_exit: bool) -> String {
    if with_the_exit { format!("{} vps.example.net\n", crate::lab::VPS) } else { String::new() }
}

/// Sends back what comes to UDP port 7 of the web server, from the very address that it came to.
struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

const MOMENT: Duration = Duration::from_millis(20);

impl Echo {
    fn start(namespace: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let serve = |server| {
            let socket = namespace.within(|| UdpSocket::bind((server, 7))).expect("bind");
            socket.set_read_timeout(Some(MOMENT)).expect("timeout");
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut datagram = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                        let _ = socket.send_to(&datagram[..length], from);
                    }
                }
            })
        };
        let threads = [WEB, WEB6].map(serve).into();
        Self { stop, threads }
    }
}

/// A marked datagram to the internet's echo service every few milliseconds, in each family.
struct Flow {
    start: Instant,
    stop: Arc<AtomicBool>,
    /// When the newest answered one was sent, in microseconds since the start, by family.
    answered: [Arc<AtomicU64>; 2],
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Flow {
    const BEAT: Duration = Duration::from_millis(5);

    fn start(namespace: &Namespace) -> Self {
        let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let answered = [Arc::default(), Arc::<AtomicU64>::default()];
        let mut threads = Vec::new();
        for (server, answered) in [(WEB, &answered[0]), (WEB6, &answered[1])] {
            let any = if server == WEB6 { "[::]:0" } else { "0.0.0.0:0" };
            let socket = namespace.within(|| UdpSocket::bind(any)).expect("bind");
            socket.set_read_timeout(Some(Self::BEAT)).expect("timeout");
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(answered));
            threads.push(std::thread::spawn(move || {
                let mut datagram = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    let now = start.elapsed().as_micros() as u64;
                    // Refused while the way is closed.
                    let _ = socket.send_to(&[MARKER, &now.to_be_bytes()].concat(), (server, 7));
                    let next = Instant::now() + Self::BEAT;
                    while Instant::now() < next {
                        let Ok(length) = socket.recv(&mut datagram) else { continue };
                        let sent = datagram[..length].strip_prefix(MARKER).and_then(|rest| rest.try_into().ok());
                        answered.fetch_max(sent.map_or(0, u64::from_be_bytes), Ordering::Relaxed);
                    }
                }
            }));
        }
        Self { start, stop, answered, threads: Mutex::new(threads) }
    }

    fn answered_since(&self, moment: Instant) -> bool {
        let moment = moment.duration_since(self.start).as_micros() as u64;
        self.answered.iter().all(|answered| answered.load(Ordering::Relaxed) > moment)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().expect("no panic").drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
