//! Calls over a local socket, and their errors in the words that scripts look for.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;

use hyper_util::rt::TokioIo;
use runtime::codes;
use spiffe::quote::quoted;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::flags::{Flag, Flags, Kind, flag, flag_or};
use super::{Failure, Printer};

/// Where the server listens unless told otherwise.
pub(crate) const SERVER_SOCKET: &str = "/tmp/spire-server/private/api.sock";
/// Where the agent serves workloads unless told otherwise.
pub(crate) const AGENT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
/// Where the agent serves administrators unless told otherwise.
pub(crate) const ADMIN_SOCKET: &str = "/tmp/spire-agent/private/admin.sock";

/// What the system says of an address it does not take.
const EINVAL: i32 = 22;

/// The largest reply taken: lists come in one message.
const MAX_REPLY: usize = 1 << 30;

/// The flags of a command that calls the server.
pub(crate) fn server_flags(own: &[Flag]) -> Vec<Flag> {
    let socket = [
        flag_or("socketPath", Kind::Text, SERVER_SOCKET, "Path to the SPIRE Server API socket"),
        flag("instance", Kind::Text, "Instance name to substitute into the socket templates"),
    ];
    [own, &socket].concat()
}

/// The same with a choice of output.
pub(crate) fn server_flags_with_output(own: &[Flag]) -> Vec<Flag> {
    let mut flags = server_flags(own);
    flags.push(output_flag());
    flags
}

/// The choice of output.
pub(crate) const fn output_flag() -> Flag {
    flag_or("output", Kind::Output, "pretty", "Desired output format (pretty, json)")
}

/// The server's socket: the flag, the instance template, the environment, the default.
pub(crate) fn server_socket(flags: &Flags) -> Result<PathBuf, String> {
    choose_socket(
        flags,
        SERVER_SOCKET,
        "SPIRE_SERVER_PRIVATE_SOCKET",
        "you must define SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE to use the instance flag",
    )
}

/// The agent's public socket, by the same rules.
pub(crate) fn agent_socket(flags: &Flags) -> Result<PathBuf, String> {
    choose_socket(
        flags,
        AGENT_SOCKET,
        "SPIRE_AGENT_PUBLIC_SOCKET",
        // The leading blank is SPIRE's; scripts compare it.
        " SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE environment variable must be defined when using the instance flag",
    )
}

fn choose_socket(flags: &Flags, default: &str, variable: &str, no_template: &str) -> Result<PathBuf, String> {
    let instance = flags.text("instance");
    let mut path = match std::env::var(variable) {
        Ok(path) if !path.is_empty() => path,
        Ok(_) | Err(_) => default.to_owned(),
    };
    if !instance.is_empty() {
        let name = format!("{variable}_TEMPLATE");
        let template = std::env::var(&name).unwrap_or_default();
        if template.is_empty() {
            return Err(no_template.to_owned());
        }
        if !template.contains("%i") {
            return Err(format!("failed to find %i in {name}"));
        }
        path = template.replace("%i", instance);
    }
    // The default path given explicitly counts as not given.
    if flags.is_given("socketPath") && flags.text("socketPath") != default {
        flags.text("socketPath").clone_into(&mut path);
    }
    Ok(PathBuf::from(path))
}

/// Runs one asynchronous command to its end on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // One runtime for the futures of all commands, rather than code of its own for each.
    block_on_one(Box::pin(work))
}

fn block_on_one<T>(work: Pin<Box<dyn Future<Output = Result<T, Failure>> + '_>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(work)
}

/// Runs a command that talks to the server.
pub(crate) fn with_server<F>(flags: &Flags, work: impl FnOnce(Dialed) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let socket = server_socket(flags)?;
    block_on(async move { work(dial(&socket)).await })
}

/// A channel to a local socket that connects at the first call.
#[derive(Clone)]
pub(crate) struct Dialed {
    channel: Channel,
    shown: String,
}

/// Prepares a channel to a socket of administrators. As in SPIRE's commands, an absolute path is shown with
/// two slashes before it, and what begins with `@` is an abstract address.
pub(crate) fn dial(socket: &Path) -> Dialed {
    let prefix = if socket.is_absolute() { "//" } else { "" };
    let shown = format!("dial unix {prefix}{}", socket.display());
    match socket.to_str().and_then(|text| text.strip_prefix('@')) {
        // So Tokio knows them.
        Some(name) => connect(Path::new(&format!("\0{name}")), shown),
        None => connect(socket, shown),
    }
}

/// Prepares a channel to a socket of workloads: as SPIRE's commands do, the path is made absolute first.
pub(crate) fn dial_public(socket: &Path) -> Dialed {
    let path = cleaned(&std::env::current_dir().unwrap_or_default().join(socket));
    connect(&path, format!("dial unix {}", path.display()))
}

/// A path without `.`, doubled slashes and what `..` takes back, by the letters alone, as Go has it.
pub(crate) fn cleaned(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut cleaned, component| {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match cleaned.components().next_back() {
                Some(Component::Normal(_)) => {
                    cleaned.pop();
                }
                Some(Component::Prefix(_) | Component::RootDir) => {}
                Some(Component::CurDir | Component::ParentDir) | None => cleaned.push(component),
            },
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => cleaned.push(component),
        }
        cleaned
    })
}

fn connect(socket: &Path, shown: String) -> Dialed {
    let path = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
    Dialed { channel, shown }
}

/// Makes a tonic client of `$client` on a [`Dialed`] socket.
macro_rules! client {
    ($client:path, $dialed:expr) => {
        <$client>::new($dialed.channel()).max_decoding_message_size($crate::cli::rpc::max_reply())
    };
}
pub(crate) use client;

/// The largest reply taken.
pub(crate) const fn max_reply() -> usize {
    MAX_REPLY
}

impl Dialed {
    /// The channel.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A failed call as SPIRE's commands show it.
    pub(crate) fn failed(&self, status: &Status) -> String {
        if let Some(cause) = io_cause(status) {
            let what = match self.shown.as_str() {
                "dial unix " => "dial unix: missing address".to_owned(),
                shown => format!("{shown}: connect: {}", system_text(&cause)),
            };
            let told = quoted(&format!("transport: Error while dialing: {what}"));
            return format!("rpc error: code = Unavailable desc = connection error: desc = {told}");
        }
        rpc_error(status)
    }

    /// Whether the call failed because there is no connection.
    pub(crate) fn is_unreached(&self, status: &Status) -> bool {
        io_cause(status).is_some()
    }

    /// Like [`Self::failed`], as a failure with a prefix.
    pub(crate) fn error(&self, prefix: &str, status: &Status) -> Failure {
        Failure::Error(format!("{prefix}{}", self.failed(status)))
    }
}

/// A status as Go prints it.
pub(crate) fn rpc_error(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", codes::name(status.code()), status.message())
}

/// The name of a numeric code in a per-item status.
pub(crate) fn code_name_of(code: i32) -> &'static str {
    codes::name(Code::from_i32(code))
}

/// The dialing error behind a status, if that is what failed.
fn io_cause(status: &Status) -> Option<io::Error> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            // A path longer than an address holds is refused before the system is asked.
            let refused = (io.kind() == io::ErrorKind::InvalidInput).then_some(EINVAL);
            return io.raw_os_error().or(refused).map(io::Error::from_raw_os_error);
        }
        source = error.source();
    }
    None
}

/// An operating system's error as Go words it: lower case, no number.
pub(crate) fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Reads a file, or stdin for `-`, with Go's words for what goes wrong.
pub(crate) fn read_input(path: &str) -> Result<Vec<u8>, String> {
    if path == "-" {
        let mut bytes = Vec::new();
        return io::Read::read_to_end(&mut io::stdin(), &mut bytes)
            .map(|_| bytes)
            .map_err(|error| format!("read /dev/stdin: {}", system_text(&error)));
    }
    read_file(path)
}

/// Reads a file with Go's words for what goes wrong.
pub(crate) fn read_file(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| {
        let step = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
        format!("{step} {path}: {}", system_text(&error))
    })
}

/// Prints a failed item of a batch to stderr.
pub(crate) fn item_failed(printer: &mut Printer, text: &str) {
    printer.err.push_str(text);
    printer.err.push('\n');
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    use super::*;

    #[test]
    fn system_errors_read_as_in_go() {
        let error = io::Error::from_raw_os_error(libc_enoent());

        assert_eq!(system_text(&error), "no such file or directory");
    }

    #[test]
    fn a_path_is_cleaned_as_it_reads() {
        assert_eq!(cleaned(Path::new("/run/./a//../b/api.sock")), Path::new("/run/b/api.sock"));
        assert_eq!(cleaned(Path::new("/../api.sock/")).as_os_str(), "/api.sock");
        assert_eq!(cleaned(Path::new("../a/../../b//c")), Path::new("../../b/c"));
        assert_eq!(cleaned(Path::new("./.")), Path::new(""));
    }

    #[test]
    fn an_address_that_is_not_there_is_quoted() {
        let failed = block_on(async {
            let dialed = dial(Path::new("no\u{2028}where"));
            let request = proto::health::HealthCheckRequest { service: String::new() };
            let reply = client!(proto::health::health_client::HealthClient<_>, dialed).check(request).await;
            Ok(dialed.failed(&reply.unwrap_err()))
        });

        let told =
            "transport: Error while dialing: dial unix no\\u2028where: connect: no such file or directory";
        assert_eq!(
            failed.unwrap(),
            format!("rpc error: code = Unavailable desc = connection error: desc = \"{told}\"")
        );
    }

    #[test]
    fn what_begins_with_an_at_sign_is_an_abstract_address() {
        let name = format!("finial-cli-{}", std::process::id());
        let reached = block_on(async {
            let address = SocketAddr::from_abstract_name(&name).map_err(|error| error.to_string())?;
            let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let dialed = dial(Path::new(&format!("@{name}")));
            let request = proto::health::HealthCheckRequest { service: String::new() };
            let mut client = client!(proto::health::health_client::HealthClient<_>, dialed);
            tokio::select! {
                accepted = listener.accept() => Ok(accepted.is_ok()),
                _ = client.check(request) => Ok(false),
            }
        });

        assert!(reached.unwrap());
    }

    const fn libc_enoent() -> i32 {
        2
    }
}
