//! `audit verify`: whether a server's audit lines are those that it wrote.

use std::fs::File;
use std::io::BufReader;

use crate::cli::flags::{Flags, Kind, flag};
use crate::cli::{Command, Failure, FlagError, Printer};

/// The commands of this group.
pub(super) fn commands() -> Vec<Command> {
    vec![Command {
        name: "audit verify",
        about: "Follow the chain of audit lines through a log",
        flags: vec![flag("file", Kind::Text, "The log, as a server with audit_log_chain wrote it")],
        on_flag_error: FlagError::Once,
        action: verify,
    }]
}

fn verify(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let path = flags.text("file");
    if path.is_empty() {
        return Err("-file is required".into());
    }
    let file = File::open(path).map_err(|error| format!("cannot open {path}: {error}"))?;
    let chain = server::verify_audit(BufReader::new(file))
        .map_err(|fault| format!("{path}: {}", runtime::chain(&fault)))?;
    for line in &chain.beginnings {
        printer.out.push_str(&format!("A chain begins at line {line}\n"));
    }
    let server::AuditChain { count, first, last, hash, .. } = chain;
    printer.out.push_str(&format!("{count} audit lines, number {first} to {last}, as they were written\n"));
    printer.out.push_str(&format!("The last has the hash {hash}\n"));
    Ok(())
}
