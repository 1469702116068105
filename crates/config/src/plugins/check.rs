//! How settings are checked and what is said about them.

use serde::de::DeserializeOwned;

use crate::hcl::{self, HclError, UnusedKeys};

/// Checks the settings of one plugin.
pub(super) type Checker = fn(&Settings<'_>, &mut Report);

/// A plugin's settings as it is given them.
pub(super) struct Settings<'a> {
    /// HCL text.
    pub(super) text: &'a str,
}

/// What there is to say.
#[derive(Default)]
pub(super) struct Report {
    remarks: Vec<Remark>,
}

/// Something that there is to say.
pub(super) struct Remark {
    /// Whether something is wrong, or only worth a word.
    pub(super) is_wrong: bool,
    /// What is said.
    pub(super) text: String,
}

impl Settings<'_> {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Decodes the settings.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, HclError> {
        hcl::from_str(self.text)
    }

    /// Decodes the settings; a refusal is reported behind `what`.
    pub(super) fn decode<T: DeserializeOwned>(&self, report: &mut Report, what: &str) -> Option<T> {
        match self.parse() {
            Ok(settings) => Some(settings),
            Err(error) => {
                report.say(format!("{what}: {error}"));
                None
            }
        }
    }
}

impl Report {
    /// Something is wrong.
    pub(super) fn say(&mut self, text: impl Into<String>) {
        self.remarks.push(Remark { is_wrong: true, text: text.into() });
    }

    /// Something is wrong where `is_wrong`.
    pub(super) fn when(&mut self, is_wrong: bool, text: impl Into<String>) {
        if is_wrong {
            self.say(text);
        }
    }

    /// Something is worth a word.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.remarks.push(Remark { is_wrong: false, text: text.into() });
    }

    /// Keys that the plugin does not know are wrong.
    pub(super) fn unknown(&mut self, keys: &UnusedKeys) {
        let text = format!("unknown configurations detected: {}", keys.0.join(","));
        self.when(!keys.0.is_empty(), text);
    }
}

/// Runs a checker.
pub(super) fn report(check: Checker, text: &str) -> Vec<Remark> {
    let mut report = Report::default();
    check(&Settings { text }, &mut report);
    report.remarks
}
