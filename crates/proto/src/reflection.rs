//! Descriptors for reflection: only what an endpoint serves, not every protocol there is.

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use crate::FILE_DESCRIPTOR_SET;

/// The Workload API, Envoy's secret discovery and health: what workloads may see.
pub const WORKLOAD: [&str; 3] = ["workload.proto", "envoy.service.secret.v3.proto", "grpc.health.v1.proto"];

/// The broker API.
pub const BROKER: [&str; 1] = ["spiffe.broker.proto"];

/// An encoded `FileDescriptorSet` of the named files and all they import. Unknown names are left
/// out; the names are those of `protos/`.
#[must_use]
pub fn descriptors(files: &[&str]) -> Vec<u8> {
    // A build product of this crate: it decodes.
    let all = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default().file;
    let mut wanted: Vec<&str> = files.to_vec();
    let mut chosen: Vec<&FileDescriptorProto> = Vec::new();
    while let Some(name) = wanted.pop() {
        if chosen.iter().any(|file| file.name() == name) {
            continue;
        }
        if let Some(file) = all.iter().find(|file| file.name() == name) {
            wanted.extend(file.dependency.iter().map(String::as_str));
            chosen.push(file);
        }
    }
    // In the order of the whole set, where imports come first.
    let is_chosen = |file: &&FileDescriptorProto| chosen.iter().any(|one| one.name() == file.name());
    FileDescriptorSet { file: all.iter().filter(is_chosen).cloned().collect() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_shows_what_it_serves_and_nothing_else() {
        let set = FileDescriptorSet::decode(descriptors(&WORKLOAD).as_slice()).expect("decodes");

        let names: Vec<&str> = set.file.iter().map(FileDescriptorProto::name).collect();
        assert!(names.contains(&"workload.proto") && names.contains(&"google.rpc.proto"), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with("spire")), "{names:?}");
        for file in &set.file {
            assert!(file.dependency.iter().all(|import| names.contains(&import.as_str())), "{}", file.name());
        }
    }
}
