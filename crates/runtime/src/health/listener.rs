//! The reports of [`Health`] over plain HTTP, as SPIRE gives them.
//!
//! Any method is answered, 200 where all is well and 500 where not, always with the report as JSON.
//! The socket is open to whoever reaches it, so it says nothing else. Paths are found as Go's router
//! finds them: one that is not in its shortest form is redirected to that, and of two that stand for a
//! request the longer one counts.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use http::{Method, StatusCode};
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
        let answer = move |request: Parts| std::future::ready(respond(&request, &health, &paths));
        pages.serve(None, answer, stop).await;
    }
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Live,
    Ready,
    Redirect(String),
    Nothing,
}

impl HealthPaths {
    fn find(&self, path: &str) -> Found {
        if !path.starts_with('/') {
            return Found::Nothing;
        }
        let clean = cleaned(path);
        let (live, ready, asked) = (decoded(&self.live), decoded(&self.ready), decoded(&clean));
        let is_exact = [&live, &ready].contains(&&asked);
        let below = format!("{asked}/");
        if !is_exact && [&live, &ready].contains(&&below) {
            return Found::Redirect(clean + "/");
        }
        if clean != path {
            return Found::Redirect(clean);
        }
        let reach = |pattern: &str| covers(pattern, &asked).then_some(pattern.len());
        match (reach(&live), reach(&ready)) {
            (None, None) => Found::Nothing,
            (live, ready) if live >= ready => Found::Live,
            _ => Found::Ready,
        }
    }
}

fn respond(request: &Parts, health: &Health, paths: &HealthPaths) -> Page {
    match paths.find(request.uri.path()) {
        Found::Live => told(health.live()),
        Found::Ready => told(health.ready()),
        Found::Redirect(path) => redirected(request, path),
        Found::Nothing => refused(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn redirected(request: &Parts, mut to: String) -> Page {
    if let Some(query) = request.uri.query() {
        to = format!("{to}?{query}");
    }
    // A browser takes `/\` for the beginning of another host.
    let Some(location) = HeaderValue::from_str(&to).ok().filter(|_| !to.contains('\\')) else {
        return refused(StatusCode::NOT_FOUND, "404 page not found");
    };
    let mut page = Page::default();
    if [Method::GET, Method::HEAD].contains(&request.method) {
        let mut shown = to.replace('&', "&amp;");
        for (sign, name) in [('<', "&lt;"), ('>', "&gt;"), ('"', "&#34;"), ('\'', "&#39;")] {
            shown = shown.replace(sign, name);
        }
        *page.body_mut() = Bytes::from(format!("<a href=\"{shown}\">Temporary Redirect</a>.\n\n")).into();
        page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    *page.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    page.headers_mut().insert(LOCATION, location);
    page
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

/// A path without empty segments, `.` and `..`.
fn cleaned(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    let end = if path.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

/// A path with what is written as `%41` in plain, slashes apart: they would part what is one segment.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let escaped = match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok().filter(|byte| *byte != b'/'),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = after.get(if escaped.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(live: &str, ready: &str, path: &str, expected: &Found) {
        let paths = HealthPaths { live: live.to_owned(), ready: ready.to_owned() };
        assert_eq!(paths.find(path), *expected, "{path} with {live} and {ready}");
    }

    fn to(path: &str) -> Found {
        Found::Redirect(path.to_owned())
    }

    #[test]
    fn of_two_paths_the_longer_one_counts() {
        check("/", "/ready", "/ready", &Found::Ready);
        check("/", "/ready", "/ready/", &Found::Live);
        check("/live", "/", "/live", &Found::Live);
        check("/live", "/", "/x/y", &Found::Ready);
        check("/h/", "/h/ready", "/h/ready", &Found::Ready);
        check("/h/", "/h/ready", "/h/x", &Found::Live);
        check("/h", "/h/", "/h", &Found::Live);
        check("/h", "/h/", "/h/", &Found::Ready);
        check("/h/", "/r", "/", &Found::Nothing);
    }

    #[test]
    fn paths_in_a_longer_form_are_redirected() {
        for path in ["//live", "/./live", "/a/../live", "/../live"] {
            check("/live", "/ready", path, &to("/live"));
        }
        check("/live", "/ready", "/live/.", &to("/live"));
        check("/live", "/ready", "/x//", &to("/x/"));
        check("/h/", "/ready", "/h", &to("/h/"));
        check("/h/", "/ready", "//h", &to("/h/"));
        check("/", "/ready", "/x/..", &to("/"));
        check("/live", "/ready", "/live/", &Found::Nothing);
    }

    #[test]
    fn escaped_letters_are_letters_and_escaped_slashes_are_none() {
        check("/live", "/ready", "/%6cive", &Found::Live);
        check("/%6cive", "/ready", "/live", &Found::Live);
        check("/h/", "/ready", "/h%2f", &Found::Nothing);
        check("/h/", "/ready", "/h/%2e%2e/live", &Found::Live);
        for wrong in ["/%zz", "/%6", "/live%", "*", "live"] {
            check("/live", "/ready", wrong, &Found::Nothing);
        }
    }
}
