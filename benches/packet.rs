//! What a packet costs beside its encryption: `cargo bench --bench packet`.

use std::hint::black_box;
use std::io::IoSlice;
use std::ops::Range;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use meshd::packet::checksum::Sum;
use meshd::packet::segment::PADDING;
use meshd::packet::virtio::{GSO_TCPV4, NEEDS_CSUM};
use meshd::packet::{Coalescer, Offload, VnetHeader, segment};

const MSS: usize = 1380;
const SEGMENTS: usize = 44;
/// IPv4, and TCP with timestamps.
const HEADER: usize = 20 + 32;

/// A super-packet of the kernel's and its virtio header, with room for padding.
fn super_packet() -> (VnetHeader, Vec<u8>, usize) {
    let len = HEADER + MSS * SEGMENTS;
    let mut packet: Vec<u8> = (0..len + PADDING).map(|i| (i * 7) as u8).collect();
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 89, 1, 10, 10, 89, 2, 10]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[20..40].copy_from_slice(&[0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 1, 0xf6, 0, 0, 0, 0]);
    packet[40..HEADER].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    let partial = Sum::default().pseudo_header(&packet[12..20], 6, (len - 20) as u16).partial();
    packet[36..38].copy_from_slice(&partial);
    let vnet = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: HEADER as u16,
        gso_size: MSS as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (vnet, packet, len)
}

fn segmentation(criterion: &mut Criterion) {
    let (vnet, mut buffer, len) = super_packet();
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    // The headers that one run leaves at the front are still those of this flow, so that every run does the same work.
    group.bench_function("44 x 1380, in place", |bench| {
        bench.iter(|| segment(vnet, &mut buffer, len, 1420, |segment| _ = black_box(segment)));
    });
    let mut arena = vec![0; 1 << 16];
    group.bench_function("44 x 1380, copied as encryption would", |bench| {
        bench.iter(|| {
            let mut at = 0;
            segment(vnet, &mut buffer, len, 1420, |segment| {
                arena[at..at + segment.len()].copy_from_slice(segment);
                at += segment.len();
            })
        });
    });
    group.finish();
}

fn coalescing(criterion: &mut Criterion) {
    let (vnet, mut buffer, len) = super_packet();
    let mut arena = Vec::new();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    segment(vnet, &mut buffer, len, 1420, |segment| {
        let len = usize::from(u16::from_be_bytes([segment[2], segment[3]]));
        ranges.push(arena.len()..arena.len() + len);
        arena.extend_from_slice(segment);
    })
    .expect("a well-formed super-packet");
    let header: [u8; HEADER] = arena[..HEADER].try_into().expect("longer than its header");

    let mut group = criterion.benchmark_group("coalesce");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for (name, offload) in [
        ("44 packets into one", Offload { tcp: true, udp: true }),
        ("44 packets, no offload", Offload { tcp: false, udp: false }),
    ] {
        let mut coalescer = Coalescer::new(offload);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                arena[..HEADER].copy_from_slice(&header);
                for range in &ranges {
                    coalescer.push(&arena, range.clone());
                }
                coalescer.flush(&mut arena, |slices: &[IoSlice<'_>]| _ = black_box(slices));
            });
        });
    }
    group.finish();
}

fn checksum(criterion: &mut Criterion) {
    let bytes = vec![0xa5; MSS];
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(MSS as u64));
    group.bench_function("1380 bytes", |bench| bench.iter(|| Sum::default().bytes(black_box(&bytes)).complement()));
    let mut copy = vec![0; MSS];
    group.bench_function("copy of 1380 bytes", |bench| bench.iter(|| copy.copy_from_slice(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, segmentation, coalescing, checksum);
criterion_main!(benches);
