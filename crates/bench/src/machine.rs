//! The machine of a run, and what the two costly steps of a signature take on it.

use std::fs;
use std::hint::black_box;
use std::num::NonZero;
use std::time::Duration;

use runtime::clock::{Clock, SystemClock};
use serde::Serialize;
use spiffe::key::{KeyKind, PrivateKey};
use spiffe::x509::{Csr, CsrTemplate, Name};

use crate::BenchError;

/// Where a run took place.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub processor: String,
    /// Its cores.
    pub cores: usize,
    /// How many of them this process may use.
    pub cores_of_client: usize,
    /// Whether this program was compiled to be fast. If not, it is what holds the load up, and the costs of
    /// the cryptography are its own.
    pub client_optimised: bool,
    /// How many tasks competed for the cores in the last minute: more than there are cores, and the
    /// figures are of a machine that others use too.
    pub load: f64,
    /// The kernel.
    pub kernel: String,
}

/// What the cryptography of one X.509-SVID takes on one core of this machine, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Calibration {
    /// Reading a P-256 request and checking its signature.
    pub csr_check_us: f64,
    /// One P-256 signature.
    pub signature_us: f64,
    /// What an X.509-SVID may cost a server in all: a quarter more than the two.
    pub budget_us: f64,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let processor =
            cpus.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1));
        let load = read("/proc/loadavg");
        Self {
            processor: processor.unwrap_or("unknown").trim().to_owned(),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            cores_of_client: std::thread::available_parallelism().map_or(1, NonZero::get),
            client_optimised: !cfg!(debug_assertions),
            load: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Calibration {
    /// Measures. It keeps one core busy for some tenths of a second.
    ///
    /// # Errors
    /// The cryptography fails.
    pub(crate) fn measure() -> Result<Self, BenchError> {
        let key = PrivateKey::generate(KeyKind::EcP256).map_err(BenchError::crypto)?;
        let template = CsrTemplate { subject: Name::new(&[]), id: None, dns_names: Vec::new() };
        let csr = template.sign(&key).map_err(BenchError::crypto)?;
        let alg = key.sig_alg().map_err(BenchError::crypto)?;
        let csr_check = fastest(|| Csr::verify(black_box(&csr)).is_ok());
        let signature = fastest(|| key.sign(alg, black_box(&csr)).is_ok());
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6 / f64::from(ROUND);
        let (csr_check_us, signature_us) = (micros(csr_check), micros(signature));
        Ok(Self { csr_check_us, signature_us, budget_us: 1.25 * (csr_check_us + signature_us) })
    }
}

/// How often a step is done between two looks at the clock.
const ROUND: u32 = 100;
/// Of so many rounds the fastest counts: it was disturbed least.
const ROUNDS: usize = 20;

fn fastest(step: impl Fn() -> bool) -> Duration {
    let clock = SystemClock;
    let round = || {
        let start = clock.instant();
        for _ in 0..ROUND {
            black_box(step());
        }
        clock.instant().saturating_duration_since(start)
    };
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told() {
        let machine = Machine::here();

        assert!(machine.cores >= 1 && machine.cores_of_client >= 1, "{machine:?}");
        assert!(!machine.kernel.is_empty(), "{machine:?}");
    }

    #[test]
    fn the_budget_is_a_quarter_more_than_its_parts() {
        let calibration = Calibration::measure().unwrap();

        let parts = calibration.csr_check_us + calibration.signature_us;
        assert!(calibration.csr_check_us > 0.0 && calibration.signature_us > 0.0, "{calibration:?}");
        assert!((calibration.budget_us / parts - 1.25).abs() < 1e-9, "{calibration:?}");
    }
}
