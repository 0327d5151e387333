//! Home's router: its mappings, timeouts and faults.

use super::netns::Namespace;

/// From now on home's traffic leaves as `source`: an address, or an address and a range of ports.
pub fn rebind(isp: &Namespace, source: &str) {
    // The conntrack entries go with the rule, or the old mapping would live on.
    isp.run(&format!(
        "printf 'flush chain ip nat post\\nadd rule ip nat post oifname \"wan\" meta l4proto udp snat to {source}\\n\
         add rule ip nat post oifname \"wan\" snat to 198.51.100.7\\n' | nft -f - && conntrack -F 2>/dev/null"
    ));
}

/// Forgets an idle UDP mapping after two seconds.
pub fn forget_soon(isp: &Namespace) {
    isp.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=2 net.netfilter.nf_conntrack_udp_timeout_stream=2");
}

/// Whether the router knows any UDP mapping.
pub fn knows_udp(isp: &Namespace) -> bool {
    !isp.run("conntrack -L -p udp 2>/dev/null").trim().is_empty()
}

/// Drops this percentage of all UDP datagrams on their way through the internet, at random.
pub fn lose(internet: &Namespace, percent: u8) {
    internet.run(&format!(
        "nft 'table inet loss {{ chain forward {{ type filter hook forward priority filter; \
         meta l4proto udp numgen random mod 100 < {percent} counter drop; }}; }}'"
    ));
}

/// How many datagrams [`lose`] dropped; a batch that `UDP_SEGMENT` sends counts as one.
pub fn lost(internet: &Namespace) -> u64 {
    counted(internet, "packets")
}

/// Their bytes, those of all in a batch.
pub fn lost_bytes(internet: &Namespace) -> u64 {
    counted(internet, "bytes")
}

fn counted(internet: &Namespace, what: &str) -> u64 {
    let rules = internet.run("nft list table inet loss");
    let words: Vec<_> = rules.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == what).filter_map(|pair| pair[1].parse::<u64>().ok()).sum()
}
