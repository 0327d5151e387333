use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use ring::aead::{AES_256_GCM, UnboundKey};

use super::super::keys::cipher;
use super::*;

const INDEX_HERE: u32 = INDEX | 0x0012_3456;
const LIFE: Duration = Duration::from_secs(180);

/// The two ends of one direction.
fn ends(key: u8, now: Instant) -> (Sealer, Opener) {
    let (sealer, opener) = (cipher(&[key; 32]), cipher(&[key; 32]));
    (Sealer::new(sealer, INDEX_HERE, now + LIFE), Opener::new(opener, INDEX_HERE, now + LIFE))
}

fn seal(sealer: &Sealer, packet: &[u8]) -> Vec<u8> {
    let mut message = vec![0xaa; packet.len() + OVERHEAD];
    assert_eq!(sealer.seal(packet, &mut message), Some(message.len()));
    message
}

fn open(opener: &Opener, message: &[u8], now: Instant) -> Result<Vec<u8>, Refused> {
    let mut to = vec![0; message.len()];
    opener.open(message, &mut to, now).map(|len| to[..len].to_vec())
}

#[test]
fn a_message_is_what_the_specification_says() {
    let (sealer, _) = ends(7, Instant::now());
    assert_eq!(seal(&sealer, b"")[..], seal(&ends(7, Instant::now()).0, b"")[..]);
    let message = seal(&sealer, b"sixteen bytes...");
    assert_eq!(message[..16], [4, 0, 0, 0, 0x56, 0x34, 0x12, 0x80, 1, 0, 0, 0, 0, 0, 0, 0]);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
    let (header, mut body) = (&message[..16], message[16..].to_vec());
    let nonce = Nonce::assume_unique_for_key([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(key.open_in_place(nonce, Aad::from(header), &mut body).unwrap(), b"sixteen bytes...");
}

#[test]
fn threads_that_share_both_ends_seal_no_counter_twice_and_open_no_message_twice() {
    const THREADS: usize = 4;
    const EACH: usize = 2000;
    let now = Instant::now();
    let (sealer, opener) = ends(7, now);
    let seal_some = |thread: usize| (0..EACH).map(|n| seal(&sealer, &(thread * EACH + n).to_le_bytes())).collect();
    let messages: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || -> Vec<_> { seal_some(thread) })).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let counters: HashSet<&[u8]> = messages.iter().map(|message| &message[8..16]).collect();
    assert_eq!(counters.len(), THREADS * EACH);

    // Every thread has every message, and starts elsewhere; the whole is less than a window.
    assert!(messages.len() as u64 <= Window::<512>::SIZE);
    let open_all = |thread: usize| -> Vec<Vec<u8>> {
        let order = messages.iter().cycle().skip(thread * EACH).take(messages.len());
        order.filter_map(|message| open(&opener, message, now).ok()).collect()
    };
    let packets: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || open_all(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(packets.len(), messages.len());
    assert_eq!(packets.iter().collect::<HashSet<_>>().len(), messages.len());
}

#[test]
fn whatever_bit_is_flipped_it_does_not_open_and_the_message_still_does() {
    let now = Instant::now();
    let (sealer, opener) = ends(7, now);
    let message = seal(&sealer, &[0x45; 64]);
    for bit in 0..message.len() * 8 {
        let mut altered = message.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&opener, &altered, now).is_err(), "bit {bit}");
    }
    for len in 0..message.len() {
        assert!(open(&opener, &message[..len], now).is_err(), "{len} bytes");
    }
    for more in 1..40 {
        let longer = [&message[..], &[0; 40][..more]].concat();
        assert_eq!(open(&opener, &longer, now), Err(Refused::Forged), "{more} bytes more");
    }
    assert_eq!(open(&opener, &message, now), Ok(vec![0x45; 64]));
    assert_eq!(open(&opener, &message, now), Err(Refused::Replayed));
}

#[test]
fn what_is_sent_back_or_under_other_keys_does_not_open() {
    let now = Instant::now();
    let (to_there, _) = ends(7, now);
    let (_, from_there) = ends(8, now);
    assert_eq!(open(&from_there, &seal(&to_there, b"back"), now), Err(Refused::Forged));
    let elsewhere = Opener::new(cipher(&[7; 32]), INDEX_HERE ^ 1, now + LIFE);
    assert_eq!(open(&elsewhere, &seal(&to_there, b""), now), Err(Refused::Malformed));
}

#[test]
fn a_forged_counter_does_not_move_the_window() {
    let now = Instant::now();
    let (sealer, opener) = ends(7, now);
    let first = seal(&sealer, b"first");
    let mut ahead = seal(&sealer, b"second");
    ahead[8..16].copy_from_slice(&(super::super::counter::LIMIT - 1).to_le_bytes());
    assert_eq!(open(&opener, &ahead, now), Err(Refused::Forged));
    ahead[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(open(&opener, &ahead, now), Err(Refused::Replayed));
    assert_eq!(open(&opener, &first, now), Ok(b"first".to_vec()));
}

#[test]
fn keys_end_on_the_dot() {
    let now = Instant::now();
    let (sealer, opener) = ends(7, now);
    let message = seal(&sealer, b"late");
    let end = now + LIFE;
    let before = end.checked_sub(Duration::from_nanos(1)).unwrap();
    assert!(sealer.is_fresh(before) && !sealer.is_fresh(end) && opener.is_fresh(before) && !opener.is_fresh(end));
    assert_eq!(open(&opener, &message, end), Err(Refused::Expired));
    assert!(open(&opener, &message, before).is_ok());
}

#[test]
fn a_key_wears_out() {
    let now = Instant::now();
    let (sealer, _) = ends(7, now);
    for (bytes, worn, fresh) in [
        (REKEY_AFTER_BYTES - 1, false, true),
        (1, true, true),
        (REJECT_AFTER_BYTES - REKEY_AFTER_BYTES - 1, true, true),
        (1, true, false),
    ] {
        sealer.wear(bytes);
        assert_eq!((sealer.is_worn(), sealer.is_fresh(now)), (worn, fresh));
    }
}

#[test]
fn doubt_takes_32_failures_in_a_row() {
    let now = Instant::now();
    let (sealer, opener) = ends(7, now);
    let forge = |times: u32| {
        for _ in 0..times {
            let mut message = seal(&sealer, b"x");
            message[20] ^= 1;
            assert_eq!(open(&opener, &message, now), Err(Refused::Forged));
        }
    };
    forge(31);
    assert!(!opener.is_doubtful() && open(&opener, &seal(&sealer, b"good"), now).is_ok());
    forge(31);
    assert!(!opener.is_doubtful());
    forge(1);
    assert!(opener.is_doubtful());
}

proptest! {
    #[test]
    fn packets_of_every_length_come_out_as_they_went_in(packet in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let now = Instant::now();
        let (sealer, opener) = ends(9, now);
        prop_assert_eq!(open(&opener, &seal(&sealer, &packet), now), Ok(packet));
    }

    #[test]
    fn garbage_never_opens(message in proptest::collection::vec(any::<u8>(), 0..200), header in any::<bool>()) {
        let now = Instant::now();
        let (_, opener) = ends(9, now);
        let mut message = message;
        if header && message.len() >= HEADER {
            message[..HEADER].copy_from_slice(&write_header(INDEX_HERE, 5));
        }
        prop_assert!(open(&opener, &message, now).is_err());
    }
}
