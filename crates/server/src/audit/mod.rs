//! The audit log: a line per call, or per item of a batch, with SPIRE's fields.
//!
//! What stands in a line is read from the messages that pass the door, after the answer has passed: no
//! service knows that it is watched. Calls that are not authorised have no line here, as in SPIRE; the
//! server's own log tells of them. A request longer than the receive limit is refused before it is
//! whole, so what is held per call is bounded.

mod chain;
mod fields;
mod tee;

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use http::{Request, Response};
use proto::spire::types;
use runtime::log::{Level, Value};
use runtime::peer::Credentials;
use runtime::{codes, listen};
use spiffe::SpiffeId;
use tonic::body::Body;
use tonic::{Code, Status};

pub(crate) use self::chain::Chain;
pub use self::chain::{AuditChain, AuditFault, verify_audit};
use crate::caller::{Caller, Peer};
use crate::context::Context;

use self::fields::Item;
use self::tee::{Seen, observed, watched};

/// The fields of a line.
type Fields = Vec<(String, Value)>;

/// What all lines say.
const MESSAGE: &str = "API accessed";

/// A call that is watched.
pub(crate) struct Watch {
    context: Arc<Context>,
    method: &'static str,
    caller: Option<String>,
    /// Who it is that attests. Of one who is refused no message tells.
    attesting: Option<Arc<OnceLock<SpiffeId>>>,
    /// What all lines of the call have in common.
    common: Fields,
    request: Arc<Seen>,
}

impl Watch {
    /// Watches a call of `caller` over `connection`.
    ///
    /// # Errors
    /// `Internal` for a local process of which nothing can be found out: nobody unknown is let in.
    pub(crate) fn new(
        context: &Arc<Context>,
        caller: &Caller,
        connection: &listen::Peer,
    ) -> Result<Self, Status> {
        let (service, method) = caller.service_and_method();
        let (authorized_as, authorized_via) = caller.authorised(context);
        let mut common = vec![
            text("subsystem_name", "api"),
            text("service", service),
            text("method", method),
            text("request_id", caller.request_id()),
            text("type", "audit"),
            text("authorized_as", authorized_as),
            text("authorized_via", authorized_via),
        ];
        match &*caller.peer {
            Peer::Local => common.extend(of_process(connection)?),
            Peer::Remote { address, .. } => common.push(text("caller_addr", address)),
        }
        let id = caller.peer.certificate().map(|certificate| certificate.id.as_str().to_owned());
        common.extend(id.iter().map(|id| text("caller_id", id)));
        Ok(Self {
            context: Arc::clone(context),
            method: caller.rule.method,
            caller: id,
            attesting: caller.attesting.clone(),
            common,
            request: Arc::default(),
        })
    }

    /// The request, seen as it is read.
    pub(crate) fn request(&self, request: Request<Body>) -> Request<Body> {
        if self.is_endless() { request } else { watched(request, Arc::clone(&self.request)) }
    }

    /// The answer, seen as it is sent; at its end the lines are written.
    pub(crate) fn answer(self, answer: Response<Body>) -> Response<Body> {
        let keep = if self.is_endless() { 0 } else { tee::MOST };
        observed(answer, keep, move |answer, status| self.write(answer, &status))
    }

    /// Whether messages pass for as long as the connection lasts. No line says anything of them, so
    /// they are not kept.
    fn is_endless(&self) -> bool {
        self.method == "/finial.sync.v1.Sync/Watch"
    }

    fn write(&self, answer: &[u8], status: &Status) {
        let (requests, answers) = (self.request.messages(), tee::messages(answer));
        let around = fields::Around {
            method: self.method,
            trust_domain: self.context.trust_domain(),
            caller: self.caller.as_deref(),
            attesting: self.attesting.as_ref().and_then(|id| id.get()),
        };
        for Item { fields, status } in fields::items(&around, &requests, &answers, status) {
            self.line(fields, status.as_ref());
        }
    }

    fn line(&self, fields: Fields, status: Option<&types::Status>) {
        let mut line = self.common.clone();
        match status {
            Some(status) if status.code != 0 => {
                line.extend([text("status", "error"), text("status_message", &status.message)]);
                line.push(("status_code".to_owned(), code(status.code)));
            }
            _ => line.push(text("status", "success")),
        }
        line.extend(fields);
        match &self.context.audit_chain {
            Some(chain) => chain.record(&self.context.log, MESSAGE, line),
            None => self.context.log.record(Level::Info, MESSAGE, line),
        }
    }
}

/// The code: its name in text, its number in JSON.
fn code(number: i32) -> Value {
    let name = codes::name(Code::from_i32(number)).to_owned();
    Value::Named { name, number: number.into() }
}

fn of_process(connection: &listen::Peer) -> Result<Fields, Status> {
    let unknown = || Status::internal("failed to get peertracker");
    let caller = connection.caller().ok_or_else(unknown)?;
    let failed = |why: std::io::Error| Status::internal(format!("failed UIDs lookup: {why}"));
    let Credentials { uid, gid, .. } = *caller.process.credentials().map_err(failed)?;
    let mut fields = vec![number("caller_uid", uid), number("caller_gid", gid)];
    // Its file may be out of sight, in another namespace.
    if let Ok(path) = caller.process.read_link("exe") {
        fields.push(text("caller_path", path.display()));
    }
    let gone = |why: runtime::peer::CallerError| {
        Status::internal(format!("peertracker fails: {}", runtime::chain(&why)))
    };
    caller.verify().map_err(gone)?;
    Ok(fields)
}

fn text(name: &str, value: impl Display) -> (String, Value) {
    (name.to_owned(), Value::Text(format!("{value}")))
}

fn number(name: &str, value: impl Display) -> (String, Value) {
    (name.to_owned(), Value::Bare(format!("{value}")))
}
