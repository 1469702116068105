//! `unix` against a real process.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use plugin::catalog::load_agent;
use plugin::{Host, WorkloadAttestor};
use plugins::tables;
use runtime::peer::Process;

use crate::{block, trust_domain};

async fn attestor(data: &str) -> Arc<dyn WorkloadAttestor> {
    let blocks = [
        block("KeyManager", "memory", ""),
        block("NodeAttestor", "join_token", ""),
        block("WorkloadAttestor", "unix", data),
    ];
    let loaded = load_agent(&blocks, tables::AGENT, &trust_domain(), &Host::bare()).await;
    Arc::clone(&loaded.ok().unwrap().workload_attestors[0])
}

fn child() -> (Child, Process) {
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
    (child, process)
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_process_has_its_user_groups_and_program() {
    let attestor = attestor("{\"discover_workload_path\": true}").await;
    let (child, process) = child();

    let selectors = attestor.attest(&process).await.unwrap();

    let path = process.read_link("exe").unwrap().to_str().unwrap().to_owned();
    let sum = output("sha256sum", &[&path]);
    let found: Vec<_> = selectors.iter().map(ToString::to_string).collect();
    let mut wanted = vec![
        format!("unix:uid:{}", output("id", &["-u"])),
        format!("unix:user:{}", output("id", &["-un"])),
        format!("unix:gid:{}", output("id", &["-g"])),
        format!("unix:group:{}", output("id", &["-gn"])),
    ];
    assert_eq!(found[..4], wanted);
    wanted = vec![format!("unix:path:{path}"), format!("unix:sha256:{}", &sum[..64])];
    assert_eq!(found[found.len() - 2..], wanted);
    assert!(found[4..found.len() - 2].iter().all(|text| text.starts_with("unix:supplementary_g")));
    end(child);
}

#[tokio::test]
async fn program_and_digest_are_found_only_when_wanted() {
    let (child, process) = child();

    let plain = attestor("").await.attest(&process).await.unwrap();
    assert!(!plain.iter().any(|selector| selector.value().starts_with("path:")));

    let data = "{\"discover_workload_path\": true, \"workload_size_limit\": -1}";
    let unhashed = attestor(data).await.attest(&process).await.unwrap();
    assert!(unhashed.iter().any(|selector| selector.value().starts_with("path:")));
    assert!(!unhashed.iter().any(|selector| selector.value().starts_with("sha256:")));

    let data = "{\"discover_workload_path\": true, \"workload_size_limit\": 10}";
    let error = attestor(data).await.attest(&process).await.unwrap_err();
    let pid = process.pid();
    let wanted =
        format!("workloadattestor(unix): SHA256 digest: workload /proc/{pid}/exe exceeds size limit (");
    assert!(error.message.starts_with(&wanted), "{}", error.message);
    end(child);
}

#[tokio::test]
async fn a_process_that_is_gone_has_no_selectors() {
    let (child, process) = child();
    end(child);

    let error = attestor("").await.attest(&process).await.unwrap_err();

    assert!(
        error.message.starts_with("workloadattestor(unix): failed to get process: "),
        "{}",
        error.message
    );
}
