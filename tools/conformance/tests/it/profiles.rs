//! Profiles of server and agent, as `go tool pprof` reads them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use finial_conformance::{Plane, PlaneConfig, Product, await_ok, get, skip};

fn config(port: &str, more: &str) -> String {
    format!("profiling_enabled = true\nprofiling_port = {port}\n{more}")
}

/// The answer to a request, whole.
fn ask(port: &str, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// A profile of two seconds in which the process has something to do.
fn profile(port: &str) -> Vec<u8> {
    let is_over = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    ask(port, "/debug/pprof/");
                }
            });
        }
        let answer = ask(port, "/debug/pprof/profile?seconds=2");
        let twice = get(port, "/debug/pprof/none");
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(twice, Some((404, "Unknown profile\n".to_owned())));
        answer
    });
    contents(&answer)
}

/// What an answer that is good holds.
fn contents(answer: &[u8]) -> Vec<u8> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer[..head]));
    answer[head + 4..].to_vec()
}

/// What `go tool pprof` makes of a file whose first kind is this: all of it, and how many samples there are.
fn read_by_go(file: &Path, kind: &str) -> Option<(String, usize)> {
    let mut go = Command::new("go");
    go.args(["tool", "pprof", "-symbolize=none", "-raw"]).arg(file);
    let Ok(output) = go.output() else {
        skip("profiles are read by go", "it is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let samples = text.lines().skip_while(|line| !line.starts_with(kind));
    let samples = samples.skip(1).take_while(|line| *line != "Locations").count();
    Some((text, samples))
}

#[test]
fn profiles_are_read_by_go() {
    let config = PlaneConfig {
        server_extra: config("{p1}", "profiling_freq = 1\nprofiling_names = [\"heap\", \"trace\"]"),
        agent_extra: config("{p2}", ""),
        agent: true,
        ..PlaneConfig::default()
    };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());

    for port in ["p1", "p2"].map(|word| plane.word(word)) {
        assert!(await_ok(port, "/debug/pprof/").starts_with("profile"));
        let heap = plane.dir().join(format!("{port}-heap.pb.gz"));
        fs::write(&heap, contents(&ask(port, "/debug/pprof/heap"))).unwrap();
        if let Some((text, samples)) = read_by_go(&heap, "alloc_objects/count") {
            assert!(text.contains("PeriodType: space bytes\nPeriod: 524288"), "{text}");
            assert!(text.contains("inuse_space/bytes") && samples > 0, "{text}");
        }
        assert_eq!(get(port, "/debug/pprof/allocs"), Some((404, "Unknown profile\n".to_owned())));
        let mut go = Command::new("go");
        let url = format!("http://localhost:{port}/debug/pprof/profile?seconds=1");
        if let Ok(output) = go.args(["tool", "pprof", "-top", &url]).env("PPROF_TMPDIR", plane.dir()).output()
        {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("Type: cpu"), "{text}{output:?}");
        }
        let file = plane.dir().join(format!("{port}.pb.gz"));
        fs::write(&file, profile(port)).unwrap();
        if let Some((text, samples)) = read_by_go(&file, "samples/count") {
            assert!(text.contains("PeriodType: cpu nanoseconds"), "{text}");
            assert!(samples > 5, "{text}");
        }
    }
}

#[test]
fn profiles_are_written_now_and_then() {
    let config = PlaneConfig {
        server_extra: config("0", "profiling_freq = 1\nprofiling_names = [\"cpu\", \"heap\"]"),
        ..PlaneConfig::default()
    };
    let plane = Plane::start(&Product::under_test(), &config, &Default::default());
    let folder = plane.cwd().join(".profiles");
    let written =
        || fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();

    let deadline = 600;
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    for _ in 0..deadline {
        files = written();
        if files.len() > 3 {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }

    assert!(files.len() > 3, "{files:?}");
    for (name, kind) in [("cpu", "samples/count"), ("heap", "alloc_objects/count")] {
        let ending = format!("_server_{name}.pb.gz");
        let file = files.iter().find(|file| file.to_string_lossy().ends_with(&ending));
        let file = file.unwrap_or_else(|| panic!("no {name} among {files:?}"));
        if let Some((text, _)) = read_by_go(file, kind) {
            assert!(text.contains(kind), "{text}");
        }
    }
}
