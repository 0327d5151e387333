//! Writes a file as wg-quick(8) and the stock apps read it.

use std::fmt::Display;

use zeroize::Zeroizing;

use super::{Conf, Interface, Peer};

/// Stands in the place of a private key that is nobody's business here.
const NO_KEY: &str = "# PrivateKey = <the private key goes here>\n";

impl Conf {
    /// The whole file, secrets in it.
    pub fn expose_text(&self) -> Zeroizing<String> {
        self.write(false)
    }

    /// The same without comments and spaces, so that its picture is small.
    pub fn expose_compact(&self) -> Zeroizing<String> {
        self.write(true)
    }

    fn write(&self, compact: bool) -> Zeroizing<String> {
        // Room for all of a usual file: text that moves as it grows leaves copies of its secrets behind.
        let mut writer = Writer { text: Zeroizing::new(String::with_capacity(4096)), compact };
        writer.interface(&self.interface);
        self.peers.iter().for_each(|peer| writer.peer(peer));
        writer.text
    }
}

struct Writer {
    text: Zeroizing<String>,
    compact: bool,
}

impl Writer {
    fn interface(&mut self, interface: &Interface) {
        self.text.push_str("[Interface]\n");
        match &interface.private_key {
            Some(key) => self.line("PrivateKey", Zeroizing::new(key.expose_base64()).as_str()),
            None if self.compact => {}
            None => self.text.push_str(NO_KEY),
        }
        self.list("Address", &interface.addresses);
        let servers = interface.dns.iter().map(ToString::to_string);
        self.list("DNS", &servers.chain(interface.search.iter().cloned()).collect::<Vec<_>>());
        self.option("ListenPort", interface.listen_port);
        self.option("MTU", interface.mtu);
        self.option("Table", interface.table.as_ref());
        self.option("FwMark", interface.fwmark.map(|mark| format!("{mark:#x}")));
        self.option("SaveConfig", interface.save_config.then_some("true"));
        for hook in &interface.hooks {
            self.line(hook.when.key(), &hook.command);
        }
    }

    fn peer(&mut self, peer: &Peer) {
        self.text.push_str(if self.compact { "[Peer]\n" } else { "\n[Peer]\n" });
        if let (Some(name), false) = (&peer.name, self.compact) {
            self.text.push_str("# ");
            self.text.push_str(name);
            self.text.push('\n');
        }
        self.line("PublicKey", &peer.public_key.to_string());
        if let Some(key) = &peer.preshared_key {
            self.line("PresharedKey", Zeroizing::new(key.expose_base64()).as_str());
        }
        self.option("Endpoint", peer.endpoint.as_ref());
        self.list("AllowedIPs", &peer.allowed_ips);
        self.option("PersistentKeepalive", peer.persistent_keepalive);
    }

    fn line(&mut self, key: &str, value: &str) {
        self.text.push_str(key);
        self.text.push_str(if self.compact { "=" } else { " = " });
        self.text.push_str(value);
        self.text.push('\n');
    }

    fn option(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.line(key, &value.to_string());
        }
    }

    fn list(&mut self, key: &str, items: &[impl Display]) {
        let items: Vec<String> = items.iter().map(ToString::to_string).collect();
        self.option(key, (!items.is_empty()).then(|| items.join(if self.compact { "," } else { ", " })));
    }
}
