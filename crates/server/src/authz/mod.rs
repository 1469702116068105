//! Who may call what: the rule of every method, the operator's policy in place of it, and how a caller is
//! judged by either.

mod judge;
mod policy;
mod request;
mod rules;

pub(crate) use judge::{authorise, judge};
pub use policy::PolicyError;
pub(crate) use policy::{Input, Policy};
pub(crate) use rules::{Limit, Lookup, Open, RULES, Rule, look_up};
