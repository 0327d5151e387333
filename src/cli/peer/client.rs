//! `meshd peer add NAME --client`: a device with the stock app.
//!
//! The order is that of what must not be lost: the device's files first, as its key is nowhere else, then this host's
//! own, then the agent. Whatever fails takes back what was before it.

use std::net::IpAddr;
use std::path::PathBuf;

use super::super::conf::{self, Written};
use super::super::show::all_of;
use super::super::{Dirs, Failure, print};
use super::add::{Args, KEEPALIVE_BEHIND_NAT, said_of_flags, unknown_yet};
use super::{Reload, outcome};
use crate::config::{self, Allow, Config, assign, edit, quote, value};
use crate::control::api::Reloaded;
use crate::key::{KeyError, PresharedKey, PrivateKey};
use crate::store::{self, Edit, Layout, invitations};
use crate::wgquick::{self, Client, Conf, Identity, Qr};

/// What no terminal is wider than by default.
const COLUMNS: usize = 80;
/// The names of [`Flags`], for what they do not go with.
pub(super) const FLAGS: [&str; 6] = ["full_tunnel", "lans", "dns", "qr", "png", "out"];

/// Arguments of `meshd peer add` that are for devices only.
#[derive(Debug, Default, clap::Args)]
pub struct Flags {
    /// Its way to the internet is this host, which carries it from now on
    #[arg(long, requires = "client")]
    full_tunnel: bool,
    /// With --client a host whose LAN it may reach, this one too; in an invitation a LAN behind the new host; repeat for more
    #[arg(long = "lan", value_name = "NAME|CIDR")]
    pub(super) lans: Vec<String>,
    /// Its name servers; one inside the mesh is opened to it on port 53
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',', requires = "client")]
    dns: Vec<IpAddr>,
    /// Print the configuration as a QR code for the app's camera
    #[arg(long, requires = "client")]
    qr: bool,
    /// Write the QR code into a new picture, mode 0600
    #[arg(long, value_name = "FILE", requires = "client")]
    png: Option<PathBuf>,
    /// Write the configuration into a new file, mode 0600
    #[arg(long, value_name = "FILE", requires = "client")]
    out: Option<PathBuf>,
}

impl Flags {
    /// Whether one of them is given.
    pub fn any(&self) -> bool {
        self.full_tunnel
            || self.qr
            || !self.lans.is_empty()
            || !self.dns.is_empty()
            || self.png.is_some()
            || self.out.is_some()
    }
}

/// Runs the command.
pub fn run(args: &Args, dirs: &Dirs, reload: impl Reload + Copy) -> Result<(), Failure> {
    for (flag, given, why) in [
        ("--endpoint", args.endpoint.is_some(), "a device calls this host"),
        ("--subnet", !args.subnets.is_empty(), "nothing is behind a device"),
        ("--preshared-key-file", args.preshared_key_file.is_some(), "a device gets a new preshared key"),
    ] {
        if given {
            let failure = Failure::new(2, format!("usage: {flag} does not go with --client: {why}"));
            return Err(failure.try_this("meshd peer add --help"));
        }
    }
    let _lock = store::lock(&dirs.config)?;
    let mut edit = Edit::new(&dirs.config)?;
    let config = edit.config()?;
    unknown_yet(&args.name, &config, dirs)?;
    let promised = invitations::promised(&dirs.state)?;
    let (peer, conf) = decide(args, &config, &promised)?;

    edit.set_peer(&args.name, edit::peer(&peer)).map_err(|error| said_of_flags(error, &args.name, dirs))?;
    if args.device.full_tunnel {
        let path = Layout(&dirs.config).host();
        let host = edit::carry(edit.host(), &args.name)
            .map_err(|error| Failure::new(4, edit::broken(&path.to_string_lossy(), &error)))?;
        edit.set_host(host)?;
    }
    if args.dry_run {
        return dry_run(&peer, dirs);
    }
    let shown = Shown::of(&conf, args)?;
    let mut written = Written::default();
    shown.write(args, &mut written)?;
    let undo = edit.write()?;
    let refused = |mut failure: Failure| {
        failure.errors.push(format!("peer {}: not added", args.name));
        failure
    };
    let reloaded = match reload(dirs) {
        Ok(reloaded) => reloaded,
        Err(failure) => {
            undo.undo()?;
            return Err(refused(failure));
        }
    };
    if let Err(failure) = conf::print_once(&shown.text) {
        undo.undo()?;
        reload(dirs)?;
        return Err(refused(failure));
    }
    written.keep();
    conf::say(&said(args, &config, &peer, reloaded.as_ref(), &shown));
    Ok(())
}

/// The peer's file and the device's.
fn decide(args: &Args, config: &Config, promised: &[IpAddr]) -> Result<(config::Peer, Conf), Failure> {
    let of_peer = |why: String| Failure::new(4, format!("peer {}: {why}", quote(&args.name)));
    let random =
        |error: std::io::Error| Failure::new(1, format!("peer {}: random numbers: {error}", quote(&args.name)));
    let identity = match &args.public_key {
        Some(key) => Identity::Known(
            key.parse().map_err(|error: KeyError| of_peer(format!("public_key {}: {error}", quote(key))))?,
        ),
        None => Identity::Made(PrivateKey::generate().map_err(random)?),
    };
    let addresses = if args.addresses.is_empty() {
        let full =
            |full: assign::Full| of_peer(full.to_string()).try_this("--address with one that is nobody's any more");
        assign::free_addresses(config, promised).map_err(full)?
    } else {
        let address =
            |text: &String| value::address(text).map_err(|why| of_peer(format!("address {}: {why}", quote(text))));
        args.addresses.iter().map(address).collect::<Result<_, _>>()?
    };
    let item = |text: &String| config::allow(text).map_err(|why| of_peer(format!("allow {}: {why}", quote(text))));
    let allow: Vec<Allow> = args.allow.iter().map(item).collect::<Result<_, _>>()?;
    wgquick::client(
        config,
        Client {
            name: &args.name,
            identity,
            preshared_key: PresharedKey::generate().map_err(random)?,
            addresses,
            lans: &args.device.lans,
            allow: Some(allow).filter(|allow| !allow.is_empty()),
            dns: &args.device.dns,
            full_tunnel: args.device.full_tunnel,
            keepalive: Some(args.keepalive.unwrap_or(KEEPALIVE_BEHIND_NAT)).filter(|&seconds| seconds > 0),
        },
    )
    .map_err(|(why, remedy)| Failure { remedy, ..of_peer(why) })
}

/// The configuration in the shapes that are asked for.
struct Shown {
    conf: zeroize::Zeroizing<String>,
    qr: Option<Qr>,
    /// For standard output.
    text: zeroize::Zeroizing<String>,
}

impl Shown {
    fn of(conf: &Conf, args: &Args) -> Result<Self, Failure> {
        let Flags { qr, png, out, .. } = &args.device;
        let text = conf.expose_text();
        let picture = (*qr || png.is_some()).then(|| Qr::of(&conf.expose_compact())).transpose().map_err(|error| {
            Failure::new(4, format!("peer {}: {error}", quote(&args.name))).try_this("--out FILE, or a shorter --allow")
        })?;
        let printed = match &picture {
            Some(picture) if *qr => picture.terminal().into(),
            _ if png.is_some() || out.is_some() => zeroize::Zeroizing::default(),
            _ => text.clone(),
        };
        Ok(Self { conf: text, qr: picture, text: printed })
    }

    fn write(&self, args: &Args, written: &mut Written) -> Result<(), Failure> {
        if let Some(path) = &args.device.out {
            written.add(path, self.conf.as_bytes())?;
        }
        if let (Some(path), Some(qr)) = (&args.device.png, &self.qr) {
            let failed = |error| Failure::new(1, format!("{}: {error}", path.display()));
            written.add(path, &zeroize::Zeroizing::new(qr.png().map_err(failed)?))?;
        }
        Ok(())
    }
}

/// The file as it would be; of its preshared key, which the next run makes anew, only that there is one.
fn dry_run(peer: &config::Peer, dirs: &Dirs) -> Result<(), Failure> {
    let text = edit::peer(&config::Peer { preshared_key: None, ..peer.clone() });
    let path = Layout(&dirs.config).peer(&peer.name);
    print(&format!("# {}\n# and a new preshared_key\n{text}", path.display()))
}

fn said(args: &Args, config: &Config, peer: &config::Peer, reloaded: Option<&Reloaded>, shown: &Shown) -> String {
    let mut said = format!("added client {}: {}\n", peer.name, all_of(&peer.addresses));
    said.push_str(&format!("it may reach {}\n", all_of(peer.allow.as_deref().unwrap_or_default())));
    if args.device.full_tunnel {
        said.push_str("it reaches the internet as this host\n");
    }
    said.push_str(&outcome(reloaded));
    if let Some(qr) = shown.qr.as_ref().filter(|qr| args.device.qr && qr.columns() > COLUMNS) {
        said.push_str(&format!("the QR code needs a terminal of {} columns\n", qr.columns()));
    }
    said.push_str(match &args.public_key {
        Some(_) => "the device puts its own private key in the place of the comment\n",
        None => "its private key is in that configuration and nowhere else: it is not shown again\n",
    });
    if config.host.listen_port == 0 {
        said.push_str(
            "warning: listen_port is 0: the port changes with each start, and the device does not learn it\n",
        );
    }
    said
}
