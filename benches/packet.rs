//! What a packet costs beside its encryption: `cargo bench --bench packet`.

mod fixtures;

use std::hint::black_box;
use std::io::IoSlice;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use meshd::packet::checksum::Sum;
use meshd::packet::{Coalescer, Offload};

use fixtures::{Arrived, MSS, SEGMENTS, SuperPacket};

fn segmentation(criterion: &mut Criterion) {
    let mut packet = SuperPacket::new();
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    group.bench_function("44 in place", |bench| bench.iter(|| packet.segment(|segment| _ = black_box(segment))));
    let mut arena = vec![0; 1 << 16];
    group.bench_function("44, copied as encryption would", |bench| {
        bench.iter(|| {
            let mut at = 0;
            packet.segment(|segment| {
                arena[at..at + segment.len()].copy_from_slice(segment);
                at += segment.len();
            });
        });
    });
    group.finish();
}

fn coalescing(criterion: &mut Criterion) {
    let mut arrived = Arrived::new();
    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for (name, offload) in [
        ("44 packets into one", Offload { tcp: true, udp: true }),
        ("44 packets, no offload", Offload { tcp: false, udp: false }),
    ] {
        let mut coalescer = Coalescer::new(offload);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                arrived.restore();
                for packet in &arrived.packets {
                    coalescer.push(&arrived.arena, packet.clone());
                }
                coalescer.flush(&mut arrived.arena, |slices: &[IoSlice<'_>]| _ = black_box(slices));
            });
        });
    }
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let bytes = vec![0xa5; MSS];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(MSS as u64));
    group.bench_function("1368 bytes", |bench| bench.iter(|| Sum::default().bytes(black_box(&bytes)).complement()));
    let mut copy = vec![0; MSS];
    group.bench_function("copy of 1368 bytes", |bench| bench.iter(|| copy.copy_from_slice(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, segmentation, coalescing, checksum);
criterion_main!(benches);
