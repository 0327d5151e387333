//! `meshd init`: a first configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::show::{add_command, all_of, toml_list, toml_string};
use super::{Dirs, Failure, print};
use crate::config::{self, Config, DEFAULT_INTERFACE, DEFAULT_LISTEN_PORT, DEFAULT_MTU, Files, SourceFile, value};
use crate::enroll::accept::Found;
use crate::key::{PrivateKey, PublicKey};
use crate::store::{self, Layout};

/// Arguments of `meshd init`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "\
Writes meshd.toml, private.key and peers/ into the configuration folder and
overwrites nothing; a private.key that is there is used. Without --address the
host's addresses are made from its key, so that two hosts rarely get the same.

Examples:
  meshd init
  meshd init --name home --bridge br0=10.89.2.0/24,fd89:2::/64
  meshd init --name vps --endpoint vps.example.net:51820 \\
      --address 10.88.0.1/24 --address fd88::1/64 --bridge br0=10.89.1.0/24")]
pub struct Args {
    /// This host's name in the mesh [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    /// This host's address in the mesh, with the mesh's prefix; repeat for IPv6
    #[arg(long = "address", value_name = "CIDR")]
    addresses: Vec<String>,
    /// A container bridge; without CIDR the networks that it has now
    #[arg(long = "bridge", value_name = "NAME[=CIDR,…]")]
    bridges: Vec<String>,
    /// How others reach this host
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// The UDP port; 0 picks one [default: 51820]
    #[arg(long, value_name = "PORT")]
    listen_port: Option<u16>,
    /// The tunnel's interface [default: mesh0]
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    print(&first(args, dirs)?)
}

/// Writes a first configuration; the text says what was written and what to do next.
pub fn first(args: Args, dirs: &Dirs) -> Result<String, Failure> {
    let layout = Layout(&dirs.config);
    if layout.host().symlink_metadata().is_ok() {
        let error = format!("{}: exists already; init overwrites nothing", layout.host().display());
        return Err(Failure::new(4, error).try_this("meshd up, or init with another --dir"));
    }

    let found = bridges_of_this_host();
    let kept = store::private_key(&dirs.config)?;
    let key = match &kept {
        Some(key) => key.clone(),
        None => PrivateKey::generate().map_err(|error| Failure::new(1, format!("init: random numbers: {error}")))?,
    };
    let text = meshd_toml(&args, &key.public_key(), &found)?;
    let key_text = Zeroizing::new(format!("{}\n", *Zeroizing::new(key.expose_base64())));
    let config = check(dirs, &text, &key_text)?;

    store::create_dir(&dirs.config)?;
    store::create_dir(&layout.peers())?;
    if kept.is_none() {
        store::create(&layout.private_key(), &key_text, 0o600)?;
    }
    // Last, as it is what makes the folder a configuration: after a crash before it, the next init goes on from here.
    store::create(&layout.host(), &text, 0o644)?;
    let files = if kept.is_none() { "meshd.toml, private.key and peers/" } else { "meshd.toml for the private.key" };
    Ok(format!("wrote {files} in {}\n\n{}", dirs.config.display(), next_steps(&config, &found)))
}

/// The text has to stand the checks that `meshd up` makes, beside peers that may be there already.
fn check(dirs: &Dirs, text: &str, key: &str) -> Result<Config, Failure> {
    let files = Files {
        host: SourceFile { path: "meshd.toml".into(), text: text.into() },
        private_key: SourceFile { path: "private.key".into(), text: key.into() },
        peers: store::read_peers(&dirs.config)?,
        preshared_keys: BTreeMap::new(),
    };
    config::parse(&files).map_err(|problems| {
        let mut errors: Vec<String> = problems
            .iter()
            .map(|problem| {
                // Its lines are not on disk; the words name the flag.
                let from_flags = problem.path == files.host.path;
                if from_flags { format!("init: {}", problem.message) } else { problem.to_string() }
            })
            .collect();
        errors.dedup();
        Failure { code: 4, errors, remedy: Some("meshd init --help".into()) }
    })
}

/// The first `meshd.toml` of a host that joins with this name and these addresses, but for its bridges.
pub fn for_joiner(name: &str, addresses: &[IpNet], key: &PublicKey) -> Result<String, Failure> {
    let addresses = addresses.iter().map(ToString::to_string).collect();
    meshd_toml(&Args { name: Some(name.into()), addresses, ..Args::default() }, key, &[])
}

fn meshd_toml(args: &Args, key: &PublicKey, found: &[Found]) -> Result<String, Failure> {
    let name = args.name.clone().unwrap_or_else(name_of_this_host);
    let addresses = if args.addresses.is_empty() {
        addresses_from(key).iter().map(ToString::to_string).collect()
    } else {
        args.addresses.clone()
    };
    let interface = args.interface.as_deref().unwrap_or(DEFAULT_INTERFACE);
    let endpoint = match &args.endpoint {
        Some(endpoint) => format!("endpoint = {}\n", toml_string(endpoint)),
        None => "# endpoint = \"vps.example.net:51820\"\n".into(),
    };
    let mut text = format!(
        "# meshd on this host. `meshd plan` shows what an edit would change,\n\
         # `meshd reload` applies it. Other hosts are in peers/, one file each.\n\n\
         # This host's name in the mesh.\n\
         name = {}\n\n\
         # Its addresses inside the mesh, with the prefix of the mesh network. The other\n\
         # hosts have other addresses in the same networks.\n\
         addresses = {}\n\n\
         # The tunnel.\n\
         interface = {}\n\
         listen_port = {}\n\
         mtu = {DEFAULT_MTU}\n\n\
         # Data to other meshd hosts goes under AES-256-GCM where both CPUs have\n\
         # instructions for it; \"off\" keeps to WireGuard's own cipher.\n\
         # express = \"auto\"\n\n\
         # How others reach this host; leave it out behind NAT.\n\
         {endpoint}",
        toml_string(&name),
        toml_list(&addresses),
        toml_string(interface),
        args.listen_port.unwrap_or(DEFAULT_LISTEN_PORT),
    );
    for bridge in &args.bridges {
        let (name, subnets) = bridge_argument(bridge, found)?;
        text.push_str(&format!(
            "\n# A container bridge that the mesh reaches. Its containers leave to the\n\
             # internet as without meshd (\"direct\"), through a peer (its name), or not at\n\
             # all (\"none\"); `meshd join` writes what it is offered when nothing stands here.\n\
             [[bridge]]\n\
             name = {}\n\
             # egress = \"direct\"\n\
             subnets = {}\n",
            toml_string(&name),
            toml_list(&subnets),
        ));
    }
    for Found { name, subnets } in not_yet(found, &args.bridges) {
        text.push_str(&format!(
            "\n# Found on this host. Without the # its containers are part of the mesh.\n\
             # [[bridge]]\n\
             # name = {}\n\
             # subnets = {}\n\
             # egress = \"direct\"\n",
            toml_string(name),
            toml_list(subnets),
        ));
    }
    Ok(text)
}

/// `br0=10.89.2.0/24,fd89:2::/64`, or `br0` for one that is there.
fn bridge_argument(argument: &str, found: &[Found]) -> Result<(String, Vec<String>), Failure> {
    if let Some((name, subnets)) = argument.split_once('=') {
        return Ok((name.into(), subnets.split(',').map(|subnet| subnet.trim().into()).collect()));
    }
    let Some(bridge) = found.iter().find(|bridge| bridge.name == argument) else {
        let error = format!("init: bridge {}: this host has none with networks", config::quote(argument));
        return Err(Failure::new(4, error).try_this(format!("--bridge {argument}=10.89.2.0/24")));
    };
    Ok((bridge.name.clone(), bridge.subnets.iter().map(ToString::to_string).collect()))
}

/// The bridges that the arguments do not name.
fn not_yet<'a>(found: &'a [Found], arguments: &'a [String]) -> impl Iterator<Item = &'a Found> {
    found.iter().filter(move |bridge| {
        !arguments.iter().any(|argument| argument.split('=').next() == Some(bridge.name.as_str()))
    })
}

fn next_steps(config: &Config, found: &[Found]) -> String {
    let host = &config.host;
    let port = match host.listen_port {
        0 => "any free one".to_owned(),
        port => format!("{port}/udp"),
    };
    let mut text = format!(
        "  \
         name        {}\n  \
         public key  {}\n  \
         addresses   {}\n  \
         port        {port}\n",
        host.name,
        config.private_key.public_key(),
        all_of(&host.addresses),
    );
    for bridge in &host.bridges {
        text.push_str(&format!("  bridge      {}  {}\n", bridge.name, all_of(&bridge.subnets)));
    }
    let mut others =
        found.iter().filter(|found| host.bridges.iter().all(|bridge| bridge.name != found.name)).peekable();
    if others.peek().is_some() {
        text.push_str("\nBridges on this host that are not part of the mesh yet:\n\n");
        for Found { name, subnets } in others {
            text.push_str(&format!("  {name}  {}\n", all_of(subnets)));
        }
        text.push_str("\nEach has a block in meshd.toml; without the # it is.\n");
    }
    text.push_str("\nNext, on the other host, after `meshd init` there:\n\n");
    text.push_str(&add_command(config));
    if host.endpoint.is_none() {
        text.push_str("      (and --endpoint HOST:PORT when it can reach this host)\n");
    }
    text.push_str("\nhere, the command that its `meshd init` printed, and on both:\n\n  meshd up --detach\n");
    text
}

/// The hostname as a name in the mesh.
pub(super) fn name_of_this_host() -> String {
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    name_from(&hostname.to_string_lossy())
}

fn name_from(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let sound: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = sound.trim_matches('-');
    if name == "localhost" { "host".into() } else { value::name(name).unwrap_or_else(|_| "host".into()) }
}

/// Addresses that two hosts rarely share, made from 16 bits of the key: `10.87.113.42/16` and `fd87::712a/64`. Not in
/// 10.88.0.0/16, which is Podman's own default network on every host that has it.
fn addresses_from(key: &PublicKey) -> [IpNet; 2] {
    let [third, fourth, ..] = *key.as_bytes();
    // An address that ends in 0 or 255 is valid here, and looks wrong to people and to old firewalls.
    let fourth = 1 + fourth % 254;
    let v4 = IpAddr::V4(Ipv4Addr::new(10, 87, third, fourth));
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd87, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([third, fourth])));
    [IpNet::new_assert(v4, 16), IpNet::new_assert(v6, 64)]
}

/// The bridges of this network namespace that have networks a container could be in.
pub fn bridges_of_this_host() -> Vec<Found> {
    let mut found: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    // What cannot be read is a suggestion less.
    for address in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let is_bridge = Path::new("/sys/class/net").join(&address.interface_name).join("bridge").is_dir();
        let ip = |storage: &Option<nix::sys::socket::SockaddrStorage>| {
            let storage = storage.as_ref()?;
            let v4 = storage.as_sockaddr_in().map(|addr| IpAddr::V4(addr.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|addr| IpAddr::V6(addr.ip())))
        };
        if let (true, Some(ip), Some(mask)) = (is_bridge, ip(&address.address), ip(&address.netmask))
            && let Ok(net) = IpNet::with_netmask(ip, mask)
            && value::subnet(&net.trunc().to_string()).is_ok()
        {
            found.entry(address.interface_name).or_default().push(net.trunc());
        }
    }
    found
        .into_iter()
        .filter(|(name, _)| value::interface(name).is_ok())
        .map(|(name, mut subnets)| {
            subnets.sort();
            subnets.dedup();
            Found { name, subnets }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hostname_becomes_a_name() {
        for (hostname, name) in [
            ("home", "home"),
            ("Home.example.net", "home"),
            ("web_2", "web-2"),
            ("-x-", "x"),
            ("", "host"),
            ("localhost.localdomain", "host"),
            ("direct", "host"),
            ("日本", "host"),
        ] {
            assert_eq!(name_from(hostname), name, "{hostname}");
        }
        let long = name_from(&"a".repeat(80));
        assert_eq!(value::name(&long), Ok("a".repeat(63)));
    }

    #[test]
    fn addresses_from_a_key_are_sound_for_every_key() {
        for third in 0..=255 {
            for fourth in 0..=255 {
                let mut bytes = [9; 32];
                (bytes[0], bytes[1]) = (third, fourth);
                // Some points are of low order; no host has one.
                let Ok(key) = PublicKey::from_bytes(bytes) else { continue };
                for net in addresses_from(&key) {
                    assert_eq!(value::host_address(&net.to_string()), Ok(net));
                }
            }
        }
        let mut bytes = [9; 32];
        (bytes[0], bytes[1]) = (113, 41);
        let addresses = addresses_from(&PublicKey::from_bytes(bytes).unwrap());
        assert_eq!(addresses.map(|net| net.to_string()), ["10.87.113.42/16", "fd87::712a/64"]);
    }

    #[test]
    fn a_found_bridge_is_suggested_and_works_without_the_comment() {
        let found = |name: &str, subnets: &[&str]| Found {
            name: name.into(),
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
        };
        let found = [found("podman1", &["10.89.0.0/24", "fd89::/64"]), found("br0", &["10.89.2.0/24"])];
        let key = PrivateKey::generate().unwrap();
        let args = Args { name: Some("home".into()), bridges: vec!["br0".into()], ..Args::default() };
        let text = meshd_toml(&args, &key.public_key(), &found).unwrap();
        let parse = |text: &str| {
            config::parse(&Files {
                host: SourceFile { path: "meshd.toml".into(), text: text.into() },
                private_key: SourceFile { path: "private.key".into(), text: key.expose_base64().into() },
                peers: Vec::new(),
                preshared_keys: BTreeMap::new(),
            })
            .unwrap()
        };
        let names = |config: &Config| config.host.bridges.iter().map(|bridge| bridge.name.clone()).collect::<Vec<_>>();
        let config = parse(&text);
        assert_eq!(names(&config), ["br0"]);
        let uncommented = text.replace("# [[bridge]]\n# name", "[[bridge]]\nname").replace("# subnets", "subnets");
        assert_eq!(names(&parse(&uncommented)), ["br0", "podman1"]);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let said = next_steps(&config, &found);
        assert!(
            said.contains("  podman1  10.89.0.0/24, fd89::/64\n") && !said.contains("  br0  10.89.2.0/24\n\nEach"),
            "{said}"
        );
        assert!(said.lines().all(|line| line.len() <= 80), "{said}");
    }
}
