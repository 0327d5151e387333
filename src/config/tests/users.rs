//! `[bridge.users.NAME]`.

use super::*;

#[test]
fn users_are_given_what_is_written() {
    let users = |rest: &str| parse(&files(&format!("{HOME}{rest}"), &[])).unwrap().host.bridges[0].users.clone();
    assert_eq!(users(""), []);
    let written = users(
        "[bridge.users.svc-cloud]\ncontainers = 3\naddresses = [\"10.89.2.32/28\"]\nreach = [\"1002\"]\n\
         publish = [\"tcp/443\", \"udp/5000-5009\"]\n[bridge.users.1002]\n",
    );
    let service = |text: &str| service(text).unwrap();
    let numbered = User { name: "1002".into(), containers: 1, addresses: vec![], reach: vec![], publish: vec![] };
    let cloud = User {
        name: "svc-cloud".into(),
        containers: 3,
        addresses: vec!["10.89.2.32/28".parse().unwrap()],
        reach: vec!["1002".into()],
        publish: vec![service("tcp/443"), service("udp/5000-5009")],
    };
    assert_eq!(written.iter().map(|user| &*user.name).collect::<Vec<_>>(), ["1002", "svc-cloud"]);
    assert_eq!(written, [numbered, cloud]);
}

#[test]
fn mistakes_in_users_are_found() {
    host_says(
        "[bridge.users.\"two words\"]\n[bridge.users.cloud]\ncontainers = 0\naddresses = [\"10.89.2.0/33\"]\nports = 1\n\
         publish = [\"443\"]\n",
        &[
            "meshd.toml:7: bridge \"br0\": user \"two words\": no user's name; expected one as in /etc/passwd, or a number",
            "meshd.toml:10: bridge \"br0\": user \"cloud\": addresses \"10.89.2.0/33\": expected NETWORK/PREFIX such as \
             10.89.2.0/24 or fd89:2::/64",
            "meshd.toml:11: bridge \"br0\": user \"cloud\": unknown key \"ports\"; known keys: containers, addresses, reach, \
             publish",
            "meshd.toml:12: bridge \"br0\": user \"cloud\": publish \"443\": \"443\" are no ports; expected such as tcp/443 \
             or udp/60000-61000",
        ],
    );
    host_says(
        "[bridge.users.cloud]\naddresses = [\"10.89.1.0/24\"]\nreach = [\"cloud\", \"vault\"]\n[bridge.users.db]\n",
        &[
            "meshd.toml:8: bridge \"br0\": user \"cloud\": addresses \"10.89.1.0/24\" is in no subnet of the bridge",
            "meshd.toml:9: bridge \"br0\": user \"cloud\": reach \"cloud\": no other user of this bridge; those are: db",
            "meshd.toml:9: bridge \"br0\": user \"cloud\": reach \"vault\": no other user of this bridge; those are: db",
        ],
    );
}
