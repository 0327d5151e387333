//! Whose files these are, where the agent has a user of its own and root's commands work beside it.
//!
//! A packaged agent's folders belong to its user. What root writes there has to stay the agent's to read, so it is given to the
//! folder's owner. What that owner has written root relies on as far as on the folder, whose owner can replace each file in it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, fchown};

/// Gives what root has just made in `folder` to the folder's owner. Another user's stays that user's.
pub fn give(file: impl AsFd, folder: &Path) -> io::Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let folder = folder.metadata()?;
    if folder.uid() != 0 {
        fchown(file, Some(Uid::from_raw(folder.uid())), Some(Gid::from_raw(folder.gid())))?;
    }
    Ok(())
}

/// Whether this process relies on a file of `owner` in `folder`.
pub fn trusted(owner: u32, folder: &Path) -> bool {
    let of_folder = folder.metadata().map_or(0, |folder| folder.uid());
    relies(Uid::effective().as_raw(), owner, of_folder)
}

/// On root's, on its own, and as root on that of the folder's owner.
fn relies(user: u32, owner: u32, of_folder: u32) -> bool {
    owner == 0 || owner == user || (user == 0 && owner == of_folder)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn the_folder_decides_for_root_alone() {
        for (user, owner, of_folder, relied) in [
            (0, 0, 0, true),
            (0, 999, 999, true),
            (0, 999, 0, false),
            (0, 1000, 999, false),
            (999, 0, 999, true),
            (999, 999, 0, true),
            (999, 1000, 999, false),
            (999, 1000, 1000, false),
        ] {
            assert_eq!(relies(user, owner, of_folder), relied, "{user} {owner} {of_folder}");
        }
    }

    #[test]
    fn what_root_makes_belongs_to_the_folders_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let made = || {
            give(File::create(&path).unwrap(), folder.path()).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            (metadata.uid(), metadata.gid())
        };
        let mine = (Uid::effective().as_raw(), nix::unistd::getegid().as_raw());
        assert_eq!(made(), mine);
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(65534), Some(65533)).unwrap();
            assert_eq!(made(), (65534, 65533));
            assert!(trusted(65534, folder.path()) && !trusted(65532, folder.path()));
        }
    }
}
