//! What the headers of a request say before it is a call, and the refusals of what is none.
//!
//! They are those of SPIRE's library, in its order and its words: each is a status of HTTP and one of gRPC,
//! so that clients of either kind know what to make of it.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode};
use tonic::Status;
use tonic::body::Body;

/// What the headers of a call ask for.
#[derive(Debug)]
pub(super) struct Asked {
    /// How long the client waits for the answer.
    pub(super) patience: Option<Duration>,
    /// The kind of messages that it names; the answer names it too.
    kind: Option<HeaderValue>,
}

impl Asked {
    /// Reads the headers of a request.
    ///
    /// # Errors
    /// What is answered if it is no call.
    pub(super) fn of<B>(request: &Request<B>) -> Result<Self, Box<Response<Body>>> {
        let headers = request.headers();
        let spoken = spoken(headers);
        let kind = spoken.as_ref().ok().and_then(|subtype| kind(subtype));
        let asked = Self { patience: deadline(headers), kind };
        match asked.refusal(request, spoken.err()) {
            None => Ok(asked),
            Some((code, status)) => {
                let mut response = asked.answered(status.into_http());
                *response.status_mut() = code;
                Err(Box::new(response))
            }
        }
    }

    /// An answer that names the kind of messages that was asked for.
    pub(super) fn answered(&self, mut response: Response<Body>) -> Response<Body> {
        if let (Some(kind), Some(named)) = (&self.kind, response.headers_mut().get_mut(CONTENT_TYPE)) {
            *named = kind.clone();
        }
        response
    }

    fn refusal<B>(&self, request: &Request<B>, foreign: Option<String>) -> Option<(StatusCode, Status)> {
        let hosts = request.headers().get_all(HOST).iter().count();
        if hosts > 1 {
            let authorities = usize::from(request.uri().authority().is_some());
            let text = format!(
                "num values of :authority: {authorities}, num values of host: {hosts}, both must only have 1 \
                 value as per HTTP/2 spec"
            );
            return Some((StatusCode::BAD_REQUEST, Status::internal(text)));
        }
        if let Some(foreign) = foreign {
            let text = format!("invalid gRPC request content-type {foreign:?}");
            return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, Status::invalid_argument(text)));
        }
        if let Some(text) = malformed(request.headers()) {
            return Some((StatusCode::BAD_REQUEST, Status::internal(text)));
        }
        if request.method() != Method::POST {
            let method = request.method().as_str();
            let text = format!("Received a HEADERS frame with :method {method:?} which should be POST");
            return Some((StatusCode::METHOD_NOT_ALLOWED, Status::internal(text)));
        }
        // Who has no time at all is not asked to wait for a refusal of another kind.
        let is_over = self.patience.is_some_and(|patience| patience < Duration::from_micros(1));
        is_over.then(|| (StatusCode::OK, Status::deadline_exceeded("context deadline exceeded")))
    }
}

/// How long the client waits for the answer, from gRPC's header: at most eight digits and a unit. None
/// if there is no such header, or it is malformed.
#[must_use]
pub fn deadline(headers: &HeaderMap) -> Option<Duration> {
    timeout(headers.get_all("grpc-timeout").iter().next_back()?).ok()
}

/// The method that a request is for: its path as it was sent, of which a `?` is a part as any other.
#[must_use]
pub fn method(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", PathAndQuery::as_str)
}

/// What follows the name of gRPC in the type of the content.
///
/// # Errors
/// The type that is none of gRPC's.
fn spoken(headers: &HeaderMap) -> Result<Bytes, String> {
    let mut spoken = Err(String::new());
    for value in headers.get_all(CONTENT_TYPE) {
        match value.as_bytes().strip_prefix(GRPC) {
            Some([]) => spoken = Ok(Bytes::new()),
            Some([b'+' | b';', subtype @ ..]) => spoken = Ok(Bytes::copy_from_slice(subtype)),
            _ => {
                if let Err(foreign) = &mut spoken {
                    *foreign = lossy(value);
                }
            }
        }
    }
    spoken
}

fn kind(subtype: &[u8]) -> Option<HeaderValue> {
    if subtype.is_empty() {
        return None;
    }
    let mut kind = BytesMut::with_capacity(GRPC.len() + 1 + subtype.len());
    kind.put_slice(GRPC);
    kind.put_u8(b'+');
    kind.put_slice(subtype);
    HeaderValue::from_maybe_shared(kind.freeze()).ok()
}

/// What is wrong with the last header of those that must have a form.
fn malformed(headers: &HeaderMap) -> Option<String> {
    let mut told = None;
    for (name, value) in headers {
        if name == "grpc-timeout" {
            if let Err(error) = timeout(value) {
                told = Some(format!("malformed grpc-timeout: {error}"));
            }
        } else if name.as_str().ends_with("-bin")
            && let Err(offset) = check_base64(value.as_bytes())
        {
            let (name, value) = (name.as_str(), lossy(value));
            told = Some(format!(
                "malformed binary metadata {value:?} in header {name:?}: illegal base64 data at input byte \
                 {offset}"
            ));
        }
    }
    told
}

fn timeout(value: &HeaderValue) -> Result<Duration, String> {
    let bad = |what: &str| format!("transport: timeout {what}: {:?}", lossy(value));
    let (digits, unit) = match value.as_bytes() {
        [] | [_] => return Err(bad("string is too short")),
        long if long.len() > 9 => return Err(bad("string is too long")),
        [digits @ .., unit] => (digits, unit),
    };
    let unit = match unit {
        b'H' => Duration::from_secs(3600),
        b'M' => Duration::from_secs(60),
        b'S' => Duration::from_secs(1),
        b'm' => Duration::from_millis(1),
        b'u' => Duration::from_micros(1),
        b'n' => Duration::from_nanos(1),
        _ => return Err(bad("unit is not recognized")),
    };
    let number = str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
    match number.map(str::parse) {
        Some(Ok(number)) => Ok(unit.saturating_mul(number)),
        _ => {
            let digits = String::from_utf8_lossy(digits);
            Err(format!("strconv.ParseUint: parsing {digits:?}: invalid syntax"))
        }
    }
}

/// Whether this is base64, with its padding or without.
///
/// # Errors
/// Where it is none, as SPIRE's library counts.
fn check_base64(text: &[u8]) -> Result<(), usize> {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let digits = text.iter().take_while(|byte| is_digit(byte)).count();
    let (rest, over) = (text.len() - digits, digits % 4);
    if !text.len().is_multiple_of(4) {
        return match (rest, over) {
            (0, 1) => Err(digits - 1),
            (0, _) => Ok(()),
            _ => Err(digits),
        };
    }
    match text.get(digits..).unwrap_or_default() {
        [] => Ok(()),
        [b'=', b'=', more @ ..] if over == 2 && !more.is_empty() => Err(digits + 2),
        [b'=', b'='] if over == 2 => Ok(()),
        [b'=', more @ ..] if over == 3 && !more.is_empty() => Err(digits + 1),
        [b'='] if over == 3 => Ok(()),
        _ => Err(digits),
    }
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

const GRPC: &[u8] = b"application/grpc";

#[cfg(test)]
mod tests {
    use super::*;

    /// The statuses of HTTP and gRPC, and the text.
    fn refused(method: &str, headers: &[(&str, &str)]) -> Option<(u16, i32, String)> {
        let mut request = Request::builder().method(method).uri("http://here/a/b");
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        let refusal = Asked::of(&request.body(()).unwrap()).err()?;
        let status = Status::from_header_map(refusal.headers()).unwrap();
        Some((refusal.status().as_u16(), status.code().into(), status.message().to_owned()))
    }

    fn check(headers: &[(&str, &str)], http: u16, grpc: i32, text: &str) {
        let headers = [&[("content-type", "application/grpc")], headers].concat();
        assert_eq!(refused("POST", &headers), Some((http, grpc, text.to_owned())), "{headers:?}");
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", value.parse().unwrap());
            deadline(&headers)
        };

        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("20m"), Some(Duration::from_millis(20)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "1", "1s", "123456789S", "+1S", "-1S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_malformed_timeout_is_refused_in_the_words_of_spires_library() {
        let cases = [
            ("", "transport: timeout string is too short: \"\""),
            ("5", "transport: timeout string is too short: \"5\""),
            ("123456789S", "transport: timeout string is too long: \"123456789S\""),
            ("5X", "transport: timeout unit is not recognized: \"5X\""),
            ("-5S", "strconv.ParseUint: parsing \"-5\": invalid syntax"),
            ("1.5S", "strconv.ParseUint: parsing \"1.5\": invalid syntax"),
        ];
        for (value, text) in cases {
            check(&[("grpc-timeout", value)], 400, 13, &format!("malformed grpc-timeout: {text}"));
        }
        check(&[("grpc-timeout", "0S")], 200, 4, "context deadline exceeded");
        check(&[("grpc-timeout", "5S"), ("grpc-timeout", "0n")], 200, 4, "context deadline exceeded");
    }

    #[test]
    fn binary_metadata_is_base64_with_padding_or_without() {
        for good in ["", "abcd", "abc", "ab", "ab==", "abc=", "ab+/", "YR=="] {
            assert_eq!(check_base64(good.as_bytes()), Ok(()), "{good}");
        }
        let bad = [
            ("a", 0),
            ("a===", 1),
            ("ab=", 2),
            ("!!!!", 0),
            ("ab,cd", 2),
            ("abcde", 4),
            ("ab-_", 2),
            ("abcd,ab==", 4),
            ("YQ==YQ==", 4),
            ("abc=abcd", 4),
            ("ab=a", 2),
            ("====", 0),
        ];
        for (text, offset) in bad {
            assert_eq!(check_base64(text.as_bytes()), Err(offset), "{text}");
        }
        let text = "malformed binary metadata \"!\" in header \"a-bin\": illegal base64 data at input byte 0";
        check(&[("grpc-timeout", "x"), ("a-bin", "!")], 400, 13, text);
    }

    #[test]
    fn what_is_no_grpc_is_refused_in_the_words_of_spires_library() {
        let grpc = ("content-type", "application/grpc");
        let json = ("content-type", "application/json");
        let foreign = |kind: &str| Some((415, 3, format!("invalid gRPC request content-type {kind:?}")));
        let get = "Received a HEADERS frame with :method \"GET\" which should be POST";

        assert_eq!(refused("POST", &[grpc]), None);
        assert_eq!(refused("POST", &[("content-type", "application/grpc;x=y")]), None);
        assert_eq!(refused("POST", &[json, grpc]), None);
        assert_eq!(refused("POST", &[]), foreign(""));
        assert_eq!(refused("GET", &[json]), foreign("application/json"));
        assert_eq!(
            refused("POST", &[("content-type", "application/grpc-web")]),
            foreign("application/grpc-web")
        );
        assert_eq!(refused("GET", &[grpc]), Some((405, 13, get.to_owned())));
        let hosts = "num values of :authority: 1, num values of host: 2, both must only have 1 value as per \
                     HTTP/2 spec";
        check(&[("host", "a"), ("host", "b")], 400, 13, hosts);
    }

    #[test]
    fn an_answer_names_the_kind_of_messages_that_was_asked_for() {
        let named = |kind: &str| {
            let request = Request::post("/a/b").header(CONTENT_TYPE, kind).body(()).unwrap();
            let answer = Asked::of(&request).unwrap().answered(Status::ok("").into_http());
            answer.headers()[CONTENT_TYPE].to_str().unwrap().to_owned()
        };

        assert_eq!(named("application/grpc"), "application/grpc");
        assert_eq!(named("application/grpc+proto"), "application/grpc+proto");
        assert_eq!(named("application/grpc;charset=utf-8"), "application/grpc+charset=utf-8");
    }
}
