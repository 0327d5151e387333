//! What the kernel believes a path carries.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket};

/// Lets the kernel take the path from our UDP socket at `from` to `to` for one of `mtu` bytes, as if a router had said so:
/// by an ICMPv6 packet-too-big message (RFC 4443, section 3.2) over loopback. The kernel forgets after ten minutes
/// (net.ipv6.route.mtu_expires), or when routes change.
///
/// The socket option for it, `IPV6_MTU`, does not do: a packet that is longer than that, but not than the route's MTU, leaves
/// whole (`__ip6_finish_output` in net/ipv6/ip6_output.c).
///
/// # Errors
/// Without CAP_NET_RAW.
pub fn too_big(from: SocketAddrV6, to: SocketAddrV6, mtu: u32) -> io::Result<()> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
    let socket = socket(AddressFamily::Inet6, kind, flags, SockProtocol::IcmpV6)?;
    let kernel = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0));
    sendto(socket.as_raw_fd(), &message(from, to, mtu), &kernel, MsgFlags::empty())?;
    Ok(())
}

/// The message without its checksum, which the kernel adds. The packet that it quotes is one of ours, without content.
fn message(from: SocketAddrV6, to: SocketAddrV6, mtu: u32) -> [u8; 56] {
    const PACKET_TOO_BIG: u8 = 2;
    let mut message = [0; 56];
    message[0] = PACKET_TOO_BIG;
    message[4..8].copy_from_slice(&mtu.to_be_bytes());
    let (ip, udp) = message[8..].split_at_mut(40);
    ip[0] = 0x60;
    ip[4..8].copy_from_slice(&[0, 8, crate::packet::UDP, 64]);
    ip[8..24].copy_from_slice(&from.ip().octets());
    ip[24..].copy_from_slice(&to.ip().octets());
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[5] = 8;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_read_what_it_quotes() {
        let (from, to): (SocketAddrV6, SocketAddrV6) =
            ("[2001:db8::1]:51820".parse().unwrap(), "[2001:db8::2]:4500".parse().unwrap());
        let message = message(from, to, 1280);
        let icmp = etherparse::Icmpv6Slice::from_slice(&message).unwrap();
        assert_eq!(icmp.icmp_type(), etherparse::Icmpv6Type::PacketTooBig { mtu: 1280 });
        let quoted = etherparse::SlicedPacket::from_ip(icmp.payload()).unwrap();
        let Some(etherparse::NetSlice::Ipv6(ip)) = &quoted.net else { panic!("{quoted:?}") };
        assert_eq!((ip.header().source_addr(), ip.header().destination_addr()), (*from.ip(), *to.ip()));
        let Some(etherparse::TransportSlice::Udp(udp)) = &quoted.transport else { panic!("{quoted:?}") };
        assert_eq!((udp.source_port(), udp.destination_port()), (from.port(), to.port()));
    }
}
