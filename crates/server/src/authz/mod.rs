//! Who may call what: the rule of every method, and how a caller is judged by it.

mod rules;

pub(crate) use rules::{Limit, Lookup, Rule, look_up};
