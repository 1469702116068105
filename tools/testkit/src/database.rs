//! Database servers for tests: `PostgreSQL` and `MariaDB`, each on a Unix socket in a folder of its own.
//!
//! A server belongs to a test program, a database to a test. The server dies with the program, however
//! that ends: it is watched by a shell that waits for the program's end of a pipe. Without the server's
//! programs there is none: the tests that need it count as skipped, and in CI a skip is a failure.

#![expect(clippy::panic, reason = "for tests: what fails here fails them")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, bail};

/// Which make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// `PostgreSQL`.
    Postgres,
    /// `MariaDB`.
    MariaDb,
}

/// Starts `$@`, says so, and ends it when told how, or for good when nobody is left to tell.
const WATCH: &str = r#"
    dir=$1; shift
    "$@" </dev/null >>"$dir/log" 2>&1 & pid=$!
    if read -r word; then kill -s "$word" $pid; wait $pid; else kill -s KILL $pid; wait $pid; rm -rf "$dir"; fi
"#;

/// The user who must show a password.
const GUARDED: &str = "guarded";

/// What a server needs to speak TLS, in PEM; clients must show a certificate of the same authority.
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    /// The authority's certificate.
    pub root: &'a str,
    /// The server's certificate, for 127.0.0.1.
    pub certificate: &'a str,
    /// Its key.
    pub key: &'a str,
    /// The port where it listens.
    pub port: u16,
}

/// A running server.
pub struct Server {
    make: Make,
    /// Where it speaks TLS over TCP, if it does.
    port: Option<u16>,
    programs: PathBuf,
    folder: PathBuf,
    watch: Mutex<Option<Child>>,
}

impl Server {
    /// The server of this make that this test program shares; `None` if it cannot be had, which is told.
    ///
    /// # Panics
    /// If its programs are there and it does not start.
    #[must_use]
    pub fn shared(make: Make) -> Option<&'static Self> {
        static POSTGRES: OnceLock<Option<Server>> = OnceLock::new();
        static MARIADB: OnceLock<Option<Server>> = OnceLock::new();
        let shared = match make {
            Make::Postgres => &POSTGRES,
            Make::MariaDb => &MARIADB,
        };
        shared.get_or_init(|| Self::start(make)).as_ref()
    }

    /// A server of this make for one test alone, which may stop it; `None` if it cannot be had.
    ///
    /// # Panics
    /// As [`Self::shared`].
    #[must_use]
    pub fn start(make: Make) -> Option<Self> {
        let Some(programs) = make.programs() else {
            crate::skip(&format!("tests with {make:?}: it is not installed"));
            return None;
        };
        match Self::install(make, programs, None) {
            Ok(server) => Some(server),
            Err(error) => panic!("{make:?} does not start: {error:#}"),
        }
    }

    /// The same, which speaks TLS on 127.0.0.1 too.
    ///
    /// # Panics
    /// As [`Self::shared`].
    #[must_use]
    pub fn start_secure(make: Make, secrets: Secrets<'_>) -> Option<Self> {
        let Some(programs) = make.programs() else {
            crate::skip(&format!("tests with {make:?} over TLS: it is not installed"));
            return None;
        };
        match Self::install(make, programs, Some(secrets)) {
            Ok(server) => Some(server),
            Err(error) => panic!("{make:?} does not start with TLS: {error:#}"),
        }
    }

    /// A server that copies this one as it goes on, to be read alone. `PostgreSQL` only.
    ///
    /// # Errors
    /// If it does not start.
    pub fn replica(&self) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("finial-db-").tempdir()?.keep();
        let (make, programs) = (self.make, self.programs.clone());
        let replica = Self { make, port: None, programs, folder, watch: Mutex::new(None) };
        if let Some(user) = make.user() {
            succeeded(&Command::new("chown").arg(user).arg(&replica.folder).output()?)?;
        }
        let mut copy = replica.as_user("pg_basebackup");
        copy.arg("-D").arg(replica.folder.join("data")).arg("-h").arg(&self.folder);
        copy.args(["-U", "spire", "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"]);
        succeeded(&copy.current_dir(&replica.folder).output()?)?;
        replica.up()?;
        Ok(replica)
    }

    /// The copy of a database on this replica.
    #[must_use]
    pub fn copy_of(&self, database: &Database<'_>) -> Database<'_> {
        Database { server: self, name: database.name.clone() }
    }

    /// Where it speaks TLS.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// Makes an empty database; its connection string as SPIRE's drivers read it.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn database(&self) -> Result<Database<'_>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = Database { server: self, name: self.make.first_database().to_owned() };
        admin.run(&format!("CREATE DATABASE {name};"))?;
        Ok(Database { server: self, name })
    }

    /// Ends the server at once, as a crash does; [`Self::up`] starts it again.
    ///
    /// # Errors
    /// If it cannot be told to.
    pub fn down(&self) -> Result<()> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut child) = watch.take() else { return Ok(()) };
        let word = if self.make == Make::Postgres { "QUIT\n" } else { "KILL\n" };
        child.stdin.take().context("no pipe to the server's watch")?.write_all(word.as_bytes())?;
        child.wait().context("cannot await the server's end")?;
        Ok(())
    }

    /// Starts the server again, and waits until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn up(&self) -> Result<()> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.is_none() {
            *watch = Some(self.launch()?);
        }
        drop(watch);
        self.await_answer()
    }

    fn install(make: Make, programs: PathBuf, secrets: Option<Secrets<'_>>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("finial-db-").tempdir()?.keep();
        let port = secrets.as_ref().map(|secrets| secrets.port);
        let server = Self { make, port, programs, folder, watch: Mutex::new(None) };
        if let Some(Secrets { root, certificate, key, .. }) = secrets {
            for (name, text) in [("root.pem", root), ("server.pem", certificate), ("server.key", key)] {
                let path = server.folder.join(name);
                fs::write(&path, text)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                if let Some(user) = server.make.user() {
                    succeeded(&Command::new("chown").arg(user).arg(&path).output()?)?;
                }
            }
        }
        if let Some(user) = server.make.user() {
            succeeded(&Command::new("chown").arg(user).arg(&server.folder).output()?)?;
        }
        let data = server.folder.join("data");
        let text = data.to_string_lossy().into_owned();
        let mut install = match make {
            Make::Postgres => {
                let mut install = server.as_user("initdb");
                let how = ["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username=spire"];
                install.args(how).args(["-D", &text]);
                install
            }
            Make::MariaDb => {
                let mut install = server.as_user("mariadb-install-db");
                let how = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"];
                install.args(how).arg(format!("--datadir={text}"));
                install
            }
        };
        succeeded(&install.current_dir(&server.folder).output()?)?;
        if make == Make::Postgres && port.is_some() {
            let rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n";
            fs::write(data.join("pg_hba.conf"), rules)?;
        }
        if make == Make::Postgres {
            let rules = data.join("pg_hba.conf");
            let others = fs::read_to_string(&rules)?;
            fs::write(&rules, format!("local all {GUARDED} scram-sha-256\n{others}"))?;
        }
        server.up()?;
        Ok(server)
    }

    /// The server's own command line.
    fn launch(&self) -> Result<Child> {
        let folder = self.folder.to_string_lossy();
        let serve = match self.make {
            Make::Postgres => {
                let mut serve = self.as_user("postgres");
                serve.args(["-D", &format!("{folder}/data"), "-k", &folder]);
                match self.port {
                    None => drop(serve.args(["-h", ""])),
                    Some(port) => {
                        serve.args(["-h", "127.0.0.1", "-c", "ssl=on"]);
                        let files = [("cert", "server.pem"), ("key", "server.key"), ("ca", "root.pem")];
                        for (name, file) in files {
                            serve.args(["-c", &format!("ssl_{name}_file={folder}/{file}")]);
                        }
                        serve.args(["-p", &port.to_string()]);
                    }
                }
                // What happens when the machine fails is not what is tested here.
                serve.args(["-c", "fsync=off", "-c", "max_connections=400", "-c", "shared_buffers=32MB"]);
                serve
            }
            Make::MariaDb => {
                let mut serve = self.as_user("mariadbd");
                serve.args(["--no-defaults", "--skip-log-bin", "--max-connections=400"]);
                match self.port {
                    None => drop(serve.arg("--skip-networking")),
                    Some(port) => {
                        serve.args(["--bind-address=127.0.0.1", &format!("--port={port}")]);
                        for (name, file) in
                            [("cert", "server.pem"), ("key", "server.key"), ("ca", "root.pem")]
                        {
                            serve.arg(format!("--ssl-{name}={folder}/{file}"));
                        }
                    }
                }
                serve.args(["--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M"]);
                for (key, file) in [("datadir", "data"), ("socket", "socket"), ("pid-file", "pid")] {
                    serve.arg(format!("--{key}={folder}/{file}"));
                }
                serve
            }
        };
        Command::new("sh")
            .args(["-c", WATCH, "watch", &folder])
            .arg(serve.get_program())
            .args(serve.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a shell")
    }

    fn await_answer(&self) -> Result<()> {
        let admin = Database { server: self, name: self.make.first_database().to_owned() };
        let mut last = Ok(());
        for _ in 0..600 {
            last = admin.run("SELECT 1;").map(drop);
            if last.is_ok() {
                return Ok(());
            }
            // A shell's patience: this crate is no place for clocks.
            Command::new("sleep").arg("0.1").status()?;
        }
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        last.with_context(|| format!("no answer within a minute; its log:\n{log}"))
    }

    /// A program of the server's, run as a user that it accepts: some refuse the superuser.
    fn as_user(&self, program: &str) -> Command {
        let path = self.programs.join(program);
        let path = if path.exists() { path } else { PathBuf::from(program) };
        match self.make.user() {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(path);
                command
            }
            None => Command::new(path),
        }
    }
}

impl Drop for Server {
    /// The watch ends the server and clears up when its pipe is closed.
    fn drop(&mut self) {
        let watch = self.watch.get_mut().unwrap_or_else(PoisonError::into_inner);
        match watch.take() {
            Some(mut child) => {
                drop(child.stdin.take());
                child.wait().ok();
            }
            None => drop(fs::remove_dir_all(&self.folder)),
        }
    }
}

/// A database of a server.
pub struct Database<'a> {
    server: &'a Server,
    name: String,
}

impl Database<'_> {
    /// Its name on its server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How SPIRE's configuration names it.
    #[must_use]
    pub fn connection_string(&self) -> String {
        let folder = self.server.folder.display();
        match self.server.make {
            Make::Postgres => format!("host={folder} user=spire dbname={} sslmode=disable", self.name),
            Make::MariaDb => format!("root@unix({folder}/socket)/{}?parseTime=true", self.name),
        }
    }

    /// The same for a user who must show a password, and who is made the owner of all in it; once on each
    /// server.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn guarded_connection_string(&self, password: &str) -> Result<String> {
        let (folder, name) = (self.server.folder.display(), &self.name);
        self.run(&match self.server.make {
            Make::Postgres => format!(
                "CREATE ROLE {GUARDED} LOGIN PASSWORD '{password}'; ALTER DATABASE {name} OWNER TO {GUARDED};"
            ),
            Make::MariaDb => format!(
                "CREATE USER {GUARDED}@localhost IDENTIFIED BY '{password}'; \
                 GRANT ALL ON {name}.* TO {GUARDED}@localhost;"
            ),
        })?;
        Ok(match self.server.make {
            Make::Postgres => {
                format!("host={folder} user={GUARDED} password={password} dbname={name} sslmode=disable")
            }
            Make::MariaDb => format!("{GUARDED}:{password}@unix({folder}/socket)/{name}?parseTime=true"),
        })
    }

    /// Runs SQL by hand; the rows of its answers, columns between tabs.
    ///
    /// # Errors
    /// What the database says.
    pub fn run(&self, sql: &str) -> Result<String> {
        let folder = self.server.folder.to_string_lossy();
        let mut client = match self.server.make {
            Make::Postgres => {
                let mut client = Command::new(self.server.programs.join("psql"));
                client.args(["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1"]);
                client.args(["-h", &folder, "-U", "spire", "-d", &self.name]);
                client.args(self.server.port.iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
                client
            }
            Make::MariaDb => {
                let mut client = Command::new("mariadb");
                client.args(["--no-defaults", "-u", "root", "-N", "-B", "--raw"]);
                client.arg(format!("--socket={folder}/socket")).arg(&self.name);
                client
            }
        };
        let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut pipe = child.stdin.take().context("no pipe to the client")?;
        let text = sql.to_owned();
        let feeder = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
        let output = child.wait_with_output()?;
        // A client that stops at an error reads no further.
        drop(feeder.join());
        succeeded(&output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Make {
    /// Where its programs are.
    fn programs(self) -> Option<PathBuf> {
        match self {
            Self::Postgres => {
                let releases = fs::read_dir("/usr/lib/postgresql").ok()?;
                let folders = releases.flatten().map(|release| release.path().join("bin"));
                folders.filter(|folder| folder.join("postgres").exists()).max()
            }
            Self::MariaDb => ["/usr/sbin", "/usr/local/sbin", "/usr/bin"]
                .into_iter()
                .map(PathBuf::from)
                .find(|folder| folder.join("mariadbd").exists()),
        }
    }

    /// Whom it runs as, where this program is run by the superuser.
    fn user(self) -> Option<&'static str> {
        use std::os::unix::fs::MetadataExt as _;
        let superuser = fs::metadata("/proc/self").is_ok_and(|itself| itself.uid() == 0);
        superuser.then_some(match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mysql",
        })
    }

    const fn first_database(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MariaDb => "mysql",
        }
    }
}

fn succeeded(output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
