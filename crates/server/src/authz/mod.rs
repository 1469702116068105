//! Who may call what: the rule of every method, and how a caller is judged by it.

mod judge;
mod rules;

pub(crate) use judge::{authorise, judge};
pub(crate) use rules::{Limit, Lookup, RULES, Rule, look_up};
