//! meshd: a per-host agent that joins hosts' container bridges over a userspace WireGuard tunnel.
//!
//! The layers, each importing only from those below it:
//!
//! | | |
//! | --- | --- |
//! | `cli` | one file a command; prints, never decides |
//! | `agent` | the supervisor |
//! | `failure`, `clock` | how a command fails; the time of day |
//! | `control`, `dataplane`, `host`, `resolver`, `store`, `owner` | the shell: sockets, threads, the kernel, files and whose they are |
//! | `attach`, `enroll`, `mesh`, `names`, `doctor`, `plan`, `tunnel`, `express`, `bench`, `leaktest`, `wgquick`, `config`, `channel`, `packet`, `key` | the core: pure, `now` is an argument |

pub mod agent;
pub mod attach;
pub mod bench;
pub mod channel;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod doctor;
pub mod enroll;
pub mod express;
pub mod failure;
pub mod host;
pub mod key;
pub mod leaktest;
pub mod mesh;
pub mod names;
pub mod owner;
pub mod packet;
pub mod plan;
pub mod resolver;
pub mod store;
pub mod tunnel;
pub mod wgquick;
