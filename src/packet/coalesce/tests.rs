use proptest::prelude::*;

use super::*;
use crate::packet::segment::{PADDING, segment};
use crate::packet::testing::{self, ACK, ECE, RST, SYN, Sample, Tcp, URG, payload, timestamps};

const BOTH: Offload = Offload { tcp: true, udp: true };

/// One write: the virtio header and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Write {
    vnet: VnetHeader,
    packet: Vec<u8>,
    slices: usize,
}

/// Pushes packets as a batch of datagrams would bring them: each followed by padding.
fn coalesce(offload: Offload, packets: &[Vec<u8>]) -> Vec<Write> {
    let mut coalescer = Coalescer::new(offload);
    let mut writes = Vec::new();
    // Twice, the second time with nothing of the first left.
    for _ in 0..2 {
        writes.clear();
        assert!(coalescer.is_empty());
        let mut arena = vec![0xee; 5];
        for packet in packets {
            let start = arena.len();
            arena.extend_from_slice(packet);
            arena.resize(arena.len().next_multiple_of(PADDING) + 32, 0xee);
            coalescer.push(&arena, start..start + packet.len());
        }
        assert_eq!(coalescer.is_empty(), packets.is_empty());
        coalescer.flush(&mut arena, |slices| {
            let vnet: &[u8; VnetHeader::LEN] = (&*slices[0]).try_into().expect("the virtio header comes first");
            let packet = slices[1..].iter().flat_map(|slice| slice.to_vec()).collect();
            writes.push(Write { vnet: VnetHeader::parse(vnet), packet, slices: slices.len() });
        });
    }
    writes
}

fn build(samples: &[Sample]) -> Vec<Vec<u8>> {
    samples.iter().map(Sample::build).collect()
}

/// What the kernel makes of a write when it has to send it on in pieces.
fn split(write: &Write) -> Vec<Vec<u8>> {
    let mut buffer = write.packet.clone();
    buffer.resize(write.packet.len() + PADDING, 0);
    let mut packets = Vec::new();
    segment(write.vnet, &mut buffer, write.packet.len(), 1, |packet| packets.push(packet.to_vec())).unwrap();
    packets
}

fn alone(packets: &[Vec<u8>]) -> Vec<Write> {
    packets.iter().map(|p| Write { vnet: VnetHeader::default(), packet: p.clone(), slices: 2 }).collect()
}

/// Two packets that merge unless the change to the second forbids it.
#[test]
fn merges_what_gro_merges() {
    type Change = fn(&mut Sample);
    let tcp: [(&str, bool, Change); 26] = [
        ("next in sequence", true, |_| {}),
        ("shorter last", true, |s| s.payload.truncate(1)),
        ("PSH", true, |s| s.tcp_mut().flags |= testing::PSH),
        ("FIN", true, |s| s.tcp_mut().flags |= testing::FIN),
        ("same identification", true, |s| s.id = 7),
        ("longer", false, |s| s.payload.push(0)),
        ("no payload", false, |s| s.payload.clear()),
        ("gap", false, |s| s.tcp_mut().sequence += 1),
        ("retransmission", false, |s| s.tcp_mut().sequence -= 100),
        ("acknowledgment", false, |s| s.tcp_mut().acknowledgment += 1),
        ("window", false, |s| s.tcp_mut().window += 1),
        ("timestamp", false, |s| s.tcp_mut().options = timestamps(2)),
        ("options missing", false, |s| s.tcp_mut().options.clear()),
        ("CWR", false, |s| s.tcp_mut().flags |= testing::CWR),
        ("ECE", false, |s| s.tcp_mut().flags |= ECE),
        ("URG", false, |s| s.tcp_mut().flags |= URG),
        ("RST", false, |s| s.tcp_mut().flags |= RST),
        ("SYN", false, |s| s.tcp_mut().flags |= SYN),
        ("no ACK", false, |s| s.tcp_mut().flags &= !ACK),
        ("source", false, |s| s.source += 1),
        ("destination", false, |s| s.destination += 1),
        ("ports", false, |s| s.source_port += 1),
        ("TOS", false, |s| s.traffic_class = 3),
        ("TTL", false, |s| s.ttl -= 1),
        ("identification skips one", false, |s| s.id += 1),
        ("DF", false, |s| s.dont_fragment = false),
    ];
    let udp: [(&str, bool, Change); 8] = [
        ("same length", true, |_| {}),
        ("shorter last", true, |s| s.payload.truncate(1)),
        ("same identification", true, |s| s.id = 7),
        ("longer", false, |s| s.payload.push(0)),
        ("no payload", false, |s| s.payload.clear()),
        ("destination port", false, |s| s.destination_port += 1),
        ("source port", false, |s| s.source_port += 1),
        ("TOS", false, |s| s.traffic_class = 3),
    ];
    let of_ipv4 = ["same identification", "identification skips one", "DF"];
    for ipv6 in [false, true] {
        for (first, table) in [(Sample::tcp(payload(100, 1)), &tcp[..]), (Sample::udp(payload(100, 1)), &udp[..])] {
            let first = Sample { ipv6, ..first };
            for (name, merges, change) in table.iter().filter(|row| !ipv6 || !of_ipv4.contains(&row.0)) {
                let mut second = first.clone();
                second.id += 1;
                if let Some(tcp) = &mut second.tcp {
                    tcp.sequence += 100;
                }
                change(&mut second);
                let packets = build(&[first.clone(), second]);
                let writes = coalesce(BOTH, &packets);
                if *merges {
                    assert_eq!(writes.len(), 1, "{name}, ipv6 {ipv6}");
                    assert_eq!(writes[0].slices, 3, "{name}, ipv6 {ipv6}");
                } else {
                    assert_eq!(writes, alone(&packets), "{name}, ipv6 {ipv6}");
                }
            }
        }
    }
}

/// Of IPv6 only.
#[test]
fn flow_label_ends_a_group() {
    let first = Sample { ipv6: true, ..Sample::udp(payload(100, 1)) };
    let second = Sample { flow_label: 1, ..first.clone() };
    let packets = build(&[first, second]);
    assert_eq!(coalesce(BOTH, &packets), alone(&packets));
}

/// What may be neither first nor second of a group.
#[test]
fn never_part_of_a_group() {
    let table = [
        ("SYN", Sample { tcp: Some(Tcp { flags: SYN, ..tcp() }), ..Sample::tcp(payload(9, 1)) }),
        ("RST", Sample { tcp: Some(Tcp { flags: ACK | RST, ..tcp() }), ..Sample::tcp(payload(9, 1)) }),
        ("URG", Sample { tcp: Some(Tcp { flags: ACK | URG, ..tcp() }), ..Sample::tcp(payload(9, 1)) }),
        ("pure acknowledgment", Sample::tcp(vec![])),
        ("IPv4 options", Sample { extension: 4, ..Sample::tcp(payload(9, 1)) }),
        ("extension header", Sample { ipv6: true, extension: 8, ..Sample::tcp(payload(9, 1)) }),
        ("extension header, UDP", Sample { ipv6: true, extension: 8, ..Sample::udp(payload(9, 1)) }),
        ("first fragment", Sample { more_fragments: true, dont_fragment: false, ..Sample::udp(payload(16, 1)) }),
        ("last fragment", Sample { fragment_offset: 2, dont_fragment: false, ..Sample::udp(payload(16, 1)) }),
        ("empty datagram", Sample::udp(vec![])),
    ];
    for (name, sample) in table {
        let mut next = sample.clone();
        next.id += 1;
        if let Some(tcp) = &mut next.tcp {
            tcp.sequence += next.payload.len() as u32;
        }
        let packets = build(&[sample, next]);
        assert_eq!(coalesce(BOTH, &packets), alone(&packets), "{name}");
    }

    let mut unsummed = Sample::udp(payload(9, 1)).build();
    unsummed[26..28].fill(0);
    assert_eq!(coalesce(BOTH, &[unsummed.clone(), unsummed.clone()]), alone(&[unsummed.clone(), unsummed]));
    let mut padded = Sample::udp(payload(9, 1)).build();
    padded[25] -= 1;
    assert_eq!(coalesce(BOTH, &[padded.clone(), padded.clone()]), alone(&[padded.clone(), padded]));
}

fn tcp() -> Tcp {
    Sample::tcp(vec![]).tcp.unwrap()
}

/// A short segment, PSH and FIN are the last of a group.
#[test]
fn last_segments_end_the_group() {
    let whole = Sample { payload: payload(1000, 1), ..Sample::tcp(vec![]) };
    for end in [testing::FIN, testing::PSH, 0] {
        let mut parts = whole.split(100);
        if end == 0 {
            parts[4].payload.truncate(99);
            for part in &mut parts[5..] {
                part.tcp_mut().sequence -= 1;
            }
        } else {
            parts[4].tcp_mut().flags |= end;
        }
        let packets = build(&parts);
        let writes = coalesce(BOTH, &packets);
        assert_eq!(writes.iter().map(|write| write.slices).collect::<Vec<_>>(), [6, 6]);
        assert_eq!(writes.iter().map(|write| write.packet[33] & (FIN | PSH)).collect::<Vec<_>>(), [end, 0]);
        let parts: Vec<_> = writes.iter().flat_map(split).collect();
        assert_eq!(parts, packets);
    }
}

#[test]
fn offloads_are_separate_and_may_be_withdrawn() {
    let tcp = build(&Sample::tcp(payload(300, 1)).split(100));
    let udp = build(&Sample::udp(payload(300, 1)).split(100));
    let off = Offload::default();
    assert_eq!(coalesce(off, &tcp), alone(&tcp));
    assert_eq!(coalesce(Offload { udp: true, ..off }, &tcp), alone(&tcp));
    assert_eq!(coalesce(Offload { udp: true, ..off }, &udp).len(), 1);
    assert_eq!(coalesce(Offload { tcp: true, ..off }, &udp), alone(&udp));
    assert_eq!(coalesce(Offload { tcp: true, ..off }, &tcp).len(), 1);

    let mut coalescer = Coalescer::new(BOTH);
    let (mut arena, len) = (tcp.concat(), tcp[0].len());
    coalescer.push(&arena, 0..len);
    coalescer.set_offload(off);
    coalescer.push(&arena, len..2 * len);
    let mut writes = 0;
    coalescer.flush(&mut arena, |slices| writes += slices.len());
    assert_eq!(writes, 4);
}

#[test]
fn groups_are_bounded() {
    // By segments, of TCP and UDP alike.
    for sample in [Sample::tcp(payload(1290, 1)), Sample::udp(payload(1290, 1))] {
        let slices: Vec<_> = coalesce(BOTH, &build(&sample.split(10))).iter().map(|write| write.slices).collect();
        assert_eq!(slices, [MAX_SLICES, MAX_SLICES, 2]);
    }
    // By length: 7 segments of 9000 fit, 8 do not.
    for ipv6 in [false, true] {
        let whole = Sample { ipv6, ..Sample::tcp(payload(63_000, 1)) };
        let mut parts = whole.split(9000);
        let mut more = parts[6].clone();
        more.id += 1;
        more.tcp_mut().sequence += 9000;
        parts.push(more);
        let writes = coalesce(BOTH, &build(&parts));
        assert_eq!(writes.iter().map(|write| write.slices).collect::<Vec<_>>(), [8, 2]);
    }
}

/// Groups grow side by side, and one too many closes the oldest.
#[test]
fn flows_may_be_interleaved() {
    for (flows, writes) in [(MAX_OPEN, MAX_OPEN), (MAX_OPEN + 1, 3 * (MAX_OPEN + 1))] {
        let flow = |port: usize| Sample { source_port: port as u16, ..Sample::tcp(payload(300, 1)) };
        let by_flow: Vec<_> = (0..flows).map(|port| flow(port).split(100)).collect();
        let packets: Vec<_> = (0..3).flat_map(|part| by_flow.iter().map(move |parts| parts[part].build())).collect();
        assert_eq!(coalesce(BOTH, &packets).len(), writes);
    }
}

/// Nothing may overtake a packet of its own flow, even one that cannot be merged.
#[test]
fn what_cannot_merge_closes_its_flow() {
    let parts = Sample::tcp(payload(200, 1)).split(100);
    let acknowledgment = Sample::tcp(vec![]).build();
    let fragment = Sample { more_fragments: true, dont_fragment: false, ..Sample::udp(payload(16, 1)) }.build();
    for between in [acknowledgment, fragment] {
        let packets = [parts[0].build(), between, parts[1].build()];
        assert_eq!(coalesce(BOTH, &packets), alone(&packets));
    }
    // But other addresses are another matter.
    let elsewhere = Sample { source: 9, more_fragments: true, dont_fragment: false, ..Sample::udp(payload(16, 1)) };
    let packets = [parts[0].build(), elsewhere.build(), parts[1].build()];
    assert_eq!(coalesce(BOTH, &packets).len(), 2);
}

/// Flow and payload of a packet, whatever it is, and its identification where that has a meaning.
fn essence(packet: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut packet = packet.to_vec();
    if packet[0] == 0x45 {
        if packet[6] & 0x40 != 0 {
            // RFC 6864: of no meaning where DF is set; groups of one identification are split into counted ones.
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        return (packet[9..10].iter().chain(&packet[12..24]).copied().collect(), packet);
    }
    (packet[6..7].iter().chain(&packet[8..44]).copied().collect(), packet)
}

/// A few flows whose super-packets are cut up, spoilt here and there, shuffled a little and pushed as one batch.
fn batch() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let flow = (testing::sample(4000), 50usize..700, 0u8..3, 0u8..3, any::<bool>());
    let swaps = prop::collection::vec((any::<prop::sample::Index>(), 0usize..4), 0..12);
    (prop::collection::vec(flow, 1..12), swaps).prop_map(|(flows, swaps)| {
        let mut packets: Vec<_> = flows
            .into_iter()
            .flat_map(|(sample, mss, source, port, fixed)| {
                let sample = Sample { source, source_port: port.into(), ..sample };
                let mut parts = sample.split(mss);
                if fixed && sample.dont_fragment {
                    for part in &mut parts {
                        part.id = sample.id;
                    }
                }
                parts.into_iter().map(|part| part.build())
            })
            .collect();
        for (index, distance) in swaps {
            let at = index.index(packets.len());
            let other = (at + distance).min(packets.len() - 1);
            packets.swap(at, other);
        }
        packets
    })
}

proptest! {
    /// Super-packet, segments, super-packet: the same bytes and the same virtio header.
    #[test]
    fn coalescing_undoes_segmentation(sample in testing::sample(65_000), mss in 30usize..9000) {
        let segments = sample.payload.len().div_ceil(mss);
        prop_assume!((2..=MAX_SEGMENTS).contains(&segments));
        let packet = sample.build_partial();
        let mut buffer = packet.clone();
        buffer.resize(packet.len() + PADDING, 0);
        let mut packets = Vec::new();
        segment(sample.vnet(mss), &mut buffer, packet.len(), 1, |segment| packets.push(segment.to_vec())).unwrap();
        let writes = coalesce(BOTH, &packets);
        prop_assert_eq!(writes, [Write { vnet: sample.vnet(mss), packet, slices: segments + 1 }]);
    }

    /// Whatever was gathered, taken apart again it is what was pushed: every byte, and the order within each flow.
    #[test]
    fn nothing_is_lost_or_overtaken(packets in batch()) {
        let writes = coalesce(BOTH, &packets);
        let mut before: Vec<_> = packets.iter().map(|packet| essence(packet)).collect();
        let mut after: Vec<_> = writes.iter().flat_map(split).map(|packet| essence(&packet)).collect();
        // Stable: within a flow the order stays.
        before.sort_by(|a, b| a.0.cmp(&b.0));
        after.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(before, after);
        prop_assert!(writes.iter().all(|write| write.packet.len() <= MAX_PACKET && write.slices <= MAX_SLICES));
    }

    #[test]
    fn garbage_passes_as_it_is(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..90), 0..20),
        first in prop::sample::select(vec![0x45u8, 0x60, 0x46, 0x00]),
    ) {
        let mut packets = packets;
        for packet in &mut packets {
            packet[0] = first;
        }
        prop_assert_eq!(coalesce(BOTH, &packets), alone(&packets));
    }

    #[test]
    fn truncated_packets_and_false_ranges_do_not_panic(
        sample in testing::sample(300),
        ranges in prop::collection::vec((0usize..400, 0usize..400), 0..20),
        shorter in 0usize..400,
    ) {
        let mut arena = sample.build();
        let mut coalescer = Coalescer::new(BOTH);
        for (start, end) in ranges {
            coalescer.push(&arena, start..end);
        }
        for end in 0..=arena.len() {
            coalescer.push(&arena, 0..end);
        }
        arena.truncate(shorter);
        coalescer.flush(&mut arena, |slices| assert!(slices.len() >= 2));
        prop_assert!(coalescer.is_empty());
    }
}

/// Not even what is longer than any IP packet.
#[test]
fn lengths_beyond_ip_pass_as_they_are() {
    for len in [1, 19, 20, 39, 40, 65_535, 65_536, 70_000] {
        for first in [0x45, 0x60] {
            let mut packet = vec![0; len];
            packet[0] = first;
            assert_eq!(coalesce(BOTH, &[packet.clone(), packet.clone()]), alone(&[packet.clone(), packet]));
        }
    }
}
