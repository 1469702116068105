//! What a configuration may declare, and the words when it may not.

use plugin::Host;
use plugin::catalog::{Data, Declaration, ServerPlugins, load_agent, load_server};
use plugins::tables;

use crate::{block, trust_domain};

async fn server(declarations: &[Declaration]) -> Result<ServerPlugins, String> {
    let loaded = load_server(declarations, tables::SERVER, &trust_domain(), &Host::bare()).await;
    loaded.map_err(|error| error.to_string())
}

async fn check_server(declarations: &[Declaration], why: &str) {
    assert_eq!(server(declarations).await.err().unwrap(), why);
}

async fn check_agent(declarations: &[Declaration], why: &str) {
    let loaded = load_agent(declarations, tables::AGENT, &trust_domain(), &Host::bare()).await;
    assert_eq!(loaded.err().unwrap().to_string(), why);
}

#[tokio::test]
async fn the_first_wrong_block_ends_loading() {
    let memory = || block("KeyManager", "memory", "");
    let mut external = block("NodeAttestor", "mine", "");
    external.command = "/opt/mine".into();
    let mut token = block("NodeAttestor", "join_token", "");
    token.command = "/opt/mine".into();
    let mut disabled = block("KeyManager", "disk", "");
    disabled.enabled = false;

    server(&[block("DataStore", "sql", ""), disabled, memory()]).await.unwrap();
    check_server(&[], "plugin type \"KeyManager\" constraint not satisfied: expected exactly 1 but got 0")
        .await;
    check_server(
        &[memory(), block("KeyManager", "memory", "")],
        "plugin type \"KeyManager\" constraint not satisfied: expected exactly 1 but got 2",
    )
    .await;
    check_server(&[memory(), block("Nosuch", "x", "")], "unsupported plugin type \"Nosuch\"").await;
    check_server(
        &[memory(), block("WorkloadAttestor", "unix", "")],
        "unsupported plugin type \"WorkloadAttestor\"",
    )
    .await;
    check_server(
        &[block("KeyManager", "Memory", "")],
        "failed to load plugin \"Memory\": no built-in plugin \"Memory\" for type \"KeyManager\"",
    )
    .await;
    check_server(
        &[block("KeyManager", "aws_kms", "")],
        "failed to load plugin \"aws_kms\": the KeyManager plugin \"aws_kms\" is not part of this version",
    )
    .await;
    check_server(
        &[block("KeyManager", "disk", "")],
        "failed to configure plugin \"disk\": rpc error: code = InvalidArgument desc = keys_path is required",
    )
    .await;
    check_server(
        &[memory(), external],
        "failed to load plugin \"mine\": external plugins are not part of this version; \
         remove plugin_cmd from the NodeAttestor \"mine\"",
    )
    .await;
    check_server(
        &[memory(), token],
        "the built-in join_token node attestor cannot be overridden by an external plugin",
    )
    .await;
    let mut file = block("KeyManager", "disk", "");
    file.data = Data::File("km.conf".into());
    check_server(
        &[file],
        "failed to configure plugin \"disk\": failed to load plugin data: open km.conf: no such file or directory",
    )
    .await;
}

#[tokio::test]
async fn an_agent_needs_one_of_each_and_some_workload_attestor() {
    let base = || vec![block("KeyManager", "memory", ""), block("NodeAttestor", "join_token", "")];

    check_agent(
        &base(),
        "plugin type \"WorkloadAttestor\" constraint not satisfied: expected at least 1 but got 0",
    )
    .await;
    check_agent(
        &[base(), vec![block("DataStore", "sql", "")]].concat(),
        "unsupported plugin type \"DataStore\"",
    )
    .await;
    check_agent(
        &[base(), vec![block("NodeAttestor", "join_token", "{\"a\": 1}")]].concat(),
        "failed to configure plugin \"join_token\": rpc error: code = InvalidArgument \
         desc = no supported configuration interface found",
    )
    .await;
    let all = [base(), vec![block("WorkloadAttestor", "unix", "")]].concat();
    let agent = load_agent(&all, tables::AGENT, &trust_domain(), &Host::bare()).await.unwrap();
    assert_eq!(agent.workload_attestors.len(), 1);
}
