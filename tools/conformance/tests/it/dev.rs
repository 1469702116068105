//! `finial dev`: a trust domain in one process, as somebody who tries it out uses it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use finial_conformance::{Product, Running};

fn dev(args: &[&str]) -> Command {
    let args: Vec<String> = ["dev"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    Product::finial().command("finial", &args)
}

fn text(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn dev_once_shows_what_a_workload_gets_and_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();

    let output = dev(&["-once", "-trustDomain", "try.test"]).env("TMPDIR", home.path()).output().unwrap();

    let (code, stdout, stderr) = text(&output);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    for kind in ["X.509-SVID", "JWT-SVID"] {
        let line = stdout.lines().find(|line| line.starts_with(kind)).unwrap_or_default();
        assert!(line.contains("spiffe://try.test/user/") && line.contains("verified"), "{stdout}");
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "the temporary directory was left behind");
}

#[test]
fn dev_ends_with_the_exit_code_of_its_command() {
    let script = r#"test -S "${SPIFFE_ENDPOINT_SOCKET#unix://}" && exit 7"#;

    let output = dev(&["--", "sh", "-c", script]).output().unwrap();

    assert_eq!(text(&output).0, 7, "{output:?}");
}

#[test]
fn dev_says_what_is_wrong_in_one_line() {
    let cases: [(&[&str], &str); 4] = [
        (&["-trustDomain", "Bad Name"], "Bad Name"),
        (&["-dataDir", "/dev/null/x"], "/dev/null/x"),
        (&["-nonsense"], "-nonsense"),
        (&["--", "/no/such/program"], "/no/such/program"),
    ];
    for (args, expected) in cases {
        let (code, stdout, stderr) = text(&dev(args).output().unwrap());

        assert_eq!((code, stdout.as_str()), (1, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(expected) && stderr.lines().count() == 1, "{args:?}: {stderr}");
    }
}

#[test]
fn dev_keeps_state_where_it_is_told_to() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("state");
    let data = data.to_str().unwrap();
    let authorities = || {
        let bundle = fs::read_to_string(home.path().join("state/agent/bootstrap.pem")).unwrap();
        bundle.matches("BEGIN CERTIFICATE").count()
    };

    let first = text(&dev(&["-once", "-dataDir", data]).output().unwrap());
    let mode = fs::metadata(data).unwrap().permissions().mode() & 0o777;
    let second = text(&dev(&["-once", "-dataDir", data]).output().unwrap());

    assert_eq!((first.0, second.0), (0, 0), "{first:?} {second:?}");
    assert_eq!(mode, 0o700);
    assert_eq!(authorities(), 1, "a second start made a second authority");
}

#[test]
fn dev_serves_until_it_is_interrupted() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("here/api.sock");
    let mut running = Running::start(&mut dev(&["-socketPath", socket.to_str().unwrap()]));
    let fetch = || {
        let args = ["agent", "api", "fetch", "x509", "-socketPath", socket.to_str().unwrap()];
        Product::finial().command("finial", &args.map(str::to_owned)).output().unwrap()
    };

    let mut output = fetch();
    for _ in 0..400 {
        if output.status.success() {
            break;
        }
        output = fetch();
    }
    let (_, stdout, stderr) = text(&output);
    running.signal("INT");
    let code = running.wait(Duration::from_secs(15));

    assert!(stdout.contains("spiffe://example.org/user/"), "{stdout}{stderr} {:?}", running.printed());
    assert_eq!(code, 0, "{:?}", running.printed());
    assert!(running.printed().0.contains("Ctrl-C"), "{:?}", running.printed());
}
