//! Writes the clients and servers of services.
//!
//! What each method has of its own is to write one message and to read another. All else, which is most of
//! it, is in `src/grpc.rs` once, where a library's generated code would have a copy of it for each method.

use std::fmt::Write as _;

use prost_build::{Method, Service, ServiceGenerator};

pub(crate) struct Services;

impl ServiceGenerator for Services {
    fn generate(&mut self, service: Service, out: &mut String) {
        let name = format!("{}{}{}", service.package, dot(&service.package), service.proto_name);
        let written = client(&service, &name, out).and_then(|()| server(&service, &name, out));
        debug_assert!(written.is_ok(), "a string takes everything");
    }
}

fn dot(package: &str) -> &str {
    if package.is_empty() { "" } else { "." }
}

fn client(service: &Service, name: &str, out: &mut String) -> std::fmt::Result {
    let client = format!("{}Client", service.name);
    writeln!(
        out,
        "pub mod {module}_client {{
            #[derive(Clone, Debug)]
            pub struct {client}<T>(crate::grpc::Caller<T>);

            impl<T: crate::grpc::Carrier> {client}<T> {{
                pub fn new(carrier: T) -> Self {{
                    Self(crate::grpc::Caller::new(carrier))
                }}

                /// Takes answers of so many bytes; 4 MiB otherwise.
                #[must_use]
                pub fn max_decoding_message_size(self, limit: usize) -> Self {{
                    Self(self.0.max_decoding_message_size(limit))
                }}",
        module = snake(&service.name),
    )?;
    for method in &service.methods {
        let Method { name: method_name, proto_name, .. } = method;
        let (asked, answered) = (within(&method.input_type), within(&method.output_type));
        let (into, request) = match method.client_streaming {
            false => ("into_request", format!("tonic::IntoRequest<{asked}>")),
            true => ("into_streaming_request", format!("tonic::IntoStreamingRequest<Message = {asked}>")),
        };
        let answer = if method.server_streaming { format!("tonic::Streaming<{answered}>") } else { answered };
        comment(out, &method.comments.leading)?;
        writeln!(
            out,
            "pub async fn {method_name}(
                &mut self,
                request: impl {request},
            ) -> Result<tonic::Response<{answer}>, tonic::Status> {{
                self.0.{kind}(\"/{name}/{proto_name}\", request.{into}()).await
            }}",
            kind = kind(method),
        )?;
    }
    writeln!(out, "}} }}")
}

fn server(service: &Service, name: &str, out: &mut String) -> std::fmt::Result {
    let (of, server) = (&service.name, format!("{}Server", service.name));
    writeln!(out, "pub mod {}_server {{", snake(of))?;
    comment(out, &service.comments.leading)?;
    writeln!(
        out,
        "#[tonic::async_trait] pub trait {of}: std::marker::Send + std::marker::Sync + 'static {{"
    )?;
    for method in &service.methods {
        let (asked, mut answered) = (within(&method.input_type), within(&method.output_type));
        if method.server_streaming {
            let stream = format!("{}Stream", method.proto_name);
            writeln!(
                out,
                "/// The answers to one call.
                type {stream}: tonic::codegen::tokio_stream::Stream<Item = Result<{answered}, tonic::Status>>
                    + std::marker::Send + 'static;",
            )?;
            answered = format!("Self::{stream}");
        }
        let asked = if method.client_streaming { format!("tonic::Streaming<{asked}>") } else { asked };
        comment(out, &method.comments.leading)?;
        writeln!(
            out,
            "async fn {}(
                &self,
                request: tonic::Request<{asked}>,
            ) -> Result<tonic::Response<{answered}>, tonic::Status>;",
            method.name,
        )?;
    }
    writeln!(
        out,
        "}}

        #[derive(Debug)]
        pub struct {server}<T>(std::sync::Arc<T>);

        impl<T> {server}<T> {{
            pub fn new(service: T) -> Self {{
                Self(std::sync::Arc::new(service))
            }}
        }}

        impl<T> std::clone::Clone for {server}<T> {{
            fn clone(&self) -> Self {{
                Self(std::sync::Arc::clone(&self.0))
            }}
        }}

        impl<T> tonic::server::NamedService for {server}<T> {{
            const NAME: &'static str = \"{name}\";
        }}

        impl<T: {of}> tonic::codegen::Service<http::Request<tonic::body::Body>> for {server}<T> {{
            type Response = http::Response<tonic::body::Body>;
            type Error = std::convert::Infallible;
            type Future = crate::grpc::Answering;

            fn poll_ready(
                &mut self,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), Self::Error>> {{
                std::task::Poll::Ready(Ok(()))
            }}

            fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {{
                let service = std::sync::Arc::clone(&self.0);
                match request.uri().path() {{",
    )?;
    for method in &service.methods {
        let Method { name: method_name, proto_name, .. } = method;
        writeln!(
            out,
            "\"/{name}/{proto_name}\" => crate::grpc::{kind}(request, move |request| async move {{
                {of}::{method_name}(&*service, request).await
            }}),",
            kind = kind(method),
        )?;
    }
    writeln!(out, "_ => crate::grpc::unimplemented(), }} }} }} }}")
}

/// The function in `src/grpc.rs` for such methods. There is none for a stream of requests with one answer:
/// no service has that.
const fn kind(method: &Method) -> &'static str {
    match (method.client_streaming, method.server_streaming) {
        (false, false) => "unary",
        (false, true) => "server_streaming",
        (true, false) => "client_streaming",
        (true, true) => "streaming",
    }
}

/// The type of a message as it is called one module further down.
fn within(path: &str) -> String {
    let is_whole = path == "()" || path.starts_with("::") || path.starts_with("crate::");
    if is_whole { path.to_owned() } else { format!("super::{path}") }
}

fn comment(out: &mut String, lines: &[String]) -> std::fmt::Result {
    lines.iter().try_for_each(|line| writeln!(out, "/// {line}"))
}

/// `LocalAuthority` as `local_authority`; a row of capitals is one word.
fn snake(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut snake = String::with_capacity(name.len() + 4);
    for (at, letter) in letters.iter().enumerate() {
        let begins = |at: usize| letters.get(at).is_some_and(|letter| !letter.is_uppercase());
        if letter.is_uppercase() && at > 0 && (begins(at - 1) || begins(at + 1)) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}
