//! Whatever a joiner asks and an inviter answers, in any order: no panic, and no more memory than an offer may take.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::enroll::exchange::{Answer, Assembly, Redeem};

fuzz_target!(|bodies: Vec<&[u8]>| {
    let mut assembly = Assembly::default();
    for body in bodies {
        if let Some(redeem) = Redeem::parse(body) {
            assert_eq!(Redeem::parse(&redeem.write()), Some(redeem));
        }
        match Answer::parse(body) {
            Some(Answer::Part(part)) => drop(assembly.take(&part)),
            Some(answer) => assert_eq!(Answer::parse(&answer.write()), Some(answer)),
            None => {}
        }
    }
});
