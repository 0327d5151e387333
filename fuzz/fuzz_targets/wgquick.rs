//! Whatever is imported as a file of wg-quick: no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::config::SourceFile;

fuzz_target!(|text: &[u8]| {
    let _ = meshd::wgquick::parse(&SourceFile { path: "wg0.conf".into(), text: text.to_vec() });
});
