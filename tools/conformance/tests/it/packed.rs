//! Packed messages: the server takes them and answers with such, the agent does neither, as in SPIRE.

use std::path::{Path, PathBuf};

use finial_conformance::{Product, bomb_of_a_stranger, packed_calls};

#[test]
fn the_server_takes_packed_messages_and_the_agent_does_not() {
    let told = packed_calls(&Product::under_test(), &recorded()).unwrap();

    let unnamed = "none [] Internal grpc: compressed flag set with identity or empty encoding";
    let foreign = "none [] Unimplemented grpc: Decompressor is not installed for grpc-encoding \"snappy\"";
    let opening = "none [] Internal grpc: failed to decompress the message: ";
    let reading = "none [] Internal grpc: failed to read decompressed data: ";
    let server = [
        "plain: none [0] Ok".to_owned(),
        "accepted: none [0] Ok".to_owned(),
        "packed: gzip [1] Ok".to_owned(),
        "named only: gzip [1] Ok".to_owned(),
        "named last: gzip [1] Ok".to_owned(),
        format!("not named: {unnamed}"),
        format!("named otherwise: {unnamed}"),
        format!("of another kind: {foreign}"),
        "of a bomb: none [] ResourceExhausted grpc: received message after decompression larger than max \
         4194304"
            .to_owned(),
        format!("of nothing: {opening}EOF"),
        format!("of no gzip: {opening}gzip: invalid header"),
        format!("cut: {reading}unexpected EOF"),
        format!("with more behind: {reading}gzip: invalid header"),
        format!("of a wrong length: {reading}gzip: invalid checksum"),
    ];
    let (of_server, of_agent) = told.split_at(server.len());
    assert_eq!(of_server, server.map(|line| format!("server, {line}")));
    let unknown = "none [] Unimplemented grpc: Decompressor is not installed for grpc-encoding \"gzip\"";
    for line in of_agent {
        let (name, end) = line.split_once(": ").unwrap();
        let expected = match name {
            "agent, plain" | "agent, accepted" => "none [0] Ok",
            "agent, not named" | "agent, named otherwise" => unnamed,
            "agent, of another kind" => foreign,
            _ => unknown,
        };
        assert_eq!(end, expected, "{name}");
    }
}

#[test]
fn x07_strangers_have_less_unpacked_for_them() {
    let told = bomb_of_a_stranger(&Product::finial(), &recorded()).unwrap();

    let text = "grpc: received message after decompression larger than max 65536";
    assert_eq!(told, format!("none [] ResourceExhausted {text}"));
}

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}
