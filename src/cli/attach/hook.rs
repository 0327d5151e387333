//! `meshd attach --oci-hook`: what an OCI runtime says of a container that it starts.
//!
//! The state comes on standard input (OCI runtime specification, "State"). At the stage `createRuntime` the namespaces exist and
//! nothing of the container has run, so its first process finds the network as it is going to be. A failure keeps the container
//! from starting: it would run without what it was told to have.

use std::collections::BTreeMap;
use std::io::{BufRead, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Args, Failure};
use crate::config::quote;

/// What a container is asked to have, by its annotations.
const NAME: &str = "org.meshd.name";
const BRIDGE: &str = "org.meshd.bridge";
const ADDRESSES: &str = "org.meshd.addresses";
const INTERFACE: &str = "org.meshd.interface";
const PUBLISH: &str = "org.meshd.publish";
const ALL: [&str; 5] = [NAME, BRIDGE, ADDRESSES, INTERFACE, PUBLISH];
const PREFIX: &str = "org.meshd.";
/// Annotations hold labels, too.
const LONGEST: u64 = 1 << 20;

/// The state of a container.
#[derive(Debug, Default, Deserialize)]
pub(super) struct State {
    id: String,
    pid: i32,
    #[serde(default)]
    bundle: PathBuf,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Reads it.
pub(super) fn read(from: impl BufRead) -> Result<State, Failure> {
    let mut text = Vec::new();
    let read = from.take(LONGEST).read_to_end(&mut text);
    read.map_err(|error| Failure::new(1, format!("attach: standard input: {error}")))?;
    serde_json::from_slice(&text)
        .map_err(|error| Failure::new(1, format!("attach: standard input: no state of an OCI container: {error}")))
}

/// The part of a container's config.json that says what it is called and where its files are.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Spec {
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    root: Root,
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Debug, Default, Deserialize)]
struct Root {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Mount {
    destination: PathBuf,
    #[serde(default)]
    source: PathBuf,
}

/// Where a container is going to find its /etc/resolv.conf.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ResolvConf {
    /// In this file, which its engine made for it and is about to mount.
    Mounted(PathBuf),
    /// In this folder, which is about to be its root: Podman mounts nothing where it was told to make no network.
    Below(PathBuf),
    /// In a file that somebody else gave it.
    Given,
}

impl State {
    /// What it was made of.
    pub(super) fn spec(&self) -> Result<Spec, Failure> {
        let path = self.bundle.join("config.json");
        let failed = |why: String| Failure::new(1, format!("attach: {}: {why}", path.display()));
        let text = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
    }

    /// Where its /etc/resolv.conf is to be.
    pub(super) fn resolv_conf(&self, spec: &Spec) -> ResolvConf {
        let mount = spec.mounts.iter().find(|mount| mount.destination == Path::new("/etc/resolv.conf"));
        match mount.map(|mount| self.bundle.join(&mount.source)) {
            None => ResolvConf::Below(self.bundle.join(&spec.root.path)),
            // Podman and Docker have a folder for each container, by its ID.
            Some(file) if file.iter().any(|part| *part == *self.id) => ResolvConf::Mounted(file),
            Some(_) => ResolvConf::Given,
        }
    }

    /// Puts what it says in the place of arguments.
    pub(super) fn fill(self, spec: Spec, args: &mut Args) -> Result<(), Failure> {
        let unknown = |key: &&String| key.starts_with(PREFIX) && !ALL.contains(&key.as_str());
        if let Some(key) = self.annotations.keys().find(unknown) {
            return Err(Failure::new(4, format!("attach: annotation {}: unknown", quote(key)))
                .try_this(format!("one of {}", ALL.join(", "))));
        }
        let of = |key: &str| self.annotations.get(key).cloned();
        args.address = self.list(ADDRESSES, |word: &str| word.parse().map_err(|_| "no IP address".to_owned()))?;
        args.publish = self.list(PUBLISH, str::parse)?;
        args.container = Some(self.pid.to_string());
        // Podman and Docker make their identifiers of 64 digits; the first twelve are what they show, and what the container is
        // called by itself where nobody gave it a host name.
        let hostname = Some(spec.hostname).filter(|name| crate::config::value::name(name).is_ok());
        args.name = of(NAME).or(hostname).or_else(|| Some(self.id.chars().take(12).collect()));
        args.bridge = of(BRIDGE);
        args.interface = of(INTERFACE).unwrap_or_else(|| args.interface.clone());
        Ok(())
    }

    /// The words of an annotation, between commas or blanks.
    fn list<T>(&self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Failure> {
        let words = self.annotations.get(key).into_iter().flat_map(|list| list.split([',', ' ']));
        let value = |word: &str| {
            read(word).map_err(|why| Failure::new(4, format!("attach: annotation {key}: {}: {why}", quote(word))))
        };
        words.filter(|word| !word.is_empty()).map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(state: &str) -> Result<Args, String> {
        let mut args = Args { interface: "eth0".to_owned(), oci_hook: true, ..Args::default() };
        let failure = |failure: Failure| failure.errors.join("\\n");
        read(state.as_bytes()).and_then(|state| state.fill(Spec::default(), &mut args)).map_err(failure)?;
        Ok(args)
    }

    #[test]
    fn what_a_runtime_says_takes_the_place_of_arguments() {
        let state = r#"{"ociVersion":"1.2.0","id":"0123456789abcdef0123","status":"created","pid":4711,"bundle":"/b"}"#;
        let args = filled(state).unwrap();
        assert_eq!((args.container.as_deref(), args.name.as_deref()), (Some("4711"), Some("0123456789ab")));
        let more = r#""annotations":{"org.meshd.name":"cloud","org.meshd.bridge":"br0","org.meshd.interface":"net0",
            "org.meshd.addresses":"10.89.2.40, fd89:2::40","io.podman.x":"y"}"#;
        let args = filled(&state.replace(r#""bundle":"/b""#, more)).unwrap();
        assert_eq!(
            (args.name.as_deref(), args.bridge.as_deref(), &*args.interface),
            (Some("cloud"), Some("br0"), "net0")
        );
        assert_eq!(args.address, ["10.89.2.40".parse::<std::net::IpAddr>().unwrap(), "fd89:2::40".parse().unwrap()]);
    }

    #[test]
    fn a_host_name_that_somebody_gave_it_is_its_name() {
        for (hostname, name) in [("cloud", "cloud"), ("cloud.example.org", "0123"), ("", "0123")] {
            let state = State { id: "0123".to_owned(), ..State::default() };
            let mut args = Args::default();
            let filled = state.fill(Spec { hostname: hostname.to_owned(), ..Spec::default() }, &mut args);
            assert!(filled.is_ok() && args.name.as_deref() == Some(name), "{hostname}: {:?}", args.name);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (state, why) in [
            ("", "no state of an OCI container"),
            (
                r#"{"id":"a","pid":1,"annotations":{"org.meshd.adresses":"10.89.2.1"}}"#,
                "\"org.meshd.adresses\": unknown",
            ),
            (r#"{"id":"a","pid":1,"annotations":{"org.meshd.addresses":"10.89.2"}}"#, "\"10.89.2\": no IP address"),
        ] {
            let said = filled(state).unwrap_err();
            assert!(said.contains(why), "{state}: {said}");
        }
    }

    #[test]
    fn only_what_is_the_containers_own_is_written() {
        let state = State { id: "0123".to_owned(), bundle: "/b".into(), ..State::default() };
        let place = |mount: &str| {
            let spec = format!(r#"{{"root":{{"path":"root"}},"mounts":[{{"destination":"/proc"}}{mount}]}}"#);
            state.resolv_conf(&serde_json::from_str(&spec).unwrap())
        };
        let mount = |source: &str| format!(r#",{{"destination":"/etc/resolv.conf","source":"{source}"}}"#);
        assert_eq!(place(""), ResolvConf::Below("/b/root".into()));
        assert_eq!(place(&mount("/run/0123/resolv.conf")), ResolvConf::Mounted("/run/0123/resolv.conf".into()));
        assert_eq!(place(&mount("/etc/resolv.conf")), ResolvConf::Given);
    }
}
