//! Entries: batches, lists, and what agents get of them.

use proto::convert::entry::AGENT_MASK;
use proto::spire::server::entry as wire;
use proto::spire::types;
use tokio_stream::StreamExt;
use tonic::Code;

use crate::support::{Place, Running, TestAgent, expect_status};

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
}

fn entry(name: &str, parent: &types::Spiffeid) -> types::Entry {
    types::Entry {
        id: name.to_owned(),
        parent_id: Some(parent.clone()),
        spiffe_id: id(&format!("/{name}")),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("user:{name}") }],
        ..types::Entry::default()
    }
}

async fn create(server: &Running, entries: Vec<types::Entry>) -> Vec<types::Status> {
    let request = wire::BatchCreateEntryRequest { entries, output_mask: None };
    let reply = server.local().entry().batch_create_entry(request).await.unwrap();
    reply.into_inner().results.into_iter().map(|result| result.status.unwrap()).collect()
}

/// An agent with so many entries.
async fn agent_with(server: &Running, count: usize) -> TestAgent {
    let agent = server.agent("busy").await;
    let entries = (0..count).map(|number| entry(&format!("e{number:04}"), &agent.id)).collect();
    let statuses = create(server, entries).await;
    assert!(statuses.iter().all(|status| *status == types::Status::ok()));
    agent
}

async fn sync(
    server: &Running,
    agent: &TestAgent,
    requests: Vec<wire::SyncAuthorizedEntriesRequest>,
) -> Vec<wire::SyncAuthorizedEntriesResponse> {
    let clients = server.remote(agent.own.clone());
    let asked = futures::stream::iter(requests);
    let replies = clients.entry().sync_authorized_entries(asked).await.unwrap().into_inner();
    replies.map(Result::unwrap).collect().await
}

fn begin(output_mask: Option<types::EntryMask>) -> wire::SyncAuthorizedEntriesRequest {
    wire::SyncAuthorizedEntriesRequest { output_mask, ids: Vec::new() }
}

fn ask(ids: Vec<String>) -> wire::SyncAuthorizedEntriesRequest {
    wire::SyncAuthorizedEntriesRequest { output_mask: None, ids }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_entries_than_a_page_are_told_by_revision_and_sent_when_asked_for() {
    let place = Place::new();
    let server = place.start().await;
    let agent = agent_with(&server, 1203).await;
    let own_mask = types::EntryMask { spiffe_id: true, revision_number: true, ..Default::default() };

    for mask in [Some(AGENT_MASK), Some(own_mask), None] {
        let mut ids: Vec<String> = (300..900).rev().map(|number| format!("e{number:04}")).collect();
        ids.extend(["nobody's".to_owned(), "e0300".to_owned()]);
        let replies = sync(&server, &agent, vec![begin(mask), ask(ids), ask(vec!["none".to_owned()])]).await;

        let shape: Vec<_> = replies
            .iter()
            .map(|reply| (reply.entry_revisions.len(), reply.entries.len(), reply.more))
            .collect();
        assert_eq!(
            shape,
            [(500, 0, true), (500, 0, true), (203, 0, false), (0, 500, true), (0, 101, false), (0, 0, false)]
        );
        assert_eq!(replies[2].entry_revisions[202].id, "e1202");
        assert_eq!(replies[3].entries[0].id, "e0300");
        assert_eq!(replies[3].entries[1].id, "e0300", "asked for twice");
        assert_eq!(replies[4].entries[100].id, "e0899");
        let wants_selectors = mask.is_none_or(|mask| mask.selectors);
        assert_eq!(replies[3].entries[0].selectors.len(), usize::from(wants_selectors));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_entries_are_sent_whole_and_changes_are_seen_by_the_next_call() {
    let place = Place::new();
    let server = place.start().await;
    let agent = agent_with(&server, 3).await;

    let before = sync(&server, &agent, vec![begin(Some(AGENT_MASK))]).await;
    let update = wire::BatchUpdateEntryRequest {
        entries: vec![types::Entry { id: "e0001".to_owned(), hint: "new".to_owned(), ..Default::default() }],
        input_mask: Some(types::EntryMask { hint: true, ..Default::default() }),
        output_mask: None,
    };
    server.local().entry().batch_update_entry(update).await.unwrap();
    let delete = wire::BatchDeleteEntryRequest { ids: vec!["e0000".to_owned()] };
    server.local().entry().batch_delete_entry(delete).await.unwrap();
    let after = sync(&server, &agent, vec![begin(Some(AGENT_MASK))]).await;

    assert_eq!((before.len(), before[0].entries.len(), before[0].more), (1, 3, false));
    let seen: Vec<_> = after[0]
        .entries
        .iter()
        .map(|entry| (entry.id.as_str(), entry.hint.as_str(), entry.revision_number))
        .collect();
    assert_eq!(seen, [("e0001", "new", 1), ("e0002", "", 0)]);
    server.stop().await;
}

#[tokio::test]
async fn a12_an_exchange_that_begins_wrong_is_refused() {
    let place = Place::new();
    let server = place.start().await;
    let agent = agent_with(&server, 1).await;
    let clients = server.remote(agent.own);
    let refusal = async |request| {
        let asked = futures::stream::iter([request]);
        let replies = clients.entry().sync_authorized_entries(asked).await;
        replies.unwrap().into_inner().message().await
    };

    let text = "specifying IDs on initial request is not supported";
    expect_status(refusal(ask(vec!["e0000".to_owned()])).await, Code::InvalidArgument, text);
    let blind = begin(Some(types::EntryMask { spiffe_id: true, ..Default::default() }));
    expect_status(refusal(blind).await, Code::InvalidArgument, "revision number cannot be masked");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_listed_in_its_own_order_and_bad_items_fail_alone() {
    let place = Place::new();
    let server = place.start().await;
    let parent = id("/host").unwrap();
    let mut entries: Vec<_> = (0..2000).rev().map(|number| entry(&format!("n{number}"), &parent)).collect();
    entries[7].selectors.clear();
    entries[1999] = types::Entry { id: "twin".to_owned(), ..entries[0].clone() };

    let statuses = create(&server, entries).await;

    let bad: Vec<_> = (0..2000).filter(|number| statuses[*number].code != 0).collect();
    assert_eq!(bad, [7, 1999]);
    assert_eq!(statuses[7].message, "failed to convert entry: selector list is empty");
    assert_eq!((statuses[1999].code, statuses[1999].message.as_str()), (6, "similar entry already exists"));
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListEntriesRequest {
            filter: None,
            output_mask: Some(types::EntryMask::default()),
            page_size: 700,
            page_token,
        };
        let page = server.local().entry().list_entries(request).await.unwrap().into_inner();
        listed.extend(page.entries.into_iter().map(|entry| entry.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> =
        (1..2000).rev().filter(|number| *number != 1992).map(|number| format!("n{number}")).collect();
    assert_eq!(listed, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_token_that_is_none_is_told_in_the_words_of_a_status() {
    let place = Place::new();
    let server = place.start().await;
    let by_selectors = types::SelectorMatch {
        selectors: vec![types::Selector { r#type: "t".to_owned(), value: "v".to_owned() }],
        r#match: 0,
    };
    let by_selectors =
        wire::list_entries_request::Filter { by_selectors: Some(by_selectors), ..Default::default() };

    for filter in [None, Some(by_selectors)] {
        let page_token = "x".to_owned();
        let request = wire::ListEntriesRequest { filter, page_size: 1, page_token, ..Default::default() };
        let refused = server.local().entry().list_entries(request).await;
        expect_status(
            refused,
            Code::Internal,
            "failed to list entries: datastore-sql: rpc error: code = InvalidArgument desc = could not \
             parse token 'x'",
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a12_ids_of_others_are_answered_with_silence() {
    let place = Place::new();
    let server = place.start().await;
    let agent = agent_with(&server, 501).await;
    let other = server.agent("other").await;
    let statuses = create(&server, vec![entry("others", &other.id)]).await;
    assert_eq!(statuses, [types::Status::ok()]);

    // As many as fit into a message, of which one is its own.
    let mut ids: Vec<String> = (0..100_000).map(|number| format!("no such entry {number}")).collect();
    ids.push("others".to_owned());
    ids.push("e0007".to_owned());
    let replies = sync(&server, &agent, vec![begin(None), ask(ids)]).await;

    let sent: Vec<&str> =
        replies.iter().flat_map(|reply| &reply.entries).map(|entry| entry.id.as_str()).collect();
    assert_eq!(sent, ["e0007"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e01_an_entry_is_of_the_trust_domain_and_says_who_it_is_for() {
    let place = Place::new();
    let server = place.start().await;
    let parent = id("/host").unwrap();
    let foreign = types::Spiffeid { trust_domain: "other.org".to_owned(), path: "/x".to_owned() };
    let good = || types::Entry { id: String::new(), ..entry("good", &parent) };
    let selector =
        |kind: &str, value: &str| vec![types::Selector { r#type: kind.to_owned(), value: value.to_owned() }];
    let bad = vec![
        types::Entry { spiffe_id: Some(foreign.clone()), ..good() },
        types::Entry { spiffe_id: id(""), ..good() },
        types::Entry { spiffe_id: None, ..good() },
        types::Entry { spiffe_id: id("/up/../down"), ..good() },
        types::Entry { spiffe_id: id("/end/"), ..good() },
        types::Entry { parent_id: Some(foreign), ..good() },
        types::Entry { parent_id: None, ..good() },
        types::Entry { selectors: Vec::new(), ..good() },
        types::Entry { selectors: selector("a:b", "c"), ..good() },
        types::Entry { selectors: selector("", "c"), ..good() },
        types::Entry { selectors: selector("a", ""), ..good() },
        types::Entry { dns_names: vec!["a..b".to_owned()], ..good() },
        types::Entry { hint: "h".repeat(1025), ..good() },
        types::Entry { x509_svid_ttl: -1, ..good() },
        types::Entry { jwt_svid_ttl: -1, ..good() },
        types::Entry { federates_with: vec!["UPPER".to_owned()], ..good() },
    ];
    let count = bad.len();

    let statuses = create(&server, bad.clone()).await;

    for (number, status) in statuses.iter().enumerate() {
        assert_eq!(status.code, Code::InvalidArgument as i32, "{number}: {status:?}");
    }
    assert_eq!(statuses.len(), count);
    assert_eq!(create(&server, vec![good()]).await, [types::Status::ok()]);

    // An update is held to the same.
    let kept = types::Entry { id: "kept".to_owned(), ..entry("kept", &parent) };
    assert_eq!(create(&server, vec![kept.clone()]).await, [types::Status::ok()]);
    let entries = bad.into_iter().map(|entry| types::Entry { id: "kept".to_owned(), ..entry }).collect();
    let update = wire::BatchUpdateEntryRequest { entries, input_mask: None, output_mask: None };
    let updated = server.local().entry().batch_update_entry(update).await.unwrap().into_inner().results;
    for (number, result) in updated.iter().enumerate() {
        let status = result.status.as_ref().unwrap();
        assert_eq!(status.code, Code::InvalidArgument as i32, "{number}: {status:?}");
    }
    assert_eq!(updated.len(), count);
    let found = wire::GetEntryRequest { id: "kept".to_owned(), output_mask: None };
    let found = server.local().entry().get_entry(found).await.unwrap().into_inner();
    assert_eq!((&found.spiffe_id, found.revision_number), (&kept.spiffe_id, 0));
    server.stop().await;
}
