//! The recorded texts: trees, refusals and their places.

use std::collections::BTreeMap;
use std::path::Path;

use finial_config::hcl::{self, HclError, Value};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value as Json;

/// How many cases there are to pass: none may be lost.
const CASES: usize = 432;

#[derive(Deserialize)]
pub(crate) struct Case {
    id: String,
    pub(crate) text: String,
    hcl: Verdict,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Tree(Json),
    Error { line: Option<usize>, column: Option<usize>, text: String },
}

pub(crate) fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/hcl/hcl.jsonl");
    let lines = std::fs::read_to_string(path).expect("the recorded texts are there");
    lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn recorded_texts_decode_or_are_refused_as_recorded() {
    let cases = cases();
    let mut wrong = Vec::new();

    for case in &cases {
        let read = hcl::parse(case.text.as_bytes()).and_then(|body| Value::of(&body));
        if let Err(why) = judge(&case.hcl, read) {
            wrong.push(format!("{}: {:?}: {why}", case.id, case.text));
        }
    }

    println!("hcl: {} run, {} passed, {} open", cases.len(), cases.len() - wrong.len(), wrong.len());
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(cases.len(), CASES);
}

fn judge(expected: &Verdict, read: Result<BTreeMap<String, Value>, HclError>) -> Result<(), String> {
    match (expected, read) {
        (Verdict::Tree(tree), Ok(read)) => {
            let read = map(&read);
            if same(tree, &read) { Ok(()) } else { Err(format!("expected {tree}, read {read}")) }
        }
        (Verdict::Tree(_), Err(error)) => Err(format!("refused: {error}")),
        (Verdict::Error { text, .. }, Ok(_)) => Err(format!("accepted, expected {text}")),
        (Verdict::Error { text, .. }, Err(_)) if text.starts_with("panic:") => Ok(()),
        (Verdict::Error { line, column, text }, Err(error)) => {
            let place = error.position().map(|place| (place.line, place.column));
            let expected = line.zip(*column);
            if place == expected && error.to_string() == *text {
                Ok(())
            } else {
                Err(format!("expected {text} at {expected:?}, got {error} at {place:?}"))
            }
        }
    }
}

fn map(values: &BTreeMap<String, Value>) -> Json {
    Json::Object(values.iter().map(|(key, value)| (key.clone(), json(value))).collect())
}

fn json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(value) => value.clone().into(),
        Value::List(values) => values.iter().map(json).collect(),
        Value::Blocks(blocks) => blocks.iter().map(map).collect(),
        Value::Map(values) => map(values),
    }
}

/// Whether two trees are equal, where 1 and 1.0 are.
fn same(left: &Json, right: &Json) -> bool {
    match (left, right) {
        (Json::Number(left), Json::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Json::Array(left), Json::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Json::Object(left), Json::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, left)| right.get(key).is_some_and(|right| same(left, right)))
        }
        _ => left == right,
    }
}

#[test]
fn rendered_texts_decode_to_the_same_tree() {
    let mut rendered = 0;

    for case in cases() {
        let Ok(body) = hcl::parse(case.text.as_bytes()) else { continue };
        // What is null in JSON has no value in HCL.
        if case.text.starts_with('{') && case.text.contains("null") {
            continue;
        }
        let text = body.to_hcl();
        let again =
            hcl::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{}: {error}\n{text}", case.id));

        assert_eq!(Value::of(&again).ok(), Value::of(&body).ok(), "{}\n{text}", case.id);
        rendered += 1;
    }

    assert!(rendered > 200, "{rendered}");
}

/// Texts of items, some of them nested.
fn items() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u32>().prop_map(|number| format!("{number:#x}")),
        (any::<i32>(), any::<u16>()).prop_map(|(whole, part)| format!("{whole}.{part}")),
        any::<bool>().prop_map(|value| value.to_string()),
        "[a-zA-Z0-9 /:._é-]{0,12}".prop_map(|text| format!("\"{text}\"")),
        r#"(\\n|\\"|\\x41|\\u00e9|\\101|\$\{[a-z" ]{0,4}\}){0,4}"#.prop_map(|text| format!("\"{text}\"")),
        "[a-z ]{0,8}".prop_map(|text| format!("<<EOF\n{text}\nEOF\n")),
        "[a-z]{0,8}".prop_map(|text| format!("<<-EOF\n    {text}\n    EOF\n")),
    ];
    let value = scalar.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|values| format!("[{}]", values.join(", "))),
            prop::collection::vec(("[a-z_]{1,6}", inner), 0..4).prop_map(|items| {
                let items: Vec<String> =
                    items.iter().map(|(key, value)| format!("{key} = {value}")).collect();
                format!("{{\n{}\n}}", items.join("\n"))
            }),
        ]
    });
    let item = prop_oneof![
        ("[a-z][a-z0-9_.-]{0,8}", value.clone()).prop_map(|(key, value)| format!("{key} = {value}")),
        ("[a-z]{1,4}", "[a-z.]{1,4}", value).prop_map(|(key, label, value)| {
            format!("\"{key}\" \"{label}\" {{ /* one */ value = {value} }} # two")
        }),
    ];
    prop::collection::vec(item, 0..6).prop_map(|items| items.join("\n"))
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(text in items()) {
        let body = hcl::parse(text.as_bytes()).expect("generated texts are good");
        let rendered = body.to_hcl();
        let again = hcl::parse(rendered.as_bytes()).expect("rendered texts are good");

        prop_assert_eq!(Value::of(&again).ok(), Value::of(&body).ok());
        prop_assert_eq!(again.to_hcl(), rendered);
    }

    #[test]
    fn json_means_what_it_says(text in "[ -~é]{0,20}", number in any::<i32>(), key in "[a-z]{1,8}") {
        let json = serde_json::json!({ key.clone(): { "text": text.replace(['\\', '$'], ""), "number": number } });

        let body = hcl::parse(json.to_string().as_bytes()).expect("plain JSON is good");
        let read: BTreeMap<String, BTreeMap<String, String>> = hcl::from_body(&body).expect("it decodes");

        prop_assert_eq!(&read[&key]["text"], &text.replace(['\\', '$'], ""));
        prop_assert_eq!(&read[&key]["number"], &number.to_string());
    }
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Section {
    port: i64,
    name: String,
    on: bool,
    names: Vec<String>,
    inner: Option<Inner>,
    lists: Vec<Inner>,
    labelled: BTreeMap<String, Inner>,
    kept: Option<hcl::Kept>,
    #[serde(rename = "$unused")]
    unused: hcl::UnusedKeys,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Inner {
    a: String,
    b: String,
}

fn section(text: &str) -> Section {
    hcl::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str, why: &str) {
    let error = hcl::from_str::<Section>(text).expect_err(text);

    assert_eq!(error.to_string(), why, "{text}");
}

#[test]
fn values_are_typed_weakly() {
    assert_eq!(section(r#"port = "0x10""#).port, 16);
    assert_eq!(section("port = 010").port, 8);
    assert_eq!(section("name = 010").name, "010");
    assert_eq!(section("NAME = \"x\"").name, "x");
    assert_eq!(section("port = 1 port = 2").port, 2);

    refused("on = \"true\"", "At 1:6: root.on: unknown type *ast.LiteralType");
    refused("name = true", "At 1:8: root.name: unknown type for string *ast.LiteralType");
    refused("port = [1]", "At 1:8: root.port: unknown type *ast.ListType");
    refused("port = \"x\"", "strconv.ParseInt: parsing \"x\": invalid syntax");
    refused("names = \"x\"", "At 1:9: unknown slice type: *ast.LiteralType");
    refused("inner = \"x\"", "At 1:9: root.inner: not an object type for struct (*ast.LiteralType)");
    refused("labelled = []", "At 1:12: root.labelled: not an object type for map (*ast.ListType)");
}

#[test]
fn repeats_are_merged() {
    let inner = |a: &str, b: &str| Inner { a: a.to_owned(), b: b.to_owned() };

    assert_eq!(section(r#"inner { a = "1" } inner { b = "2" }"#).inner, Some(inner("1", "2")));
    assert_eq!(section(r#"names = ["a"] names = ["b"]"#).names, ["a", "b"]);
    assert_eq!(section(r#"lists { a = "1" } lists { a = "2" }"#).lists, [inner("1", ""), inner("2", "")]);
    assert_eq!(section(r#"lists = [{ a = "1" } , { a = "2" }]"#).lists, [inner("1", ""), inner("2", "")]);
    // An object that stands for a list is a list of its items.
    assert_eq!(section(r#"lists = { a = "1" b = "2" }"#).lists, [inner("1", ""), inner("", "2")]);
}

#[test]
fn blocks_of_one_key_are_told_one_after_the_other() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct File {
        #[serde(rename = "server")]
        _server: Section,
        #[serde(rename = "last")]
        _last: Inner,
    }
    let told = |text: &str| hcl::from_str::<File>(text).map(drop).unwrap_err().to_string();

    // `port` comes before `names` where fields are looked up.
    let first = "At 1:18: unknown slice type: *ast.LiteralType";
    assert_eq!(told("server { names = 1 }\nserver { port = [1] }"), first);
    assert_eq!(
        told("last { a = [1] }\nServer { names = 1 }\nserver { port = [1] }"),
        first.replace("1:18", "2:18")
    );
    let inner = "server {\n inner { b = [1] }\n inner { a = [1] }\n}\nserver { port = [1] }";
    assert_eq!(told(inner), "At 2:14: root.server.inner.b: unknown type for string *ast.ListType");
    let one = "server {\n port = 1\n names = 1\n port = [1]\n}";
    assert_eq!(told(one), "At 4:9: root.server.port: unknown type *ast.ListType");
    let second = "server { port = 1 }\nserver { names = 1 }\nserver { port = [1] }";
    assert_eq!(told(second), first.replace("1:18", "2:18"));
}

#[test]
fn a_heredoc_at_the_end_of_kept_parts_is_not_terminated() {
    let text = |rest| format!("kept {{\n a = <<E\nx\nE\n{rest}}}\n");
    let kept = |text: &str| match section(text).kept {
        Some(hcl::Kept::Items(_, text)) => text,
        other => panic!("{other:?}"),
    };

    let refused = hcl::from_str::<Inner>(&kept(&text(""))).unwrap_err();
    assert_eq!(refused.to_string(), "At 3:2: heredoc not terminated");

    assert_eq!(hcl::from_str::<Inner>(&kept(&text("b = 1"))).unwrap().a, "x\n");
}

#[test]
fn labels_are_keys_of_maps() {
    let texts = [
        r#"labelled "x" { a = "1" } labelled "y" {}"#,
        r#"labelled { x { a = "1" } y {} }"#,
        r#"labelled = { "x" = { a = "1" } "y" = {} }"#,
        r#"{"labelled": {"x": {"a": "1"}, "y": {}}}"#,
        r#"{"labelled": [{"x": {"a": "1"}}, {"y": {}}]}"#,
    ];
    for text in texts {
        let labelled = section(text).labelled;

        assert_eq!(labelled.keys().collect::<Vec<_>>(), ["x", "y"], "{text}");
        assert_eq!(labelled["x"].a, "1", "{text}");
    }
}

#[test]
fn unknown_bare_keys_are_collected() {
    assert_eq!(section("port = 1 other = 2 \"quoted\" = 3 another {}").unused.0, ["another", "other"]);
    assert_eq!(section(r#"{"port": 1, "other": 2}"#).unused.0, ["other"]);
    assert_eq!(section("Port = 1").unused.0, Vec::<String>::new());
}

#[test]
fn parts_are_kept_as_text() {
    assert_eq!(section("kept {}").kept, Some(hcl::Kept::Items(0, String::new())));
    assert_eq!(
        section("kept { a = 1 # c\n b {} }").kept,
        Some(hcl::Kept::Items(2, "a = 1\n\nb {}".to_owned()))
    );
    assert_eq!(
        section("kept \"x\" { a = 1 }").kept,
        Some(hcl::Kept::Items(1, "\"x\" {\n  a = 1\n}".to_owned()))
    );
    assert_eq!(section("kept { a = 1 } kept { b = 2 }").kept, Some(hcl::Kept::Items(1, "a = 1".to_owned())));
    refused("kept {} kept = 1", "At 1:16: root.kept: not an object type for struct (*ast.LiteralType)");
    // Lines are where SPIRE's library has them: errors about a part count them.
    assert_eq!(
        section("kept {\na = 1\n\nb {\nlong = 1\nc = 2\n\nd = [\n1]\n}\n}").kept,
        Some(hcl::Kept::Items(
            2,
            "a = 1\n\nb {\n  long = 1\n  c    = 2\n\n  d = [\n    1,\n  ]\n}".to_owned()
        ))
    );
    assert_eq!(
        section("kept {\na {}\nb {}\nc = { d = <<E\nx\nE\n}\n}").kept,
        Some(hcl::Kept::Items(3, "a {}\nb {}\n\nc = {\n  d = <<E\nx\nE\n}".to_owned()))
    );
    assert_eq!(section("kept = [1]").kept, Some(hcl::Kept::Other("[1]".to_owned())));
    assert_eq!(section("port = 1").kept, None);
}

#[test]
fn nesting_and_size_are_bounded() {
    let deep = |depth: usize| format!("a = {}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}{}", "a {".repeat(depth), "}".repeat(depth));
    let json = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));

    for text in [deep(150), objects(150), json(150)] {
        let body = hcl::parse(text.as_bytes()).expect("150 levels are fine");
        Value::of(&body).expect("they decode");
    }
    for text in [deep(100_000), objects(100_000), json(100_000)] {
        let error = hcl::parse(text.as_bytes()).expect_err("too deep");

        assert!(error.to_string().contains("nested more than 200 deep"), "{error}");
    }
    assert!(hcl::parse(&vec![b'#'; hcl::MAX_SIZE + 1]).is_err());
}

#[test]
fn words_are_of_letters_and_decimal_digits() {
    for good in ["é = 1", "日本 = 1", "a٣ = 1", "a９ = 1", "ªa = 1"] {
        assert!(hcl::parse(good.as_bytes()).is_ok(), "{good}");
    }
    for bad in ["Ⅷ = 1", "〇 = 1", "aⅷ = 1", "a² = 1", "a½ = 1", "x① = 1", "Ⓐ = 1", "٣ = 1", "a\u{345} = 1"]
    {
        let error = hcl::parse(bad.as_bytes()).expect_err(bad);
        assert!(error.to_string().ends_with("illegal char"), "{bad}: {error}");
    }
}

#[test]
fn the_place_of_damage_in_json_is_that_before_it() {
    let said = |text: &[u8]| hcl::parse(text).expect_err("damaged").to_string();

    assert_eq!(said(b"{\"a\":a\xbf = 1"), "1:5: illegal char");
    assert_eq!(said(b"{a\xed\xa0\x80-b"), "1:1: illegal char");
}

#[test]
fn null_is_no_value_to_plugins() {
    let body = hcl::parse(br#"{"a": null, "b": 1}"#).expect("a text");

    assert_eq!(Value::of(&body).expect("a tree")["a"], Value::Text(String::new()));
    let error = hcl::parse(body.to_hcl().as_bytes()).expect_err("no value");
    assert!(error.to_string().ends_with("no object keys found!"), "{error}: {}", body.to_hcl());
}
