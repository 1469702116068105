//! A running trust domain in a folder of its own: server, and if asked for an agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ports::Ports;

/// The programs under test: Finial's, or SPIRE's own.
#[derive(Clone, Debug)]
pub struct Product {
    /// The long-running programs: server and agent.
    daemons: [PathBuf; 2],
    /// What answers to the other command lines.
    commands: [PathBuf; 2],
}

impl Product {
    /// The binary that `FINIAL_BIN` names, else the release build of this workspace. If `SPIRE_BIN`
    /// names the folder of SPIRE's programs, those - but with `FINIAL_ROLE=commands` only their
    /// long-running halves, driven by Finial's commands.
    #[must_use]
    pub fn under_test() -> Self {
        let Some(dir) = std::env::var_os("SPIRE_BIN") else { return Self::finial() };
        let mut product = Self::spire(Path::new(&dir));
        if std::env::var_os("FINIAL_ROLE").is_some_and(|role| role == "commands") {
            product.commands = Self::finial().commands;
        }
        product
    }

    /// Finial's one binary, called by the names it answers to.
    #[must_use]
    pub fn finial() -> Self {
        let binary = std::env::var_os("FINIAL_BIN").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/finial"),
            PathBuf::from,
        );
        let both = [binary.clone(), binary];
        Self { daemons: both.clone(), commands: both }
    }

    /// SPIRE's own programs in `dir`.
    #[must_use]
    pub fn spire(dir: &Path) -> Self {
        let both = [dir.join("spire-server"), dir.join("spire-agent")];
        Self { daemons: both.clone(), commands: both }
    }

    /// The server of one product with the agent of another.
    #[must_use]
    pub fn mixed(server: &Self, agent: &Self) -> Self {
        let mix = |servers: &[PathBuf; 2], agents: &[PathBuf; 2]| [servers[0].clone(), agents[1].clone()];
        Self {
            daemons: mix(&server.daemons, &agent.daemons),
            commands: mix(&server.commands, &agent.commands),
        }
    }

    /// A command of `program` (`server`, `agent`, or another word that is the name itself) with `args`.
    #[must_use]
    pub fn command(&self, program: &str, args: &[String]) -> Command {
        let is_daemon = args.first().is_some_and(|first| first == "run" || first == "validate");
        let [server, agent] = if is_daemon { &self.daemons } else { &self.commands };
        let (path, name) = match program {
            "server" => (server, "spire-server"),
            "agent" => (agent, "spire-agent"),
            other => (server, other),
        };
        let mut command = Command::new(path);
        command.arg0(name).args(args);
        command
    }
}

/// What of a plane deviates from the default.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    /// The trust domain.
    pub trust_domain: String,
    /// Lines inside `server {}`.
    pub server_extra: String,
    /// Lines inside `agent {}`.
    pub agent_extra: String,
    /// The datastore's `plugin_data`.
    pub datastore: String,
    /// Lines inside the server's `plugins {}`.
    pub server_plugins: String,
    /// The agent's node attestor.
    pub agent_attestor: String,
    /// The `plugin_data` of the agent's workload attestor `unix`, or the line that says in which file it
    /// is.
    pub workload_attestor: String,
    /// The CA's key type.
    pub ca_key: String,
    /// Log level of both.
    pub log: String,
    /// Variables in the environment of all its programs.
    pub env: BTreeMap<String, String>,
    /// What a shell does, in a mount namespace of its own, before it becomes the server; placeholders
    /// are filled in. Needs root.
    pub server_prelude: String,
    /// Start a server.
    pub server: bool,
    /// Start an agent too, attested by join token with the alias `/node`.
    pub agent: bool,
}

impl Default for PlaneConfig {
    fn default() -> Self {
        Self {
            trust_domain: "example.org".to_owned(),
            server_extra: String::new(),
            agent_extra: String::new(),
            datastore:
                r#"database_type = "sqlite3" connection_string = "{dir}/server-data/datastore.sqlite3""#
                    .to_owned(),
            server_plugins: String::new(),
            agent_attestor: r#"NodeAttestor "join_token" { plugin_data {} }"#.to_owned(),
            workload_attestor: String::new(),
            ca_key: "ec-p256".to_owned(),
            log: "INFO".to_owned(),
            env: BTreeMap::new(),
            server_prelude: String::new(),
            server: true,
            agent: false,
        }
    }
}

/// A trust domain on this machine. Dropping it ends its processes and removes its folder.
#[derive(Debug)]
pub struct Plane {
    product: Product,
    dir: TempDir,
    words: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
    server_prelude: String,
    server: Option<Running>,
    agent: Option<Running>,
    _ports: Ports,
}

impl Plane {
    /// Lays out the folder and starts what `config` asks for, each once the one before is healthy.
    ///
    /// # Panics
    /// If something does not become healthy within 30 s, with what it printed.
    #[must_use]
    pub fn start(product: &Product, config: &PlaneConfig, files: &BTreeMap<String, String>) -> Self {
        let dir = tempfile::Builder::new().prefix("finial-").tempdir().expect("a temporary folder");
        let ports = Ports::hold(4);
        let mut plane = Self {
            product: product.clone(),
            words: words(dir.path(), &config.trust_domain, &ports),
            env: config.env.clone(),
            server_prelude: config.server_prelude.clone(),
            dir,
            server: None,
            agent: None,
            _ports: ports,
        };
        fs::create_dir_all(plane.cwd()).expect("the working directory");
        for (path, text) in files {
            plane.write(path, text);
        }
        if config.server || config.agent {
            plane.start_server(config);
        }
        if config.agent {
            plane.join_agent(config);
        }
        plane
    }

    /// Whose programs are started from now on; what runs stays.
    pub fn set_product(&mut self, product: &Product) {
        self.product = product.clone();
    }

    /// The folder of the plane.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where commands run.
    #[must_use]
    pub fn cwd(&self) -> PathBuf {
        self.dir.path().join("cwd")
    }

    /// The value of a placeholder such as `sock`.
    #[must_use]
    pub fn word(&self, name: &str) -> &str {
        self.words.get(name).map_or("", String::as_str)
    }

    /// Adds or replaces a placeholder.
    pub fn set_word(&mut self, name: &str, value: String) {
        self.words.insert(name.to_owned(), value);
    }

    /// `text` with the placeholders filled in; a `{word}` that is none is left alone.
    #[must_use]
    pub fn fill(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            filled.push_str(&rest[..open]);
            rest = &rest[open..];
            let known = rest.find('}').and_then(|close| Some((close, self.words.get(&rest[1..close])?)));
            if let Some((close, value)) = known {
                filled.push_str(value);
                rest = &rest[close + 1..];
            } else {
                filled.push('{');
                rest = &rest[1..];
            }
        }
        filled.push_str(rest);
        filled
    }

    /// A command of `program` in the plane's working directory with a bare environment; placeholders
    /// in `args` are filled in.
    #[must_use]
    pub fn command(&self, program: &str, args: &[impl AsRef<str>]) -> Command {
        let args: Vec<String> = args.iter().map(|arg| self.fill(arg.as_ref())).collect();
        let mut command = self.product.command(program, &args);
        command.current_dir(self.cwd()).env_clear();
        for name in ["PATH", "HOME"] {
            command.env(name, std::env::var_os(name).unwrap_or_default());
        }
        command.env("TZ", "UTC").env("LANG", "C").envs(&self.env);
        command
    }

    /// Runs `program` with `args` (placeholders filled) and hands back exit code, stdout and stderr.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[must_use]
    pub fn run(&self, program: &str, args: &[&str]) -> (i32, String, String) {
        let output = self
            .command(program, args)
            .stdin(Stdio::null())
            .output()
            .expect("the program under test can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Runs `program` and hands back stdout.
    ///
    /// # Panics
    /// If it does not exit with 0.
    #[must_use]
    pub fn ok(&self, program: &str, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(program, args);
        assert_eq!(code, 0, "{program} {args:?}\n{stdout}{stderr}");
        stdout
    }

    /// Starts `program` in the background.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(&self, program: &str, args: &[&str]) -> Running {
        Running::start(&mut self.command(program, args))
    }

    /// Writes a file, relative to the working directory, with placeholders filled in path and text.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.cwd().join(self.fill(path));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).expect("the folder of a file");
        }
        fs::write(path, self.fill(text)).expect("a file of the plane");
    }

    /// The plane's server process.
    pub const fn server(&mut self) -> Option<&mut Running> {
        self.server.as_mut()
    }

    /// The plane's agent process.
    pub const fn agent(&mut self) -> Option<&mut Running> {
        self.agent.as_mut()
    }

    /// Waits until `program` (`server` or `agent`) says that it is healthy.
    ///
    /// # Panics
    /// If it is not within 30 s.
    pub fn await_healthy(&self, program: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(why) = self.health(program) {
            assert!(
                Instant::now() < deadline,
                "{program} does not become healthy: {why}\n{}",
                self.log(program)
            );
            pause();
        }
    }

    /// Waits until this process is given these identities by the agent.
    ///
    /// # Panics
    /// If it is not within 60 s.
    pub fn await_identities(&self, ids: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (_, stdout, stderr) = self.run("agent", &["api", "fetch", "x509", "-socketPath", "{asock}"]);
            if ids.iter().all(|id| stdout.contains(&self.fill(id))) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the agent gives other identities: {stdout}{stderr}\n{}",
                fs::read_to_string(self.dir().join("agent.log")).unwrap_or_default()
            );
            pause();
        }
    }

    /// Whether `program` says that it is healthy; otherwise what it says.
    fn health(&self, program: &str) -> Result<(), String> {
        let socket = if program == "server" { "{sock}" } else { "{asock}" };
        let (code, stdout, stderr) = self.run(program, &["healthcheck", "-socketPath", socket]);
        if code == 0 { Ok(()) } else { Err(format!("{stdout}{stderr}")) }
    }

    fn log(&self, program: &str) -> String {
        fs::read_to_string(self.dir().join(format!("{program}.log"))).unwrap_or_default()
    }

    /// Starts `program` on its configuration and waits until it is healthy or has ended.
    fn start_healthy(&self, program: &str) -> Running {
        let config = format!("{{dir}}/{program}.conf");
        let command = self.command(program, &["run", "-config", &config]);
        let has_prelude = program == "server" && !self.server_prelude.is_empty();
        let mut running =
            Running::start(&mut if has_prelude { self.after_prelude(&command) } else { command });
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(why) = self.health(program) {
            let is_hopeless = Instant::now() > deadline || !running.is_running();
            assert!(
                !is_hopeless,
                "{program} does not become healthy: {why}\n{:?}\n{}",
                running.printed(),
                self.log(program)
            );
            pause();
        }
        running
    }

    /// A shell that does what the prelude says and becomes `command` then.
    fn after_prelude(&self, command: &Command) -> Command {
        let script = format!("{}\nexec -a spire-server \"$@\"", self.fill(&self.server_prelude));
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "bash", "-e", "-c", &script, "bash"]);
        shell.arg(command.get_program()).args(command.get_args()).current_dir(self.cwd()).env_clear();
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell
    }

    /// Starts (or starts again) the server on its configuration and waits until it is healthy.
    pub fn start_server_again(&mut self) {
        self.server = Some(self.start_healthy("server"));
    }

    /// Starts (or starts again) the agent on its configuration and waits until it is healthy.
    pub fn start_agent_again(&mut self) {
        self.agent = Some(self.start_healthy("agent"));
    }

    /// Starts the agent on its configuration without waiting for anything.
    pub fn spawn_agent(&mut self) {
        self.spawn_agent_with(&[]);
    }

    /// The same with more in its environment.
    pub fn spawn_agent_with(&mut self, env: &[(&str, &Path)]) {
        let mut command = self.command("agent", &["run", "-config", "{dir}/agent.conf"]);
        self.agent = Some(Running::start(command.envs(env.iter().copied())));
    }

    /// Writes the server's configuration without starting it.
    pub fn configure_server(&self, config: &PlaneConfig) {
        let text = format!(
            r#"server {{
  trust_domain = "{{td}}"
  bind_address = "127.0.0.1"
  bind_port = "{{port}}"
  socket_path = "{{sock}}"
  data_dir = "{{dir}}/server-data"
  log_level = "{}"
  log_file = "{{dir}}/server.log"
  ca_key_type = "{}"
  {}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ {} }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{{dir}}/server-data/keys.json" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  {}
}}
"#,
            config.log, config.ca_key, config.server_extra, config.datastore, config.server_plugins
        );
        self.write("{dir}/server.conf", &text);
    }

    fn start_server(&mut self, config: &PlaneConfig) {
        self.configure_server(config);
        self.start_server_again();
    }

    /// Attests an agent by a new join token, with the alias `/node`, and waits until it is healthy.
    pub fn join_agent(&mut self, config: &PlaneConfig) {
        let token = self
            .ok("server", &["token", "generate", "-spiffeID", "spiffe://{td}/node", "-socketPath", "{sock}"]);
        let token =
            token.lines().find_map(|line| line.strip_prefix("Token: ")).unwrap_or_default().to_owned();
        let bundle = self.ok("server", &["bundle", "show", "-socketPath", "{sock}"]);
        self.write("{dir}/bootstrap.pem", &bundle);
        self.configure_agent(config, &token);
        self.start_agent_again();
    }

    /// Writes the agent's configuration without starting it; an empty token is none.
    pub fn configure_agent(&self, config: &PlaneConfig, token: &str) {
        let token = if token.is_empty() { String::new() } else { format!("join_token = \"{token}\"") };
        let workload_attestor = match config.workload_attestor.as_str() {
            line if line.starts_with("plugin_data_file") => line.to_owned(),
            data => format!("plugin_data {{ {data} }}"),
        };
        let text = format!(
            r#"agent {{
  trust_domain = "{{td}}"
  server_address = "127.0.0.1"
  server_port = "{{port}}"
  socket_path = "{{asock}}"
  admin_socket_path = "{{admin}}"
  data_dir = "{{dir}}/agent-data"
  log_level = "{}"
  log_file = "{{dir}}/agent.log"
  trust_bundle_path = "{{dir}}/bootstrap.pem"
  {token}
  {}
}}
plugins {{
  KeyManager "disk" {{ plugin_data {{ directory = "{{dir}}/agent-data" }} }}
  {}
  WorkloadAttestor "unix" {{ {workload_attestor} }}
}}
"#,
            config.log, config.agent_extra, config.agent_attestor
        );
        self.write("{dir}/agent.conf", &text);
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // Agent first, so that it does not log about a server gone.
        drop(self.agent.take());
        drop(self.server.take());
    }
}

/// A process in the background; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
}

impl Running {
    /// Starts `command` with its output kept in files.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let file = || tempfile::NamedTempFile::new().expect("a temporary file");
        let (stdout, stderr) = (file(), file());
        let handle = |file: &tempfile::NamedTempFile| file.reopen().expect("a second handle");
        let child = command
            .stdin(Stdio::null())
            .stdout(handle(&stdout))
            .stderr(handle(&stderr))
            .spawn()
            .expect("the program under test can be started");
        Self { child, stdout, stderr }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far: stdout and stderr.
    #[must_use]
    pub fn printed(&self) -> (String, String) {
        let read = |file: &tempfile::NamedTempFile| {
            let mut bytes = Vec::new();
            if let Ok(mut handle) = file.reopen() {
                handle.read_to_end(&mut bytes).expect("a temporary file can be read");
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (read(&self.stdout), read(&self.stderr))
    }

    /// Waits until it has printed `text` to stderr.
    ///
    /// # Panics
    /// If it has not within 60 s.
    pub fn await_said(&self, text: &str) {
        self.await_text(text, |(_, stderr)| stderr);
    }

    /// Waits until it has printed `text` to stdout.
    ///
    /// # Panics
    /// If it has not within 60 s.
    pub fn await_printed(&self, text: &str) {
        self.await_text(text, |(stdout, _)| stdout);
    }

    fn await_text(&self, text: &str, of: impl Fn((String, String)) -> String) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !of(self.printed()).contains(text) {
            assert!(Instant::now() < deadline, "it does not say {text:?}: {:?}", self.printed());
            pause();
        }
    }

    /// Sends a signal (`TERM`, `INT`, `KILL`, `USR2`, ..).
    ///
    /// # Panics
    /// If `kill` cannot be run.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .stderr(Stdio::null())
            .status()
            .expect("kill can be run");
        if !status.success() {
            eprintln!("process {} was gone before signal {name}", self.pid());
        }
    }

    /// Waits for the end, at most `limit`, and hands back the exit code (minus the signal's number if
    /// one ended it).
    ///
    /// # Panics
    /// If it is still running then.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be waited for") {
                return status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
            }
            assert!(Instant::now() < deadline, "process {} does not end: {:?}", self.pid(), self.printed());
            pause();
        }
    }

    /// Whether it is still running.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the process can be waited for").is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            self.child.kill().expect("a child can be killed");
            self.child.wait().expect("a killed child can be waited for");
        }
    }
}

/// A short pause between two looks at a foreign process.
pub fn pause() {
    std::thread::park_timeout(Duration::from_millis(25));
}

fn words(dir: &Path, trust_domain: &str, ports: &Ports) -> BTreeMap<String, String> {
    let dir = dir.display().to_string();
    let mut words: BTreeMap<String, String> = [
        ("sock", format!("{dir}/server/api.sock")),
        ("asock", format!("{dir}/agent/api.sock")),
        ("admin", format!("{dir}/admin/api.sock")),
        ("td", trust_domain.to_owned()),
        (
            "uid",
            fs::metadata(&dir)
                .map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))
                .unwrap_or(0)
                .to_string(),
        ),
        ("dir", dir),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for (name, port) in ["port", "p1", "p2", "p3"].into_iter().zip(ports.iter()) {
        words.insert(name.to_owned(), port.to_string());
    }
    words
}
