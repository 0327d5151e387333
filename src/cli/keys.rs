//! `meshd genkey`, `pubkey` and `genpsk`, as wg(8) does.

use std::io::Read as _;
use std::os::fd::AsFd as _;

use nix::sys::stat::{SFlag, fstat};
use zeroize::Zeroizing;

use super::{Failure, print};
use crate::key::{PresharedKey, PrivateKey};

/// Arguments of `meshd genkey`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  (umask 077; meshd genkey > private.key)
  meshd pubkey < private.key")]
pub struct Genkey {}

/// Arguments of `meshd pubkey`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd pubkey < /etc/meshd/private.key
  meshd genkey | tee private.key | meshd pubkey")]
pub struct Pubkey {}

/// Arguments of `meshd genpsk`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  (umask 077; meshd genpsk > /etc/meshd/vps.psk)
  meshd peer add vps --public-key KEY \\
      --preshared-key-file /etc/meshd/vps.psk")]
pub struct Genpsk {}

/// Prints a new private key.
pub fn genkey(_: Genkey) -> Result<(), Failure> {
    warn_when_others_may_read();
    let key = PrivateKey::generate().map_err(|error| Failure::new(1, format!("genkey: random numbers: {error}")))?;
    print(&Zeroizing::new(format!("{}\n", *Zeroizing::new(key.expose_base64()))))
}

/// Prints a new preshared key.
pub fn genpsk(_: Genpsk) -> Result<(), Failure> {
    warn_when_others_may_read();
    let key = PresharedKey::generate().map_err(|error| Failure::new(1, format!("genpsk: random numbers: {error}")))?;
    print(&Zeroizing::new(format!("{}\n", *Zeroizing::new(key.expose_base64()))))
}

/// Prints the public key of the private key on standard input.
pub fn pubkey(_: Pubkey) -> Result<(), Failure> {
    let mut text = Zeroizing::new(String::new());
    // A key is 44 characters; whatever is longer is none.
    std::io::stdin()
        .take(4096)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(1, format!("pubkey: standard input: {error}")))?;
    let key: PrivateKey = text.parse().map_err(|error| {
        Failure::new(1, format!("pubkey: standard input: {error}")).try_this("meshd genkey | meshd pubkey")
    })?;
    print(&format!("{}\n", key.public_key()))
}

/// As wg(8) warns: the key is written all the same, since the shell has opened the file by now.
fn warn_when_others_may_read() {
    let Ok(stat) = fstat(std::io::stdout().as_fd()) else { return };
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG && stat.st_mode & 0o007 != 0 {
        eprintln!("meshd: warning: writing to a file that everyone may read");
        eprintln!("try: umask 077, before the command");
    }
}
