//! `api fetch jwt` and `api validate jwt`.

use prost_types::value::Kind;
use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, ValidateJwtsvidRequest};
use tonic::Code;

use super::{dial, failed, is_json, request, text, within};
use crate::cli::flags::Flags;
use crate::cli::rpc::{self, client};
use crate::cli::{Failure, Printer, json};

pub(super) fn fetch(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let dialed = dial_checked(flags, flags.is_given("audience"))?;
    let audience: Vec<String> = flags.text("audience").split(',').map(str::to_owned).collect();
    rpc::block_on(async {
        let dialed = dialed()?;
        let mut client = client!(SpiffeWorkloadApiClient<_>, dialed);
        let bundles = within(flags, client.fetch_jwt_bundles(request(flags, JwtBundlesRequest {}))).await;
        let bundles = bundles.map_err(|status| {
            // The words before it stand there only if the call did not even begin.
            let before = if dialed.is_unreached(&status) { "failed to receive JWT bundles: " } else { "" };
            Failure::Bare(format!("{before}{}", text(&dialed, &status)))
        })?;
        let bundles = bundles.into_inner().message().await;
        let bundles: JwtBundlesResponse =
            bundles.map_err(|status| failed(&dialed, &status))?.unwrap_or_default();
        let wanted = JwtsvidRequest { audience, spiffe_id: flags.text("spiffeID").to_owned() };
        let svids = within(flags, client.fetch_jwtsvid(request(flags, wanted))).await;
        let svids = svids.map_err(|status| failed(&dialed, &status))?.into_inner();
        if is_json(flags) {
            let svids = json::tree("JWTSVIDResponse", &svids)?;
            let bundles = json::tree("JWTBundlesResponse", &bundles)?;
            printer.out = json::line(&serde_json::Value::Array(vec![svids, bundles]));
            return Ok(());
        }
        for svid in &svids.svids {
            printer.out.push_str(&format!("token({}):\n\t{}\n", svid.spiffe_id, svid.svid));
            if !svid.hint.is_empty() {
                printer.out.push_str(&format!("hint({}):\n\t{}\n", svid.spiffe_id, svid.hint));
            }
        }
        let mut sorted: Vec<_> = bundles.bundles.iter().collect();
        sorted.sort();
        for (trust_domain, jwks) in sorted {
            printer.out.push_str(&format!("bundle({trust_domain}):\n\t{}\n", String::from_utf8_lossy(jwks)));
        }
        Ok(())
    })
}

/// Checks the flags in the order SPIRE does: the socket before the audience.
fn dial_checked(
    flags: &Flags,
    has_audience: bool,
) -> Result<impl FnOnce() -> Result<rpc::Dialed, Failure> + '_, Failure> {
    rpc::agent_socket(flags).map_err(Failure::Bare)?;
    if !has_audience {
        return Err(Failure::Bare("audience must be specified".to_owned()));
    }
    Ok(|| dial(flags))
}

pub(super) fn validate(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let dialed = dial_checked(flags, !flags.text("audience").is_empty())?;
    if flags.text("svid").is_empty() {
        return Err(Failure::Bare("svid must be specified".to_owned()));
    }
    rpc::block_on(async {
        let dialed = dialed()?;
        let wanted = ValidateJwtsvidRequest {
            audience: flags.text("audience").to_owned(),
            svid: flags.text("svid").to_owned(),
        };
        let mut client = client!(SpiffeWorkloadApiClient<_>, dialed);
        let reply = within(flags, client.validate_jwtsvid(request(flags, wanted))).await;
        let reply = reply.map_err(|status| {
            Failure::Bare(if status.code() == Code::InvalidArgument {
                format!("SVID is not valid: {}", status.message())
            } else {
                format!("unable to validate JWT SVID: {}", text(&dialed, &status))
            })
        })?;
        let reply = reply.into_inner();
        if is_json(flags) {
            printer.out = json::line(&json::tree("ValidateJWTSVIDResponse", &reply)?);
            return Ok(());
        }
        let claims = prost_types::Value { kind: reply.claims.map(Kind::StructValue) };
        printer.out =
            format!("SVID is valid.\nSPIFFE ID : {}\nClaims    : {}\n", reply.spiffe_id, spaced(&claims));
        Ok(())
    })
}

/// A value as Go's protojson prints it on one line: a blank after each comma.
fn spaced(value: &prost_types::Value) -> String {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => "null".to_owned(),
        Some(Kind::BoolValue(truth)) => truth.to_string(),
        Some(Kind::NumberValue(number)) => number_text(*number),
        Some(Kind::StringValue(text)) => serde_json::Value::String(text.clone()).to_string(),
        Some(Kind::ListValue(list)) => {
            format!("[{}]", list.values.iter().map(spaced).collect::<Vec<_>>().join(", "))
        }
        Some(Kind::StructValue(members)) => {
            let members: Vec<String> = members
                .fields
                .iter()
                .map(|(key, value)| format!("{}:{}", serde_json::Value::String(key.clone()), spaced(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
    }
}

/// A double as Go prints it in JSON: whole numbers without a point up to 1e21.
fn number_text(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e21 {
        return format!("{number:.0}");
    }
    serde_json::Number::from_f64(number).map_or_else(|| "null".to_owned(), |number| number.to_string())
}
