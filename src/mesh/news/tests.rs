use proptest::prelude::*;

use super::*;
use crate::key::PrivateKey;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn member(seed: u8) -> Member {
    Member {
        name: format!("host-{seed}"),
        public_key: key(seed).public_key(),
        addresses: vec![[10, 88, 0, seed].into()],
        subnets: vec![format!("10.89.{seed}.0/24").parse().unwrap()],
        lans: Vec::new(),
        endpoint: Some("[2001:db8::1]:51820".into()),
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

fn roster(serial: u64, members: &[Member]) -> Signed {
    Signed::new(&SigningKey::of(&key(1)), key(1).public_key(), serial, members).unwrap()
}

#[test]
fn a_roster_comes_back_as_it_was_signed() {
    let signed = roster(7, &[member(2), member(3)]);
    let read = Signed::parse(signed.document().as_bytes()).unwrap();
    assert_eq!(read, signed);
    let Roster { inviter, inviter_key, serial, members, unreadable } = read.roster().clone();
    assert_eq!((inviter, inviter_key), (key(1).public_key(), SigningKey::of(&key(1)).verifying_key()));
    assert_eq!((serial, members, unreadable), (7, vec![member(2), member(3)], 0));
}

#[test]
fn no_byte_of_it_can_be_changed() {
    let signed = roster(7, &[member(2)]);
    for at in 0..signed.document().len() {
        let mut document = signed.document().as_bytes().to_vec();
        document[at] ^= 1;
        assert!(Signed::parse(&document).is_err(), "byte {at}");
        assert!(Signed::parse(&document[..at]).is_err(), "the first {at} bytes");
    }
}

#[test]
fn a_signature_holds_for_rosters_alone_and_for_the_key_that_is_named() {
    let signed = roster(7, &[]);
    let (_, text) = signed.document().split_once('\n').unwrap();
    for (signer, bytes) in [(1, text.as_bytes().to_vec()), (2, signed_bytes(text))] {
        let signature = STANDARD.encode(SigningKey::of(&key(signer)).sign(&bytes));
        assert_eq!(Signed::parse(format!("{signature}\n{text}").as_bytes()), Err(Invalid::Forged));
    }
}

#[test]
fn one_unreadable_member_does_not_hide_the_others() {
    let signing = SigningKey::of(&key(1));
    let low_order = serde_json::json!({"name": "x", "public_key": STANDARD.encode([0; 32]), "addresses": []});
    let text = serde_json::json!({
        "inviter": key(1).public_key(),
        "inviter_key": signing.verifying_key().to_string(),
        "serial": 1,
        "members": [low_order, member(2), 7],
        "later": "a field of another version",
    })
    .to_string();
    let document = format!("{}\n{text}", STANDARD.encode(signing.sign(&signed_bytes(&text))));
    let signed = Signed::parse(document.as_bytes()).unwrap();
    assert_eq!((&signed.roster().members[..], signed.roster().unreadable), (&[member(2)][..], 2));
}

#[test]
fn too_much_is_refused() {
    let signing = SigningKey::of(&key(1));
    let many = vec![member(2); MAX_MEMBERS + 1];
    assert_eq!(Signed::new(&signing, key(1).public_key(), 1, &many), Err(Invalid::TooLong));
    assert!(Signed::new(&signing, key(1).public_key(), 1, &many[1..]).is_ok(), "so many do fit");
    assert_eq!(Signed::parse(&vec![b'x'; 10 << 20]), Err(Invalid::TooLong));
    assert_eq!(Signed::new(&signing, key(1).public_key(), MAX_SERIAL, &[]), Err(Invalid::Malformed));
}

#[test]
fn serials_never_go_back() {
    assert_eq!(next_serial(None, 1_795_289_215), 1_795_289_215);
    assert_eq!(next_serial(Some(1_795_289_215), 1_795_289_215), 1_795_289_216, "twice in a second");
    assert_eq!(next_serial(Some(1_795_289_215), 0), 1_795_289_216, "the clock was put back");
    assert_eq!(next_serial(Some(5), u64::MAX), MAX_SERIAL - 1);
}

#[test]
fn every_letter_fits() {
    let digests = vec![Digest(key(1).public_key(), MAX_SERIAL - 1); 2 * PAGE];
    let request = Request::Digests { from: usize::from(u16::MAX), mine: page(&digests, 3) };
    assert!(serde_json::to_vec(&request).unwrap().len() <= MAX_BODY);
    let answer = Page { total: usize::from(u16::MAX), digests: page(&digests, 0) };
    assert!(serde_json::to_vec(&answer).unwrap().len() <= MAX_BODY);
    assert_eq!(page(&digests, 2 * PAGE), []);
}

proptest! {
    #[test]
    fn parts_make_the_document_again(count in 0usize..60) {
        let signed = roster(7, &(0..count).map(|seed| member(seed as u8)).collect::<Vec<_>>());
        let mut document = Vec::new();
        for number in 0.. {
            let answer = signed.part(number);
            let Some((count, piece)) = read_part(&answer) else { break };
            prop_assert!(number < count && answer.len() <= MAX_BODY);
            document.extend_from_slice(piece);
        }
        prop_assert_eq!(Signed::parse(&document), Ok(signed));
    }

    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
        prop_assert!(Signed::parse(&bytes).is_err());
        let signature = STANDARD.encode([0; SIGNATURE]);
        let document = format!("{signature}\n{text}");
        prop_assert!(Signed::parse(document.as_bytes()).is_err());
        let _ = read_part(&bytes);
        let _ = serde_json::from_slice::<Request>(&bytes);
        let _ = serde_json::from_slice::<Page>(&bytes);
    }
}
