//! An agent that programs nothing, for the tests of both ends of the sockets.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, mpsc};

use super::{Agent, api};
use crate::express::{self, Ability, Standing};
use crate::key::{PrivateKey, PublicKey};
use crate::tunnel::{Cipher, Device, PeerState};

pub(crate) fn peer_key(seed: u8) -> PublicKey {
    PrivateKey::from_bytes([seed; 32]).public_key()
}

pub(crate) fn hex_of(key: &[u8; 32]) -> String {
    key.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What home sent the VPS, and got from it, in express sessions.
const COUNTS: express::Counts = express::Counts { tx_packets: 1, tx_bytes: 48, rx_packets: 900, rx_bytes: 1_234_000 };

/// Home of the worked example: one peer that is up, one that never was heard of.
pub(crate) fn status() -> api::Status {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<ipnet::IpNet>>();
    api::Status {
        name: "home".to_owned(),
        interface: "mesh0".to_owned(),
        version: "0.1.0".to_owned(),
        public_key: peer_key(100),
        inviter_key: "wZ3oKq0Jv0sZ1b8l0cQhO8z7Jt1Q3m1n2mX8cQk5r3w=".to_owned(),
        listen_port: 51820,
        mtu: 1420,
        addresses: nets(&["10.88.0.2/24", "fd88::2/64"]),
        peers: vec![
            api::PeerStatus {
                name: "vps".to_owned(),
                public_key: peer_key(1),
                endpoint: Some("203.0.113.10:51820".parse().unwrap()),
                addresses: vec!["10.88.0.1".parse().unwrap()],
                subnets: nets(&["10.89.1.0/24"]),
                allowed_ips: nets(&["0.0.0.0/0", "10.88.0.1/32", "10.89.1.0/24", "::/0"]),
                latest_handshake: Some(1_700_000_088),
                rx_bytes: 1_234_567,
                tx_bytes: 89,
                state: PeerState::Up,
                cipher: Cipher::Aes256Gcm,
                express: express::Snapshot { standing: Standing::On, counts: COUNTS, sessions: 2 },
                persistent_keepalive: Some(25),
                path: "direct".into(),
            },
            api::PeerStatus {
                name: "phone".to_owned(),
                public_key: peer_key(2),
                endpoint: None,
                addresses: vec!["10.88.0.3".parse().unwrap()],
                subnets: vec![],
                allowed_ips: nets(&["10.88.0.3/32"]),
                latest_handshake: None,
                rx_bytes: 0,
                tx_bytes: 0,
                state: PeerState::Down,
                cipher: Cipher::default(),
                express: express::Snapshot::default(),
                persistent_keepalive: None,
                path: "direct".into(),
            },
        ],
        bridges: vec![api::BridgeStatus {
            name: "br0".to_owned(),
            subnets: nets(&["10.89.2.0/24", "fd89:2::/64"]),
            egress: "vps".to_owned(),
            exits: Vec::new(),
            egress_since: None,
            egress_reason: None,
            guard: api::Guard::Armed,
        }],
        drops: api::Drops { spoofed: 3, socket_overflow: 12_345, ..api::Drops::default() },
        names: None,
        warnings: vec!["peer phone: has no endpoint and was never heard of".to_owned()],
    }
}

/// What was asked of it is in `calls`.
pub(crate) struct FakeAgent {
    pub calls: Mutex<Vec<String>>,
    pub reloaded: Mutex<Result<api::Reloaded, api::Problem>>,
    /// A reload waits for a permit of this.
    pub reload_gate: Semaphore,
    pub reload_began: Notify,
    pub reload_ended: Notify,
    pub shutdown: Notify,
    /// Set when a measurement was finished or dropped.
    pub bench_ended: Arc<AtomicBool>,
}

struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl FakeAgent {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: Mutex::default(),
            reloaded: Mutex::new(Ok(api::Reloaded::default())),
            reload_gate: Semaphore::new(Semaphore::MAX_PERMITS),
            reload_began: Notify::new(),
            reload_ended: Notify::new(),
            shutdown: Notify::new(),
            bench_ended: Arc::default(),
        })
    }

    fn called(&self, what: impl Into<String>) {
        self.calls.lock().unwrap().push(what.into());
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Agent for FakeAgent {
    async fn status(&self) -> api::Status {
        self.called("status");
        status()
    }

    async fn reload(&self) -> Result<api::Reloaded, api::Problem> {
        self.called("reload");
        self.reload_began.notify_one();
        let _permit = self.reload_gate.acquire().await.unwrap();
        self.reload_ended.notify_one();
        self.reloaded.lock().unwrap().clone()
    }

    fn plan(&self) -> impl Future<Output = Result<api::Plan, api::Problem>> + Send {
        let change = api::PlannedChange {
            action: "add".to_owned(),
            kind: "rule".to_owned(),
            command: "ip rule add iif br0 lookup 8820".to_owned(),
        };
        std::future::ready(Ok(api::Plan { changes: vec![change], ..api::Plan::default() }))
    }

    fn down(&self, keep_guard: bool) -> impl Future<Output = Result<(), api::Problem>> + Send {
        self.called(format!("down {keep_guard}"));
        self.shutdown.notify_one();
        std::future::ready(Ok(()))
    }

    fn agents(&self) -> impl Future<Output = api::Agents> + Send {
        std::future::ready(api::Agents { agents: vec!["vps".to_owned()], others: vec!["phone".to_owned()] })
    }

    async fn doctor(&self, request: api::DoctorRequest) -> api::Examined {
        self.called(format!("doctor {}", request.reconcile));
        api::Examined::default()
    }

    async fn decide(&self, decision: api::Decision) -> Result<(), api::Problem> {
        self.called(format!("decide {}", decision.id));
        Ok(())
    }

    async fn rotate(&self, request: api::RotateRequest) -> Result<api::Rotated, api::Problem> {
        self.called(format!("rotate {:?}", request.peer));
        Ok(api::Rotated::default())
    }

    async fn bench(&self, request: api::BenchRequest, events: mpsc::Sender<api::BenchEvent>) {
        self.called(format!("bench {} {}", request.peer, request.seconds));
        let ended = self.bench_ended.clone();
        let _guard = Ended(ended);
        for tenth in 0u8.. {
            let done = f64::from(tenth) / 10.0;
            let progress = api::BenchProgress { what: "tunnel to vps".to_owned(), done, bits_per_second: Some(1) };
            let _ = events.send(api::BenchEvent::Progress(progress)).await;
            if tenth == 10 && request.peer != "endless" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let errors = vec!["peer vps: no".to_owned()];
        let _ = events.send(api::BenchEvent::Problem(api::Problem { refused: false, errors, remedy: None })).await;
    }

    fn device(&self) -> Arc<Device> {
        Arc::new(Device::new(PrivateKey::from_bytes([100; 32]), 1420, Instant::now()))
    }

    fn express(&self) -> Ability {
        Ability::Able
    }

    fn listen_port(&self) -> u16 {
        51820
    }

    fn set_listen_port(&self, _port: u16) -> io::Result<()> {
        Ok(())
    }

    fn set_private_key(&self, _key: PrivateKey) {}
}
