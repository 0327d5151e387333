//! Sysctls below `/proc/sys/net`, which shows the network namespace of the thread that asks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use crate::plan::{Family, SysctlKey};

fn path(key: &SysctlKey) -> PathBuf {
    Path::new("/proc/sys/net").join(key.path())
}

/// `None` when the interface or the sysctl does not exist.
pub fn read(key: &SysctlKey) -> Result<Option<String>, Error> {
    let path = path(key);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Sysctl { path, source }),
    }
}

/// Writes a value.
pub fn write(key: &SysctlKey, value: &str) -> Result<(), Error> {
    let path = path(key);
    fs::write(&path, value).map_err(|source| Error::Sysctl { path, source })
}

/// Whether the kernel has IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").exists()
}

/// The key whose writing sets this one on all interfaces (`inet_forward_change` in net/ipv4/devinet.c).
pub fn switch_of_all(key: &SysctlKey) -> Option<SysctlKey> {
    let forwarding = (key.family, key.name.as_str()) == (Family::V4, "forwarding") && key.link != "all";
    forwarding.then(|| SysctlKey::new(Family::V4, "all", "forwarding"))
}

/// What writing this key overwrites besides: `net.ipv6.conf.all.forwarding` sets every interface's and the default
/// (`addrconf_fixup_forwarding` in net/ipv6/addrconf.c).
pub fn overwritten_by(key: &SysctlKey) -> Vec<SysctlKey> {
    if (key.family, key.link.as_str(), key.name.as_str()) != (Family::V6, "all", "forwarding") {
        return Vec::new();
    }
    let entries = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|link| link != "all");
    links.map(|link| SysctlKey::new(Family::V6, &link, "forwarding")).collect()
}
