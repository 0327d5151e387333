//! A packet's way through another firewall's chains.

use super::rules::{Chain, Fits, Packet, Verdict};

/// A chain nests as deep as the kernel lets it (`NFT_JUMP_STACK_SIZE` in net/netfilter/nf_tables.h).
const DEPTH: usize = 16;

/// Who drops a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop<'a> {
    /// The base chain that it came in by.
    pub base: &'a Chain,
    /// The chain of the rule; the base chain when it is its policy.
    pub chain: &'a Chain,
    /// The rule's number from 1; `None` for the policy.
    pub rule: Option<usize>,
    /// Whether no rule before it might have accepted the packet for reasons not known here.
    pub certain: bool,
}

/// Each base chain that drops the packet. A rule with unknown conditions is taken not to meet it.
pub fn drops<'a>(chains: &'a [Chain], packet: &Packet) -> Vec<Drop<'a>> {
    let base = chains.iter().filter_map(|chain| Some((chain, chain.hook?)));
    let asked = base.filter(|(chain, _)| chain.takes(packet.family()));
    asked
        .filter_map(|(base, hook)| {
            let mut walk = Walk { chains, packet, certain: true };
            let (chain, rule) = match walk.through(base, 0) {
                Some(End::Dropped(chain, rule)) => (chain, Some(rule)),
                None if hook.drops => (base, None),
                Some(End::Accepted) | None => return None,
            };
            Some(Drop { base, chain, rule, certain: walk.certain })
        })
        .collect()
}

struct Walk<'a, 'p> {
    chains: &'a [Chain],
    packet: &'p Packet,
    certain: bool,
}

enum End<'a> {
    Accepted,
    Dropped(&'a Chain, usize),
}

impl<'a> Walk<'a, '_> {
    /// `None` when the packet comes out at the end.
    fn through(&mut self, chain: &'a Chain, depth: usize) -> Option<End<'a>> {
        for (index, rule) in chain.rules.iter().enumerate() {
            match rule.fits(self.packet) {
                Fits::No => continue,
                Fits::Perhaps => {
                    self.certain &= !self.may_accept(chain, &rule.verdict, depth);
                    continue;
                }
                Fits::Yes => {}
            }
            match &rule.verdict {
                Verdict::Accept => return Some(End::Accepted),
                Verdict::Drop => return Some(End::Dropped(chain, index + 1)),
                Verdict::Return => return None,
                Verdict::Other => {}
                Verdict::Jump(name) => {
                    if let Some(end) = self.into(chain, name, depth) {
                        return Some(end);
                    }
                }
                Verdict::Goto(name) => return self.into(chain, name, depth),
            }
        }
        None
    }

    fn into(&mut self, from: &Chain, name: &str, depth: usize) -> Option<End<'a>> {
        let next = self.named(from, name).filter(|_| depth < DEPTH)?;
        self.through(next, depth + 1)
    }

    fn named(&self, from: &Chain, name: &str) -> Option<&'a Chain> {
        self.chains.iter().find(|chain| chain.beside(from) && chain.name == name)
    }

    fn may_accept(&self, from: &Chain, verdict: &Verdict, depth: usize) -> bool {
        match verdict {
            Verdict::Accept => true,
            Verdict::Jump(name) | Verdict::Goto(name) if depth < DEPTH => self.named(from, name).is_some_and(|chain| {
                let possible = chain.rules.iter().filter(|rule| rule.fits(self.packet) != Fits::No);
                possible.into_iter().any(|rule| self.may_accept(chain, &rule.verdict, depth + 1))
            }),
            _ => false,
        }
    }
}
