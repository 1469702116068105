//! Files that must never be seen half-written or by others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by `contents` with this mode, at once: whoever opens it sees the old
/// contents or the new, also after the power went. The new contents are written to `<path>.tmp`
/// first, which must be on the same file system.
///
/// # Errors
/// What the system says; the file is then as it was.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let temporary = suffixed(path, ".tmp");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(&temporary, contents, mode).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; what is left behind is overwritten next time.
        drop(std::fs::remove_file(&temporary));
        return Err(error);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Creates the directory and those above it that are missing, with this mode.
///
/// # Errors
/// What the system says.
pub fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Reads a file of secrets, refusing one that is open to others or longer than `limit`.
///
/// # Errors
/// What the system says; `PermissionDenied` where group or others have any right on the file,
/// `FileTooLarge` where it is longer than `limit`.
pub fn read_private(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("mode is {mode:04o}: others than its owner have access"),
        ));
    }
    let mut contents = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut contents)?;
    if u64::try_from(contents.len()).is_ok_and(|length| length > limit) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")));
    }
    Ok(contents)
}

/// Whether any user may take away or replace files in this directory: it is writable by all and not
/// sticky. A socket must not be made in such a directory.
///
/// # Errors
/// What the system says.
pub fn is_open_to_all(directory: &Path) -> io::Result<bool> {
    let mode = std::fs::metadata(directory)?.permissions().mode();
    Ok(mode & 0o002 != 0 && mode & 0o1000 == 0)
}

fn write_new(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The mode given at creation is cut by the umask.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k01_a_file_is_replaced_whole_and_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        std::fs::write(&path, "old").unwrap();
        std::fs::write(directory.path().join("keys.json.tmp"), "left behind").unwrap();

        replace(&path, b"new", 0o600).unwrap();

        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn k03_what_a_symbolic_link_points_to_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("keys.json"), directory.path().join("other"));
        std::fs::write(&other, "others").unwrap();
        for link in [path.clone(), directory.path().join("keys.json.tmp")] {
            std::os::unix::fs::symlink(&other, link).unwrap();
        }

        replace(&path, b"new", 0o600).unwrap();

        assert_eq!(std::fs::read(&other).unwrap(), b"others");
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn k04_a_file_that_cannot_be_written_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("keys.json");

        replace(&path, b"new", 0o600).unwrap_err();

        assert!(!path.exists());
    }

    #[test]
    fn secrets_are_read_only_from_files_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        replace(&path, b"secret", 0o600).unwrap();

        assert_eq!(read_private(&path, 6).unwrap(), b"secret");
        assert_eq!(read_private(&path, 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        replace(&path, b"secret", 0o640).unwrap();
        assert_eq!(read_private(&path, 6).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_directory_open_to_all_is_told_from_a_sticky_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a").join("b");
        create_directory(&path, 0o750).unwrap();

        assert!(!is_open_to_all(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(is_open_to_all(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(!is_open_to_all(&path).unwrap());
    }
}
