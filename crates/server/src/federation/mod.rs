//! Federation: the own bundle for other trust domains ([`Endpoint`]), and theirs for the own workloads
//! ([`Federation`]).
//!
//! A foreign bundle comes in by one way only: fetched for one trust domain, from the endpoint and by the
//! profile that a relationship names, judged whole and stored under the name of that trust domain. From
//! there on it is a bundle like any other: agents ask for those that their entries federate with.
//! Nothing here must ever write the own bundle.

mod endpoint;
mod fetch;
mod refresh;
mod refresher;
mod source;

pub(crate) use endpoint::{Endpoint, EndpointError};
pub(crate) use refresh::{Federation, Inbox, Refusal, run};
