//! Queries that are under way upstream.
//!
//! Who asks what is being asked waits for the same answer. So a loop of name servers ends where it began, and somebody who makes
//! this one ask the same again and again does not get more chances to forge an answer (RFC 5452, section 5).

use std::collections::HashMap;
use std::net::IpAddr;

/// Under way at a time.
const MOST: usize = 256;
/// The same for one source, so that one with names that nobody answers for leaves room.
const MOST_OF_ONE: usize = 64;
/// Who wait for one answer.
const WAITING: usize = 16;

/// Those under way, each with who waits.
#[derive(Debug)]
pub struct Flights<W> {
    under_way: HashMap<Box<[u8]>, Flight<W>>,
    sources: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Flight<W> {
    source: IpAddr,
    waiting: Vec<W>,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is to be sent.
    First,
    /// It is being asked.
    Joined,
}

impl<W> Default for Flights<W> {
    fn default() -> Self {
        Self { under_way: HashMap::new(), sources: HashMap::new() }
    }
}

impl<W> Flights<W> {
    /// Adds somebody from `source` who waits for the answer to the question `key`. When there is no room, they come back.
    ///
    /// # Errors
    /// Who cannot wait.
    pub fn begin(&mut self, key: &[u8], source: IpAddr, waiter: W) -> Result<Begun, W> {
        if let Some(flight) = self.under_way.get_mut(key) {
            if flight.waiting.len() >= WAITING {
                return Err(waiter);
            }
            flight.waiting.push(waiter);
            return Ok(Begun::Joined);
        }
        let of_one = self.sources.get(&source).copied().unwrap_or_default();
        if self.under_way.len() >= MOST || of_one >= MOST_OF_ONE {
            return Err(waiter);
        }
        self.sources.insert(source, of_one + 1);
        self.under_way.insert(key.into(), Flight { source, waiting: vec![waiter] });
        Ok(Begun::First)
    }

    /// It is over; these waited.
    pub fn end(&mut self, key: &[u8]) -> Vec<W> {
        let Some(flight) = self.under_way.remove(key) else { return Vec::new() };
        if let Some(count) = self.sources.get_mut(&flight.source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&flight.source);
            }
        }
        flight.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 89, 2, 10));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 89, 2, 11));

    #[test]
    fn the_same_is_asked_once() {
        let mut flights = Flights::default();
        assert_eq!(flights.begin(b"q", A, 1), Ok(Begun::First));
        assert_eq!(flights.begin(b"q", B, 2), Ok(Begun::Joined));
        assert_eq!(flights.end(b"q"), [1, 2]);
        assert_eq!(flights.end(b"q"), [0; 0]);
        assert_eq!(flights.begin(b"q", B, 3), Ok(Begun::First));
    }

    /// Each answer to a question is the same question again, as with two servers that name each other upstream.
    #[test]
    fn a_loop_ends() {
        let mut flights = Flights::default();
        let sent = (0..1000).filter(|n| flights.begin(b"q", A, *n) == Ok(Begun::First)).count();
        assert_eq!(sent, 1);
        assert_eq!(flights.end(b"q").len(), WAITING);
    }

    #[test]
    fn what_is_under_way_is_bounded_and_one_leaves_room() {
        let mut flights = Flights::default();
        let mut begin = |source, at: u32| flights.begin(&at.to_be_bytes(), source, ()).is_ok();
        assert_eq!((0..1000).filter(|at| begin(A, *at)).count(), MOST_OF_ONE);
        assert!(begin(B, 5000));
        let many = (0..10_u8).flat_map(|host| (0..100).map(move |at| (host, at)));
        let more =
            many.filter(|(host, at)| begin([10, 89, 3, *host].into(), 10_000 + 1000 * u32::from(*host) + at)).count();
        assert_eq!(more, MOST - MOST_OF_ONE - 1);
        for at in 0..20_000_u32 {
            flights.end(&at.to_be_bytes());
        }
        assert!(flights.under_way.is_empty() && flights.sources.is_empty());
    }
}
