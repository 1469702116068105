//! `api fetch x509` (which is also `api fetch`) and `api watch`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::workload::{X509svidRequest, X509svidResponse};
use spiffe::UnixSecs;
use spiffe::x509::{Certificate, to_pem, verify_svid};
use tonic::{Code, Status};

use super::{dial, failed, is_json, now, request, within};
use crate::cli::duration::{format_duration, format_time};
use crate::cli::flags::Flags;
use crate::cli::rpc::{self, client, system_text};
use crate::cli::{Failure, Printer, json, print};

/// Seconds until the API is asked again, at most; one more each time nothing came.
const LONGEST_PAUSE: u64 = 30;

/// One SVID with what belongs to it, parsed and verified.
struct Svid {
    id: String,
    hint: String,
    chain: Vec<Certificate>,
    key: Vec<u8>,
    bundle: Vec<Certificate>,
}

/// A response, parsed and verified.
struct Update {
    svids: Vec<Svid>,
    federated: BTreeMap<String, Vec<Certificate>>,
}

pub(super) fn fetch(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let dialed = dial_later(flags)?;
    rpc::block_on(async {
        let dialed = dialed()?;
        let started = now();
        let mut client = client!(SpiffeWorkloadApiClient<_>, dialed);
        let first = async {
            client.fetch_x509svid(request(flags, X509svidRequest {})).await?.into_inner().message().await
        };
        let reply =
            within(flags, first).await.map_err(|status| failed(&dialed, &status))?.ok_or_else(|| {
                Failure::Bare("the Workload API closed the stream without an answer".to_owned())
            })?;
        let took = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let update = Update::read(&reply)?;
        if is_json(flags) {
            printer.out = json::line(&json::tree("X509SVIDResponse", &reply)?);
            return Ok(());
        }
        if !flags.is_on("silent") {
            printer.out = update.shown(took, Form::Fetched);
        }
        match flags.text("write") {
            "" => Ok(()),
            dir => update.write(&rpc::cleaned(Path::new(dir)), printer),
        }
    })
}

/// Prints every update until it is interrupted. What goes wrong is printed too, and the API is asked
/// again, unless its answer says that asking again is of no use.
pub(super) fn watch(flags: &Flags, _printer: &mut Printer) -> Result<(), Failure> {
    let dialed = dial_later(flags)?;
    rpc::block_on(async {
        let dialed = dialed()?;
        let watching = async {
            let mut since = now();
            let mut pause = 0;
            loop {
                let ended = follow(flags, &dialed, &mut since, &mut pause).await?;
                let text = ended.as_ref().map_or_else(|| "EOF".to_owned(), |status| dialed.failed(status));
                print_now(std::io::stderr(), &format!("{text}\n"))?;
                if ended
                    .is_some_and(|status| matches!(status.code(), Code::Cancelled | Code::InvalidArgument))
                {
                    return Err(Failure::Bare(text));
                }
                pause = (pause + 1).min(LONGEST_PAUSE);
                tokio::time::sleep(Duration::from_secs(pause)).await;
            }
        };
        tokio::select! {
            ended = watching => ended,
            // Interrupting is the way this command ends; SPIRE's exit code for it is 1.
            _interrupted = tokio::signal::ctrl_c() => Err(Failure::Exit(1)),
        }
    })
}

/// Prints the updates of one stream; hands back what ended it, nothing if the API closed it.
async fn follow(
    flags: &Flags,
    dialed: &rpc::Dialed,
    since: &mut Instant,
    pause: &mut u64,
) -> Result<Option<Status>, Failure> {
    let mut client = client!(SpiffeWorkloadApiClient<_>, dialed);
    let mut stream = match client.fetch_x509svid(request(flags, X509svidRequest {})).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return Ok(Some(status)),
    };
    loop {
        let reply = match stream.message().await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(None),
            Err(status) => return Ok(Some(status)),
        };
        *pause = 0;
        match Update::read(&reply) {
            Ok(update) => {
                let took = i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX);
                print_now(std::io::stdout(), &update.shown(took, Form::Watched))?;
                *since = now();
            }
            Err(Failure::Bare(why) | Failure::Error(why)) => {
                print_now(std::io::stderr(), &format!("{why}\n"))?;
            }
            Err(exit @ Failure::Exit(_)) => return Err(exit),
        }
    }
}

fn print_now(mut to: impl Write, text: &str) -> Result<(), Failure> {
    to.write_all(text.as_bytes())
        .and_then(|()| to.flush())
        .map_err(|error| Failure::Bare(format!("cannot print: {}", system_text(&error))))
}

fn dial_later(flags: &Flags) -> Result<impl FnOnce() -> Result<rpc::Dialed, Failure> + '_, Failure> {
    rpc::agent_socket(flags).map_err(Failure::Bare)?;
    Ok(|| dial(flags))
}

/// Which command prints an update.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Fetched,
    /// Without hints, and foreign trust domains go by their names.
    Watched,
}

impl Update {
    /// Parses a response and verifies every SVID against its bundle.
    fn read(reply: &X509svidResponse) -> Result<Self, Failure> {
        let bad = |what: &str, why: &dyn std::fmt::Display| Failure::Bare(format!("{what}: {why}"));
        let certificates = |what: &str, der: &[u8]| {
            Certificate::parse_all(der).map_err(|why| bad(&format!("failed to parse {what}"), &why))
        };
        let now = UnixSecs::from(system_now());
        let svids = reply
            .svids
            .iter()
            .map(|svid| {
                let chain = certificates("X.509-SVID", &svid.x509_svid)?;
                let bundle = certificates("trust bundle", &svid.bundle)?;
                verify_svid(&chain, &bundle, now)
                    .map_err(|why| bad(&format!("failed to verify X.509-SVID {}", svid.spiffe_id), &why))?;
                Ok(Svid {
                    id: svid.spiffe_id.clone(),
                    hint: svid.hint.clone(),
                    chain,
                    key: svid.x509_svid_key.to_vec(),
                    bundle,
                })
            })
            .collect::<Result<_, Failure>>()?;
        let federated = reply
            .federated_bundles
            .iter()
            .map(|(id, der)| Ok((id.clone(), certificates("federated bundle", der)?)))
            .collect::<Result<_, Failure>>()?;
        Ok(Self { svids, federated })
    }

    fn shown(&self, took_nanos: i64, form: Form) -> String {
        let found = print::counted(self.svids.len(), "svid", "svids");
        let mut text = format!("Received {found} after {}\n\n", format_duration(took_nanos));
        for svid in &self.svids {
            text.push_str(&format!("SPIFFE ID:\t\t{}\n", svid.id));
            if form == Form::Fetched && !svid.hint.is_empty() {
                text.push_str(&format!("Hint:\t\t\t{}\n", svid.hint));
            }
            for (index, certificate) in svid.chain.iter().enumerate() {
                let what = if index == 0 { "SVID".to_owned() } else { format!("Intermediate #{index}") };
                text.push_str(&validity(&what, certificate));
            }
            for (index, certificate) in svid.bundle.iter().enumerate() {
                text.push_str(&validity(&format!("CA #{}", index + 1), certificate));
            }
            for (id, bundle) in &self.federated {
                let name = match form {
                    Form::Fetched => id,
                    Form::Watched => id.strip_prefix("spiffe://").unwrap_or(id),
                };
                for (index, certificate) in bundle.iter().enumerate() {
                    text.push_str(&validity(&format!("[{name}] CA #{}", index + 1), certificate));
                }
            }
            text.push('\n');
        }
        text
    }

    fn write(&self, dir: &Path, printer: &mut Printer) -> Result<(), Failure> {
        let pem = |certificates: &[Certificate]| -> String {
            certificates.iter().map(|certificate| to_pem("CERTIFICATE", certificate.der())).collect()
        };
        for (index, svid) in self.svids.iter().enumerate() {
            let path = dir.join(format!("svid.{index}.pem"));
            printer.out.push_str(&format!("Writing SVID #{index} to file {}.\n", path.display()));
            write_file(&path, &pem(&svid.chain), 0o644)?;
            let path = dir.join(format!("svid.{index}.key"));
            printer.out.push_str(&format!("Writing key #{index} to file {}.\n", path.display()));
            write_file(&path, &to_pem("PRIVATE KEY", &svid.key), 0o600)?;
            let path = dir.join(format!("bundle.{index}.pem"));
            printer.out.push_str(&format!("Writing bundle #{index} to file {}.\n", path.display()));
            write_file(&path, &pem(&svid.bundle), 0o644)?;
            for (number, (id, bundle)) in self.federated.iter().enumerate() {
                let path = dir.join(format!("federated_bundle.{index}.{number}.pem"));
                printer.out.push_str(&format!(
                    "Writing federated bundle #{number} for trust domain {id} to file {}.\n",
                    path.display()
                ));
                write_file(&path, &pem(bundle), 0o644)?;
            }
        }
        Ok(())
    }
}

fn validity(what: &str, certificate: &Certificate) -> String {
    let line = |when: &str, at: UnixSecs| format!("{what} Valid {when}:\t{}\n", format_time(at.0));
    line("After", certificate.not_before()) + &line("Until", certificate.not_after())
}

/// Writes a file of the given mode; the words are Go's.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::Bare(format!("open {}: {}", path.display(), system_text(&error))))
}

#[expect(clippy::disallowed_methods, reason = "a command judges certificates at the moment it runs")]
fn system_now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_is_told_the_names_of_foreign_trust_domains() {
        let bundle =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/keys/x509pop-ca.pem"))
                .unwrap();
        let foreign = spiffe::x509::pem_blocks(&bundle, "CERTIFICATE");
        let foreign = foreign.iter().map(|der| Certificate::parse(der).unwrap()).collect();
        let svid =
            Svid { id: "spiffe://a/w".into(), hint: "h".into(), chain: vec![], key: vec![], bundle: vec![] };
        let update = Update { svids: vec![svid], federated: [("spiffe://b".into(), foreign)].into() };

        let watched = update.shown(0, Form::Watched);
        let fetched = update.shown(0, Form::Fetched);

        assert!(watched.contains("\n[b] CA #1 Valid After:\t") && !watched.contains("Hint"), "{watched}");
        assert!(fetched.contains("\n[spiffe://b] CA #1 Valid After:\t"), "{fetched}");
    }
}
