//! A throwaway container that takes an address, sends its probes, and answers whoever asks for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::time::{Instant as Moment, sleep_until, timeout_at};

use crate::host::Container;
use crate::leaktest::{Mac, Neighbour, Probe, Recogniser, Run, ethertype, multicast, reset};

/// Between two packets of a container: with 250 a second nobody's link is filled.
const PACE: Duration = Duration::from_millis(4);
/// All probes are sent once in this time, and again.
const ROUND: Duration = Duration::from_secs(1);
/// How often, and how far apart, it is asked whether an address is free, and who has the bridge's.
const QUESTIONS: u32 = 3;
const QUESTION: Duration = Duration::from_millis(200);
/// How many addresses are tried until one is free.
const ATTEMPTS: u32 = 32;

/// A container and what it sends as.
pub struct Station {
    pub container: Container,
    pub places: Vec<Place>,
}

/// An address of a station.
pub struct Place {
    /// Counted over all legs, and as its report.
    pub leg: usize,
    pub address: IpAddr,
    /// Of the bridge.
    pub gateway: Mac,
}

/// What a station did and heard.
#[derive(Default)]
pub struct Sent {
    /// By leg.
    pub probes: HashMap<usize, u32>,
    /// By probe: how long it took.
    pub answers: HashMap<u16, Duration>,
}

impl Station {
    /// An address in this network that nobody has, and the bridge's hardware address.
    pub async fn settle(&mut self, run: &Run, net: IpNet) -> Result<(IpAddr, Mac), String> {
        let gateway = net.addr();
        let full = || format!("no free address in {}", net.trunc());
        for attempt in 0..ATTEMPTS {
            let address = run.candidate(net, attempt).ok_or_else(full)?;
            if address == gateway || self.taken(address).await.map_err(|error| error.to_string())? {
                continue;
            }
            let answer = self.ask(address, gateway).await.map_err(|error| error.to_string())?;
            return Ok((address, answer.ok_or_else(|| format!("its own address {gateway} does not answer"))?));
        }
        Err(full())
    }

    /// Duplicate address detection (RFC 5227, 2.1; RFC 4862, 5.4), in less time.
    async fn taken(&mut self, address: IpAddr) -> std::io::Result<bool> {
        let nobody = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let question = Neighbour { answer: false, target: address, sender: nobody, mac: self.container.mac() };
        let claims = |heard: &Neighbour| {
            let wants = heard.target == address && (heard.answer || heard.sender.is_unspecified());
            wants || heard.sender == address
        };
        Ok(self.hear(&question, |heard| claims(heard).then_some(())).await?.is_some())
    }

    /// The bridge's hardware address. The guard lets nobody ask under an address of a subnet that is not configured, but for
    /// link-local ones.
    async fn ask(&mut self, address: IpAddr, gateway: IpAddr) -> std::io::Result<Option<Mac>> {
        let mac = self.container.mac();
        for sender in [Some(address), address.is_ipv6().then(|| link_local(mac))].into_iter().flatten() {
            let question = Neighbour { answer: false, target: gateway, sender, mac };
            let answer = |heard: &Neighbour| (heard.answer && heard.target == gateway).then_some(heard.mac);
            if let Some(found) = self.hear(&question, answer).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Asks until something `wanted` is heard.
    async fn hear<T>(
        &mut self,
        question: &Neighbour,
        wanted: impl Fn(&Neighbour) -> Option<T>,
    ) -> std::io::Result<Option<T>> {
        for _ in 0..QUESTIONS {
            self.container.send(&question.frame(None))?;
            let deadline = Moment::now() + QUESTION;
            while let Ok(frame) = timeout_at(deadline, self.container.next()).await {
                let heard = Neighbour::parse(frame?).filter(|heard| heard.mac != question.mac);
                if let Some(found) = heard.as_ref().and_then(&wanted) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// Sends its probes again and again, and answers whoever asks for it.
    pub async fn send(
        &mut self,
        recogniser: &Recogniser,
        probes: &[Probe],
        duration: Duration,
    ) -> std::io::Result<Sent> {
        let mut sent = Sent::default();
        let mut times: HashMap<u16, Instant> = HashMap::new();
        let began = Moment::now();
        let mut round = began;
        while round == began || round < began + duration {
            for (number, probe) in (0u16..).zip(probes) {
                let Some(place) = self.places.iter().find(|place| place.leg == probe.leg) else { continue };
                let to = multicast(probe.destination()).unwrap_or(place.gateway);
                for packet in &probe.packets {
                    self.container.send(&framed(to, self.container.mac(), packet))?;
                }
                *sent.probes.entry(probe.leg).or_default() += 1;
                times.insert(number, Instant::now());
                self.listen(Moment::now() + PACE, recogniser, &times, &mut sent).await?;
            }
            round += ROUND;
            self.listen(round, recogniser, &times, &mut sent).await?;
        }
        Ok(sent)
    }

    async fn listen(
        &mut self,
        until: Moment,
        recogniser: &Recogniser,
        times: &HashMap<u16, Instant>,
        sent: &mut Sent,
    ) -> std::io::Result<()> {
        let mac = self.container.mac();
        while let Ok(frame) = timeout_at(until, self.container.next()).await {
            let frame = frame?;
            let reply = if let Some(asked) = Neighbour::parse(frame) {
                self.places.iter().find(|place| place.address == asked.target && !asked.answer).and_then(|place| {
                    let answer = Neighbour { answer: true, target: place.address, sender: place.address, mac };
                    (!asked.sender.is_unspecified()).then(|| answer.frame(Some((asked.mac, asked.sender))))
                })
            } else {
                let packet = frame.get(14..).unwrap_or_default();
                let answered = recogniser.answered(packet).and_then(|number| Some((number, times.get(&number)?)));
                if let Some((number, time)) = answered {
                    sent.answers.entry(number).or_insert_with(|| time.elapsed());
                }
                let place = crate::packet::destination(packet)
                    .and_then(|own| self.places.iter().find(|place| place.address == own));
                place.and_then(|place| Some(framed(place.gateway, mac, &reset(packet)?)))
            };
            if let Some(reply) = reply {
                self.container.send(&reply)?;
            }
        }
        sleep_until(until).await;
        Ok(())
    }
}

/// RFC 4291, 2.5.6 and appendix A.
fn link_local(mac: Mac) -> IpAddr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..11].copy_from_slice(&mac[..3]);
    octets[8] ^= 2;
    octets[11..13].copy_from_slice(&[0xff, 0xfe]);
    octets[13..].copy_from_slice(&mac[3..]);
    IpAddr::from(octets)
}

fn framed(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype(packet).to_be_bytes(), packet].concat()
}
