use super::*;

fn bind() -> Udp {
    without("")
}

fn without(words: &str) -> Udp {
    Udp::bind(0, 1, words.parse().unwrap()).unwrap().remove(0)
}

fn receive(udp: &Udp, want: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut buffer = vec![0; 1 << 16];
    let mut got = Vec::new();
    while got.len() < want {
        let datagrams = udp.recv(&mut buffer).unwrap();
        got.extend(datagrams.iter().map(|datagram| (datagrams.path.remote, datagram.to_vec())));
    }
    got
}

#[test]
fn control_messages_fit() {
    // SAFETY: CMSG_SPACE only computes.
    let need = unsafe { libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as _) + 2 * libc::CMSG_SPACE(4) };
    assert!(need as usize <= CONTROL);
}

#[test]
fn runs_arrive_whole_over_both_families_and_from_the_address_asked_for() {
    let (a, b) = (bind(), bind());
    let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let path = Path { remote: (ip, b.port()).into(), local: Some(ip) };
        a.send(&Run { path, traffic_class: 0, slices: &[IoSlice::new(&bytes)], segment: 300 });
        let got = receive(&b, 4);
        assert_eq!(got.iter().map(|(_, datagram)| datagram.len()).collect::<Vec<_>>(), [300, 300, 300, 100]);
        assert!(got.iter().all(|(from, _)| *from == SocketAddr::from((ip, a.port()))));
        assert_eq!(got.into_iter().flat_map(|(_, datagram)| datagram).collect::<Vec<_>>(), bytes);
    }
}

#[test]
fn traffic_classes_cross_over_both_families() {
    let (a, b) = (bind(), bind());
    let mut buffer = vec![0; 1 << 16];
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let path = Path { remote: (ip, b.port()).into(), local: Some(ip) };
        for traffic_class in [0, 2, 3, 0x88] {
            for bytes in [&[7; 100][..], &[7; 250]] {
                a.send(&Run { path, traffic_class, slices: &[IoSlice::new(bytes)], segment: 100 });
                let mut len = 0;
                while len < bytes.len() {
                    let datagrams = b.recv(&mut buffer).unwrap();
                    assert_eq!(datagrams.traffic_class, traffic_class, "{ip}");
                    len += datagrams.bytes.len();
                }
            }
        }
    }
}

#[test]
fn a_vanished_source_address_does_not_keep_a_datagram_back() {
    let (a, b) = (bind(), bind());
    let path = Path { remote: (Ipv4Addr::LOCALHOST, b.port()).into(), local: Some([192, 0, 2, 77].into()) };
    a.send(&Run { path, traffic_class: 0, slices: &[IoSlice::new(b"still here")], segment: 10 });
    assert_eq!(receive(&b, 1)[0].1, b"still here");
}

#[test]
fn without_segmentation_offload_the_same_datagrams_arrive() {
    let given_up = bind();
    given_up.give_up_gso("the test says so");
    for a in [given_up, without("udp-gso")] {
        let b = bind();
        let path = Path { remote: (Ipv4Addr::LOCALHOST, b.port()).into(), local: None };
        a.send(&Run { path, traffic_class: 0, slices: &[IoSlice::new(&[7; 250])], segment: 100 });
        assert_eq!(receive(&b, 3).iter().map(|(_, datagram)| datagram.len()).collect::<Vec<_>>(), [100, 100, 50]);
    }
}

#[test]
fn without_receive_offload_they_arrive_one_by_one() {
    let (a, b) = (bind(), without("udp-gro"));
    let path = Path { remote: (Ipv4Addr::LOCALHOST, b.port()).into(), local: None };
    a.send(&Run { path, traffic_class: 0, slices: &[IoSlice::new(&[7; 250])], segment: 100 });
    let mut buffer = [0; 1000];
    assert_eq!([(); 3].map(|()| b.recv(&mut buffer).unwrap().bytes.len()), [100, 100, 50]);
}

#[test]
fn what_does_not_arrive_is_counted() {
    let (a, b) = (bind(), bind());
    let path = Path { remote: (Ipv4Addr::LOCALHOST, b.port()).into(), local: None };
    for _ in 0..1000 {
        a.send(&Run { path, traffic_class: 0, slices: &[IoSlice::new(&vec![7; 60_000])], segment: 1000 });
    }
    assert!(b.overflowed() > 0);
    let path = Path { remote: (Ipv4Addr::BROADCAST, b.port()).into(), local: None };
    a.send(&Run { path, traffic_class: 0, slices: &[IoSlice::new(&[7; 250])], segment: 100 });
    assert_eq!(a.unsent(), 3, "SO_BROADCAST is not set");
}

#[test]
fn segmentation_offload_passes_its_self_check_here() {
    assert!(segmentation_works());
}
