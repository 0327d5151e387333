//! What this process keeps to itself.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Keeps this process's memory, which has keys in it, out of core files and from other processes of its user. What it starts
/// writes no core files either. Best effort: without it all else works.
pub fn keep_secrets() {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = prctl::set_dumpable(false);
}
