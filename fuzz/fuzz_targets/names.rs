//! Whatever a container asks, a name server answers, or another agent says of its containers: no panic. The first byte says how
//! many of those after it are the query.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meshd::config::{Config, Files, SourceFile, parse};
use meshd::key::PrivateKey;
use meshd::names::{Heard, Request, Told, Transport, Verdict, Zone, label, read};

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let source = |path: &str, text: String| SourceFile { path: path.into(), text: text.into_bytes() };
    let key = PrivateKey::from_bytes([1; 32]).public_key();
    let host =
        "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n[[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.2.0/24\"]\n";
    let peer =
        format!("public_key = \"{key}\"\naddresses = [\"10.88.0.1\"]\nsubnets = [\"10.89.0.0/23\", \"fd89:1::/62\"]\n");
    parse(&Files {
        host: source("meshd.toml", host.into()),
        private_key: source("private.key", PrivateKey::from_bytes([2; 32]).expose_base64()),
        peers: vec![("vps".into(), source("peers/vps.toml", peer))],
        preshared_keys: BTreeMap::new(),
    })
    .expect("a sound configuration")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&len, rest)) = bytes.split_first() else { return };
    let (query, answer) = rest.split_at(usize::from(len).min(rest.len()));
    let mut heard = Heard::default();
    if let Ok(Request::Tell { serial, part, parts, names }) = serde_json::from_slice(answer) {
        for named in &names {
            let _ = label(&named.0);
        }
        let mut told = Told::default();
        told.set(names.clone(), serial);
        told.parts();
        heard.take(CONFIG.peers[0].public_key, serial, part, parts, names);
    }
    let zone = Zone::new(&CONFIG, &[], &heard, 1);
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Verdict::Forward(forward) = read(&zone, query, transport) {
            forward.failed();
            let mut answer = answer.to_vec();
            if let Some(id) = answer.first_chunk_mut::<2>() {
                *id = [0, 7];
            }
            if forward.is_answered_by(7, &answer) {
                forward.reply(&answer);
            }
        }
    }
});
