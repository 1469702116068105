//! Compiles `protos/` with a compiler written in Rust; nothing has to be installed.
//!
//! Files without a package would all land in one module, so they are compiled apart: each set below
//! becomes one directory of `OUT_DIR` with an `all.rs` that nests its modules by package.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use protox::Compiler;

#[path = "build/services.rs"]
mod services;
use protox::prost_reflect::prost_types::FileDescriptorSet;

/// Messages with private keys, tokens or configuration of plugins. Their `Debug` is written by hand
/// (in `src/secret.rs`) and shows nothing of them.
const SECRET: [&str; 19] = [
    ".X509SVID",
    ".WITSVID",
    ".JWTSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.WITSVID",
    ".spire.api.types.JoinToken",
    ".spire.api.types.AttestationData",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
    ".spire.common.AttestationData",
    ".spire.plugin.agent.svidstore.v1.X509SVID",
    ".spire.hostservice.server.identityprovider.v1.X509Identity",
    ".spire.service.common.config.v1.ConfigureRequest",
    ".spire.service.common.config.v1.ValidateRequest",
    ".envoy.config.core.v3.DataSource",
    ".plugin.StdioData",
];

/// Files without a package, each its own set.
const ALONE: [&str; 2] = ["workload", "journal"];

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("protos");
    println!("cargo::rerun-if-changed={}", protos.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);

    let mut names = Vec::new();
    for file in fs::read_dir(protos)? {
        let name = file?.file_name().into_string().map_err(|name| format!("odd file name {name:?}"))?;
        names.push(name);
    }
    names.sort();

    let mut everything = compile(protos, &names)?;
    for file in &mut everything.file {
        // Comments would double the size of the constant.
        file.source_code_info = None;
    }
    fs::write(out.join("descriptors.bin"), everything.encode_to_vec())?;

    let (alone, packaged): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| ALONE.iter().any(|stem| *name == format!("{stem}.proto")));
    generate(&out.join("packages"), compile(protos, &packaged)?)?;
    for stem in ALONE {
        let file = alone.iter().find(|name| name.starts_with(stem)).ok_or(stem)?;
        generate(&out.join(stem), compile(protos, std::slice::from_ref(file))?)?;
    }
    Ok(())
}

fn compile(protos: &Path, files: &[String]) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let mut compiler = Compiler::new([protos])?;
    compiler.include_imports(true).include_source_info(true).open_files(files)?;
    Ok(compiler.file_descriptor_set())
}

fn generate(out: &Path, set: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(out)?;
    prost_build::Config::new()
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .btree_map(["."])
        .bytes(["."])
        .skip_debug(SECRET)
        .service_generator(Box::new(services::Services))
        .out_dir(out)
        .include_file("all.rs")
        .compile_fds(set)?;
    Ok(())
}
