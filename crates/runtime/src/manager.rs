//! The service manager that watches over the program, if there is one: it is told when the program is
//! ready, that it lives, and that it stops (`sd_notify(3)`).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;
use std::{env, io};

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::health::Health;
use crate::{BoxError, listen};

/// How often it is looked whether the program is ready, until it is.
const LOOK: Duration = Duration::from_millis(20);
/// How often afterwards, where no watchdog asks for more.
const REST: Duration = Duration::from_secs(60);

/// Tells how the program is until it is to stop: `READY=1` once all its checks are, and `WATCHDOG=1` twice
/// within the time that the manager's watchdog allows, as long as they are live. Once it is ready, sockets
/// that were passed for nothing are named in the log.
///
/// # Errors
/// None: the type fits [`crate::tasks::Tasks::spawn`]. A manager that cannot be reached is logged once.
pub async fn tell(health: Health, clock: Arc<dyn Clock>, stop: CancellationToken) -> Result<(), BoxError> {
    if env::var_os(SOCKET).is_none() && !listen::has_unclaimed() {
        return Ok(());
    }
    let rest = watchdog().map_or(REST, |allowed| allowed / 2);
    let (mut is_ready, mut since_alive) = (false, rest);
    loop {
        if !is_ready && health.ready().is_good {
            is_ready = true;
            for address in listen::unclaimed() {
                tracing::warn!(address, "A socket was passed that the configuration does not name");
            }
            notify("READY=1\nSTATUS=Serving");
        }
        if since_alive >= rest && watchdog().is_some() && health.live().is_good {
            since_alive = Duration::ZERO;
            notify("WATCHDOG=1");
        }
        let pause = if is_ready { rest } else { LOOK.min(rest) };
        tokio::select! {
            () = stop.cancelled() => break,
            () = clock.sleep(pause) => since_alive += pause,
        }
    }
    if !listen::is_handing_over() {
        notify("STOPPING=1");
    }
    Ok(())
}

/// Tells the manager that another program takes over in this process; that one says when it is ready.
pub(crate) fn notify_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let microseconds = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// The time within which the manager wants to hear that this process lives.
fn watchdog() -> Option<Duration> {
    let for_other = env::var("WATCHDOG_PID").is_ok_and(|pid| pid != std::process::id().to_string());
    let allowed = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (!for_other && allowed > 0).then(|| Duration::from_micros(allowed))
}

fn notify(state: &str) {
    if let Err(error) = send(state) {
        tracing::warn!(%error, "Cannot reach the service manager");
    }
}

fn send(state: &str) -> io::Result<()> {
    let Some(socket) = env::var_os(SOCKET) else { return Ok(()) };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsString::from_vec(socket.into_vec()))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// Names the manager's socket.
const SOCKET: &str = "NOTIFY_SOCKET";
