//! Which of the kernel's offloads may be used.

use std::fmt;
use std::str::FromStr;

/// All, but for what the operator switched off: for a driver that gets one wrong, and for tests of what is done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "four switches that have nothing to do with each other")]
pub struct Offloads {
    /// TCP super-packets on the TUN device, both ways. Without, there are none of UDP either.
    pub tso: bool,
    /// UDP super-packets on the TUN device, both ways.
    pub uso: bool,
    /// `UDP_SEGMENT` on the socket.
    pub udp_gso: bool,
    /// `UDP_GRO` on the socket.
    pub udp_gro: bool,
}

impl Offloads {
    /// Names those that are to be left alone, with commas between them.
    pub const VARIABLE: &'static str = "MESHD_NO_OFFLOAD";

    /// What is left when those that [`Self::VARIABLE`] names are gone.
    ///
    /// # Errors
    /// When it names something else.
    pub fn from_env() -> Result<Self, UnknownOffload> {
        std::env::var(Self::VARIABLE).unwrap_or_default().parse()
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self { tso: true, uso: true, udp_gso: true, udp_gro: true }
    }
}

/// Of a list of what is not to be used.
impl FromStr for Offloads {
    type Err = UnknownOffload;

    fn from_str(list: &str) -> Result<Self, UnknownOffload> {
        let mut offloads = Self::default();
        for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "tso" => offloads.tso = false,
                "uso" => offloads.uso = false,
                "udp-gso" => offloads.udp_gso = false,
                "udp-gro" => offloads.udp_gro = false,
                _ => return Err(UnknownOffload(word.to_owned())),
            }
        }
        offloads.uso &= offloads.tso;
        Ok(offloads)
    }
}

/// A word that is the name of no offload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MESHD_NO_OFFLOAD names {0:?}; it is a list of tso, uso, udp-gso and udp-gro, such as tso,udp-gso")]
pub struct UnknownOffload(String);

/// What is used, for the log.
impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [(self.tso, "tso"), (self.uso, "uso"), (self.udp_gso, "udp-gso"), (self.udp_gro, "udp-gro")];
        let used: Vec<_> = all.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect();
        f.write_str(if used.is_empty() { "none" } else { "" })?;
        f.write_str(&used.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_gone() {
        for (list, left) in [
            ("", "tso,uso,udp-gso,udp-gro"),
            ("uso", "tso,udp-gso,udp-gro"),
            ("tso", "udp-gso,udp-gro"),
            (" udp-gro, udp-gso,", "tso,uso"),
            ("tso,uso,udp-gso,udp-gro", "none"),
        ] {
            assert_eq!(list.parse::<Offloads>().unwrap().to_string(), left, "{list:?}");
        }
    }

    #[test]
    fn an_unknown_word_is_named() {
        let error = "tso,gso".parse::<Offloads>().unwrap_err().to_string();
        assert!(error.starts_with("MESHD_NO_OFFLOAD names \"gso\"; it is a list of tso, uso"), "{error}");
    }
}
