//! Command line flags with the grammar of Go's `flag` package, which SPIRE's users' scripts rely on:
//! one or two dashes, `-name value` or `-name=value`, booleans take a value only after `=`, parsing
//! stops at the first word that is no flag or at `--`.

use spiffe::quote::quoted;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::duration::parse_duration;
use super::timestamp::quoted as in_bytes;

/// What is said of `-h` where only its value kept it from being seen before: the usage follows.
pub(crate) const HELP: &str = "flag: help requested";

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, or `=true` / `=false`.
    Bool,
    /// Nothing; with any value it is on.
    Switch,
    /// A 64-bit integer.
    Int,
    /// Any text.
    Text,
    /// Any text; the usage says `value`, since SPIRE reads it by rules of its own.
    Value,
    /// Any text; each use adds one.
    Texts,
    /// A duration in Go's syntax.
    Duration,
    /// The same; what is wrong with it is told in full.
    Timeout,
    /// `pretty`, `prettyprint` or `json`.
    Output,
}

/// One flag of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// Its name without dashes.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) kind: Kind,
    /// The value if it is not given; empty for none.
    pub(crate) default: &'static str,
    /// What it is for, for the usage text.
    pub(crate) help: &'static str,
}

/// A flag without default.
pub(crate) const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, default: "", help }
}

/// A flag with a default.
pub(crate) const fn flag_or(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, help }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Pretty,
    /// For programs.
    Json,
}

/// The flags that were given, over the defaults.
#[derive(Debug)]
pub(crate) struct Flags {
    specs: Vec<Flag>,
    given: BTreeMap<&'static str, Vec<String>>,
}

impl Flags {
    /// Parses `args` as the flags of a command; words after the first non-flag are ignored.
    ///
    /// # Errors
    /// Go's words for what is wrong.
    pub(crate) fn parse(specs: &[Flag], args: &[String]) -> Result<Self, String> {
        let mut flags = Self { specs: specs.to_vec(), given: BTreeMap::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(rest) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) else { break };
            let rest = match rest.strip_prefix('-') {
                Some("") => break,
                Some(rest) => rest,
                None => rest,
            };
            if rest.is_empty() || rest.starts_with('-') || rest.starts_with('=') {
                return Err(format!("bad flag syntax: {arg}"));
            }
            let (name, value) =
                rest.split_once('=').map_or((rest, None), |(name, value)| (name, Some(value.to_owned())));
            let Some(&spec) = specs.iter().find(|spec| spec.name == name) else {
                if matches!(name, "h" | "help") {
                    return Err(HELP.to_owned());
                }
                return Err(format!("flag provided but not defined: -{name}"));
            };
            let value = match (spec.kind, value) {
                (Kind::Switch, _) | (Kind::Bool, None) => "true".to_owned(),
                (_, Some(value)) => value,
                (_, None) => {
                    args.next().cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?
                }
            };
            flags.take(spec, value)?;
        }
        Ok(flags)
    }

    /// The last value given, or the default.
    pub(crate) fn text(&self, name: &str) -> &str {
        let default = || self.specs.iter().find(|spec| spec.name == name).map_or("", |spec| spec.default);
        self.given.get(name).and_then(|values| values.last()).map_or_else(default, String::as_str)
    }

    /// All values given.
    pub(crate) fn texts(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a boolean flag is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        parse_bool(self.text(name)).unwrap_or(false)
    }

    /// The value of an integer flag; 0 if it has none.
    pub(crate) fn int(&self, name: &str) -> i64 {
        parse_int(self.text(name)).unwrap_or(0)
    }

    /// The value of a duration flag in nanoseconds; 0 if it has none.
    pub(crate) fn nanos(&self, name: &str) -> i64 {
        parse_duration(self.text(name)).unwrap_or(0)
    }

    /// The value of a duration flag as a time limit; a negative one is none at all.
    pub(crate) fn duration(&self, name: &str) -> Duration {
        Duration::from_nanos(u64::try_from(self.nanos(name)).unwrap_or(0))
    }

    /// Whether the flag was given.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Whether any of the flags was given.
    pub(crate) fn any_given(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.is_given(name))
    }

    /// The chosen output.
    pub(crate) fn output(&self) -> Output {
        let mut given =
            self.specs.iter().filter(|spec| spec.kind == Kind::Output && self.is_given(spec.name));
        let is_json = given.any(|spec| self.text(spec.name).eq_ignore_ascii_case("json"));
        if is_json { Output::Json } else { Output::Pretty }
    }

    fn take(&mut self, spec: Flag, value: String) -> Result<(), String> {
        let name = spec.name;
        match spec.kind {
            Kind::Bool if parse_bool(&value).is_none() => {
                return Err(format!("invalid boolean value {} for -{name}: parse error", quoted(&value)));
            }
            Kind::Int => {
                if let Err(why) = parse_int(&value) {
                    return Err(format!("invalid value {} for flag -{name}: {why}", quoted(&value)));
                }
            }
            Kind::Duration if parse_duration(&value).is_none() => {
                return Err(format!("invalid value {} for flag -{name}: parse error", quoted(&value)));
            }
            Kind::Timeout if parse_duration(&value).is_none() => {
                return Err(format!(
                    "invalid value {} for flag -{name}: {}",
                    quoted(&value),
                    bad_duration(&value)
                ));
            }
            Kind::Output => {
                let refused =
                    |why: String| format!("invalid value {} for flag -{name}: {why}", quoted(&value));
                let outputs = self.specs.iter().filter(|spec| spec.kind == Kind::Output);
                let before = outputs.filter_map(|spec| self.given.get(spec.name)?.last()).next();
                let before =
                    before.map(|text| if text.eq_ignore_ascii_case("json") { "json" } else { "pretty" });
                // The same format again must be spelt as its own name.
                if let Some(before) = before.filter(|before| *before != value) {
                    return Err(refused(format!("the output format has already been set to {before:?}")));
                }
                let known = ["pretty", "prettyprint", "json"];
                if !known.iter().any(|known| value.eq_ignore_ascii_case(known)) {
                    return Err(refused(format!(
                        "bad formatter flag: unknown format option: {}",
                        quoted(&value)
                    )));
                }
            }
            Kind::Bool
            | Kind::Switch
            | Kind::Text
            | Kind::Value
            | Kind::Texts
            | Kind::Duration
            | Kind::Timeout => {}
        }
        self.given.entry(name).or_default().push(value);
        Ok(())
    }
}

/// The usage block of a command.
pub(crate) fn usage(command: &str, specs: &[Flag]) -> String {
    let mut sorted: Vec<&Flag> = specs.iter().collect();
    sorted.sort_by_key(|spec| spec.name);
    let mut text = format!("Usage of {command}:\n");
    for spec in sorted {
        let takes = match spec.kind {
            Kind::Bool | Kind::Switch => "",
            Kind::Int => " int",
            Kind::Text => " string",
            Kind::Value | Kind::Texts | Kind::Output | Kind::Timeout => " value",
            Kind::Duration => " duration",
        };
        let default = match (spec.kind, spec.default) {
            (_, "") => String::new(),
            (Kind::Text, default) => format!(" (default {default:?})"),
            (_, default) => format!(" (default {default})"),
        };
        // Writing to a string cannot fail.
        let _written = write!(text, "  -{}{takes}\n    \t{}{default}\n", spec.name, spec.help);
    }
    text
}

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What Go's `time.ParseDuration` says of a text that is none: the first number without a unit, or with
/// one that is unknown, else the text.
fn bad_duration(text: &str) -> String {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    while let Some(unit_at) = rest.find(|c| !is_number(c)).filter(|at| *at > 0) {
        let (number, behind) = rest.split_at(unit_at);
        let (unit, behind) = behind.split_at(behind.find(is_number).unwrap_or(behind.len()));
        if number.contains(|c: char| c.is_ascii_digit())
            && !["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&unit)
        {
            return format!("time: unknown unit {} in duration {}", in_bytes(unit), in_bytes(text));
        }
        rest = behind;
    }
    if rest.contains(|c: char| c.is_ascii_digit()) && rest.chars().all(is_number) {
        return format!("time: missing unit in duration {}", in_bytes(text));
    }
    format!("time: invalid duration {}", in_bytes(text))
}

/// Go's `strconv.ParseInt` with base 0.
fn parse_int(text: &str) -> Result<i64, &'static str> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, lower.get(2..)),
        [b'0', b'o', ..] => (8, lower.get(2..)),
        [b'0', b'b', ..] => (2, lower.get(2..)),
        [b'0', _, ..] => (8, lower.get(1..)),
        _ => (10, lower.get(0..)),
    };
    if !are_separators(&lower) {
        return Err("parse error");
    }
    let digits = digits.unwrap_or_default().replace('_', "");
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err("parse error");
    }
    let magnitude = i128::from_str_radix(&digits, radix).map_err(|_| "value out of range")?;
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| "value out of range")
}

/// Whether every underscore stands between digits, or between the base and a digit, as in Go.
fn are_separators(number: &str) -> bool {
    let bytes = number.as_bytes();
    let is_digit =
        |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(|byte| byte.is_ascii_alphanumeric());
    bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'_')
        .all(|(at, _)| is_digit(at.checked_sub(1)) && is_digit(at.checked_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_duration_is_told_as_go_tells_it() {
        let cases = [
            ("soon", "time: invalid duration \"soon\""),
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("1h5", "time: missing unit in duration \"1h5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            (".s", "time: invalid duration \".s\""),
        ];
        for (text, expected) in cases {
            assert_eq!(bad_duration(text), expected);
        }
    }

    const SPECS: [Flag; 6] = [
        flag("verbose", Kind::Bool, ""),
        flag("mark", Kind::Switch, ""),
        flag_or("ttl", Kind::Int, "600", ""),
        flag("dns", Kind::Texts, ""),
        flag("path", Kind::Text, ""),
        flag_or("output", Kind::Output, "pretty", ""),
    ];

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(&SPECS, &line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn refused(line: &str, why: &str) {
        assert_eq!(parse(line).map(|_| ()), Err(why.to_owned()), "{line}");
    }

    #[test]
    fn both_dashes_and_both_forms() {
        let flags = parse("--ttl=5 -dns a -dns=b --verbose -path -x rest -verbose=false").unwrap();

        assert_eq!(flags.int("ttl"), 5);
        assert_eq!(flags.texts("dns"), ["a", "b"]);
        assert_eq!(flags.text("path"), "-x");
        assert!(flags.is_on("verbose"));
    }

    #[test]
    fn a_switch_is_on_whatever_its_value() {
        for line in ["-mark", "-mark=", "-mark=false", "--mark=x"] {
            assert!(parse(line).unwrap().is_on("mark"), "{line}");
        }
    }

    #[test]
    fn refusals_in_go_words() {
        refused("-x", "flag provided but not defined: -x");
        refused("-path", "flag needs an argument: -path");
        refused("-verbose=x", "invalid boolean value \"x\" for -verbose: parse error");
        refused("-ttl 1__0", "invalid value \"1__0\" for flag -ttl: parse error");
        refused("-ttl _1", "invalid value \"_1\" for flag -ttl: parse error");
        refused("-ttl abc", "invalid value \"abc\" for flag -ttl: parse error");
        refused(
            "-ttl 99999999999999999999",
            "invalid value \"99999999999999999999\" for flag -ttl: value out of range",
        );
        refused("-=x", "bad flag syntax: -=x");
        refused("---x", "bad flag syntax: ---x");
        refused(
            "-output json -output PRETTY",
            "invalid value \"PRETTY\" for flag -output: the output format has already been set to \"json\"",
        );
        refused(
            "-output PRETTY -output prettyprint",
            "invalid value \"prettyprint\" for flag -output: the output format has already been set to \"pretty\"",
        );
        refused(
            "-output json -output xml",
            "invalid value \"xml\" for flag -output: the output format has already been set to \"json\"",
        );
    }

    #[test]
    fn defaults_and_the_end_of_flags() {
        let flags = parse("-- -ttl 7").unwrap();

        assert_eq!(flags.int("ttl"), 600);
        assert_eq!(flags.output(), Output::Pretty);
    }
}
