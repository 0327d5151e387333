//! The worked example, end to end, with the files of `examples/selfhosted/`: nginx on the VPS and two services at home, each a
//! rootless container of a user of its own, for the internet and for a phone.

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hickory_proto::rr::RecordType::{A, AAAA};
use lab::capture::Capture;
use lab::dns::look_up;
use lab::host::{Host, describe};
use lab::netns::Namespace;
use lab::phone::{PHONE, PHONE6};
use lab::podman::{User, make_root, substitute};
use lab::traffic::seen_by;
use lab::{ISP, Lab, VPS, VPS6, WEB, WEB6, secs, wait_for};
use nix::sys::signal::Signal;

/// What the internet's end of the VPS's cable is called there.
const CLIENT: &str = "203.0.113.1";
/// The same over IPv6.
const CLIENT6: &str = "2001:db8:1::1";
/// Where home is: its router, itself on its LAN and over IPv6. As text, and as in an address record or a header.
const HOME: [&[u8]; 6] = [
    b"198.51.100.7",
    b"192.168.1.20",
    b"2001:db8:168:",
    &[198, 51, 100, 7],
    &[192, 168, 1, 20],
    &[0x20, 0x01, 0x0d, 0xb8, 0x01, 0x68],
];

/// In the place of Nextcloud and Vaultwarden: a server that trusts the proxy about its clients, logs them, and shows the headers.
const SERVICE: &str = "
events {}
http {
    set_real_ip_from 10.89.1.2;
    real_ip_header X-Real-IP;
    log_format clients '$remote_addr $host $request_uri';
    access_log /dev/stdout clients;
    server {
        listen 80;
        listen [::]:80;
        root ROOT;
        location = /forwarded { return 200 '$http_x_real_ip $http_x_forwarded_for $http_x_forwarded_proto'; }
    }
}
";

fn example(file: &str) -> String {
    let path = lab::root().join("examples/selfhosted").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All of it, running.
struct Example {
    // Dropped first: their containers.
    proxy: User,
    cloud: User,
    vault: User,
    phone: Host,
    certificate: PathBuf,
    lab: Lab,
}

impl Example {
    fn new() -> Self {
        let lab = Lab::new();
        let phone = lab.add_host("phone", 103);
        let proxy = User::new(&lab, &lab.vps, 0);
        let [cloud, vault] = [1, 2].map(|number| User::new(&lab, &lab.home, number));
        let users = [("svc-proxy", &proxy), ("svc-cloud", &cloud), ("svc-vault", &vault)];
        for (host, files) in [
            (&lab.vps, &["meshd.toml", "peers/home.toml", "peers/phone.toml"][..]),
            (&lab.home, &["meshd.toml", "peers/vps.toml"]),
        ] {
            for file in files {
                // The keys of both hosts are those of the lab; the phone has its own.
                let mut text = example(&format!("{}/{file}", host.name));
                if *file == "peers/phone.toml" {
                    text = substitute(&text, "K98Ddtsu0WB10Na5loB/GkKRwe6d05rBmZcm3LJ8cjI=", &phone.public_key());
                }
                host.write(
                    file,
                    &users.iter().fold(text, |text, (name, user)| text.replace(name, &user.uid().to_string())),
                );
            }
        }
        lab.start();
        let certificate = certificate(&lab, &proxy);
        proxy.write("nginx.conf", &example("vps/nginx.conf"));
        cloud.make_folder("html");
        cloud.write("html/name", "cloud");
        vault.make_folder("data");
        vault.write("data/name", "vault");
        for (_, user) in users {
            user.install_hook();
        }
        run(&proxy, "vps/proxy.container", None);
        run(&cloud, "home/cloud.container", Some(&SERVICE.replace("ROOT", "/var/www/html")));
        run(&vault, "home/vault.container", Some(&SERVICE.replace("ROOT", "/data")));
        up(&phone);
        Self { proxy, cloud, vault, phone, certificate, lab }
    }

    /// Waits until both services answer the internet.
    fn wait(&self) {
        for name in ["cloud", "vault"] {
            wait_for(format!("{name} answers"), secs(20), || {
                self.get(&self.lab.internet, &format!("{name}.example.net"), "/name", "").ends_with(name).then_some(())
            });
        }
    }

    /// A GET of `https://HOST/PATH`, whose name leads to the VPS for everybody.
    fn get(&self, from: &Namespace, host: &str, path: &str, more: &str) -> String {
        let resolve = format!("--resolve {host}:443:{}", if more.contains("-6") { VPS6 } else { VPS });
        let certificate = self.certificate.display();
        let line = format!("curl -sS -i -m 5 --cacert {certificate} {resolve} {more} https://{host}{path}");
        String::from_utf8_lossy(&from.try_run(&line).stdout).into_owned()
    }
}

/// Starts the phone's tunnel as a laptop does, but for the name server, which wg-quick(8) would tell this machine.
fn up(phone: &Host) {
    let conf = substitute(&example("phone.conf"), "PRIVATE-KEY-OF-THE-PHONE", phone.read("private.key").trim());
    phone.write("phone.conf", &substitute(&conf, "DNS = 9.9.9.9\n", ""));
    let path = phone.config("phone.conf");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    phone.run(&format!("WG_QUICK_USERSPACE_IMPLEMENTATION=wireguard-go wg-quick up {} 2>&1", path.display()));
}

/// A certificate for both names, in the folder of the one who serves them.
fn certificate(lab: &Lab, proxy: &User) -> PathBuf {
    let made = lab.path("fullchain.pem");
    lab.vps.run(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=example.net \
         -addext subjectAltName=DNS:cloud.example.net,DNS:vault.example.net -keyout {} -out {} 2>&1",
        lab.path("privkey.pem").display(),
        made.display(),
    ));
    proxy.make_folder("tls");
    for file in ["fullchain.pem", "privkey.pem"] {
        proxy.write(&format!("tls/{file}"), &fs::read_to_string(lab.path(file)).expect("a file"));
    }
    made
}

/// Starts a unit as Quadlet does, but for the image: nginx as its package has it, with its own configuration or the unit's.
fn run(user: &User, unit: &str, configuration: Option<&str>) {
    let unit = example(unit);
    let section = unit.split("[Container]\n").nth(1).and_then(|rest| rest.split("\n[").next()).expect("a section");
    let home = user.file("");
    let home = home.to_str().and_then(|home| home.strip_suffix('/')).expect("a folder");
    let mut args = vec!["run".to_owned(), "--detach".to_owned()];
    for (key, value) in section.lines().filter_map(|line| line.split_once('=')) {
        let option = match key {
            "ContainerName" => "--name",
            "Network" => "--network",
            "Annotation" => "--annotation",
            "Volume" => "--volume",
            "Environment" => "--env",
            "Image" => continue,
            _ => panic!("{key}: unknown to this test"),
        };
        args.extend([option.to_owned(), value.trim_matches('"').replace("%h", home)]);
    }
    let root = user.file("root");
    make_nginx(&root, configuration, user.uid());
    args.extend(["--rootfs", &root.display().to_string(), "nginx", "-g", "daemon off;"].map(str::to_owned));
    user.podman(&args.iter().map(String::as_str).collect::<Vec<_>>());
}

fn make_nginx(root: &Path, configuration: Option<&str>, owner: u32) {
    for folder in ["etc/nginx", "etc/ssl", "usr/share/nginx", "var/lib/nginx", "var/log/nginx", "var/www/html", "data"]
    {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    // Where the image's user would be, there is only one.
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:\nwww-data:x:0:0::/:\nnobody:x:0:0::/:\n").expect("write");
    fs::write(root.join("etc/group"), "root:x:0:\nwww-data:x:0:\nnogroup:x:0:\n").expect("write");
    fs::write(root.join("etc/nginx/nginx.conf"), configuration.unwrap_or_default()).expect("write");
    std::os::unix::fs::symlink("/dev/stderr", root.join("var/log/nginx/error.log")).expect("a link");
    make_root(root, &["nginx", "curl", "cat"], owner);
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The lines of a service's log since `from`.
fn log(user: &User, name: &str, from: usize) -> Vec<String> {
    user.podman(&["logs", name]).lines().skip(from).map(str::to_owned).collect()
}

#[test]
fn from_everywhere_by_one_url_with_the_clients_own_address() {
    let test = Example::new();
    let (lab, internet, phone) = (&test.lab, &test.lab.internet, &test.phone);
    wait_for("the proxy finds the services by name", secs(10), || {
        ["cloud", "vault"]
            .iter()
            .all(|name| {
                test.get(internet, &format!("{name}.example.net"), "/name", "").ends_with(&format!("\r\n\r\n{name}"))
            })
            .then_some(())
    });
    let mut shown = String::new();
    for (name, user) in [("cloud", &test.cloud), ("vault", &test.vault)] {
        let host = format!("{name}.example.net");
        for (from, family, client) in
            [(internet, "-4", CLIENT), (internet, "-6", CLIENT6), (phone, "-4", PHONE), (phone, "-6", PHONE6)]
        {
            let seen = log(user, name, 0).len();
            // What a client says about itself is not believed.
            let more = format!("{family} -H 'X-Real-IP: 192.0.2.66' -H 'X-Forwarded-For: 192.0.2.66'");
            let answer = test.get(from, &host, "/forwarded", &more);
            assert!(answer.ends_with(&format!("\r\n\r\n{client} {client} https")), "{client}: {answer}");
            assert_eq!(log(user, name, seen), [format!("{client} {host} /forwarded")]);
            shown += &answer;
        }
        // Without the proxy, by the name in the mesh.
        for (kind, client) in [(A, PHONE), (AAAA, PHONE6)] {
            let answers = look_up(phone, "10.88.0.1", &format!("{name}.home.mesh."), kind);
            let [address] = &answers[..] else { panic!("{name}: {answers:?}") };
            let seen = log(user, name, 0).len();
            let url = format!("http://{name}.home.mesh/name");
            assert_eq!(phone.run(&format!("curl -sS -m 5 --resolve {name}.home.mesh:80:[{address}] {url}")), name);
            assert_eq!(log(user, name, seen), [format!("{client} {name}.home.mesh /name")]);
        }
    }
    assert!(HOME.iter().all(|home| !holds(shown.as_bytes(), home)), "{shown}");
    // Whoever names neither learns nothing.
    let output = internet.try_run(&format!("curl -sSk -m 5 https://{VPS}/"));
    assert!(describe(&output).contains("unrecognized name"), "{}", describe(&output));
    // Every program finds it by name, also one that knows of resolv.conf(5) only.
    assert_eq!(test.proxy.podman(&["exec", "proxy", "curl", "-sS", "-m", "5", "http://cloud.home.mesh/name"]), "cloud");
    assert_eq!(
        test.cloud.podman(&["exec", "cloud", "cat", "/etc/resolv.conf"]).lines().nth(1),
        Some("search home.mesh")
    );
    // The proxy's own log.
    let log = test.proxy.podman(&["logs", "proxy"]);
    for client in [CLIENT, CLIENT6, PHONE, PHONE6] {
        assert!(log.contains(&format!("{client} cloud.example.net \"GET /forwarded HTTP/")), "{log}");
    }
    assert!(lab.home.status()["warnings"].as_array().expect("warnings").is_empty(), "{}", lab.home.status());
}

#[test]
fn where_home_is_stays_unknown() {
    let test = Example::new();
    let (lab, internet, phone) = (&test.lab, &test.lab.internet, &test.phone);
    let [proxy, cloud, vault] = [(&test.proxy, "proxy"), (&test.cloud, "cloud"), (&test.vault, "vault")]
        .map(|(user, name)| user.container(name));
    // In the clear: between the proxy and the services, and in the phone's tunnel. Each also sees what it must.
    let clear: [(&Namespace, &str, &[u8]); 2] =
        [(&proxy, "eth0", b"X-Real-IP: "), (phone, "phone", b"Host: cloud.home.mesh")];
    let shown = clear.map(|(namespace, interface, expected)| {
        let nowhere = HOME.map(|marker| Capture::start(namespace, interface, marker));
        (interface, Capture::start(namespace, interface, expected), nowhere)
    });
    // On the wires: all that home sends or gets is the tunnel's, and all else knows nothing of it.
    let cables = [Capture::start(&lab.home, "eth0", b""), Capture::start(internet, "isp", b"")];
    let outside = Capture::start(internet, "vps", b"");

    test.wait();
    for family in ["-4", "-6"] {
        for from in [internet, phone, &cloud] {
            let answer = test.get(from, "vault.example.net", "/name", family);
            assert!(answer.ends_with("vault") && HOME.iter().all(|home| !holds(answer.as_bytes(), home)), "{answer}");
        }
    }
    // What the services themselves ask of the world comes from the VPS.
    assert_eq!((&*seen_by(&cloud, WEB).expect("v4"), &*seen_by(&cloud, WEB6).expect("v6")), (VPS, VPS6));
    for name in ["home.mesh.", "cloud.home.mesh.", "vault.home.mesh."] {
        for kind in [A, AAAA] {
            let servers: [(&Namespace, &str); 4] =
                [(phone, "10.88.0.1"), (&proxy, "10.89.1.1"), (&cloud, "10.89.2.1"), (&cloud, "fd89:2::1")];
            for (from, server) in servers {
                let answers = look_up(from, server, name, kind);
                let inside = |answer: &String| answer.starts_with("10.8") || answer.starts_with("fd8");
                assert!(!answers.is_empty() && answers.iter().all(inside), "{name} of {server}: {answers:?}");
            }
        }
    }
    let [address] = &look_up(phone, "10.88.0.1", "cloud.home.mesh.", A)[..] else { panic!("one address") };
    phone.run(&format!("curl -sS -m 5 --resolve cloud.home.mesh:80:{address} http://cloud.home.mesh/name"));
    // Neighbours on the bridge, and of other users.
    let vaults = &look_up(&cloud, "10.89.2.1", "vault.home.mesh.", A)[0];
    assert!(!cloud.ping(vaults) && vault.ping("10.89.2.1"), "each service is alone");

    // The proxy fails while home is gone, and home says nothing meanwhile.
    lab.home.end(Signal::SIGKILL);
    let answer = test.get(internet, "cloud.example.net", "/name", "");
    assert!(!answer.contains(" 200 ") && HOME.iter().all(|home| !holds(answer.as_bytes(), home)), "{answer}");
    assert!(seen_by(&cloud, WEB).is_err() && seen_by(&cloud, WEB6).is_err());

    for (interface, sees, nowhere) in shown {
        assert!(sees.finish().marked > 0, "{interface}: a capture that sees nothing proves nothing");
        for (capture, what) in nowhere.into_iter().zip(HOME) {
            assert_eq!(capture.finish().marked, 0, "{interface}: {}", String::from_utf8_lossy(what));
        }
    }
    for cable in cables {
        let seen = cable.finish();
        assert!(seen.leaks.is_empty() && seen.tunnel_tx > 0 && seen.tunnel_rx > 0, "{seen:?}");
    }
    let seen = outside.finish();
    assert!(seen.leaks.keys().all(|flow| !flow.contains(ISP) && !flow.contains("2001:db8:168:")), "{seen:?}");
    assert!(seen.leaks.keys().any(|flow| flow.contains(CLIENT)), "the clients of the world were seen: {seen:?}");
}

#[test]
fn whatever_starts_again_is_found_again() {
    let test = Example::new();
    test.wait();
    let before = test.lab.home.meshd(&["attach", "--list"]);
    let again = |what: &str, start: &dyn Fn()| {
        start();
        let begin = Instant::now();
        test.wait();
        println!("{what}: both services answer after {:?}", begin.elapsed());
    };
    again("a service", &|| drop(test.cloud.podman(&["restart", "--time", "0", "cloud"])));
    again("the proxy", &|| drop(test.proxy.podman(&["restart", "--time", "0", "proxy"])));
    for host in [&test.lab.home, &test.lab.vps] {
        again(&format!("the agent of {}", host.name), &|| {
            host.end(Signal::SIGKILL);
            host.up();
        });
    }
    assert_eq!(test.lab.home.meshd(&["attach", "--list"]), before);
}
