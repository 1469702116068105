//! Credentials: X.509-SVIDs in batches and JWT-SVIDs as agents ask for them, both as administrators do.

use bytes::Bytes;
use client::ServerClients;
use proto::spire::server::svid::{
    BatchNewX509svidRequest, MintJwtsvidRequest, MintX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use spiffe::SpiffeId;

use super::{Bench, Found};
use crate::fleet::{Fleet, Request};
use crate::judge::{Judge, wire_of};
use crate::load::Ticket;
use crate::{BenchError, Settings, Trouble, check_item};

/// The most items that a server takes in one call.
const MOST_IN_A_CALL: usize = 500;
/// So many keys are used in turn.
const KEYS: usize = 1000;
/// Of the tokens.
pub(super) const AUDIENCE: &str = "finial-bench";

/// X.509-SVIDs for agents.
pub(super) async fn x509(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let Settings { batches, agents, patience, .. } = bench.settings;
    let largest = batches.iter().copied().max().unwrap_or(1);
    if largest > MOST_IN_A_CALL {
        let why = format!("-batch {largest} is more than the {MOST_IN_A_CALL} SVIDs that a call may ask for");
        return Err(BenchError::Setting(why));
    }
    let mut fleet = Fleet::gather(bench.target, bench.traces, "x509", *agents).await?;
    let entries = fleet.furnish(bench.target, bench.traces, largest, *patience).await?;
    fleet.connect().await?;
    let requests = Request::make(KEYS, None)?;

    let mut found = Found::default();
    for &batch in batches {
        let call = async |ticket: Ticket| {
            let agent = fleet.turn(ticket.number)?;
            let items = Items { entries: &entries, requests: &requests, batch, number: ticket.number };
            new_x509(&agent.clients, &bench.judge, items).await
        };
        let name = format!("X.509-SVIDs, {batch} a call");
        let mut phases = bench.stage().measure(&name, "SVIDs", bench.settings, call).await?;
        for phase in &mut phases {
            phase.budget_us = Some(bench.calibration.budget_us);
        }
        found.phases.append(&mut phases);
    }
    Ok(found)
}

/// What one call for X.509-SVIDs asks for.
#[derive(Clone, Copy)]
pub(super) struct Items<'a> {
    /// Entries with the ids they are for.
    pub(super) entries: &'a [(String, SpiffeId)],
    pub(super) requests: &'a [Request],
    /// How many.
    pub(super) batch: usize,
    /// Of the call, so that each asks for something else.
    pub(super) number: u64,
}

impl<'a> Items<'a> {
    fn each(self) -> impl Iterator<Item = (&'a (String, SpiffeId), &'a Request)> {
        let start = usize::try_from(self.number).unwrap_or_default().wrapping_mul(self.batch);
        let entries = self.entries.iter().cycle().skip(start % self.entries.len().max(1));
        let requests = self.requests.iter().cycle().skip(start % self.requests.len().max(1));
        entries.zip(requests).take(self.batch)
    }
}

/// One call for X.509-SVIDs, checked.
pub(super) async fn new_x509(
    agent: &ServerClients,
    judge: &Judge<'_>,
    items: Items<'_>,
) -> Result<u64, Trouble> {
    let params = items
        .each()
        .map(|((entry, _), request)| NewX509svidParams { entry_id: entry.clone(), csr: request.csr.clone() })
        .collect();
    let answer = agent.svid().batch_new_x509svid(BatchNewX509svidRequest { params }).await?;
    let results = answer.into_inner().results;
    if results.len() != items.batch {
        let why = format!("{} X.509-SVIDs were asked for, and {} answered", items.batch, results.len());
        return Err(Trouble::Wrong(why));
    }
    for (result, ((_, id), request)) in results.iter().zip(items.each()) {
        check_item(result.status.as_ref())?;
        if judge.is_due() {
            let svid =
                result.svid.as_ref().ok_or_else(|| Trouble::Wrong(format!("no X.509-SVID of {id}")))?;
            judge.x509(svid, id, request.key.public()).await?;
        }
    }
    Ok(u64::try_from(items.batch).unwrap_or_default())
}

/// JWT-SVIDs for agents.
pub(super) async fn jwt(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let mut fleet = Fleet::gather(bench.target, bench.traces, "jwt", bench.settings.agents).await?;
    let entries = fleet.furnish(bench.target, bench.traces, 100, bench.settings.patience).await?;
    fleet.connect().await?;
    let call = async |ticket: Ticket| {
        let agent = fleet.turn(ticket.number)?;
        new_jwt(&agent.clients, &bench.judge, &entries, ticket.number).await
    };
    let phases = bench.stage().measure("JWT-SVIDs", "SVIDs", bench.settings, call).await?;
    Ok(Found { phases, ..Found::default() })
}

/// One call for a JWT-SVID, checked.
pub(super) async fn new_jwt(
    agent: &ServerClients,
    judge: &Judge<'_>,
    entries: &[(String, SpiffeId)],
    number: u64,
) -> Result<u64, Trouble> {
    let start = usize::try_from(number).unwrap_or_default() % entries.len().max(1);
    let (entry, id) = entries.get(start).ok_or_else(|| Trouble::Failed("there are no entries".to_owned()))?;
    let request = NewJwtsvidRequest { entry_id: entry.clone(), audience: vec![AUDIENCE.to_owned()] };
    let svid = agent.svid().new_jwtsvid(request).await?.into_inner().svid;
    if judge.is_due() {
        let token = svid.ok_or_else(|| Trouble::Wrong(format!("no JWT-SVID of {id}")))?.token;
        judge.jwt(&token, id, AUDIENCE).await?;
    }
    Ok(1)
}

/// SVIDs as administrators mint them.
pub(super) async fn mint(bench: &Bench<'_>) -> Result<Found, BenchError> {
    let id = bench.target.id(&format!("/bench/{}/minted", bench.target.run))?;
    let requests = Request::make(KEYS, Some(&id))?;
    let admins = bench.target.admins(bench.settings.callers).await?;
    let admin = |ticket: Ticket| {
        admins.get(ticket.caller).ok_or_else(|| Trouble::Failed("a caller has no connection".to_owned()))
    };

    let x509 = async |ticket: Ticket| {
        let index = usize::try_from(ticket.number).unwrap_or_default() % requests.len().max(1);
        let request = requests.get(index).ok_or_else(|| Trouble::Failed("there are no keys".to_owned()))?;
        let csr: Bytes = request.csr.clone();
        let answer = admin(ticket)?.svid().mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await?;
        if bench.judge.is_due() {
            let svid = answer.into_inner().svid;
            let svid = svid.ok_or_else(|| Trouble::Wrong("no X.509-SVID was minted".to_owned()))?;
            bench.judge.x509(&svid, &id, request.key.public()).await?;
        }
        Ok(1)
    };
    let mut phases = bench.stage().measure("X.509-SVIDs minted", "SVIDs", bench.settings, x509).await?;

    let jwt = async |ticket: Ticket| {
        let request =
            MintJwtsvidRequest { id: Some(wire_of(&id)), audience: vec![AUDIENCE.to_owned()], ttl: 0 };
        let answer = admin(ticket)?.svid().mint_jwtsvid(request).await?;
        if bench.judge.is_due() {
            let svid = answer.into_inner().svid;
            let token = svid.ok_or_else(|| Trouble::Wrong("no JWT-SVID was minted".to_owned()))?.token;
            bench.judge.jwt(&token, &id, AUDIENCE).await?;
        }
        Ok(1)
    };
    phases.append(&mut bench.stage().measure("JWT-SVIDs minted", "SVIDs", bench.settings, jwt).await?);
    Ok(Found { phases, ..Found::default() })
}
