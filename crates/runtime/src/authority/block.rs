//! The frames of a header block: taken apart as they arrive, and made anew.

/// A header block, of which each frame has arrived up to some byte.
#[derive(Debug)]
pub(super) struct Block {
    /// All frames as they came.
    pub(super) received: Vec<u8>,
    /// Where the current frame begins in there.
    frame: usize,
    /// Of the first frame: what a new one takes over.
    stream: [u8; 4],
    end_stream: u8,
    priority: Vec<u8>,
    pub(super) fragment: Vec<u8>,
}

pub(super) enum Progress {
    Going,
    Whole,
    Bad,
}

impl Block {
    pub(super) fn new(head: &[u8], parsed: &Head) -> Self {
        Self {
            received: head.to_vec(),
            frame: 0,
            stream: parsed.stream,
            end_stream: parsed.flags & END_STREAM,
            priority: Vec::new(),
            fragment: Vec::new(),
        }
    }

    /// Takes what belongs to the current frame.
    pub(super) fn take<'a>(&mut self, input: &'a [u8]) -> &'a [u8] {
        let until = self.frame + self.head().map_or(HEAD_LENGTH, |head| HEAD_LENGTH + head.length);
        take(&mut self.received, until, input)
    }

    /// The head of the current frame, once it is there.
    fn head(&self) -> Option<Head> {
        Head::parse(self.received.get(self.frame..)?)
    }

    pub(super) fn progress(&mut self) -> Progress {
        let Some(head) = self.head() else { return Progress::Going };
        let is_first = self.frame == 0;
        let is_bad = (!is_first && (head.kind != CONTINUATION || head.stream != self.stream))
            || head.length > FRAME_LIMIT
            || self.frame + HEAD_LENGTH + head.length > BLOCK_LIMIT;
        if is_bad {
            return Progress::Bad;
        }
        let begin = self.frame + HEAD_LENGTH;
        let Some(payload) = self.received.get(begin..begin + head.length) else { return Progress::Going };
        let Some((priority, fragment)) =
            (if is_first { split(payload, head.flags) } else { Some((&[][..], payload)) })
        else {
            return Progress::Bad;
        };
        self.fragment.extend_from_slice(fragment);
        if is_first {
            self.priority = priority.to_vec();
        }
        self.frame = self.received.len();
        if head.flags & END_HEADERS == 0 { Progress::Going } else { Progress::Whole }
    }

    /// Writes frames like these around another block.
    pub(super) fn write(&self, fragment: &[u8], out: &mut Vec<u8>) {
        let (first, rest) = fragment.split_at(fragment.len().min(FRAME_LIMIT - self.priority.len()));
        let mut rest = rest.chunks(FRAME_LIMIT).peekable();
        let with_priority = if self.priority.is_empty() { 0 } else { PRIORITY };
        let last = |is_last: bool| if is_last { END_HEADERS } else { 0 };

        let flags = self.end_stream | with_priority | last(rest.peek().is_none());
        put_head(out, self.priority.len() + first.len(), HEADERS, flags, self.stream);
        out.extend_from_slice(&self.priority);
        out.extend_from_slice(first);
        while let Some(piece) = rest.next() {
            put_head(out, piece.len(), CONTINUATION, last(rest.peek().is_none()), self.stream);
            out.extend_from_slice(piece);
        }
    }
}

/// The head of a frame (RFC 9113, section 4.1).
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: [u8; 4],
}

impl Head {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<HEAD_LENGTH>()?;
        let length = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        // The first bit of the stream is reserved.
        Some(Self { length, kind, flags, stream: [s0 & 0x7f, s1, s2, s3] })
    }
}

pub(super) fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: [u8; 4]) {
    let [.., l0, l1, l2] = length.to_be_bytes();
    out.extend_from_slice(&[l0, l1, l2, kind, flags]);
    out.extend_from_slice(&stream);
}

/// The payload of a HEADERS frame without its padding: priority (section 6.2) and fragment.
pub(super) fn split(payload: &[u8], flags: u8) -> Option<(&[u8], &[u8])> {
    let mut rest = payload;
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, after) = rest.split_first()?;
        padding = usize::from(*length);
        rest = after;
    }
    let (priority, rest) = rest.split_at_checked(if flags & PRIORITY == 0 { 0 } else { PRIORITY_LENGTH })?;
    Some((priority, rest.get(..rest.len().checked_sub(padding)?)?))
}

/// Moves bytes until `to` is so long, and gives back the rest.
pub(super) fn take<'a>(to: &mut Vec<u8>, until: usize, input: &'a [u8]) -> &'a [u8] {
    let (now, rest) = input.split_at(until.saturating_sub(to.len()).min(input.len()));
    to.extend_from_slice(now);
    rest
}

pub(super) const HEAD_LENGTH: usize = 9;
pub(super) const PRIORITY_LENGTH: usize = 5;

/// The longest frame, as long as SETTINGS say nothing else, and those of our library do not.
pub(super) const FRAME_LIMIT: usize = 16_384;

/// The longest block that is held back, frames and all.
pub(super) const BLOCK_LIMIT: usize = 64 << 10;

// Kinds of frames and their flags (RFC 9113, section 6).
pub(super) const HEADERS: u8 = 1;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;
