//! Names of users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! The files are read again when they changed; an id without a name has none, which is no error.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// One of the two files; both have the name in the first field and the id in the third.
pub(super) struct Accounts {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    stamp: Option<Stamp>,
    names: Arc<Names>,
}

/// The name of each id: the first in the file.
pub(super) type Names = HashMap<u32, String>;

/// Device, inode, size, seconds and nanoseconds of the last change.
type Stamp = (u64, u64, u64, i64, i64);

impl Accounts {
    /// The file at `path`.
    pub(super) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), read: Mutex::default() }
    }

    /// The names as they are now.
    pub(super) fn names(&self) -> Arc<Names> {
        let stamp = std::fs::metadata(&self.path)
            .ok()
            .map(|file| (file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp.is_none() || read.stamp != stamp {
            let text = std::fs::read(&self.path).unwrap_or_default();
            *read = Read { stamp, names: Arc::new(parse(&String::from_utf8_lossy(&text))) };
        }
        Arc::clone(&read.names)
    }
}

fn parse(text: &str) -> Names {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
        // Entries of the old network information service, and comments.
        let is_entry = !name.is_empty() && !name.starts_with(['+', '-', '#']);
        let Ok(number) = id.parse::<u32>() else { continue };
        if is_entry {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_account_of_an_id_gives_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        std::fs::write(&path, "root:x:0:0:r:/root:/bin/sh\n+::::::\ntoor:x:0:0::/:/bin/sh\n#a:x:7:7\nb:x\n")
            .unwrap();
        let users = Accounts::at(&path);
        let name = |id| users.names().get(&id).cloned();

        assert_eq!(name(0).as_deref(), Some("root"));
        assert_eq!(name(7), None);

        std::fs::write(&path, "admin:x:00:0\nweb:x:7:7\n").unwrap();
        assert_eq!(name(0).as_deref(), Some("admin"));
        assert_eq!(name(7).as_deref(), Some("web"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(name(7), None);
    }
}
