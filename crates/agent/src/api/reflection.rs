//! gRPC server reflection, `v1` and `v1alpha`: what the public socket serves, told to tools.
//!
//! The two versions have the same messages, so one serves both. Descriptors are read when the first
//! asks for them: hardly ever. A file is sent with those it needs, each once per stream; what is not
//! there is answered within the stream, which goes on.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::stream::StreamExt;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use proto::raw::{self, Encoded, Replies};
use proto::reflection::{BROKER, WORKLOAD, descriptors};
use tonic::body::Body;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use tonic_reflection::pb::{v1, v1alpha};

use super::route::Service;

/// The current version.
pub(super) const SERVICE: Service = Service { name: "grpc.reflection.v1.ServerReflection", methods: METHODS };
/// The one that older tools ask for.
pub(super) const OLD_SERVICE: Service =
    Service { name: "grpc.reflection.v1alpha.ServerReflection", methods: METHODS };
const METHODS: &[&str] = &["ServerReflectionInfo"];
/// In the words of SPIRE's library.
const NOT_FOUND: &str = "proto: not found";

/// The service. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(super) struct Reflection {
    /// In order.
    services: Arc<[&'static str]>,
    files: Arc<OnceLock<Files>>,
}

impl Reflection {
    /// Of a socket that serves these.
    pub(super) fn new(services: &[Service]) -> Self {
        let mut names: Vec<&'static str> = services.iter().map(|service| service.name).collect();
        names.sort_unstable();
        Self { services: names.into(), files: Arc::default() }
    }

    /// Answers a call of either version.
    pub(super) async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        raw::streaming(request, |request: Request<Streaming<ServerReflectionRequest>>| async move {
            let mut sent = BTreeSet::new();
            let replies = request.into_inner().map(move |request| self.reply(request?, &mut sent));
            Ok(Response::new(Box::pin(replies) as Replies))
        })
        .await
    }

    fn reply(
        &self,
        request: ServerReflectionRequest,
        sent: &mut BTreeSet<String>,
    ) -> Result<Encoded, Status> {
        let files = self.files.get_or_init(|| Files::of(&self.services));
        let answer = match &request.message_request {
            Some(MessageRequest::ListServices(_)) => {
                let service = self.services.iter().map(|name| ServiceResponse { name: (*name).to_owned() });
                Ok(MessageResponse::ListServicesResponse(ListServiceResponse { service: service.collect() }))
            }
            Some(MessageRequest::FileByFilename(name)) => files.with_imports(name, sent).ok_or(NOT_FOUND),
            Some(MessageRequest::FileContainingSymbol(name)) => {
                let file = files.by_symbol.get(name);
                file.and_then(|file| files.with_imports(file, sent)).ok_or(NOT_FOUND)
            }
            // No file here has any.
            Some(MessageRequest::FileContainingExtension(_)) => Err(NOT_FOUND),
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                let none = ExtensionNumberResponse { base_type_name: name.clone(), ..Default::default() };
                let is_known = files.by_symbol.contains_key(name);
                is_known.then_some(MessageResponse::AllExtensionNumbersResponse(none)).ok_or(NOT_FOUND)
            }
            None => return Err(Status::invalid_argument("invalid MessageRequest: <nil>")),
        };
        let answer = answer.unwrap_or_else(|text| {
            let error_message = text.to_owned();
            MessageResponse::ErrorResponse(ErrorResponse { error_code: Code::NotFound.into(), error_message })
        });
        Ok(Encoded::of(&ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }))
    }
}

/// The files that describe what is served.
#[derive(Default)]
struct Files {
    by_name: HashMap<String, File>,
    by_symbol: HashMap<String, String>,
}

struct File {
    encoded: Bytes,
    imports: Vec<String>,
}

impl Files {
    fn of(services: &[&str]) -> Self {
        let own = descriptors(&[&WORKLOAD[..], &BROKER[..]].concat());
        let mut files = Self::default();
        for set in [&own, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET] {
            // Build products: they decode.
            for file in FileDescriptorSet::decode(set).unwrap_or_default().file {
                files.add(&file);
            }
        }
        files.keep(services);
        files
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let (name, package) = (file.name(), file.package());
        let mut symbols = Vec::new();
        for service in &file.service {
            let service_name = within(package, service.name());
            symbols.extend(service.method.iter().map(|method| within(&service_name, method.name())));
            symbols.push(service_name);
        }
        file.message_type.iter().for_each(|message| message_symbols(package, message, &mut symbols));
        file.enum_type.iter().for_each(|one| enum_symbols(package, one, &mut symbols));
        self.by_symbol.extend(symbols.into_iter().map(|symbol| (symbol, name.to_owned())));
        let encoded = file.encode_to_vec().into();
        self.by_name.insert(name.to_owned(), File { encoded, imports: file.dependency.clone() });
    }

    /// Keeps the files of these services and what they import: what is not served is not shown.
    fn keep(&mut self, services: &[&str]) {
        let mut kept = BTreeSet::new();
        for service in services {
            if let Some(file) = self.by_symbol.get(*service) {
                self.gather(file, &mut kept);
            }
        }
        self.by_name.retain(|name, _| kept.contains(name));
        self.by_symbol.retain(|_, file| kept.contains(file));
    }

    /// Adds the file and what it imports to `names`; says which are new, the file first.
    fn gather(&self, name: &str, names: &mut BTreeSet<String>) -> Vec<Bytes> {
        let mut new = Vec::new();
        let mut wanted = vec![name];
        while let Some(name) = wanted.pop() {
            let Some(file) = self.by_name.get(name).filter(|_| !names.contains(name)) else { continue };
            names.insert(name.to_owned());
            new.push(file.encoded.clone());
            wanted.extend(file.imports.iter().map(String::as_str));
        }
        new
    }

    /// The file, and what it imports and the stream was not sent before.
    fn with_imports(&self, name: &str, sent: &mut BTreeSet<String>) -> Option<MessageResponse> {
        let file = self.by_name.get(name)?;
        let mut files = self.gather(name, sent);
        if files.is_empty() {
            // Asked for again: sent again, alone.
            files.push(file.encoded.clone());
        }
        let file_descriptor_proto = files.into_iter().map(Vec::from).collect();
        Some(MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto }))
    }
}

fn message_symbols(scope: &str, message: &DescriptorProto, symbols: &mut Vec<String>) {
    let name = within(scope, message.name());
    symbols.extend(message.field.iter().map(|field| within(&name, field.name())));
    symbols.extend(message.oneof_decl.iter().map(|oneof| within(&name, oneof.name())));
    message.nested_type.iter().for_each(|nested| message_symbols(&name, nested, symbols));
    message.enum_type.iter().for_each(|one| enum_symbols(&name, one, symbols));
    symbols.push(name);
}

/// The values of an enum are named beside it, not within it.
fn enum_symbols(scope: &str, one: &EnumDescriptorProto, symbols: &mut Vec<String>) {
    symbols.extend(one.value.iter().map(|value| within(scope, value.name())));
    symbols.push(within(scope, one.name()));
}

fn within(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::super::{health, workload};
    use super::*;

    #[test]
    fn what_is_served_is_shown_and_nothing_else() {
        let files = Files::of(&[workload::SERVICE.name, health::SERVICE.name, SERVICE.name]);

        for symbol in [
            "SpiffeWorkloadAPI",
            "SpiffeWorkloadAPI.FetchX509SVID",
            "X509SVIDResponse",
            "X509SVIDResponse.FederatedBundlesEntry",
            "X509SVID.hint",
            "grpc.health.v1.HealthCheckResponse.SERVING",
            "grpc.reflection.v1.ServerReflectionRequest.message_request",
            "google.protobuf.Struct",
        ] {
            assert!(files.by_symbol.contains_key(symbol), "{symbol}");
        }
        for symbol in ["envoy.service.secret.v3.SecretDiscoveryService", "spire.api.types.SPIFFEID"] {
            assert!(!files.by_symbol.contains_key(symbol), "{symbol}");
        }
    }

    #[test]
    fn a_file_comes_with_what_it_imports_once_per_stream() {
        let files = Files::of(&[workload::SERVICE.name]);
        let sent_files = |sent: &mut BTreeSet<String>| match files.with_imports("workload.proto", sent) {
            Some(MessageResponse::FileDescriptorResponse(answer)) => answer.file_descriptor_proto.len(),
            other => panic!("{other:?}"),
        };
        let mut sent = BTreeSet::new();

        assert_eq!((sent_files(&mut sent), sent_files(&mut sent)), (2, 1));
        assert!(sent.contains("google/protobuf/struct.proto"));
        assert!(files.with_imports("spire.api.types.proto", &mut sent).is_none());
    }
}
