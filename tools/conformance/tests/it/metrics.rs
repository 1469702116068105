//! What server and agent measure of themselves, at every sink that there is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_conformance::{
    Measured, Page, PlaneConfig, Product, await_ok, get, metric_rows, names_of, received, receiver,
};
use testkit::database::{Make, Server};

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

/// The test that shows a row on the page of a program.
const EVIDENCE: &str = "conformance::metrics_rows_are_on_the_pages";

#[test]
fn metrics_rows_are_on_the_pages() {
    let mut measured = Measured::start_whole(&Product::under_test(), &recorded());
    measured.live(&Product::under_test());
    measured.await_series("server", "spire_server_entry_cache_reload");
    measured.await_series("server", "spire_server_entry_entries_by_entryid_cache_count");

    let mut agents = measured.page("agent");
    measured.renew();
    agents.extend(measured.page("agent"));
    let mut servers = measured.page("server");
    // A server that was there before reads its journal.
    measured.restart_with("server", "Prometheus { host = \"127.0.0.1\" port = {p1} }");
    servers.extend(measured.page("server"));
    let pages = [("server", servers), ("agent", agents)];

    let mut missing = Vec::new();
    for row in metric_rows(&recorded()).iter().filter(|row| row.is_done && row.evidence == EVIDENCE) {
        for (program, page) in pages.iter().filter(|(program, _)| is_of(&row.component, program)) {
            let absent = names_of(row, program).into_iter().filter(|name| !page.contains_key(name));
            missing.extend(absent);
        }
    }
    if std::env::var_os("FINIAL_SHOW").is_some() {
        for (_, page) in &pages {
            page.keys().for_each(|name| println!("{name}"));
        }
    }
    assert!(missing.is_empty(), "not on the pages: {missing:#?}");
    has_host(&pages[0].1);
    assert_eq!(get(measured.plane.word("p1"), "/any/path").unwrap().0, 200);
}

/// Every series of both programs with its labels, as it stands on the pages; without its value.
fn series(measured: &Measured) -> BTreeSet<String> {
    let pages = ["p1", "p2"].map(|port| await_ok(measured.plane.word(port), "/metrics"));
    let lines = pages.iter().flat_map(|page| page.lines()).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

#[test]
fn g06_labels_name_no_workload_process_or_address() {
    let measured = Measured::start(&Product::under_test(), &recorded(), "");
    measured.exercise();
    let live = |number: usize| {
        let id = format!("spiffe://{{td}}/g06/{number}");
        let create = ["entry", "create", "-socketPath", "{sock}", "-parentID", "spiffe://{td}/node"];
        let selector = ["-spiffeID", &id, "-selector", "unix:uid:{uid}"];
        let _said = measured.plane.ok("server", &[&create[..], &selector].concat());
        // Each is a process of its own.
        let _said =
            measured.plane.run("agent", &["api", "fetch", "jwt", "-audience", &id, "-socketPath", "{asock}"]);
    };
    (0..5).for_each(live);
    measured.plane.await_identities(&["spiffe://{td}/g06/4"]);

    let before = series(&measured);
    (5..30).for_each(live);
    measured.plane.await_identities(&["spiffe://{td}/g06/29"]);
    let after = series(&measured);

    assert!(before.len() > 100, "only {} series", before.len());
    let address = |value: &str| {
        value.parse::<std::net::IpAddr>().is_ok() || value.parse::<std::net::SocketAddr>().is_ok()
    };
    for line in &after {
        let Some((name, labels)) = line.split_once('{') else { continue };
        for label in labels.trim_end_matches('}').split("\",") {
            let (label, value) = label.split_once("=\"").unwrap_or_default();
            let value = value.trim_end_matches('"');
            let is_trust_domain = value.strip_prefix("spiffe://").is_some_and(|rest| !rest.contains('/'));
            assert!(!value.contains("spiffe://") || is_trust_domain, "{name}: {label}={value}");
            assert!(!value.contains("g06") && !address(value), "{name}: {label}={value}");
            assert!(
                !["pid", "uid", "entry_id", "caller_addr", "address"].contains(&label),
                "{name}: {label}"
            );
        }
    }
    // As many of them for thirty entries, audiences and processes as for five. What is measured for the
    // first time meanwhile, such as a renewal, is once.
    let mut new: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in after.difference(&before) {
        new.entry(line.split('{').next().unwrap_or_default()).or_default().push(line);
    }
    new.retain(|_, lines| lines.len() >= 20);
    assert!(new.is_empty(), "{new:#?}");
}

fn is_of(component: &str, program: &str) -> bool {
    component == "both" || component == program
}

/// Every series of the program itself has the machine's name.
fn has_host(page: &Page) {
    for (name, labels) in page.iter().filter(|(name, _)| name.starts_with("spire_")) {
        assert!(labels.iter().all(|labels| labels.contains("host")), "{name}: {labels:?}");
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn metrics_go_to_statsd_dogstatsd_and_m3() {
    let (statsd, statsd_port) = receiver();
    let (dogstatsd, dogstatsd_port) = receiver();
    let (m3, m3_port) = receiver();
    let sinks = format!(
        "Statsd = [{{ address = \"127.0.0.1:{statsd_port}\" }}]\n\
         DogStatsd = [{{ address = \"127.0.0.1:{dogstatsd_port}\" }}]\n\
         M3 = [{{ address = \"127.0.0.1:{m3_port}\" env = \"testing\" }}]\n\
         EnableTrustDomainLabel = true\nEnableHostnameLabel = false"
    );
    let measured = Measured::start(&Product::under_test(), &recorded(), &sinks);
    measured.exercise();

    let lines = received(&statsd, |all| {
        contains(all, "spire_server.rpc.entry.v1.entry.batch_create_entry.OK.example_org:1.000000|c\n")
            && contains(
                all,
                "spire_server.rpc.entry.v1.entry.batch_create_entry.elapsed_time.OK.example_org:",
            )
            && contains(all, "spire_agent.rpc.workload_api.fetch_x509svid.")
            && contains(all, "spire_server.uptime_in_ms.example_org:")
    });
    for line in String::from_utf8(lines).unwrap().lines() {
        let (_, value) = line.rsplit_once(':').unwrap();
        assert!(["|c", "|g", "|ms"].iter().any(|kind| value.ends_with(kind)), "{line}");
    }
    received(&dogstatsd, |all| {
        contains(
            all,
            "spire_server.rpc.entry.v1.entry.batch_create_entry:1|c|#status:OK,trust_domain:example_org\n",
        ) && contains(all, "spire_agent.workload_api.connection:1|c|#trust_domain:example_org\n")
    });
    received(&m3, |all| {
        let has = |texts: &[&str]| texts.iter().all(|text| contains(all, text));
        has(&["emitMetricBatchV2", "rpc_entry_v1_entry_batch_create_entry", "trust_domain", "example_org"])
            && has(&["service", "spire_server", "spire_agent", "env", "testing", "bucketid", "0-10ms"])
    });
}

#[test]
fn metrics_are_named_and_filtered_as_configured() {
    let filters = "MetricPrefix = \"mine\"\n\
                   AllowedPrefixes = [\"mine.rpc.entry\"]\nBlockedPrefixes = [\"mine.rpc\", \"mine.datastore\"]\n\
                   BlockedLabels = [\"host\"]\nAllowedLabels = [\"status\", \"version\", \"host\"]";
    let measured = Measured::start(&Product::under_test(), &recorded(), filters);
    measured.exercise();

    let page = measured.page("server");

    let own: BTreeSet<&str> =
        page.keys().map(String::as_str).filter(|name| name.starts_with("mine_")).collect();
    assert!(
        own.contains("mine_started") && own.contains("mine_rpc_entry_v1_entry_batch_create_entry"),
        "{own:?}"
    );
    assert!(!page.keys().any(|name| name.starts_with("spire_")));
    for name in own {
        let is_blocked = name.starts_with("mine_datastore")
            || (name.starts_with("mine_rpc") && !name.starts_with("mine_rpc_entry"));
        assert!(!is_blocked, "{name}");
        for labels in &page[name] {
            assert!(labels.iter().all(|label| label == "status" || label == "version"), "{name}: {labels:?}");
        }
    }
}

#[test]
fn metrics_of_the_last_hour_are_logged_on_a_signal() {
    let mut measured = Measured::start(&Product::under_test(), &recorded(), "InMem {}");
    measured.exercise();
    // What happened in this second is told once it is over.
    std::thread::park_timeout(Duration::from_millis(1500));

    for program in ["server", "agent"] {
        let running = if program == "server" { measured.plane.server() } else { measured.plane.agent() };
        running.unwrap().signal("USR1");
        let wanted = [
            format!("][G] 'spire_{program}.started."),
            format!("][C] 'spire_{program}.rpc."),
            format!("][S] 'spire_{program}.rpc."),
        ];
        measured.await_logged(program, &wanted);
    }
}

#[test]
fn metrics_are_read_over_tls_by_whom_the_configuration_names() {
    let mut measured = Measured::start(&Product::under_test(), &recorded(), "");
    for (program, port) in [("server", "{p1}"), ("agent", "{p2}")] {
        measured.restart_with(
            program,
            &format!(
                "Prometheus {{ host = \"127.0.0.1\" port = {port} tls {{ use_spire_svid = true \
                 authorized_spiffe_ids = [\"spiffe://{{td}}/reader\"] }} }}"
            ),
        );
    }

    for program in ["server", "agent"] {
        let page = measured.secure_page(program, Some("/reader")).unwrap();
        assert!(
            page.starts_with("HTTP/1.1 200 OK") && page.contains(&format!("spire_{program}_started")),
            "{page}"
        );
        measured.secure_page(program, Some("/somebody")).unwrap_err();
        measured.secure_page(program, None).unwrap_err();
    }
    for program in ["server", "agent"] {
        let [known, stranger, nobody] = measured.pages_by_authority(program);
        assert!(known.unwrap().contains(&format!("spire_{program}_started")));
        stranger.unwrap_err();
        nobody.unwrap_err();
    }
}

#[test]
fn metrics_of_events_are_on_the_page_of_a_server_that_shares_its_database() {
    let Some(server) = Server::shared(Make::Postgres) else { return };
    let database = server.database().unwrap();
    let string = database.connection_string();
    let config = PlaneConfig {
        datastore: format!("database_type = \"postgres\" connection_string = \"{string}\""),
        ..PlaneConfig::default()
    };
    let measured = Measured::start_as(&Product::under_test(), &recorded(), config, "");
    let plane = &measured.plane;
    // Numbers that a transaction took and did not use.
    for (table, count) in [("registered_entries_events", 3), ("attested_node_entries_events", 2)] {
        let sequence = format!("nextval(pg_get_serial_sequence('{table}', 'id'))");
        database.run(&format!("SELECT {sequence} FROM generate_series(1, {count});")).unwrap();
    }
    let entry =
        ["-parentID", "spiffe://{td}/node", "-selector", "unix:uid:1", "-spiffeID", "spiffe://{td}/x"];
    let _created = plane.ok("server", &[&["entry", "create", "-socketPath", "{sock}"][..], &entry].concat());
    let listed = plane.ok("server", &["agent", "list", "-socketPath", "{sock}", "-output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let id = format!("spiffe://{{td}}{}", listed["agents"][0]["id"]["path"].as_str().unwrap());
    let _banned = plane.ok("server", &["agent", "ban", "-socketPath", "{sock}", "-spiffeID", &id]);

    measured.await_value("server", "spire_server_entry_skipped_entry_event_ids_count", "3");
    measured.await_value("server", "spire_server_node_skipped_node_event_ids_count", "2");

    let evidence = "conformance::metrics_of_events_are_on_the_page_of_a_server_that_shares_its_database";
    let rows = metric_rows(&recorded());
    let rows: Vec<_> = rows.iter().filter(|row| row.is_done && row.evidence == evidence).collect();
    assert_eq!(rows.len(), 6);
    for name in rows.into_iter().flat_map(|row| names_of(row, "server")) {
        measured.await_series("server", &name);
    }
}
