//! Replies from pages say what a reply encoded in one go would.

use std::sync::Arc;

use graph::{Change, ChangeBatch, EntryGraph, PAGE_SIZE};
use prost::Message;
use proto::convert::entry::{AGENT_MASK, masked};
use proto::raw::Encoded;
use proto::spire::server::entry::SyncAuthorizedEntriesResponse;
use spiffe::{Entry, EntryId};

use crate::draft::{agent, entry, id, trust_domain};

/// A graph whose agent sees `count` entries, in two buckets.
fn graph(count: usize) -> EntryGraph {
    graph_of(count, 3)
}

/// A graph whose agent sees `count` entries, each `pooled`th through an alias.
fn graph_of(count: usize, pooled: usize) -> EntryGraph {
    let entries = (0..count).map(|number| {
        let parent = if number % pooled == 0 { "/pool" } else { "/spire/agent/a" };
        let mut entry = entry(&format!("e{number:05}"), parent, "/web", &["uid:1", "gid:2"]);
        entry.hint = "x".repeat(number % 7);
        entry.revision_number = 1;
        (10 + i64::try_from(number).unwrap(), Arc::new(entry))
    });
    let alias = (1, Arc::new(entry("alias", "/spire/server", "/pool", &["node"])));
    EntryGraph::load(
        trust_domain(),
        [alias].into_iter().chain(entries),
        [Arc::new(agent("/spire/agent/a", &["node"]))],
    )
}

fn decode(message: &Encoded) -> SyncAuthorizedEntriesResponse {
    SyncAuthorizedEntriesResponse::decode(message.to_bytes()).unwrap()
}

fn check(graph: &EntryGraph) {
    let view = graph.view(&id("/spire/agent/a"));
    let all: Vec<&Arc<Entry>> = view.entries().collect();
    let mut sizes: Vec<usize> = all.chunks(PAGE_SIZE).map(<[_]>::len).collect();
    if sizes.is_empty() {
        sizes.push(0);
    }

    let replies: Vec<_> = view.entry_pages().map(|message| decode(&message)).collect();
    assert_eq!(replies.iter().map(|reply| reply.entries.len()).collect::<Vec<_>>(), sizes);
    assert!(replies.iter().rev().enumerate().all(|(from_end, reply)| reply.more == (from_end > 0)));
    let sent: Vec<_> = replies.into_iter().flat_map(|reply| reply.entries).collect();
    assert_eq!(sent, all.iter().map(|entry| masked(entry, Some(&AGENT_MASK))).collect::<Vec<_>>());

    let replies: Vec<_> = view.revision_pages().map(|message| decode(&message)).collect();
    assert_eq!(replies.iter().map(|reply| reply.entry_revisions.len()).collect::<Vec<_>>(), sizes);
    assert!(replies.iter().rev().enumerate().all(|(from_end, reply)| reply.more == (from_end > 0)));
    let sent: Vec<_> = replies
        .into_iter()
        .flat_map(|reply| reply.entry_revisions)
        .map(|sent| (sent.id, sent.revision_number, sent.created_at))
        .collect();
    let expected: Vec<_> =
        all.iter().map(|entry| (entry.id.to_string(), entry.revision_number, entry.created_at.0)).collect();
    assert_eq!(sent, expected);
}

#[test]
fn whole_entries_and_revisions_are_cut_at_the_page_size() {
    for count in [0, 1, 499, 500, 501, 999, 1000, 1001, 1730] {
        check(&graph(count));
    }
}

#[test]
fn pages_are_encoded_anew_after_a_change() {
    let graph = graph(700);
    check(&graph);

    let mut changed = entry("e00350", "/spire/agent/a", "/web", &["uid:1"]);
    changed.revision_number = 2;
    let (next, _) = graph.apply(&ChangeBatch::from(vec![
        Change::EntrySet { row_id: 360, entry: Arc::new(changed) },
        Change::EntryDeleted { row_id: 11 },
        Change::EntrySet { row_id: 5, entry: Arc::new(entry("first", "/pool", "/web", &["uid:1"])) },
    ]));

    check(&next);
    check(&graph);
}

#[test]
fn requested_entries_come_in_order_of_their_ids() {
    let graph = graph(1200);
    let view = graph.view(&id("/spire/agent/a"));
    let ask = |names: Vec<String>| -> Vec<SyncAuthorizedEntriesResponse> {
        let ids = names.iter().map(|name| EntryId::new(name)).collect();
        view.requested_pages(ids).iter().map(decode).collect()
    };

    assert_eq!(ask(Vec::new()), [SyncAuthorizedEntriesResponse::default()]);

    let wanted = ["e00007", "nobody", "alias", "e00003", "e00007"].map(str::to_owned);
    let replies = ask(wanted.into());
    let sent: Vec<&str> = replies[0].entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(sent, ["e00003", "e00007", "e00007"]);
    assert_eq!(replies.len(), 1);

    let replies = ask((0..1200).rev().map(|number| format!("e{number:05}")).collect());
    assert_eq!(replies.iter().map(|reply| reply.entries.len()).collect::<Vec<_>>(), [500, 500, 200]);
    assert_eq!(replies.iter().map(|reply| reply.more).collect::<Vec<_>>(), [true, true, false]);
    let sent: Vec<_> = replies.into_iter().flat_map(|reply| reply.entries).collect();
    let ids: Vec<EntryId> = sent.iter().map(|entry| EntryId::new(&entry.id)).collect();
    assert!(ids.is_sorted());
    let expected: Vec<_> = ids.iter().map(|id| masked(view.entry(id).unwrap(), Some(&AGENT_MASK))).collect();
    assert_eq!(sent, expected);
}

#[test]
fn a_reply_shares_its_bytes_with_all_others() {
    // one page: one piece
    let graph = graph_of(60, 1);
    let first = |graph: &EntryGraph| {
        let message = graph.view(&id("/spire/agent/a")).entry_pages().next().unwrap();
        message.to_bytes().as_ptr()
    };

    assert_eq!(first(&graph), first(&graph));
}
