//! The operator's own policy: Rego that says, call by call, to whom a method is open.
//!
//! It is asked what SPIRE's servers ask (`data.spire.result`) about the same input, and its answer takes
//! the place of the compiled-in rule. A policy that fails, gives no answer or takes too long opens
//! nothing. It is tried out on samples at start, which fails where they do.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::PolicyConfig;
use regorus::utils::limits::{ExecutionTimerConfig, set_fallback_execution_timer_config};
use regorus::{CompiledPolicy, Engine, Value};
use serde_json::json;

use super::request::Requests;
use super::rules::Open;

/// What is asked.
const QUERY: &str = "data.spire.result";

/// A policy, compiled.
pub(crate) struct Policy {
    compiled: CompiledPolicy,
    requests: Requests,
}

/// What a policy is asked about.
#[derive(Debug, Default)]
pub(crate) struct Input<'a> {
    /// The caller's id; empty for one without.
    pub(crate) caller: &'a str,
    /// The program of a local caller; empty where it is not known.
    pub(crate) caller_file_path: String,
    /// The path of the method.
    pub(crate) full_method: &'a str,
    /// The request as it came; none of a method with a stream.
    pub(crate) request: Option<&'a [u8]>,
}

/// Why there is no policy, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The configuration names no file.
    #[error("policy engine configuration must define a provider")]
    NoProvider,
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Everybody may write the file.
    #[error("{} can be written by everybody, who would then decide who may call", .0.display())]
    Writable(PathBuf),
    /// The file with the data holds something else than an object in JSON.
    #[error("error decoding JSON databindings of {}: {reason}", path.display())]
    Data {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The text is no Rego, or has no such rule.
    #[error("cannot compile {}: {reason}", path.display())]
    Rego {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot judge one of the samples.
    #[error("authpolicy engine failed to validate on sample test inputs: policy is misconfigured")]
    Sample(#[source] Box<Self>),
    /// It fails, or takes too long.
    #[error("policy: {0}")]
    Failed(String),
    /// It has no answer.
    #[error("policy: no matching policies found")]
    Silent,
    /// Its answer is no object.
    #[error("unexpected type in evaluating policy result expression")]
    NoObject,
    /// Its answer lacks something.
    #[error("policy: result did not contain {0:?} bool value")]
    Incomplete(&'static str),
    /// The request cannot be shown to it.
    #[error("grpc: error unmarshalling request: {0}")]
    Request(String),
}

impl Policy {
    /// Reads and compiles a policy, and tries it out.
    ///
    /// # Errors
    /// Any of [`PolicyError`].
    pub(crate) fn load(config: &PolicyConfig) -> Result<Self, PolicyError> {
        set_fallback_execution_timer_config(Some(TIME));
        let path = &config.rego;
        if path.as_os_str().is_empty() {
            return Err(PolicyError::NoProvider);
        }
        let refused = |reason: String| PolicyError::Rego { path: path.clone(), reason };
        let mut engine = Engine::new();
        if let Some(path) = &config.data {
            engine.add_data(data(path)?).map_err(|error| in_one_line(&error.to_string())).map_err(refused)?;
        }
        let compiled = engine
            .add_policy(path.display().to_string(), read(path)?)
            .and_then(|_| engine.compile_with_entrypoint(&Arc::from(QUERY)))
            .map_err(|error| refused(in_one_line(&error.to_string())))?;
        let policy = Self { compiled, requests: Requests::new() };
        policy.try_out().map_err(|error| PolicyError::Sample(Box::new(error)))?;
        Ok(policy)
    }

    /// To whom the method is open for this call.
    ///
    /// # Errors
    /// The policy has no answer.
    pub(crate) fn judge(&self, input: &Input<'_>) -> Result<Open, PolicyError> {
        let request = match input.request {
            None => serde_json::Value::Null,
            Some(bytes) => self.requests.shown(input.full_method, bytes).map_err(PolicyError::Request)?,
        };
        self.ask(json!({
            "caller": input.caller,
            "caller_file_path": input.caller_file_path,
            "full_method": input.full_method,
            "req": request,
        }))
    }

    /// Whether the policy is shown the requests of this method: of those without streams.
    pub(crate) fn sees_requests_of(&self, method: &str) -> bool {
        self.requests.is_known(method)
    }

    fn ask(&self, input: serde_json::Value) -> Result<Open, PolicyError> {
        let answer = self.compiled.eval_with_input(Value::from(input));
        let answer = answer.map_err(|error| PolicyError::Failed(in_one_line(&error.to_string())))?;
        if answer == Value::Undefined {
            return Err(PolicyError::Silent);
        }
        let answer = answer.as_object().map_err(|_| PolicyError::NoObject)?;
        let says = |name: &'static str| match answer.get(&Value::from(name)) {
            Some(Value::Bool(says)) => Ok(*says),
            _ => Err(PolicyError::Incomplete(name)),
        };
        Ok(Open {
            anybody: says("allow")?,
            admins: says("allow_if_admin")?,
            local: says("allow_if_local")?,
            downstream: says("allow_if_downstream")?,
            agents: says("allow_if_agent")?,
        })
    }

    /// Asks about calls of every kind: with and without a caller, with requests that have parts and
    /// without.
    fn try_out(&self) -> Result<(), PolicyError> {
        let id = |path: &str| json!({"trust_domain": "example.org", "path": path});
        let entry = json!({
            "id": "first", "spiffe_id": id("/web"), "parent_id": id("/node"),
            "selectors": [{"type": "unix", "value": "uid:1000"}],
        });
        let calls = [
            ("/spire.api.server.bundle.v1.Bundle/GetBundle", json!({})),
            ("/grpc.health.v1.Health/Check", json!({})),
            ("/spire.api.server.agent.v1.Agent/AttestAgent", json!(null)),
            (
                "/spire.api.server.agent.v1.Agent/CreateJoinToken",
                json!({"ttl": 600, "agent_id": id("/node")}),
            ),
            ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", json!({"entries": [entry]})),
            ("/spire.api.server.entry.v1.Entry/ListEntries", json!({"filter": {}})),
            ("/spire.api.server.svid.v1.SVID/MintX509SVID", json!({"csr": "AA=="})),
        ];
        for caller in ["", "spiffe://example.org/operator"] {
            for (full_method, req) in &calls {
                self.ask(json!({
                    "caller": caller, "caller_file_path": "", "full_method": full_method, "req": req,
                }))?;
            }
        }
        Ok(())
    }
}

fn data(path: &Path) -> Result<Value, PolicyError> {
    let refused = |reason: String| PolicyError::Data { path: path.to_owned(), reason };
    let data: serde_json::Value =
        serde_json::from_str(&read(path)?).map_err(|error| refused(error.to_string()))?;
    if !data.is_object() {
        return Err(refused("it is no object".to_owned()));
    }
    Ok(Value::from(data))
}

/// The text of a file that not everybody may write.
fn read(path: &Path) -> Result<String, PolicyError> {
    let failed = |source| PolicyError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.mode() & WRITABLE_BY_ALL != 0 {
        return Err(PolicyError::Writable(path.to_owned()));
    }
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

/// The engine draws the place of an error below its text.
fn in_one_line(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| !matches!(*word, "|" | "-->" | "^"));
    words.collect::<Vec<_>>().join(" ")
}

const WRITABLE_BY_ALL: u32 = 0o002;

/// Of a policy or its data; what is longer is cut off, and so refused.
const LONGEST: u64 = 16 << 20;

/// A policy is asked before every call, so one that takes longer is of no use.
const TIME: ExecutionTimerConfig = ExecutionTimerConfig {
    limit: Duration::from_secs(1),
    check_interval: match NonZeroU32::new(64) {
        Some(steps) => steps,
        None => NonZeroU32::MIN,
    },
};

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    const NOBODY: &str = "package spire\n\
        default admin := false\n\
        admin if data.callers[_] == input.caller\n\
        result := {\"allow\": false, \"allow_if_admin\": admin, \"allow_if_local\": true,\n\
        \"allow_if_downstream\": false, \"allow_if_agent\": input.full_method == \"/x\"}\n";

    fn load(rego: &str, data: &str) -> Result<Policy, String> {
        let folder = TempDir::new().unwrap();
        let config =
            PolicyConfig { rego: folder.path().join("p.rego"), data: Some(folder.path().join("d.json")) };
        fs::write(&config.rego, rego).unwrap();
        fs::write(config.data.as_ref().unwrap(), data).unwrap();
        for path in [&config.rego, config.data.as_ref().unwrap()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let shown = |error| runtime::chain(&error).replace(&folder.path().display().to_string(), ".");
        Policy::load(&config).map_err(shown)
    }

    #[test]
    fn a_policy_without_a_file_is_refused_in_so_many_words() {
        let refused =
            Policy::load(&PolicyConfig { rego: PathBuf::new(), data: None }).map(|_| ()).unwrap_err();

        assert_eq!(refused.to_string(), "policy engine configuration must define a provider");
    }

    #[test]
    fn the_answer_is_read_from_input_and_data() {
        let policy = load(NOBODY, "{\"callers\": [\"spiffe://example.org/a\"]}").unwrap();
        let judged =
            |caller, full_method| policy.judge(&Input { caller, full_method, ..Input::default() }).unwrap();

        let open = Open { anybody: false, admins: false, local: true, downstream: false, agents: false };
        assert_eq!(judged("", "/y"), open);
        assert_eq!(judged("spiffe://example.org/a", "/y"), Open { admins: true, ..open });
        assert_eq!(judged("", "/x"), Open { agents: true, ..open });
    }

    #[test]
    fn what_cannot_judge_is_refused_at_start_by_one_line() {
        for (rego, data, expected) in [
            ("package spire\nresult := {", "{}", "cannot compile ./p.rego: "),
            ("package other\nresult := 1", "{}", "cannot compile ./p.rego: "),
            ("package spire\nresult := 1", "{}", "unexpected type in evaluating policy result expression"),
            ("package spire\nresult := {\"allow\": true}", "{}", "result did not contain \"allow_if_admin\""),
            ("package spire\nresult := {} if input.caller == \"nobody\"", "{}", "no matching policies found"),
            ("package spire\nresult := {\"allow\": 1}", "{}", "result did not contain \"allow\" bool value"),
            (NOBODY, "[]", "error decoding JSON databindings of ./d.json: it is no object"),
            (NOBODY, "{", "error decoding JSON databindings of ./d.json: "),
        ] {
            let refused = load(rego, data).err().unwrap();

            assert!(refused.contains(expected) && !refused.contains('\n'), "{rego}: {refused}");
        }
    }

    #[test]
    fn e07_a_policy_that_everybody_may_write_is_refused() {
        let folder = TempDir::new().unwrap();
        let rego = folder.path().join("p.rego");
        fs::write(&rego, NOBODY).unwrap();
        fs::set_permissions(&rego, fs::Permissions::from_mode(0o666)).unwrap();

        let refused = Policy::load(&PolicyConfig { rego, data: None }).err().unwrap().to_string();

        assert!(refused.contains("can be written by everybody"), "{refused}");
    }

    #[test]
    fn e07_a_policy_that_fails_or_is_silent_has_no_answer() {
        // A value that is two at once, and none at all, for this caller alone.
        for (rule, expected) in [
            ("answer := 1 if input.caller == \"x\"\nanswer := 2 if input.caller == \"x\"", "Failed"),
            ("answer := 2 if input.caller == \"nobody\"", "Silent"),
        ] {
            let rego = format!(
                "package spire\n{rule}\nanswer := 3 if input.caller != \"x\"\n\
                 result := {{\"allow\": answer == 3, \"allow_if_admin\": false, \"allow_if_local\": false,\n\
                 \"allow_if_downstream\": false, \"allow_if_agent\": false}}\n"
            );
            let policy = load(&rego, "{}").unwrap();

            let judged = policy.judge(&Input { caller: "x", full_method: "/x", ..Input::default() });

            assert!(format!("{judged:?}").starts_with(&format!("Err({expected}")), "{judged:?}");
        }
    }

    #[test]
    fn e07_a_policy_that_takes_too_long_has_no_answer() {
        let endless = "package spire\n\
            slow if { input.caller == \"slow\"; x := numbers.range(1, 3000)[_]; y := numbers.range(1, 3000)[_]; \
            z := numbers.range(1, 3000)[_]; x + y + z == 0 }\n\
            default slow := false\n\
            result := {\"allow\": slow, \"allow_if_admin\": false, \"allow_if_local\": false,\n\
            \"allow_if_downstream\": false, \"allow_if_agent\": false}\n";
        let policy = load(endless, "{}").unwrap();

        let judged = policy.judge(&Input { caller: "slow", full_method: "/x", ..Input::default() });

        assert!(matches!(&judged, Err(PolicyError::Failed(why)) if why.contains("time limit")), "{judged:?}");
    }
}
