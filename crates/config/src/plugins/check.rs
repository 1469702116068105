//! How settings are checked and what is said about them.

use serde::de::DeserializeOwned;

use crate::hcl::{self, HclError};

/// Checks the settings of one plugin.
pub(super) type Checker = fn(&Settings<'_>, &mut Report);

/// A plugin's settings as it is given them.
pub(super) struct Settings<'a> {
    /// HCL text.
    text: &'a str,
}

/// What there is to say.
#[derive(Default)]
pub(super) struct Report {
    texts: Vec<String>,
}

impl Settings<'_> {
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
    /// Something is wrong, or worth a word: `validate` makes no difference.
    pub(super) fn say(&mut self, text: impl Into<String>) {
        self.texts.push(text.into());
    }

    /// Something is wrong where `is_wrong`.
    pub(super) fn when(&mut self, is_wrong: bool, text: impl Into<String>) {
        if is_wrong {
            self.say(text);
        }
    }
}

/// Runs a checker; what it has to say, none of which is good.
pub(super) fn report(check: Checker, text: &str) -> Vec<String> {
    let mut report = Report::default();
    check(&Settings { text }, &mut report);
    report.texts
}
