//! `meshd attach --oci-runtime`: a runtime for engines that know no hooks, as Docker.
//!
//! It is called as runc is (runc(8)), puts the hook into the `config.json` of a bundle of which a container is to be created, and
//! lets runc do what there is to do.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::Failure;
use crate::host::files;

/// What is called in the end.
const RUNTIME: &str = "runc";
/// Commands of a runtime that make a container out of a bundle.
const MAKING: [&str; 2] = ["create", "run"];

/// Never returns but with a failure: the runtime takes the place of this process.
pub(super) fn run(args: &[OsString], run_dir: &Path) -> Failure {
    let failure = put_hook(args, run_dir).err().unwrap_or_else(|| {
        let error = Command::new(RUNTIME).args(args).exec();
        Failure::new(1, format!("attach: {RUNTIME}: {error}"))
    });
    // There the engine looks for the reason.
    if let Some(log) = option(args, &["--log"]) {
        let line = json!({ "level": "error", "msg": format!("meshd: {}", failure.errors.join("; ")) });
        let written = File::options().append(true).create(true).open(log).and_then(|mut log| writeln!(log, "{line}"));
        // It is on standard error, too.
        let _ = written;
    }
    failure
}

fn put_hook(args: &[OsString], run_dir: &Path) -> Result<(), Failure> {
    let Some(making) = args.iter().position(|arg| MAKING.iter().any(|making| arg == making)) else { return Ok(()) };
    let bundle = option(&args[making..], &["--bundle", "-b"]).unwrap_or_else(|| ".".into());
    let path = bundle.join("config.json");
    let added = std::env::current_exe().and_then(|meshd| add_hook(&path, &meshd, run_dir));
    added.map_err(|error| Failure::new(1, format!("attach: {}: {error}", path.display())))
}

/// What is given to an option.
fn option(args: &[OsString], names: &[&str]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let arg = arg.to_str().unwrap_or_default();
        match arg.split_once('=') {
            None if names.contains(&arg) => return args.next().map(PathBuf::from),
            Some((name, path)) if names.contains(&name) => return Some(path.into()),
            _ => {}
        }
    }
    None
}

fn add_hook(path: &Path, meshd: &Path, run_dir: &Path) -> io::Result<()> {
    let mut spec: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let args = json!(["meshd", "attach", "--oci-hook", "--run-dir", run_dir]);
    let hook = json!({ "path": meshd, "args": args, "timeout": 30 });
    let root = spec.as_object_mut().ok_or_else(|| io::Error::other("no object"))?;
    let hooks = root.entry("hooks").or_insert_with(|| json!({})).as_object_mut();
    let stage = hooks.and_then(|hooks| hooks.entry("createRuntime").or_insert_with(|| json!([])).as_array_mut());
    stage.ok_or_else(|| io::Error::other("hooks: no lists by stage"))?.push(hook);
    files::replace(path, &serde_json::to_vec(&spec)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_given_either_way() {
        let given = |line: &str| option(&line.split(' ').map(OsString::from).collect::<Vec<_>>(), &["--bundle", "-b"]);
        for line in ["create --bundle /b --pid-file /p 0123", "create -b /b 0123", "run --bundle=/b 0123"] {
            assert_eq!(given(line), Some("/b".into()), "{line}");
        }
        for line in ["create 0123", "create --bundle"] {
            assert_eq!(given(line), None, "{line}");
        }
    }

    #[test]
    fn hooks_that_are_there_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let hooks_of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            add_hook(&path, Path::new("/usr/bin/meshd"), Path::new("/run/meshd")).map_err(|error| error.to_string())?;
            let spec: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            Ok::<_, String>(spec["hooks"].clone())
        };
        let ours = json!({ "path": "/usr/bin/meshd", "timeout": 30,
            "args": ["meshd", "attach", "--oci-hook", "--run-dir", "/run/meshd"] });
        assert_eq!(hooks_of("{}").unwrap(), json!({ "createRuntime": [ours] }));
        let theirs = json!({ "prestart": [{ "path": "/a" }], "createRuntime": [{ "path": "/b" }] });
        let both = json!({ "prestart": [{ "path": "/a" }], "createRuntime": [{ "path": "/b" }, ours] });
        assert_eq!(hooks_of(&json!({ "hooks": theirs }).to_string()).unwrap(), both);
        for damaged in ["", "[]", r#"{"hooks":[]}"#] {
            hooks_of(damaged).unwrap_err();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }
}
