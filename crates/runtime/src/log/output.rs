//! Where lines go: a stream of the process, or a file that can be opened anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Output;

#[derive(Debug)]
pub(super) enum Sink {
    Stdout,
    Stderr,
    File { path: PathBuf, file: Mutex<File> },
}

impl Sink {
    pub(super) fn open(output: &Output) -> io::Result<Self> {
        match output {
            Output::Stdout => Ok(Self::Stdout),
            Output::Stderr => Ok(Self::Stderr),
            Output::File(path) => {
                Ok(Self::File { path: path.clone(), file: Mutex::new(open_to_append(path)?) })
            }
        }
    }

    /// Writes a line with one call, so that lines of several processes do not mix. What cannot be
    /// written is lost: a full disk or a closed pipe must not stop the program.
    pub(super) fn write(&self, line: &[u8]) {
        let outcome = match self {
            Self::Stdout => {
                let mut stream = io::stdout().lock();
                stream.write_all(line).and_then(|()| stream.flush())
            }
            Self::Stderr => io::stderr().write_all(line),
            Self::File { file, .. } => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line),
        };
        drop(outcome);
    }

    pub(super) fn reopen(&self) -> io::Result<()> {
        if let Self::File { path, file } = self {
            let opened = open_to_append(path)?;
            *file.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        }
        Ok(())
    }
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}
