//! Whatever text is pasted: no panic, and what is read as a token is written as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::enroll::token::{PREFIX, Token};

fuzz_target!(|text: &str| {
    for text in [text.to_owned(), format!("{PREFIX}{text}")] {
        if let Ok(token) = text.parse::<Token>() {
            assert_eq!(token.expose_text().parse::<Token>().as_ref(), Ok(&token));
        }
    }
});
