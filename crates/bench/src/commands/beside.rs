//! The same on two targets, by turns, so that what disturbs the machine disturbs both.

use super::{Command, run};
use crate::report::Comparison;
use crate::{BenchError, Settings, Surroundings, TargetSettings};

/// What is compared.
const SUITE: [Command; 7] = [
    Command::Attest,
    Command::X509,
    Command::Jwt,
    Command::Mint,
    Command::Entry,
    Command::Sync,
    Command::Idle,
];

/// Carries out the suite on the target that `settings` name and on `other`.
///
/// # Errors
/// The first of any command.
pub async fn compare(
    settings: &Settings,
    other: &TargetSettings,
    around: &Surroundings,
) -> Result<Comparison, BenchError> {
    let second = Settings { target: other.clone(), ..settings.clone() };
    let mut comparison = Comparison { first: Vec::new(), second: Vec::new() };
    for command in SUITE {
        for (settings, reports) in [(settings, &mut comparison.first), (&second, &mut comparison.second)] {
            (around.progress)(&format!("{} of {}", command.as_str(), settings.target.label));
            reports.push(run(command, settings, around).await?);
        }
    }
    Ok(comparison)
}
