//! Lists and counts of entries, with SPIRE's filters, pages and tokens.
//!
//! A page is cut from the *ids* that match, then rows are fetched: an id may come from a selector
//! row whose entry is gone, and then is the token; downstream entries and selector sets are
//! picked from the page afterwards. Clients have seen all of this, so it stays.

use spiffe::SelectorSet;

use super::rows::{self, Read};
use super::{EntryFilter, EntryPage};
use crate::dialect::{Conn, Dialect, Value, int};
use crate::list::token;
use crate::{Match, Page, SelectorFilter, StoreError};

/// How many rows a count looks at in one go.
const COUNT_PAGE: u32 = 1000;

/// One page (or everything) that matches.
pub(crate) fn list(
    conn: &Conn,
    filter: &EntryFilter,
    mut page: Option<Page>,
) -> Result<EntryPage, StoreError> {
    check(filter)?;
    loop {
        let mut read = once(conn, filter, page.as_ref())?;
        let next_token = match &page {
            Some(_) if read.rows > 0 => token(read.last),
            _ => String::new(),
        };
        if read.rows > 0 {
            keep_matching(&mut read, filter);
        }
        let done = !read.entries.is_empty() || next_token.is_empty();
        match &mut page {
            // A page whose entries were all filtered out is passed over, while it moves on.
            Some(page) if !done && filter.selectors.is_some() && page.token != next_token => {
                page.token = next_token;
            }
            _ => return Ok(EntryPage { entries: read.entries, next_token }),
        }
    }
}

/// How many match. Pages are followed as a client would: where a page of a list is empty, counting
/// stops too.
pub(crate) fn count(conn: &Conn, filter: &EntryFilter) -> Result<i32, StoreError> {
    check(filter)?;
    let mut page = Page::first(COUNT_PAGE);
    let mut total = 0_usize;
    loop {
        let mut read = once(conn, filter, Some(&page))?;
        if read.rows == 0 {
            return Ok(i32::try_from(total).unwrap_or(i32::MAX));
        }
        let unread = read.rows - read.entries.len();
        page.token = token(read.last);
        keep_matching(&mut read, filter);
        total += read.entries.len() + if filter.selectors.is_none() { unread } else { 0 };
    }
}

fn check(filter: &EntryFilter) -> Result<(), StoreError> {
    if filter.selectors.as_ref().is_some_and(|filter| filter.selectors.is_empty()) {
        return Err(StoreError::InvalidArgument("cannot list by empty selector set".to_owned()));
    }
    Ok(())
}

fn once(conn: &Conn, filter: &EntryFilter, page: Option<&Page>) -> Result<Read, StoreError> {
    let ids = matching_ids(conn, filter, page)?;
    rows::by_ids(conn, &ids, filter.downstream)
}

/// The ids of a page, before anything is fetched.
fn matching_ids(conn: &Conn, filter: &EntryFilter, page: Option<&Page>) -> Result<Vec<i64>, StoreError> {
    let mut terms = Vec::new();
    let mut values: Vec<Value<'_>> = Vec::new();
    for (column, id) in [("parent_id", &filter.parent_id), ("spiffe_id", &filter.spiffe_id)] {
        if let Some(id) = id {
            terms.push(format!("SELECT id AS e_id FROM registered_entries WHERE {column} == ?"));
            values.push(id.as_str().into());
        }
    }
    if !filter.hint.is_empty() {
        terms.push("SELECT id AS e_id FROM registered_entries WHERE hint == ?".to_owned());
        values.push((&filter.hint).into());
    }
    if let Some(selectors) = &filter.selectors {
        selector_terms(selectors, &mut terms, &mut values);
    }
    if let Some(federates_with) = &filter.federates_with {
        let wanted: std::collections::BTreeSet<String> =
            federates_with.trust_domains.iter().map(|td| td.id().to_string()).collect();
        if !wanted.is_empty() {
            terms.push(federation_term(&wanted, federates_with.matching, &mut values));
        }
    }
    if terms.is_empty() {
        terms.push("SELECT id AS e_id FROM registered_entries".to_owned());
    }
    let mut sql = format!("SELECT e_id FROM ({}) AS ids", intersection(&terms, conn.dialect()));
    if let Some(page) = page {
        sql.push_str(" WHERE e_id > ? ORDER BY e_id LIMIT ?");
        values.push(page.after()?.into());
        values.push(page.size.into());
    }
    conn.rows(&sql, &values, |row| int(row, 0))
}

/// What is in all of them. MySQL learnt `INTERSECT` late.
fn intersection(terms: &[String], dialect: Dialect) -> String {
    if dialect != Dialect::MySql {
        return terms.join(" INTERSECT ");
    }
    let mut sql = "SELECT DISTINCT t0.e_id AS e_id FROM".to_owned();
    for (number, term) in terms.iter().enumerate() {
        match number {
            0 => sql.push_str(&format!(" ({term}) AS t0")),
            _ => sql.push_str(&format!(" INNER JOIN ({term}) AS t{number} ON t{number}.e_id = t0.e_id")),
        }
    }
    sql
}

fn selector_terms<'a>(filter: &'a SelectorFilter, terms: &mut Vec<String>, values: &mut Vec<Value<'a>>) {
    let one = "SELECT registered_entry_id AS e_id FROM selectors WHERE type == ? AND value == ?";
    match filter.matching {
        // At least one of them; what else the item has is looked at afterwards.
        Match::Subset | Match::Any => {
            let any = vec![one; filter.selectors.len()].join(" UNION ");
            terms.push(format!("SELECT e_id FROM ({any}) AS hits"));
        }
        Match::Exact | Match::Superset => {
            terms.extend(filter.selectors.iter().map(|_| one.to_owned()));
        }
    }
    for selector in &filter.selectors {
        values.extend([selector.kind().into(), selector.value().into()]);
    }
}

fn federation_term(
    wanted: &std::collections::BTreeSet<String>,
    matching: Match,
    values: &mut Vec<Value<'_>>,
) -> String {
    let list = vec!["?"; wanted.len()].join(",");
    let others = format!("COUNT(CASE WHEN b.trust_domain NOT IN ({list}) THEN 1 END) = 0");
    let some = format!("COUNT(CASE WHEN b.trust_domain IN ({list}) THEN 1 END) > 0");
    let each = format!(
        "COUNT(DISTINCT CASE WHEN b.trust_domain IN ({list}) THEN b.trust_domain END) = {}",
        wanted.len()
    );
    let conditions = match matching {
        Match::Exact => vec![others, each],
        Match::Subset => vec![others, some],
        Match::Superset => vec![each],
        Match::Any => vec![some],
    };
    for _ in &conditions {
        values.extend(wanted.iter().cloned().map(Value::from));
    }
    format!(
        "SELECT e.id AS e_id FROM registered_entries e \
         INNER JOIN federated_registration_entries f ON f.registered_entry_id = e.id \
         INNER JOIN bundles b ON b.id = f.bundle_id GROUP BY e.id HAVING {}",
        conditions.join(" AND ")
    )
}

/// Drops what the ids alone could not tell: entries with further selectors.
fn keep_matching(read: &mut Read, filter: &EntryFilter) {
    let Some(filter) = &filter.selectors else { return };
    match filter.matching {
        Match::Exact | Match::Subset => {
            let wanted: SelectorSet = filter.selectors.iter().cloned().collect();
            read.entries.retain(|stored| stored.entry.selector_set.is_subset(&wanted));
        }
        Match::Superset | Match::Any => {}
    }
}
