//! Entries written: many at once to fill a server, and created, changed and deleted to see what it costs.

use std::cell::RefCell;

use client::ServerClients;
use proto::spire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetEntryRequest,
};
use proto::spire::types;
use spiffe::SpiffeId;
use tonic::{Code, Status};

use super::{Bench, Found};
use crate::calls;
use crate::load::{Load, Ticket, Until};
use crate::report::{Memory, Phase};
use crate::{BenchError, Settings, Trouble, check_item};

/// How many batches are under way at a time: enough to keep the server busy while answers travel.
const BATCHES_AT_ONCE: usize = 4;
const BATCH: usize = 1000;
/// What entries are changed to.
const NEW_TTL: i32 = 1234;

/// The entry number `number` of those that stay.
pub(super) fn seeded(bench: &Bench<'_>, number: usize) -> Result<types::Entry, BenchError> {
    let id = bench.target.id(&format!("/bench/seed/{number}"))?;
    let parent = bench.target.id(&format!("/bench/parent/{}", number % bench.settings.parents.max(1)))?;
    Ok(calls::entry(&id, &parent, number))
}

/// Fills the server with entries that stay. Those that are there from before are left as they are.
pub(super) async fn seed(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let wanted = Settings::first(&bench.settings.entries);
    let batch = Settings::first(&bench.settings.batches);
    let admins = bench.target.admins(BATCHES_AT_ONCE).await?;
    let before = bench.target.server.memory();
    let call = async |ticket: Ticket| {
        let start = usize::try_from(ticket.number).unwrap_or_default() * batch;
        let end = (start + batch).min(wanted);
        let entries: Vec<types::Entry> = (start..end)
            .map(|number| seeded(bench, number))
            .collect::<Result<_, _>>()
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let request = BatchCreateEntryRequest { entries, output_mask: Some(types::EntryMask::default()) };
        let first = request.entries.first().cloned().unwrap_or_default();
        let results = of(&admins, ticket)?.entry().batch_create_entry(request).await?.into_inner().results;
        if bench.judge.is_due() {
            let id = results.first().and_then(|result| result.entry.as_ref()).map(|entry| entry.id.as_str());
            reads_back(of(&admins, ticket)?, id.unwrap_or_default(), &first).await?;
        }
        for result in results {
            if result.status.as_ref().is_none_or(|status| status.code != Code::AlreadyExists as i32) {
                check_item(result.status.as_ref())?;
            }
        }
        Ok(u64::try_from(end - start).unwrap_or_default())
    };
    let made = u64::try_from(wanted.div_ceil(batch)).unwrap_or(u64::MAX);
    let load = Load { rate: None, callers: BATCHES_AT_ONCE, until: Until::Made(made) };
    let phase = bench.stage().drive("entries seeded", "entries", load, &call).await?;
    complete(&phase)?;
    let memory = Memory::of("seeded entries".to_owned(), before, bench.target.server.memory(), wanted);
    Ok(Found { phases: vec![phase], memory: vec![memory] })
}

/// Creates, changes and deletes entries: in batches, and one by one.
pub(super) async fn entry(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let count = Settings::first(&bench.settings.entries);
    let mut found = Found::default();
    let ways = [
        (BATCH.min(count), BATCHES_AT_ONCE, format!("in batches of {}", BATCH.min(count))),
        (1, bench.settings.callers, format!("one by one by {} callers", bench.settings.callers)),
    ];
    for (batch, callers, way) in ways {
        let admins = bench.target.admins(callers).await?;
        let made = u64::try_from(count.div_ceil(batch)).unwrap_or(u64::MAX);
        let load = Load { rate: None, callers, until: Until::Made(made) };
        let parent = bench.target.id(&format!("/bench/{}/parent", bench.target.run))?;
        let written = Written { bench, admins, parent, batch, ids: RefCell::default() };

        let create = async |ticket: Ticket| written.create(ticket).await;
        found
            .phases
            .push(bench.stage().drive(&format!("entries created {way}"), "entries", load, &create).await?);
        let update = async |ticket: Ticket| written.update(ticket).await;
        found
            .phases
            .push(bench.stage().drive(&format!("entries changed {way}"), "entries", load, &update).await?);
        let delete = async |ticket: Ticket| written.delete(ticket).await;
        found
            .phases
            .push(bench.stage().drive(&format!("entries deleted {way}"), "entries", load, &delete).await?);
    }
    found.phases.iter().try_for_each(complete)?;
    Ok(found)
}

/// Entries that come and go.
struct Written<'a> {
    bench: &'a Bench<'a>,
    admins: Vec<ServerClients>,
    parent: SpiffeId,
    batch: usize,
    /// Of each call that created some.
    ids: RefCell<Vec<Vec<String>>>,
}

impl Written<'_> {
    async fn create(&self, ticket: Ticket) -> Result<u64, Trouble> {
        let start = usize::try_from(ticket.number).unwrap_or_default() * self.batch;
        let path = |number| format!("/bench/{}/{}/{number}", self.bench.target.run, self.batch);
        let entries: Vec<types::Entry> = (start..start + self.batch)
            .map(|number| Ok(calls::entry(&self.bench.target.id(&path(number))?, &self.parent, number)))
            .collect::<Result<_, BenchError>>()
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let first = entries.first().cloned().unwrap_or_default();
        let ids = calls::create(of(&self.admins, ticket)?, entries).await?;
        ids.iter().for_each(|id| self.bench.traces.entry(id.clone()));
        if let Some(id) = ids.first().filter(|_| self.bench.judge.is_due()) {
            reads_back(of(&self.admins, ticket)?, id, &first).await?;
        }
        let count = ids.len();
        self.ids.borrow_mut().push(ids);
        Ok(u64::try_from(count).unwrap_or_default())
    }

    async fn update(&self, ticket: Ticket) -> Result<u64, Trouble> {
        let ids = self.of(ticket)?;
        let entries = ids
            .iter()
            .map(|id| types::Entry { id: id.clone(), x509_svid_ttl: NEW_TTL, ..types::Entry::default() })
            .collect();
        let request = BatchUpdateEntryRequest {
            entries,
            input_mask: Some(types::EntryMask { x509_svid_ttl: true, ..types::EntryMask::default() }),
            output_mask: Some(types::EntryMask { x509_svid_ttl: true, ..types::EntryMask::default() }),
        };
        let results =
            of(&self.admins, ticket)?.entry().batch_update_entry(request).await?.into_inner().results;
        for result in &results {
            check_item(result.status.as_ref())?;
            if result.entry.as_ref().is_none_or(|entry| entry.x509_svid_ttl != NEW_TTL) {
                return Err(Trouble::Wrong("a changed entry is as it was".to_owned()));
            }
        }
        self.bench.judge.is_due();
        counted(results.len(), ids.len())
    }

    async fn delete(&self, ticket: Ticket) -> Result<u64, Trouble> {
        let ids = self.of(ticket)?;
        let request = BatchDeleteEntryRequest { ids: ids.clone() };
        let results =
            of(&self.admins, ticket)?.entry().batch_delete_entry(request).await?.into_inner().results;
        for result in &results {
            check_item(result.status.as_ref())?;
        }
        ids.iter().for_each(|id| self.bench.traces.entry_is_gone(id));
        if let Some(id) = ids.first().filter(|_| self.bench.judge.is_due()) {
            let request = GetEntryRequest { id: id.clone(), output_mask: None };
            match of(&self.admins, ticket)?.entry().get_entry(request).await {
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
                Ok(_) => return Err(Trouble::Wrong(format!("the entry {id} is there after its deletion"))),
            }
        }
        counted(results.len(), ids.len())
    }

    /// The ids that some call created.
    fn of(&self, ticket: Ticket) -> Result<Vec<String>, Trouble> {
        let index = usize::try_from(ticket.number).unwrap_or(usize::MAX);
        let ids = self.ids.borrow();
        ids.get(index).cloned().ok_or_else(|| Trouble::Failed("the entries were not created".to_owned()))
    }
}

fn counted(results: usize, expected: usize) -> Result<u64, Trouble> {
    if results == expected {
        return Ok(u64::try_from(results).unwrap_or_default());
    }
    Err(Trouble::Wrong(format!("{expected} entries were named, and {results} results answered")))
}

/// A server reads its own writes.
async fn reads_back(server: &ServerClients, id: &str, written: &types::Entry) -> Result<(), Trouble> {
    let request = GetEntryRequest { id: id.to_owned(), output_mask: None };
    let read = server.entry().get_entry(request).await;
    let wrong =
        |status: Status| Trouble::Wrong(format!("the new entry {id} cannot be read: {}", status.message()));
    let read = read.map_err(wrong)?.into_inner();
    let same = read.spiffe_id == written.spiffe_id
        && read.parent_id == written.parent_id
        && read.selectors == written.selectors;
    if same { Ok(()) } else { Err(Trouble::Wrong(format!("the new entry {id} reads back as another"))) }
}

/// The connection of a caller.
fn of(admins: &[ServerClients], ticket: Ticket) -> Result<&ServerClients, Trouble> {
    admins.get(ticket.caller).ok_or_else(|| Trouble::Failed("a caller has no connection".to_owned()))
}

/// Writes are not a sample: each has to succeed.
fn complete(phase: &Phase) -> Result<(), BenchError> {
    match &phase.first_failure {
        Some(first) => {
            let calls = phase.failures;
            Err(BenchError::Unreached(format!(
                "{calls} calls of {:?} failed, the first with: {first}",
                phase.name
            )))
        }
        None => Ok(()),
    }
}
