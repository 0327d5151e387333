use proptest::prelude::*;

use super::*;
use crate::packet::testing::{self, Sample, payload};

/// Bytes that follow the packet in the buffer, which must survive.
const GUARD: u8 = 0xee;

/// Segments `packet`, checks everything about padding and the guard, and returns the segments without their padding.
fn run(vnet: VnetHeader, packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, SegmentError> {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + PADDING, GUARD);
    let mut segments = Vec::new();
    segment(vnet, &mut buffer, packet.len(), mtu, |padded| {
        let len = match padded[0] >> 4 {
            4 => usize::from(read_u16(padded, 2)),
            6 => IPV6_HEADER + usize::from(read_u16(padded, 4)),
            _ => padded.len(),
        };
        assert_eq!(padded.len(), len + padding(len, mtu));
        assert!(padded[len..].iter().all(|&byte| byte == 0), "padding is zero");
        segments.push(padded[..len].to_vec());
    })?;
    assert!(buffer[packet.len()..].iter().all(|&byte| byte == GUARD), "what follows the packet is as before");
    Ok(segments)
}

fn expected(sample: &Sample, mss: usize) -> Vec<Vec<u8>> {
    sample.split(mss).iter().map(Sample::build).collect()
}

#[test]
fn padding_is_that_of_the_kernel() {
    let table = [
        // length, MTU, padding
        (0, 1420, 0),
        (1, 1420, 15),
        (16, 1420, 0),
        (60, 1420, 4),
        (1409, 1420, 11),
        (1420, 1420, 0),
        (1421, 1420, 15),
        (2840, 1420, 0),
        (1421, 0, 3),
        (5, 3, 1),
    ];
    for (len, mtu, wanted) in table {
        assert_eq!(padding(len, mtu), wanted, "{len} bytes at an MTU of {mtu}");
    }
}

#[test]
fn zero_sum_of_udp_is_sent_as_all_ones() {
    let mut sample = Sample::udp(vec![0; 4]);
    // The two bytes that bring the sum to all ones are the checksum without them.
    let bare = sample.build();
    let missing = [bare[26], bare[27]];
    sample.payload[..2].copy_from_slice(&missing);
    sample.payload.extend_from_slice(&[9, 9, 9, 9]);
    let segments = run(sample.vnet(4), &sample.build_partial(), 1420).unwrap();
    assert_eq!(segments, expected(&sample, 4));
    assert_eq!(segments[0][26..28], [0xff, 0xff]);
}

#[test]
fn sequence_and_identification_wrap() {
    let mut sample = Sample::tcp(payload(3000, 1));
    sample.id = u16::MAX;
    sample.tcp_mut().sequence = u32::MAX - 999;
    let segments = run(sample.vnet(1000), &sample.build_partial(), 1420).unwrap();
    assert_eq!(segments, expected(&sample, 1000));
    assert_eq!((read_u16(&segments[1], 4), read_u32(&segments[1], 24)), (0, 0));
}

#[test]
fn the_longest_packet_is_split() {
    let mut sample = Sample::tcp(vec![]);
    sample.payload = payload(MAX_PACKET - sample.header(), 5);
    let segments = run(sample.vnet(1348), &sample.build_partial(), 1400).unwrap();
    assert_eq!(segments.len(), 49);
    assert_eq!(segments, expected(&sample, 1348));
}

#[test]
fn segments_shorter_than_their_headers() {
    for mss in [1, 2, 15, 51, 52, 53] {
        let sample = Sample::tcp(payload(301, 2));
        assert_eq!(run(sample.vnet(mss), &sample.build_partial(), 1420).unwrap(), expected(&sample, mss), "{mss}");
    }
}

/// "Too small packets are not really GSO ones" (`include/linux/virtio_net.h`).
#[test]
fn super_packet_of_one_segment() {
    let sample = Sample::tcp(payload(100, 2));
    for mss in [100, 1000, 65_535] {
        assert_eq!(run(sample.vnet(mss), &sample.build_partial(), 1420).unwrap(), [sample.build()]);
    }
    let empty = Sample::tcp(vec![]);
    assert_eq!(run(empty.vnet(10), &empty.build_partial(), 1420).unwrap(), [empty.build()]);
}

/// The pseudo-header has the last address of a routing header, which only the partial checksum knows.
#[test]
fn pseudo_header_is_the_kernels() {
    let sample = Sample { ipv6: true, extension: 8, ..Sample::udp(payload(40, 3)) };
    let elsewhere = Sample { destination: 99, ..sample.clone() };
    let mut packet = elsewhere.build_partial();
    packet[39] = sample.destination;
    let segments = run(sample.vnet(20), &packet, 1420).unwrap();
    for (got, wanted) in segments.iter().zip(expected(&elsewhere, 20)) {
        assert_eq!(got[54..56], wanted[54..56]);
    }
}

#[test]
fn other_packets_pass_untouched() {
    let fragment = Sample { more_fragments: true, dont_fragment: false, ..Sample::udp(payload(64, 4)) };
    let later = Sample { fragment_offset: 9, dont_fragment: false, ..Sample::udp(payload(64, 4)) };
    let options = Sample { extension: 8, ..Sample::tcp(payload(64, 4)) };
    for sample in [fragment, later, options, Sample::tcp(vec![])] {
        assert_eq!(run(VnetHeader::default(), &sample.build(), 1420).unwrap(), [sample.build()]);
    }
    let garbage = vec![0xff; 33];
    assert_eq!(run(VnetHeader::default(), &garbage, 1420).unwrap()[0][..33], garbage);
}

#[test]
fn malformed_packets_are_errors() {
    type Change = fn(&mut VnetHeader, &mut Vec<u8>);
    type Matches = fn(&SegmentError) -> bool;
    let table: [(&str, Change, Matches); 17] = [
        ("empty", |_, p| p.clear(), |e| *e == SegmentError::Empty),
        ("too long", |_, p| p.resize(65_536, 0), |e| *e == SegmentError::TooLong(65_536)),
        ("UFO", |v, _| v.gso_type = 3, |e| *e == SegmentError::UnknownKind(3)),
        ("unknown", |v, _| v.gso_type = 0x7f, |e| *e == SegmentError::UnknownKind(0x7f)),
        ("size 0", |v, _| v.gso_size = 0, |e| *e == SegmentError::NoSegmentSize),
        ("no checksum", |v, _| v.flags = 0, |e| *e == SegmentError::NoChecksum),
        ("start beyond", |v, _| v.csum_start = 60_000, |e| matches!(e, SegmentError::Checksum { .. })),
        ("transport cut", |_, p| p.truncate(39), |e| matches!(e, SegmentError::Checksum { .. })),
        ("offset of UDP", |v, _| v.csum_offset = 6, |e| matches!(e, SegmentError::Checksum { .. })),
        ("start within IP", |v, _| v.csum_start = 16, |e| matches!(e, SegmentError::Mismatch(_))),
        ("TCP as UDP", |v, _| (v.gso_type, v.csum_offset) = (5, 6), |e| matches!(e, SegmentError::Mismatch(5))),
        ("IPv4 as IPv6", |v, _| v.gso_type = GSO_TCPV6, |e| matches!(e, SegmentError::Mismatch(_))),
        ("version 5", |_, p| p[0] = 0x55, |e| matches!(e, SegmentError::Mismatch(_))),
        ("fragment", |_, p| p[6] = 0x20, |e| matches!(e, SegmentError::Mismatch(_))),
        ("data offset 4", |_, p| p[32] = 0x40, |e| matches!(e, SegmentError::Header { .. })),
        ("options cut", |_, p| p.truncate(51), |e| matches!(e, SegmentError::Header { header: 52, len: 51 })),
        (
            "plain, checksum beyond",
            |v, _| (v.gso_type, v.csum_offset) = (GSO_NONE, 65_535),
            |e| matches!(e, SegmentError::Checksum { .. }),
        ),
    ];
    for (name, change, matches) in table {
        let sample = Sample::tcp(payload(100, 0));
        let (mut vnet, mut packet) = (sample.vnet(10), sample.build_partial());
        change(&mut vnet, &mut packet);
        match run(vnet, &packet, 1420) {
            Err(error) => assert!(matches(&error), "{name}: {error}"),
            Ok(segments) => panic!("{name}: {} segments", segments.len()),
        }
    }

    let sample = Sample { ipv6: true, extension: 488, ..Sample::tcp(payload(100, 0)) };
    let error = run(sample.vnet(10), &sample.build_partial(), 1420).unwrap_err();
    assert!(matches!(error, SegmentError::Header { .. }), "{error}");

    let mut short = vec![0; 40 + PADDING - 1];
    let error = segment(VnetHeader::default(), &mut short, 40, 0, |_| panic!("handed on")).unwrap_err();
    assert_eq!(error, SegmentError::NoRoom { buffer: 55, len: 40 });
}

fn garbage_header() -> impl Strategy<Value = VnetHeader> {
    let gso_type = prop::sample::select(vec![GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | GSO_ECN, 3, 0xff]);
    let offset = prop_oneof![Just(6u16), Just(16u16), any::<u16>()];
    let start = prop_oneof![Just(20u16), Just(40u16), 0..100u16, any::<u16>()];
    let size = prop_oneof![100..2000u16, any::<u16>()];
    (0..3u8, gso_type, any::<u16>(), size, start, offset).prop_map(
        |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| VnetHeader {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        },
    )
}

proptest! {
    /// Byte by byte what etherparse makes of each part, checksums included.
    #[test]
    fn super_packets_are_split(
        sample in testing::sample(65_000),
        extension in prop_oneof![Just(0usize), Just(8), Just(24)],
        mss in prop_oneof![1200usize..1500, 30usize..9000],
        mtu in prop_oneof![Just(0usize), Just(1420), 1280usize..1500],
    ) {
        let sample = Sample { extension, ..sample };
        prop_assert_eq!(run(sample.vnet(mss), &sample.build_partial(), mtu).unwrap(), expected(&sample, mss));
    }

    /// The hint may say anything.
    #[test]
    fn header_length_is_not_trusted(sample in testing::sample(5000), hdr_len: u16) {
        let vnet = VnetHeader { hdr_len, ..sample.vnet(1000) };
        prop_assert_eq!(run(vnet, &sample.build_partial(), 1420).unwrap(), expected(&sample, 1000));
    }

    #[test]
    fn checksums_of_plain_packets_are_completed(sample in testing::sample(1400), extension in 0usize..2) {
        let sample = Sample { extension: extension * 8, ..sample };
        let mut wanted = sample.build();
        let at = sample.transport() + usize::from(sample.vnet_plain().csum_offset);
        if wanted[at..at + 2] == [0, 0] {
            // Which is as good for TCP, and is what the kernel writes.
            wanted[at..at + 2].copy_from_slice(&[0xff, 0xff]);
        }
        prop_assert_eq!(run(sample.vnet_plain(), &sample.build_partial(), 1420).unwrap(), [wanted]);
    }

    #[test]
    fn truncated_super_packets_do_not_panic(sample in testing::sample(3000), cut in 0usize..3100, mss in 1usize..2000) {
        let packet = sample.build_partial();
        let cut = cut.min(packet.len());
        if let Ok(segments) = run(sample.vnet(mss), &packet[..cut], 1420) {
            prop_assert!(cut >= sample.header());
            prop_assert_eq!(segments.len(), (cut - sample.header()).div_ceil(mss).max(1));
        }
    }

    #[test]
    fn garbage_does_not_panic(
        vnet in garbage_header(),
        first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        seed in prop::collection::vec(any::<u8>(), 1..120),
        len in prop_oneof![0usize..200, 0usize..70_000],
        room in 0usize..40,
        mtu in prop_oneof![0usize..70_000, Just(0)],
    ) {
        let mut buffer: Vec<u8> = seed.iter().copied().cycle().take(len + room).collect();
        if let Some(byte) = buffer.first_mut() {
            *byte = first;
        }
        let mut handed_on = 0;
        let result = segment(vnet, &mut buffer, len, mtu, |segment| {
            assert!(!segment.is_empty());
            handed_on += 1;
        });
        prop_assert_eq!(result.is_ok(), handed_on > 0);
    }
}
