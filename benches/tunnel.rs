//! The tunnel without its sockets, encryption included: `cargo bench --bench tunnel`.

mod fixtures;

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use fixtures::{Crowd, Pair, SEGMENTS, routes};

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allowed IPs");
    for prefixes in [1, 1_000, 100_000] {
        let (device, addresses) = routes(prefixes);
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
        for (family, addresses) in [("IPv4", v4), ("IPv6", v6)].iter().filter(|(_, addresses)| !addresses.is_empty()) {
            let mut next = addresses.iter().cycle();
            group.bench_function(format!("{prefixes} prefixes, {family}"), |bench| {
                bench.iter(|| device.owner(black_box(*next.next().expect("endless"))).expect("an owner"));
            });
        }
    }
    group.finish();
}

fn batch(criterion: &mut Criterion) {
    for (name, mut pair) in [("44 segments", Pair::new()), ("44 segments, express", Pair::express())] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(SEGMENTS as u64));
        group.bench_function("seal", |bench| bench.iter(|| pair.seal()));
        // Each batch opens once, for it is a replay after that.
        group.bench_function("open", |bench| {
            bench.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    pair.seal();
                    let started = Instant::now();
                    pair.open();
                    spent += started.elapsed();
                }
                assert_eq!(pair.inbox.packets.len(), SEGMENTS);
                spent
            });
        });
        group.finish();
    }
}

/// An initiation from each of many peers, answered one after the other. An initiation is worth an answer once, so each
/// round is computed anew.
fn handshakes(criterion: &mut Criterion) {
    let mut crowd = Crowd::new();
    let mut group = criterion.benchmark_group("handshake");
    group.sample_size(10).bench_function("answer", |bench| {
        bench.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds.div_ceil(Crowd::PEERS) {
                spent += crowd.answer();
            }
            spent / u32::try_from(rounds.div_ceil(Crowd::PEERS) * Crowd::PEERS).unwrap_or(u32::MAX) * rounds as u32
        });
    });
    group.finish();
}

criterion_group!(benches, lookup, batch, handshakes);
criterion_main!(benches);
