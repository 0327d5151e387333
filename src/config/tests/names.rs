//! `[names]`.

use super::*;

#[test]
fn names_are_off_until_they_are_asked_for() {
    assert_eq!(parse(&files(HOME, &[])).unwrap().host.names, None);
    let names = |rest: &str| parse(&files(&format!("{HOME}{rest}"), &[])).unwrap().host.names.unwrap();
    assert_eq!(names("[names]\n"), Names::default());
    let written = names(
        "[names]\nupstream = [\"9.9.9.9\", \"2620:fe::fe\"]\n[[names.container]]\nname = \"cloud\"\n\
         addresses = [\"10.89.2.10\", \"fd89:2::10\"]\n",
    );
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    let cloud = NamedContainer { name: "cloud".into(), addresses: vec![addr("10.89.2.10"), addr("fd89:2::10")] };
    assert_eq!(written, Names { upstream: vec![addr("9.9.9.9"), addr("2620:fe::fe")], containers: vec![cloud] });
}

#[test]
fn mistakes_in_names_are_found() {
    host_says(
        "[names]\nupstream = [\"127.0.0.53\", \"dns.example.net\"]\nport = 53\n[[names.container]]\nname = \"My_Cloud\"\n\
         [[names.container]]\naddresses = [\"10.89.2.10/24\"]\n",
        &[
            "meshd.toml:8: names: upstream \"127.0.0.53\": is this host itself; write the name server that it asks",
            "meshd.toml:8: names: upstream \"dns.example.net\": expected an address such as 9.9.9.9 or 2620:fe::fe",
            "meshd.toml:9: names: unknown key \"port\"; known keys: upstream, container",
            "meshd.toml:10: container: missing addresses; write addresses = [\"10.89.2.10\"]",
            "meshd.toml:11: container: name \"My_Cloud\": expected 1 to 63 of a-z, 0-9 and -, with no - at either end",
            "meshd.toml:12: container: missing name; write name = \"nextcloud\"",
            "meshd.toml:13: container: addresses \"10.89.2.10/24\": a single address has no prefix length; write 10.89.2.10",
        ],
    );
    let cloud = "[[names.container]]\nname = \"cloud\"\naddresses = ";
    host_says(
        &format!("[names]\nupstream = [\"10.88.0.2\"]\n{cloud}[\"10.89.2.10\"]\n{cloud}[\"10.89.1.10\"]\n"),
        &[
            "meshd.toml:8: names: upstream \"10.88.0.2\" is this host itself",
            "meshd.toml:13: container \"cloud\" is named twice",
            "meshd.toml:14: container \"cloud\": addresses \"10.89.1.10\" is in no subnet of a [[bridge]]; these are: \
             10.89.2.0/24, fd89:2::/64",
        ],
    );
}
