//! The filter itself: bytes of a client in, bytes for the HTTP/2 library out. No I/O.

use http::uri::Authority;

use super::block::{Block, HEAD_LENGTH, HEADERS, Head, Progress, take};
use super::hpack::{self, Decoder, Field};

/// Filters one connection.
#[derive(Debug)]
pub(super) struct Filter {
    mode: Mode,
    state: State,
    decoder: Decoder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// No authority seen yet. The library has received all blocks as they were, so its dynamic table
    /// is as the client's.
    Looking,
    /// The authority is one to be replaced. The library knows nothing of the client's dynamic table
    /// any more: each block is written anew.
    Replacing,
    /// All goes through.
    Passing,
    /// The library was told that the connection is broken; the rest is not for it.
    Broken,
}

#[derive(Debug)]
enum State {
    /// So many bytes go through: of the preface, or of a frame that holds no headers.
    Through(usize),
    /// The beginning of a frame.
    Head(Vec<u8>),
    /// A header block.
    Block(Block),
}

impl Filter {
    pub(super) const fn new() -> Self {
        Self { mode: Mode::Looking, state: State::Through(PREFACE_LENGTH), decoder: Decoder::new() }
    }

    /// Whether all that follows goes through.
    pub(super) fn is_done(&self) -> bool {
        self.mode == Mode::Passing
    }

    /// Takes what the client sent, and adds to `out` what can be told of it by now.
    pub(super) fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            match self.mode {
                Mode::Looking | Mode::Replacing => input = self.step(input, out),
                Mode::Passing => {
                    out.extend_from_slice(input);
                    return;
                }
                Mode::Broken => return,
            }
        }
    }

    /// The client sends no more: what has been held back is handed on as it came.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        if self.mode != Mode::Broken {
            match &self.state {
                State::Through(_) => {}
                State::Head(head) => out.extend_from_slice(head),
                State::Block(block) if self.mode == Mode::Looking => out.extend_from_slice(&block.received),
                // Without its end it would be refused, and to the library it would be another block.
                State::Block(_) => {}
            }
        }
        self.mode = Mode::Passing;
    }

    /// Takes some of the input, at least a byte, and gives back the rest.
    fn step<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        match &mut self.state {
            State::Through(left) => {
                let (now, rest) = input.split_at((*left).min(input.len()));
                out.extend_from_slice(now);
                *left -= now.len();
                if *left == 0 {
                    self.state = State::Head(Vec::new());
                }
                rest
            }
            State::Head(head) => {
                let rest = take(head, HEAD_LENGTH, input);
                if let Some(parsed) = Head::parse(head) {
                    if parsed.kind == HEADERS {
                        self.state = State::Block(Block::new(head, &parsed));
                        self.advance(out);
                    } else {
                        out.append(head);
                        self.state = match parsed.length {
                            0 => State::Head(Vec::new()),
                            length => State::Through(length),
                        };
                    }
                }
                rest
            }
            State::Block(block) => {
                let rest = block.take(input);
                self.advance(out);
                rest
            }
        }
    }

    /// Looks at a block after more of it has arrived.
    fn advance(&mut self, out: &mut Vec<u8>) {
        let State::Block(block) = &mut self.state else { return };
        match block.progress() {
            Progress::Going => {}
            Progress::Bad => self.give_up(out),
            Progress::Whole => match self.decoder.read(&block.fragment) {
                Ok(fields) => self.pass(fields, out),
                Err(hpack::Malformed) => self.give_up(out),
            },
        }
    }

    /// Hands on a whole block.
    fn pass(&mut self, mut fields: Vec<Field>, out: &mut Vec<u8>) {
        let State::Block(block) = std::mem::replace(&mut self.state, State::Head(Vec::new())) else { return };
        let mut authorities = fields.iter_mut().filter(|field| field.name == b":authority").peekable();
        if self.mode == Mode::Looking
            && let Some(first) = authorities.peek()
        {
            self.mode = if is_refused(&first.value) { Mode::Replacing } else { Mode::Passing };
        }
        if self.mode != Mode::Replacing {
            out.extend_from_slice(&block.received);
            return;
        }
        for authority in authorities.filter(|authority| is_refused(&authority.value)) {
            authority.value = INSTEAD.to_vec();
        }
        block.write(&hpack::write(&fields), out);
    }

    /// Leaves a block that cannot be read to the library, which answers as the standard wants.
    fn give_up(&mut self, out: &mut Vec<u8>) {
        let State::Block(block) = std::mem::replace(&mut self.state, State::Head(Vec::new())) else { return };
        if self.mode == Mode::Looking {
            out.extend_from_slice(&block.received);
            self.mode = Mode::Passing;
        } else {
            // To the library the client's block would mean something else. This one means that.
            block.write(&[INDEX_ZERO], out);
            self.mode = Mode::Broken;
        }
    }
}

/// Just what the library does.
fn is_refused(authority: &[u8]) -> bool {
    Authority::try_from(authority).is_err()
}

const INSTEAD: &[u8] = b"localhost";

const PREFACE_LENGTH: usize = 24;

/// A field that does not exist, which the standard calls a compression error.
const INDEX_ZERO: u8 = 0x80;

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::super::block::{
        CONTINUATION, END_HEADERS, END_STREAM, FRAME_LIMIT, PADDED, PRIORITY, PRIORITY_LENGTH, put_head,
        split,
    };
    use super::super::hpack::tests::field;
    use super::*;
    use crate::backoff::Random;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_head(&mut out, payload.len(), kind, flags, [0, 0, 0, stream]);
        out.extend_from_slice(payload);
        out
    }

    fn request(encoder: &mut loona_hpack::Encoder<'_>, authority: Option<&str>) -> Vec<u8> {
        let mut fields = vec![(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C")];
        fields.extend(authority.map(|authority| (":authority", authority)));
        fields.extend([("te", "trailers"), ("workload.spiffe.io", "true"), ("x", "y")]);
        encoder.encode(fields.into_iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    /// A connection of three calls, as a client with a dynamic table sends them.
    pub(in crate::authority) fn connection(authority: &str) -> Vec<u8> {
        let mut encoder = loona_hpack::Encoder::new();
        let mut out = PREFACE.to_vec();
        out.extend(frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]));
        for stream in [1, 3, 5] {
            out.extend(frame(HEADERS, END_HEADERS, stream, &request(&mut encoder, Some(authority))));
            out.extend(frame(0, END_STREAM, stream, b"message"));
            out.extend(frame(6, 0, 0, b"ping-pong"));
        }
        out
    }

    pub(in crate::authority) fn filtered(input: &[u8]) -> Vec<u8> {
        let mut filter = Filter::new();
        let mut out = Vec::new();
        filter.push(input, &mut out);
        filter.end(&mut out);
        out
    }

    /// A stream and the fields of one of its blocks.
    type Fields = (u8, Vec<(String, String)>);

    /// All frames but header blocks, and the fields of those: by a decoder that is not ours.
    fn dissect(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<Fields>) {
        let mut decoder = loona_hpack::Decoder::new();
        let (mut others, mut blocks, mut block) = (Vec::new(), Vec::new(), Vec::new());
        assert!(bytes.starts_with(PREFACE));
        let mut rest = &bytes[PREFACE.len()..];
        while let Some(head) = Head::parse(rest) {
            let (frame, after) = rest.split_at(HEAD_LENGTH + head.length);
            rest = after;
            if head.kind != HEADERS && head.kind != CONTINUATION {
                assert!(block.is_empty(), "a frame within a block");
                others.push(frame.to_vec());
                continue;
            }
            assert!(head.length <= FRAME_LIMIT);
            let payload = &frame[HEAD_LENGTH..];
            let fragment = if head.kind == HEADERS { split(payload, head.flags).unwrap().1 } else { payload };
            block.extend_from_slice(fragment);
            if head.flags & END_HEADERS != 0 {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                let fields = decoder.decode(&std::mem::take(&mut block)).unwrap();
                let fields = fields.into_iter().map(|(name, value)| (text(name), text(value))).collect();
                blocks.push((head.stream[3], fields));
            }
        }
        assert!(rest.is_empty() && block.is_empty());
        (others, blocks)
    }

    #[test]
    fn each_spelling_of_a_socket_becomes_localhost() {
        for authority in ["tmp%2Fd%2Fx.sock", "/tmp/d/x.sock", "unix:/path", "", "a b", "[::1", "%"] {
            let sent = connection(authority);
            let passed = filtered(&sent);

            let (frames_sent, mut expected) = dissect(&sent);
            let (frames, blocks) = dissect(&passed);
            for (_, fields) in &mut expected {
                for (_, value) in fields.iter_mut().filter(|(name, _)| name == ":authority") {
                    "localhost".clone_into(value);
                }
            }
            assert_eq!(frames, frames_sent, "{authority:?}");
            assert_eq!(blocks, expected, "{authority:?}");
            assert_eq!(blocks.len(), 3);
        }
    }

    #[test]
    fn a_proper_authority_goes_through_with_all_that_follows() {
        for authority in ["localhost", "localhost:8080", "example.org", "127.0.0.1:1", "[::1]:1", "user@host"]
        {
            let mut sent = connection(authority);
            sent.extend(connection("/not/looked/at/any/more"));

            assert_eq!(filtered(&sent), sent, "{authority:?}");
        }
    }

    #[test]
    fn calls_without_authority_go_through_until_one_has_it() {
        let mut encoder = loona_hpack::Encoder::new();
        let mut sent = PREFACE.to_vec();
        sent.extend(frame(HEADERS, END_HEADERS, 1, &request(&mut encoder, None)));
        let before = sent.len();
        sent.extend(frame(HEADERS, END_HEADERS, 3, &request(&mut encoder, Some("/x"))));

        let passed = filtered(&sent);

        assert_eq!(passed[..before], sent[..before]);
        let (_, blocks) = dissect(&passed);
        assert_eq!(blocks[1].1[3], (":authority".to_owned(), "localhost".to_owned()));
        assert_eq!(blocks[1].1.last().unwrap(), &("x".to_owned(), "y".to_owned()));
    }

    /// The first bytes that Python's grpcio 1.85 sends to `unix:/tmp/d/x.sock`: preface, SETTINGS, and
    /// a call, whose authority is a literal that enters the dynamic table.
    #[test]
    fn a_recorded_call_of_the_c_core_passes() {
        let sent = recorded();

        let (_, fields_sent) = dissect(&sent);
        let (frames, fields) = dissect(&filtered(&sent));

        assert_eq!(frames, dissect(&sent).0);
        let authority =
            |blocks: &[Fields]| blocks[0].1.iter().find(|(name, _)| name == ":authority").unwrap().1.clone();
        assert_eq!(authority(&fields_sent), "tmp%2Fd%2Fx.sock");
        assert_eq!(authority(&fields), "localhost");
        assert_eq!(fields[0].1.len(), fields_sent[0].1.len());
    }

    fn recorded() -> Vec<u8> {
        let hex = include_str!("recorded/grpcio.hex");
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
    }

    #[test]
    fn padding_is_dropped_and_priority_kept() {
        let block = request(&mut loona_hpack::Encoder::new(), Some("/x"));
        let mut payload = vec![3, 0, 0, 0, 0, 15];
        payload.extend_from_slice(&block);
        payload.extend_from_slice(&[0; 3]);
        let mut sent = PREFACE.to_vec();
        sent.extend(frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITY, 1, &payload));

        let passed = filtered(&sent);

        let head = Head::parse(&passed[PREFACE.len()..]).unwrap();
        assert_eq!(head.flags, END_HEADERS | END_STREAM | PRIORITY);
        assert_eq!(passed[PREFACE.len() + HEAD_LENGTH..][..PRIORITY_LENGTH], [0, 0, 0, 0, 15]);
        assert_eq!(dissect(&passed).1[0].1[3].1, "localhost");
    }

    #[test]
    fn long_blocks_are_cut_to_frames_and_short_frames_are_joined() {
        let mut fields = vec![field(":authority", "/x")];
        fields.extend((0..20).map(|number| field(&format!("name-{number}"), &"v".repeat(2500))));
        let block = hpack::write(&fields);
        assert!(block.len() > 3 * FRAME_LIMIT);
        let mut sent = PREFACE.to_vec();
        let mut pieces = block.chunks(7000).peekable();
        let mut kind = HEADERS;
        while let Some(piece) = pieces.next() {
            sent.extend(frame(kind, if pieces.peek().is_none() { END_HEADERS } else { 0 }, 1, piece));
            kind = CONTINUATION;
        }

        let (others, blocks) = dissect(&filtered(&sent));

        assert!(others.is_empty());
        assert_eq!(blocks[0].1.len(), 21);
        assert_eq!(blocks[0].1[0].1, "localhost");
        assert_eq!(blocks[0].1[20].1.len(), 2500);
    }

    #[test]
    fn what_is_malformed_from_the_start_is_left_to_the_library() {
        for bad in [
            frame(HEADERS, END_HEADERS, 1, &[0x80]),
            frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]),
            frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0, 0]),
            [frame(HEADERS, 0, 1, &[0x82]), frame(0, 0, 1, b"data")].concat(),
            [frame(HEADERS, 0, 1, &[0x82]), frame(CONTINUATION, END_HEADERS, 3, &[0x84])].concat(),
            frame(HEADERS, END_HEADERS, 1, &vec![0x82; FRAME_LIMIT + 1]),
            [frame(HEADERS, 0, 1, &[0x82]), frame(CONTINUATION, 0, 1, &[0x82; 16_000]).repeat(5)].concat(),
        ] {
            let sent = [PREFACE, &bad, b"whatever follows"].concat();

            assert_eq!(filtered(&sent), sent);
        }
    }

    #[test]
    fn what_is_malformed_later_ends_the_connection() {
        let mut sent = connection("/x");
        let before = filtered(&sent).len();
        sent.extend(frame(HEADERS, END_HEADERS, 7, &[0xff, 0xff]));
        sent.extend(connection("/x"));

        let passed = filtered(&sent);

        assert_eq!(passed[before..], frame(HEADERS, END_HEADERS, 7, &[INDEX_ZERO]));
    }

    #[derive(Clone, Debug)]
    enum Sent {
        Call { authority: Option<String>, fields: Vec<(String, String)>, cuts: usize, padding: Option<u8> },
        Other { kind: u8, flags: u8, payload: Vec<u8> },
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let call = (
            prop::option::of(prop_oneof!["/[a-z/]{0,9}", "[a-z]{1,9}", Just(String::new())]),
            prop::collection::vec(("[a-d]{1,2}", "[a-z0-9]{0,30}"), 0..6),
            0_usize..4,
            prop::option::of(any::<u8>()),
        );
        let kind = prop_oneof![Just(0_u8), 2_u8..9, 10_u8..255];
        prop_oneof![
            call.prop_map(|(authority, fields, cuts, padding)| Sent::Call {
                authority,
                fields,
                cuts,
                padding
            }),
            (kind, any::<u8>(), prop::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(kind, flags, payload)| Sent::Other { kind, flags, payload }),
        ]
    }

    fn encode(sent: &[Sent]) -> Vec<u8> {
        let mut encoder = loona_hpack::Encoder::new();
        let mut out = PREFACE.to_vec();
        for (number, sent) in sent.iter().enumerate() {
            let stream = u8::try_from(number * 2 + 1).unwrap();
            match sent {
                Sent::Other { kind, flags, payload } => out.extend(frame(*kind, *flags, stream, payload)),
                Sent::Call { authority, fields, cuts, padding } => {
                    let named = authority.iter().map(|authority| (&b":authority"[..], authority.as_bytes()));
                    let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
                    let block = encoder.encode(named.chain(fields));
                    let mut pieces = block.chunks((block.len() / (cuts + 1)).max(1)).peekable();
                    let mut first = pieces.next().unwrap_or_default().to_vec();
                    let mut flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
                    if let Some(padding) = padding {
                        flags |= PADDED;
                        first.insert(0, *padding);
                        first.extend(vec![0; usize::from(*padding)]);
                    }
                    out.extend(frame(HEADERS, flags, stream, &first));
                    while let Some(piece) = pieces.next() {
                        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
                        out.extend(frame(CONTINUATION, flags, stream, piece));
                    }
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn frames_are_kept_and_fields_survive(
            sent in prop::collection::vec(sent(), 0..20),
            pieces in prop::collection::vec(1_usize..60, 1..20),
        ) {
            let input = encode(&sent);

            let mut filter = Filter::new();
            let mut out = Vec::new();
            let mut rest = &input[..];
            for length in pieces.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(length.min(rest.len()));
                filter.push(piece, &mut out);
                rest = after;
            }
            let (others_sent, mut expected) = dissect(&input);
            let (others, blocks) = dissect(&out);

            let first = expected.iter().flat_map(|(_, fields)| fields).find(|(name, _)| name == ":authority");
            if first.is_some_and(|(_, authority)| is_refused(authority.as_bytes())) {
                for (name, value) in expected.iter_mut().flat_map(|(_, fields)| fields) {
                    if name == ":authority" && is_refused(value.as_bytes()) {
                        "localhost".clone_into(value);
                    }
                }
            } else {
                prop_assert_eq!(&out, &input);
            }
            prop_assert_eq!(others, others_sent);
            prop_assert_eq!(blocks, expected);
        }
    }

    /// Whatever arrives, and in whatever pieces: no panic, and no more comes out than went in and one
    /// unfolded block.
    #[test]
    fn fuzz_authority_filter() {
        let seconds = std::env::var("FINIAL_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        #[expect(clippy::disallowed_methods, reason = "bounds how long it runs, decides nothing")]
        let started = Instant::now();
        let mut random = Random::new();
        let seeds = [connection("/x"), connection("localhost"), recorded()];
        let mut rounds = 0_u32;
        while seconds.map_or(rounds < 2000, |seconds| started.elapsed() < Duration::from_secs(seconds)) {
            rounds += 1;
            let mut input = seeds[below(&mut random, seeds.len())].clone();
            for _ in 0..below(&mut random, 12) {
                mutate(&mut random, &mut input);
            }
            let mut filter = Filter::new();
            let mut out = Vec::new();
            let mut rest = &input[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((1 + below(&mut random, 200)).min(rest.len()));
                filter.push(piece, &mut out);
                rest = after;
            }
            filter.end(&mut out);
            assert!(out.len() <= 40 * input.len() + (64 << 10), "{} from {}", out.len(), input.len());
        }
    }

    fn mutate(random: &mut Random, input: &mut Vec<u8>) {
        let at = below(random, input.len().max(1));
        match below(random, 5) {
            0 => input.truncate(at),
            1 => input.insert(at.min(input.len()), byte(random)),
            2 => input.extend_from_within(at.min(input.len())..),
            _ => {
                if let Some(target) = input.get_mut(at) {
                    *target = byte(random);
                }
            }
        }
        input.truncate(1 << 20);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a random number below a small one"
    )]
    fn below(random: &mut Random, limit: usize) -> usize {
        (random.unit() * limit as f64) as usize
    }

    fn byte(random: &mut Random) -> u8 {
        u8::try_from(below(random, 256)).unwrap()
    }
}
