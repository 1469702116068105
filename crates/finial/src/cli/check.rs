//! `finial check`: whether a configuration file is good, for each of SPIRE's programs and the helper.
//!
//! Unlike `validate` it is not bound to SPIRE's words and verdicts: it also looks at the settings of an
//! agent's plugins, at the files of programs that are not part of this version, and says which settings
//! a program would not start with.

use std::fmt::Write as _;
use std::path::Path;

use config::plugins::{self, Complaint, Side};
use config::{
    AgentConfig, AgentFlags, ConfigError, HelperConfig, Note, OidcConfig, PluginBlock, ServerConfig,
    ServerFlags, Unbuilt,
};

use super::flags::{Flag, Flags, Kind, flag, flag_or};
use super::{Command, Failure, FlagError, Printer};

/// All commands.
pub(crate) fn commands() -> Vec<Command> {
    vec![
        command("server", "Checks a server's configuration", "conf/server/server.conf", server),
        command("agent", "Checks an agent's configuration", "conf/agent/agent.conf", agent),
        command(
            "oidc-discovery-provider",
            "Checks an OIDC discovery provider's configuration",
            "oidc-discovery-provider.conf",
            oidc,
        ),
        command("spiffe-helper", "Checks a helper's configuration", "helper.conf", helper),
    ]
}

fn command(name: &'static str, about: &'static str, file: &'static str, action: super::Action) -> Command {
    Command { name, about, flags: flags(file).to_vec(), on_flag_error: FlagError::Once, action }
}

const fn flags(file: &'static str) -> [Flag; 2] {
    [
        flag_or("config", Kind::Text, file, "Path to the configuration file"),
        flag("expandEnv", Kind::Bool, "Expand environment variables in the configuration file"),
    ]
}

fn server(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let given = ServerFlags {
        config: flags.text("config").to_owned(),
        expand_env: flags.is_on("expandEnv"),
        ..ServerFlags::default()
    };
    let loaded = ServerConfig::load(&given).map_err(|error| refused(&error, printer))?;
    remark(printer, &loaded.notes, &loaded.unbuilt);
    conclude(printer, flags, plugins_of(Side::Server, &loaded.config.plugins)?)
}

fn agent(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let given = AgentFlags {
        config: flags.text("config").to_owned(),
        expand_env: flags.is_on("expandEnv"),
        ..AgentFlags::default()
    };
    let loaded = AgentConfig::load(&given).map_err(|error| refused(&error, printer))?;
    remark(printer, &loaded.notes, &loaded.unbuilt);
    conclude(printer, flags, plugins_of(Side::Agent, &loaded.config.plugins)?)
}

fn oidc(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let file = Path::new(flags.text("config"));
    OidcConfig::load(file, flags.is_on("expandEnv")).map_err(|error| refused(&error, printer))?;
    conclude(printer, flags, Vec::new())
}

fn helper(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    HelperConfig::load(Path::new(flags.text("config"))).map_err(|error| refused(&error, printer))?;
    conclude(printer, flags, Vec::new())
}

fn refused(error: &ConfigError, printer: &mut Printer) -> Failure {
    remark(printer, &error.notes, &[]);
    Failure::Error(error.to_string())
}

fn plugins_of(side: Side, blocks: &[PluginBlock]) -> Result<Vec<Complaint>, Failure> {
    plugins::validate(side, blocks).map_err(Failure::Error)
}

fn remark(printer: &mut Printer, notes: &[Note], unbuilt: &[Unbuilt]) {
    for note in notes {
        // Writing to a string cannot fail.
        let _written = write!(printer.err, "note: {}", note.message);
        for (name, value) in &note.fields {
            let _written = write!(printer.err, " {name}={value}");
        }
        printer.err.push('\n');
    }
    for setting in unbuilt {
        let _written = writeln!(printer.err, "not yet: {setting}");
    }
}

fn conclude(printer: &mut Printer, flags: &Flags, complaints: Vec<Complaint>) -> Result<(), Failure> {
    let file = flags.text("config");
    if complaints.is_empty() {
        let _written = writeln!(printer.out, "{file} is good.");
        return Ok(());
    }
    for complaint in complaints {
        for text in complaint.texts {
            let _written = writeln!(printer.err, "{}: {text}", complaint.plugin);
        }
    }
    Err(Failure::Error(format!("{file} is not good")))
}
