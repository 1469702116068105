//! The reports of [`Health`] over plain HTTP, as SPIRE gives them.
//!
//! Any method is answered, 200 where all is well and 500 where not, always with the report as JSON.
//! The socket is open to whoever reaches it, so it says nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use tokio_util::sync::CancellationToken;

use super::{Health, Report};
use crate::listen::ListenError;
use crate::pages::{Page, PageListener, page, refused};

/// A bound port for the reports.
#[derive(Debug)]
pub struct HealthListener {
    pages: PageListener,
    paths: HealthPaths,
}

/// Where each report is. As with Go's router a path that ends with a slash stands for all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPaths {
    /// Whether the program lives, usually `/live`.
    pub live: String,
    /// Whether it is ready, usually `/ready`.
    pub ready: String,
}

impl HealthListener {
    /// Binds `host`, a name or an address, at `port`.
    ///
    /// # Errors
    /// The name is unknown, or what the system says: mostly that the port is in use.
    pub async fn bind(host: &str, port: u16, paths: HealthPaths) -> Result<Self, ListenError> {
        Ok(Self { pages: PageListener::bind(host, port).await?, paths })
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.pages.address()
    }

    /// How long a client may take to send its request, or to send another one.
    #[must_use]
    pub fn with_header_timeout(self, timeout: Duration) -> Self {
        Self { pages: self.pages.with_header_timeout(timeout), ..self }
    }

    /// Answers until `stop` is cancelled; then connections are closed, as they carry nothing that
    /// would be missed.
    pub async fn serve(self, health: Health, stop: CancellationToken) {
        let Self { pages, paths } = self;
        let answer = move |request: http::request::Parts| {
            std::future::ready(respond(request.uri.path(), &health, &paths))
        };
        pages.serve(None, answer, stop).await;
    }
}

fn respond(path: &str, health: &Health, paths: &HealthPaths) -> Page {
    if covers(&paths.live, path) {
        return told(health.live());
    }
    if covers(&paths.ready, path) {
        return told(health.ready());
    }
    refused(StatusCode::NOT_FOUND, "404 page not found")
}

fn told(report: Report) -> Page {
    let mut page = page("application/json", report.json);
    if !report.is_good {
        *page.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    page
}

fn covers(pattern: &str, path: &str) -> bool {
    path == pattern || (pattern.ends_with('/') && path.starts_with(pattern))
}
