//! `meshd bench` inside the agent: the runs of one measurement, one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::answer::{observe, observed};
use super::running::Running;
use crate::bench::{
    Answer, Both, Cpu, Direction, Flow, Idle, Latency, MAX_SECONDS, Measured, Refusal, Report, Request, Route, Run,
    RunId, Terms,
};
use crate::channel::Kind;
use crate::config::{list_of_names, quote};
use crate::control::api::{self, BenchEvent, BenchProgress, BenchRequest};
use crate::express::Standing;
use crate::key::PublicKey;
use crate::tunnel::{PeerSnapshot, PeerState};

const IDLE_SECONDS: u32 = 1;
/// For how long express keys are waited for, which the echoes of an idle tunnel are reason enough to agree on.
const AGREEMENT: Duration = Duration::from_secs(2);
/// Between two echoes.
const ECHO: Duration = Duration::from_millis(10);
/// Echoes between two reports of progress.
const PROGRESS: u32 = 10;

/// One measurement. Dropping it, as when whoever asked has gone, ends it on both sides.
struct Measurement<'a> {
    running: &'a Running,
    events: &'a mpsc::Sender<BenchEvent>,
    name: &'a str,
    key: PublicKey,
    /// The run that the peer takes part in.
    under_way: Option<RunId>,
    /// Runs that are over, of all.
    over: f64,
    all: f64,
}

/// Peers that are asked at once whether they are agents; there is room for more questions than that.
const AT_A_TIME: usize = 64;

/// What one run found.
struct Found {
    flow: Option<Flow>,
    here: Cpu,
    there: Cpu,
    run: Arc<Run>,
}

impl Running {
    /// Which peers are agents, by name.
    pub(super) async fn find_agents(&self) -> api::Agents {
        let config = self.config();
        let mut found = api::Agents::default();
        for some in config.peers.chunks(AT_A_TIME) {
            let hello = some.iter().map(|peer| async {
                let reachable = self.device.path(&peer.public_key).is_some();
                let agent = reachable && self.ask(peer.public_key, Kind::Hello, Vec::new()).await.is_some();
                (peer.name.clone(), agent)
            });
            for (name, agent) in join_all(hello).await {
                if agent { &mut found.agents } else { &mut found.others }.push(name);
            }
        }
        found
    }

    /// Measures the way to a peer; what comes of it is the last event.
    pub(super) async fn measure(&self, request: &BenchRequest, events: &mpsc::Sender<BenchEvent>) {
        let event = match self.try_measure(request, events).await {
            Ok(report) => BenchEvent::Report(Box::new(report)),
            Err(problem) => BenchEvent::Problem(problem),
        };
        // Whoever asked may have gone.
        let _ = events.send(event).await;
    }

    async fn try_measure(
        &self,
        request: &BenchRequest,
        events: &mpsc::Sender<BenchEvent>,
    ) -> Result<Report, api::Problem> {
        let (name, seconds) = (&request.peer, request.seconds);
        if !(1..=MAX_SECONDS).contains(&seconds) {
            return Err(problem(format!("{seconds} seconds: runs take 1 to {MAX_SECONDS}"), None));
        }
        let config = self.config();
        let Some(peer) = config.peer(name) else {
            let names = list_of_names(config.peers.iter().map(|peer| &peer.name));
            let why = if names.is_empty() { "there are none yet".to_owned() } else { format!("peers are: {names}") };
            return Err(problem(format!("peer {}: no such peer; {why}", quote(name)), Some("meshd peer list")));
        };
        let all = 4 * seconds + IDLE_SECONDS;
        let turn = Duration::from_secs((3 * all).into()) + Duration::from_secs(30);
        self.benches.answerer().reserve(turn, Instant::now()).map_err(|_| {
            problem("this host takes part in another measurement".to_owned(), Some("the same again in a minute"))
        })?;
        let (key, all) = (peer.public_key, f64::from(all));
        let measurement = Measurement { running: self, events, name, key, under_way: None, over: 0.0, all };
        measurement.greet().await?;
        measurement.report(seconds).await
    }
}

impl Measurement<'_> {
    /// Finds out whether there is an agent at all.
    async fn greet(&self) -> Result<(), api::Problem> {
        let name = self.name;
        if self.running.device.path(&self.key).is_none() {
            let relay = self.peer().and_then(|peer| peer.relayed);
            if let Some(relay) = relay.map(|relay| self.running.name_of(&relay)) {
                let why = format!("peer {name}: reached via {relay}: only a direct path can be measured");
                return Err(problem(why, Some(&format!("meshd bench {relay}"))));
            }
            let why = format!("peer {name}: its endpoint is not known, and it was never heard of");
            return Err(problem(why, Some("start its agent, or write an endpoint into its file")));
        }
        self.progress("asking for its agent", 0.0, None).await;
        if self.running.ask(self.key, Kind::Hello, Vec::new()).await.is_some() {
            return Ok(());
        }
        Err(match self.peer().map(|peer| peer.state) {
            Some(PeerState::Up) => problem(
                format!("peer {name}: no meshd agent answers"),
                Some("a stock WireGuard peer cannot answer; measure with iperf3 instead"),
            ),
            _ => problem(
                format!("peer {name}: no session: its handshake is not answered"),
                Some("see that it runs, that its UDP port is open, and that each has the other's key"),
            ),
        })
    }

    async fn report(mut self, seconds: u32) -> Result<Report, api::Problem> {
        let name = self.name;
        let idle = self.run(Route::Tunnel, Direction::Idle, IDLE_SECONDS, "idle").await?;
        let express = self.agrees().await;
        self.all += if express { f64::from(2 * seconds) } else { 0.0 };
        let tunnel = self.both(Route::Tunnel, seconds, "tunnel").await?;
        let ordinary = if express { Some(self.both(Route::Ordinary, seconds, "ordinary").await?) } else { None };
        let bare = self.both(Route::Bare, seconds, "bare").await?;
        let latency = |route| -> Option<Latency> { idle.run.latency(route) };
        let idle_found = Idle { tunnel: latency(Route::Tunnel), bare: latency(Route::Bare) };
        Ok(Report::new(name.to_owned(), idle.run.remote, seconds, idle_found, tunnel, ordinary, bare))
    }

    /// Whether data goes under express keys, once that is decided. Whose agent does so knows ordinary runs, too.
    async fn agrees(&self) -> bool {
        let begun = Instant::now();
        loop {
            let standing = self.peer().map(|peer| peer.express.standing);
            let undecided = matches!(standing, Some(Standing::Idle | Standing::Asking | Standing::Proving));
            if !undecided || begun.elapsed() >= AGREEMENT {
                return standing == Some(Standing::On);
            }
            sleep(ECHO).await;
        }
    }

    fn peer(&self) -> Option<PeerSnapshot> {
        let peers = self.running.device.peers(Instant::now());
        peers.into_iter().find(|peer| peer.settings.public_key == self.key)
    }

    /// Load in each direction.
    async fn both(&mut self, route: Route, seconds: u32, what: &str) -> Result<Both<Measured>, api::Problem> {
        let name = self.name;
        let to_peer = self.load(route, Direction::ToAnswerer, seconds, &format!("{what} to {name}")).await?;
        let from_peer = self.load(route, Direction::ToAsker, seconds, &format!("{what} from {name}")).await?;
        Ok(Both { to_peer, from_peer })
    }

    async fn load(
        &mut self,
        route: Route,
        direction: Direction,
        seconds: u32,
        what: &str,
    ) -> Result<Measured, api::Problem> {
        let found = self.run(route, direction, seconds, what).await?;
        let latency = found.run.latency(route);
        Ok(Measured { flow: found.flow, latency, cpu_here: found.here, cpu_there: found.there })
    }

    async fn run(
        &mut self,
        route: Route,
        direction: Direction,
        seconds: u32,
        what: &str,
    ) -> Result<Found, api::Problem> {
        let id = RunId::random().map_err(|error| problem(format!("random numbers: {error}"), None))?;
        let terms = Terms { id, route, direction, millis: seconds * 1000 };
        let mut run = self.begin(terms)?;
        self.under_way = Some(id);
        match self.ask(&Request::Start(terms)).await? {
            Answer::Started => {}
            Answer::Refused(refusal) => {
                self.under_way = None;
                return Err(self.refused(refusal));
            }
            Answer::Finished { .. } => return Err(self.nonsense()),
        }
        if direction != Direction::ToAsker {
            // Its time begins only now.
            run = self.begin(terms)?;
        }
        if let Err(error) = self.running.begin_load(&run) {
            return Err(problem(format!("the thread that sends: {error}"), None));
        }
        let here = observe(Duration::from_secs(seconds.into()));
        self.watch(&run, what, seconds).await;
        let finished = self.ask(&Request::Finish(id)).await?;
        self.under_way = None;
        self.over += f64::from(seconds);
        match finished {
            Answer::Finished { cpu, flow } => {
                let flow = if run.sends { run.sent_flow() } else { flow };
                Ok(Found { flow, here: observed(&here), there: cpu, run })
            }
            _ => Err(self.gone()),
        }
    }

    /// Makes the run that the device counts from here on.
    fn begin(&self, terms: Terms) -> Result<Arc<Run>, api::Problem> {
        let path = self.running.device.path(&self.key).ok_or_else(|| self.gone())?;
        let run = Arc::new(Run::new(terms, self.key, path.remote, true, Instant::now()));
        self.running.device.agents.set_run(Some(Arc::clone(&run)));
        Ok(run)
    }

    /// Sends echoes and reports progress until the run's time is over.
    async fn watch(&self, run: &Run, what: &str, seconds: u32) {
        let routes: &[Route] = match run.terms.direction {
            Direction::Idle => &[Route::Tunnel, Route::Bare],
            _ => &[run.terms.route],
        };
        let length = Duration::from_secs(seconds.into());
        let (start, mut last) = (Instant::now(), (Instant::now(), 0));
        let mut ticks = interval(ECHO);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0u32.. {
            ticks.tick().await;
            let now = Instant::now();
            if now - start >= length {
                return;
            }
            for &route in routes {
                self.running.send(|outbox, now| {
                    let echo = run.echo(route, now);
                    echo.is_some_and(|echo| self.running.device.probe(run, route, &echo, outbox, now))
                });
            }
            if tick % PROGRESS == 0 {
                let bytes = run.progress();
                let loaded = run.terms.direction != Direction::Idle && tick > 0;
                let rate = loaded.then(|| rate(bytes.saturating_sub(last.1), now - last.0));
                last = (now, bytes);
                self.progress(what, (now - start).as_secs_f64(), rate).await;
            }
        }
    }

    async fn progress(&self, what: &str, seconds: f64, bits_per_second: Option<u64>) {
        let done = ((self.over + seconds) / self.all).min(1.0);
        let progress = BenchProgress { what: what.to_owned(), done, bits_per_second };
        // Whoever asked may have gone; then this future is about to be dropped.
        let _ = self.events.send(BenchEvent::Progress(progress)).await;
    }

    async fn ask(&self, request: &Request) -> Result<Answer, api::Problem> {
        let body = serde_json::to_vec(request).map_err(|error| problem(error.to_string(), None))?;
        let answer = self.running.ask(self.key, Kind::Bench, body).await.ok_or_else(|| self.gone())?;
        serde_json::from_slice(&answer).map_err(|_| self.nonsense())
    }

    fn gone(&self) -> api::Problem {
        problem(format!("peer {}: its agent went away while it was measured", self.name), Some("meshd status"))
    }

    fn nonsense(&self) -> api::Problem {
        problem(format!("peer {}: its agent answers what this one cannot read", self.name), Some("one version on both"))
    }

    fn refused(&self, refusal: Refusal) -> api::Problem {
        let remedy = matches!(refusal, Refusal::Busy).then_some("the same again in a minute");
        problem(format!("peer {}: its agent {refusal}", self.name), remedy)
    }
}

impl Drop for Measurement<'_> {
    fn drop(&mut self) {
        self.running.device.agents.set_run(None);
        self.running.benches.answerer().release();
        if let Some(id) = self.under_way
            && let Ok(body) = serde_json::to_vec(&Request::Finish(id))
        {
            self.running.tell(self.key, Kind::Bench, body);
        }
    }
}

fn problem(error: String, remedy: Option<&str>) -> api::Problem {
    api::Problem { refused: false, errors: vec![error], remedy: remedy.map(str::to_owned) }
}

/// Bits a second.
fn rate(bytes: u64, time: Duration) -> u64 {
    (u128::from(bytes) * 8_000_000 / time.as_micros().max(1)) as u64
}
