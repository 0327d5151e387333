//! Whatever another agent says of the mesh: no panic. One roster in two is signed, so that its members are looked at too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::key::{PrivateKey, SigningKey};
use meshd::mesh::Member;
use meshd::mesh::news::{Signed, read_part};

fuzz_target!(|bytes: &[u8]| {
    let _ = Signed::parse(bytes);
    let _ = read_part(bytes);
    if let Ok(members) = serde_json::from_slice::<Vec<Member>>(bytes) {
        let key = PrivateKey::from_bytes([7; 32]);
        let Ok(signed) = Signed::new(&SigningKey::of(&key), key.public_key(), 1, &members) else { return };
        for member in &signed.roster().members {
            let _ = member.peer();
        }
        assert_eq!(Signed::parse(signed.document().as_bytes()).as_ref(), Ok(&signed));
    }
});
