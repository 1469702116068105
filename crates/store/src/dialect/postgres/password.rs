//! The password file: `host:port:database:user:password`, a line each, `*` for anything.

use std::path::Path;

/// The password of the first line that fits; none where the file is not its owner's alone.
pub(super) fn from_file(path: &Path, wanted: [&str; 4]) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "Password file is not used: others may read it");
            return None;
        }
    }
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| fitting(line, wanted))
}

fn fitting(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields.last_mut()?.push(letters.next()?),
            _ => fields.last_mut()?.push(letter),
        }
    }
    let password = fields.get(4)?.clone();
    let fits = fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
    fits.then_some(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fitting_line_is_taken() {
        let wanted = ["db", "5432", "spire", "me"];

        assert_eq!(fitting("db:5432:spire:me:secret", wanted).as_deref(), Some("secret"));
        assert_eq!(fitting("*:*:*:*:a\\:b:c", wanted).as_deref(), Some("a:b:c"));
        assert_eq!(fitting("other:*:*:*:secret", wanted), None);
        assert_eq!(fitting("#db:5432:spire:me:secret", wanted), None);
        assert_eq!(fitting("db:5432", wanted), None);
    }
}
