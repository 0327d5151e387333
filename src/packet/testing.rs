//! Packets for the tests, built and summed by another implementation (etherparse) than the one under test.

use etherparse::{
    IpFragOffset, IpHeaders, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, TcpHeader, ip_number,
};
use proptest::prelude::*;

use super::virtio::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};

/// One packet, or one super-packet before it is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub ipv6: bool,
    /// Bytes of a hop-by-hop header (IPv6) or of IPv4 options; 0 for none.
    pub extension: usize,
    pub source: u8,
    pub destination: u8,
    pub source_port: u16,
    pub destination_port: u16,
    pub traffic_class: u8,
    pub ttl: u8,
    pub flow_label: u32,
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    pub fragment_offset: u16,
    /// UDP without.
    pub tcp: Option<Tcp>,
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    pub sequence: u32,
    pub acknowledgment: u32,
    pub window: u16,
    /// As in the header: FIN is 1.
    pub flags: u8,
    pub options: Vec<u8>,
}

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// NOP, NOP, timestamps.
pub fn timestamps(value: u8) -> Vec<u8> {
    vec![1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 9]
}

impl Sample {
    pub fn udp(payload: Vec<u8>) -> Self {
        Self {
            ipv6: false,
            extension: 0,
            source: 1,
            destination: 2,
            source_port: 40_000,
            destination_port: 443,
            traffic_class: 0,
            ttl: 64,
            flow_label: 0,
            id: 7,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            tcp: None,
            payload,
        }
    }

    pub fn tcp(payload: Vec<u8>) -> Self {
        let tcp = Tcp { sequence: 1_000, acknowledgment: 5, window: 502, flags: ACK, options: timestamps(1) };
        Self { tcp: Some(tcp), ..Self::udp(payload) }
    }

    pub fn tcp_mut(&mut self) -> &mut Tcp {
        self.tcp.as_mut().expect("a TCP sample")
    }

    fn ip(&self) -> IpHeaders {
        if self.ipv6 {
            let hop_by_hop = (self.extension > 0).then(|| {
                // One PadN option (RFC 8200, 4.2).
                let mut options = vec![0; self.extension - 2];
                options[..2].copy_from_slice(&[1, (self.extension - 4) as u8]);
                Ipv6RawExtHeader::new_raw(ip_number::TCP, &options).unwrap()
            });
            let header = Ipv6Header {
                traffic_class: self.traffic_class,
                flow_label: Ipv6FlowLabel::try_new(self.flow_label).unwrap(),
                hop_limit: self.ttl,
                source: [0xfd, 0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.source],
                destination: [0xfd, 0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, self.destination],
                ..Default::default()
            };
            return IpHeaders::Ipv6(header, Ipv6Extensions { hop_by_hop_options: hop_by_hop, ..Default::default() });
        }
        let mut options = Ipv4Options::new();
        if self.extension > 0 {
            options = Ipv4Options::try_from(vec![1; self.extension].as_slice()).unwrap();
        }
        let header = Ipv4Header {
            dscp: (self.traffic_class >> 2).try_into().unwrap(),
            ecn: (self.traffic_class & 3).try_into().unwrap(),
            identification: self.id,
            dont_fragment: self.dont_fragment,
            more_fragments: self.more_fragments,
            fragment_offset: IpFragOffset::try_new(self.fragment_offset).unwrap(),
            time_to_live: self.ttl,
            source: [10, 89, 1, self.source],
            destination: [10, 89, 2, self.destination],
            options,
            ..Default::default()
        };
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    }

    fn tcp_header(&self, tcp: &Tcp) -> TcpHeader {
        let mut header = TcpHeader::new(self.source_port, self.destination_port, tcp.sequence, tcp.window);
        header.acknowledgment_number = tcp.acknowledgment;
        let flag = |flag: u8| tcp.flags & flag != 0;
        header.fin = flag(FIN);
        header.syn = flag(SYN);
        header.rst = flag(RST);
        header.psh = flag(PSH);
        header.ack = flag(ACK);
        header.urg = flag(URG);
        header.ece = flag(ECE);
        header.cwr = flag(CWR);
        header.set_options_raw(&tcp.options).unwrap();
        header
    }

    /// The packet with every length and checksum right.
    pub fn build(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let step = PacketBuilder::ip(self.ip());
        match &self.tcp {
            Some(tcp) => step.tcp_header(self.tcp_header(tcp)).write_to_vec(&mut packet, &self.payload).unwrap(),
            None => {
                step.udp(self.source_port, self.destination_port).write_to_vec(&mut packet, &self.payload).unwrap();
            }
        }
        packet
    }

    /// Bytes before the transport header.
    pub fn transport(&self) -> usize {
        if self.ipv6 { 40 + self.extension } else { 20 + self.extension.next_multiple_of(4) }
    }

    pub fn header(&self) -> usize {
        self.transport() + self.tcp.as_ref().map_or(8, |tcp| 20 + tcp.options.len())
    }

    fn checksum_offset(&self) -> usize {
        if self.tcp.is_some() { 16 } else { 6 }
    }

    /// The packet as the kernel hands it to a TUN device: with a partial checksum.
    pub fn build_partial(&self) -> Vec<u8> {
        let mut packet = self.build();
        let transport = self.transport();
        let addresses = if self.ipv6 { 8..40 } else { 12..20 };
        let protocol: u32 = if self.tcp.is_some() { 6 } else { 17 };
        let mut sum = protocol + (packet.len() - transport) as u32;
        for pair in packet[addresses].chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair[1]);
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let at = transport + self.checksum_offset();
        packet[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        packet
    }

    /// The virtio header of the whole as one packet.
    pub fn vnet_plain(&self) -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CSUM,
            csum_start: self.transport() as u16,
            csum_offset: self.checksum_offset() as u16,
            ..Default::default()
        }
    }

    /// The virtio header of the whole as a super-packet.
    pub fn vnet(&self, mss: usize) -> VnetHeader {
        let gso_type = match &self.tcp {
            None => GSO_UDP_L4,
            Some(tcp) => {
                let ecn = if tcp.flags & CWR == 0 { 0 } else { GSO_ECN };
                ecn | if self.ipv6 { GSO_TCPV6 } else { GSO_TCPV4 }
            }
        };
        VnetHeader { gso_type, gso_size: mss as u16, hdr_len: self.header() as u16, ..self.vnet_plain() }
    }

    /// What the network should see of the super-packet.
    pub fn split(&self, mss: usize) -> Vec<Self> {
        let count = self.payload.len().div_ceil(mss);
        let chunks = self.payload.chunks(mss).enumerate();
        chunks
            .map(|(index, chunk)| {
                let mut segment = Self { payload: chunk.to_vec(), ..self.clone() };
                segment.id = self.id.wrapping_add(index as u16);
                if let Some(tcp) = &mut segment.tcp {
                    tcp.sequence = tcp.sequence.wrapping_add((index * mss) as u32);
                    if index > 0 {
                        tcp.flags &= !CWR;
                    }
                    if index + 1 < count {
                        tcp.flags &= !(FIN | PSH);
                    }
                }
                segment
            })
            .collect()
    }
}

pub fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) as u8) ^ seed ^ (i >> 8) as u8).collect()
}

/// TCP or UDP, either family, with a payload of up to `longest` bytes. No extension, no fragment.
pub fn sample(longest: usize) -> impl Strategy<Value = Sample> {
    let network = (any::<bool>(), any::<u8>(), 1u8.., 0u32..1 << 20, any::<u16>(), any::<bool>());
    let flags = prop::sample::subsequence(vec![FIN, PSH, ECE, CWR], 0..=4);
    let options = prop::sample::select(vec![vec![], timestamps(3), vec![1; 4], vec![1; 40]]);
    let tcp = (any::<u32>(), any::<u32>(), any::<u16>(), flags, options).prop_map(
        |(sequence, acknowledgment, window, flags, options)| {
            let flags = flags.into_iter().fold(ACK, |all, flag| all | flag);
            Tcp { sequence, acknowledgment, window, flags, options }
        },
    );
    let longest = prop_oneof![4 => 1..=longest.min(9_000), 1 => 1..=longest];
    (network, prop::option::weighted(0.6, tcp), longest, any::<u8>()).prop_map(|(network, tcp, len, seed)| {
        let (ipv6, traffic_class, ttl, flow_label, id, dont_fragment) = network;
        let id = if ipv6 { 0 } else { id };
        Sample { ipv6, traffic_class, ttl, flow_label, id, dont_fragment, tcp, ..Sample::udp(payload(len, seed)) }
    })
}
