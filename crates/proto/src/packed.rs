//! Messages packed with gzip (gRPC over HTTP/2, "Message-Encoding"; RFC 1951, 1952).
//!
//! A client that names this encoding may pack each message that it sends, and is sent packed ones, as by
//! SPIRE's library where that is told to. To all that stands between the two bodies here such a call is one
//! of plain messages: [`unpacked`] makes it so, [`Answers::packed`] packs what it is answered with.
//!
//! What unpacks to more than is allowed is refused when it gets there. What takes long is done in steps,
//! between which others have their turn. What gets long is unpacked for so many calls at once: its client
//! sent a thousandth of the memory that it takes, and could do so any number of times.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress};
use http::{HeaderName, HeaderValue};
use http_body::Frame;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tonic::Status;
use tonic::body::Body;

use crate::framed::{ENCODING, PREFIX, RECEIVE_LIMIT, named};

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// With messages as they are.
    Plain,
    /// With packed ones.
    Packed,
}

/// The call with its messages unpacked, if its client may have packed them, and how it is answered. None
/// may be longer than `limit` then.
#[must_use]
pub fn unpacked(mut request: http::Request<Body>, limit: usize) -> (http::Request<Body>, Answers) {
    if named(request.headers()).is_none_or(|name| name != GZIP) {
        return (request, Answers::Plain);
    }
    request.headers_mut().remove(ENCODING);
    let unpacked = |body| Unpacked {
        body,
        limit,
        held: BytesMut::new(),
        passed: 0,
        unpacking: None,
        waiting: None,
        place: None,
    };
    (request.map(|body| Body::new(unpacked(body))), Answers::Packed)
}

impl Answers {
    /// The answer as its client is sent it.
    #[must_use]
    pub fn packed(self, mut answer: http::Response<Body>) -> http::Response<Body> {
        // Where the status is among the headers there are no messages.
        if self == Self::Plain || answer.headers().contains_key(STATUS) {
            return answer;
        }
        answer.headers_mut().insert(ENCODING, HeaderValue::from_static(GZIP));
        answer.map(|body| {
            Body::new(Packed { body, data: Bytes::new(), prefix: BytesMut::new(), left: 0, packing: None })
        })
    }
}

/// The messages of a client, unpacked. What is wrong with them otherwise is left to who reads them.
struct Unpacked {
    body: Body,
    limit: usize,
    /// What came and was not looked at.
    held: BytesMut,
    /// What of it, and of that still to come, goes on as it is.
    passed: usize,
    unpacking: Option<Unpacking>,
    /// For what gets long: the wait for a place, and the place.
    waiting: Option<BoxFuture<Result<SemaphorePermit<'static>, AcquireError>>>,
    place: Option<SemaphorePermit<'static>>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Unpacked {
    /// What can be passed on of what came.
    fn plain(&mut self) -> Option<Bytes> {
        if self.passed == 0 {
            let (&[flag, ref size @ ..], _) = self.held.split_first_chunk::<PREFIX>()?;
            let size = u32::from_be_bytes(*size) as usize;
            if flag != PACKED || size > RECEIVE_LIMIT {
                self.passed = PREFIX + size;
            } else if self.held.len() >= PREFIX + size {
                let mut message = self.held.split_to(PREFIX + size);
                message.advance(PREFIX);
                self.unpacking = Some(Unpacking::new(message.freeze(), self.limit));
                return None;
            }
        }
        let length = self.passed.min(self.held.len());
        self.passed -= length;
        (length > 0).then(|| self.held.split_to(length).freeze())
    }

    /// Unpacks a message, step by step.
    fn poll_message(
        &mut self,
        unpacking: &mut Unpacking,
        task: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        if unpacking.message.len() > SHORT && self.place.is_none() {
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(PLACES.acquire()));
            let place = ready!(waiting.as_mut().poll(task));
            self.waiting = None;
            self.place = Some(place.map_err(|error| Status::internal(error.to_string()))?);
        }
        if unpacking.step()? {
            return Poll::Ready(Ok(()));
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// The beginning of a message or of its prefix. Behind it there is nothing, which its reader will find.
    fn rest(&mut self) -> Option<Bytes> {
        let mut rest = std::mem::take(&mut self.held);
        *rest.first_mut()? = 0;
        Some(rest.freeze())
    }
}

impl http_body::Body for Unpacked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(mut unpacking) = self.unpacking.take() {
                match self.poll_message(&mut unpacking, task) {
                    Poll::Pending => {
                        self.unpacking = Some(unpacking);
                        return Poll::Pending;
                    }
                    Poll::Ready(done) => {
                        self.place = None;
                        return Poll::Ready(Some(done.map(|()| Frame::data(unpacking.message()))));
                    }
                }
            }
            if let Some(plain) = self.plain() {
                return Poll::Ready(Some(Ok(Frame::data(plain))));
            }
            if self.unpacking.is_some() {
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(task)?).map(Frame::into_data) {
                Some(Ok(data)) => self.held.extend_from_slice(&data),
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => {
                    self.body = Body::empty();
                    return Poll::Ready(self.rest().map(|rest| Ok(Frame::data(rest))));
                }
            }
        }
    }
}

/// A message that is being unpacked. It may be of several members.
struct Unpacking {
    packed: Bytes,
    member: Option<Member>,
    /// The message, after room for what stands before it.
    message: Vec<u8>,
    limit: usize,
    is_begun: bool,
}

struct Member {
    content: Decompress,
    crc: Crc,
}

impl Unpacking {
    fn new(packed: Bytes, limit: usize) -> Self {
        Self { packed, member: None, message: vec![0; PREFIX], limit, is_begun: false }
    }

    /// Unpacks some of it, and says whether that was the last.
    fn step(&mut self) -> Result<bool, Status> {
        let mut member = match self.member.take() {
            Some(member) => member,
            None => {
                skip_header(&mut self.packed).map_err(|reason| {
                    let what = if self.is_begun { READING } else { "grpc: failed to decompress the message" };
                    Status::internal(format!("{what}: {reason}"))
                })?;
                self.is_begun = true;
                Member { content: Decompress::new(false), crc: Crc::new() }
            }
        };
        match self.unpack(&mut member) {
            Ok(true) => Ok(self.packed.is_empty()),
            Ok(false) if self.message.len() > PREFIX + self.limit => {
                let limit = self.limit;
                let text = format!("grpc: received message after decompression larger than max {limit}");
                Err(Status::resource_exhausted(text))
            }
            Ok(false) => {
                self.member = Some(member);
                Ok(false)
            }
            Err(reason) => Err(Status::internal(format!("{READING}: {reason}"))),
        }
    }

    /// Unpacks some of a member, and says whether that was the last and no more than is allowed.
    fn unpack(&mut self, member: &mut Member) -> Result<bool, &'static str> {
        let written = self.message.len();
        let room = PREFIX + self.limit + 1 - written;
        // What got long may get as long as is allowed: it is not moved again for that.
        let step = if written > SHORT { STEP_WRITTEN } else { written.max(FIRST_WRITTEN) }.min(room);
        if self.message.capacity() - written < step {
            self.message.reserve_exact(if written > SHORT { room } else { step });
        }
        self.message.resize(written + step, 0);
        let input = self.packed.get(..STEP_READ).unwrap_or(&self.packed);
        let output = self.message.get_mut(written..).unwrap_or_default();
        let before = (member.content.total_in(), member.content.total_out());
        let status = member.content.decompress(input, output, FlushDecompress::None);
        let status = status.map_err(|_| "flate: corrupt input")?;
        let done = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        let read = done(member.content.total_in(), before.0);
        self.message.truncate(written.saturating_add(done(member.content.total_out(), before.1)));
        self.packed.advance(read.min(self.packed.len()));
        let unpacked = self.message.get(written..).unwrap_or_default();
        member.crc.update(unpacked);
        if unpacked.len() >= room {
            return Ok(false);
        }
        if status == flate2::Status::StreamEnd {
            let (crc, length) = (self.packed.try_get_u32_le(), self.packed.try_get_u32_le());
            let (Ok(crc), Ok(length)) = (crc, length) else { return Err(CUT) };
            let is_whole = (crc, length) == (member.crc.sum(), member.crc.amount());
            return if is_whole { Ok(true) } else { Err("gzip: invalid checksum") };
        }
        if read == 0 && unpacked.is_empty() {
            return Err(CUT);
        }
        Ok(false)
    }

    fn message(mut self) -> Bytes {
        put_prefix(&mut self.message, 0);
        self.message.into()
    }
}

/// Takes the header of a member off the front: name, comment and what else is in there is of no use here.
fn skip_header(packed: &mut Bytes) -> Result<(), &'static str> {
    let whole = packed.clone();
    let Some((&[id1, id2, method, flags, ..], rest)) = whole.split_first_chunk::<FIXED>() else {
        return Err(if whole.is_empty() { "EOF" } else { CUT });
    };
    // Reserved flags are refused, which the standard wants and SPIRE's library does not.
    if (id1, id2, method) != (0x1f, 0x8b, DEFLATE) || flags & RESERVED != 0 {
        return Err(HEADER);
    }
    let mut rest = rest;
    if flags & FLAG_EXTRA != 0 {
        let length = rest.try_get_u16_le().map_err(|_| CUT)?;
        rest = rest.get(usize::from(length)..).ok_or(CUT)?;
    }
    for flag in [FLAG_NAME, FLAG_COMMENT] {
        if flags & flag != 0 {
            let (text, behind) = rest.split_at(rest.iter().position(|byte| *byte == 0).ok_or(CUT)?);
            if text.len() >= LONGEST_TEXT {
                return Err(HEADER);
            }
            rest = behind.get(1..).unwrap_or_default();
        }
    }
    let header = whole.len() - rest.len();
    packed.advance(header);
    if flags & FLAG_CRC != 0 {
        let mut crc = Crc::new();
        crc.update(whole.get(..header).unwrap_or_default());
        let told = packed.try_get_u16_le().map_err(|_| CUT)?;
        if u32::from(told) != crc.sum() & 0xffff {
            return Err(HEADER);
        }
    }
    Ok(())
}

/// The messages of an answer, packed.
struct Packed {
    body: Body,
    /// What is to be packed next.
    data: Bytes,
    /// The beginning of what stands before a message.
    prefix: BytesMut,
    /// What is still to come of a message.
    left: usize,
    packing: Option<Packing>,
}

impl Packed {
    /// Packs some of what is there.
    fn step(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(packing) = &mut self.packing {
            let some = self.data.split_to(self.data.len().min(self.left).min(STEP_PACKED));
            self.left -= some.len();
            packing.add(&some)?;
            if self.left > 0 {
                return Ok(None);
            }
            return self.packing.take().map(Packing::message).transpose();
        }
        let some = self.data.len().min(PREFIX - self.prefix.len());
        self.prefix.extend_from_slice(&self.data.split_to(some));
        let Some((&[_, ref size @ ..], _)) = self.prefix.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        self.left = u32::from_be_bytes(*size) as usize;
        let prefix = self.prefix.split().freeze();
        if self.left == 0 {
            return Ok(Some(prefix));
        }
        self.packing = Some(Packing::new());
        Ok(None)
    }
}

impl http_body::Body for Packed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut steps = 0;
        loop {
            while !self.data.is_empty() {
                if steps == STEPS {
                    task.waker().wake_by_ref();
                    return Poll::Pending;
                }
                steps += 1;
                if let Some(message) = self.step()? {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(task)?).map(Frame::into_data) {
                Some(Ok(data)) => self.data = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.body.is_end_stream()
    }
}

/// A message that is being packed.
struct Packing {
    content: Compress,
    crc: Crc,
    /// The packed message, after room for what stands before it.
    message: Vec<u8>,
}

impl Packing {
    fn new() -> Self {
        let mut message = vec![0; PREFIX];
        message.extend_from_slice(&[0x1f, 0x8b, DEFLATE, 0, 0, 0, 0, 0, 0, UNKNOWN_SYSTEM]);
        Self { content: Compress::new(Compression::fast(), false), crc: Crc::new(), message }
    }

    fn add(&mut self, some: &[u8]) -> Result<(), Status> {
        self.crc.update(some);
        self.pack(some, FlushCompress::None)
    }

    fn message(mut self) -> Result<Bytes, Status> {
        self.pack(&[], FlushCompress::Finish)?;
        self.message.extend_from_slice(&self.crc.sum().to_le_bytes());
        self.message.extend_from_slice(&self.crc.amount().to_le_bytes());
        put_prefix(&mut self.message, PACKED);
        Ok(self.message.into())
    }

    fn pack(&mut self, mut rest: &[u8], flush: FlushCompress) -> Result<(), Status> {
        loop {
            self.message.reserve(rest.len() / 2 + 256);
            let before = self.content.total_in();
            let status = self.content.compress_vec(rest, &mut self.message, flush);
            let status =
                status.map_err(|error| Status::internal(format!("cannot pack a message: {error}")))?;
            let taken = usize::try_from(self.content.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(taken..).unwrap_or_default();
            let is_last = matches!(flush, FlushCompress::Finish);
            let is_done = if is_last { status == flate2::Status::StreamEnd } else { rest.is_empty() };
            if is_done {
                return Ok(());
            }
        }
    }
}

/// Fills in what stands before a message. It is no longer than messages can be.
fn put_prefix(message: &mut [u8], flag: u8) {
    let length = u32::try_from(message.len() - PREFIX).unwrap_or(u32::MAX);
    if let Some(prefix) = message.first_chunk_mut::<PREFIX>() {
        let [first, size @ ..] = prefix;
        (*first, *size) = (flag, length.to_be_bytes());
    }
}

/// Where long messages are unpacked.
static PLACES: Semaphore = Semaphore::const_new(8);

/// What is no longer than this needs no place. More is seldom sent.
pub const SHORT: usize = 64 << 10;

const GZIP: &str = "gzip";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Stands before a packed message.
const PACKED: u8 = 1;

// Of a member's header (RFC 1952, 2.3).
const FIXED: usize = 10;
const DEFLATE: u8 = 8;
const UNKNOWN_SYSTEM: u8 = 0xff;
const FLAG_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;
/// As in SPIRE's library.
const LONGEST_TEXT: usize = 512;

// What is wrong with a packed message, in the words of SPIRE's library.
const READING: &str = "grpc: failed to read decompressed data";
const HEADER: &str = "gzip: invalid header";
const CUT: &str = "unexpected EOF";

/// What one step reads and writes at most: some milliseconds of work, whatever was sent.
const STEP_READ: usize = 16 << 10;
const STEP_WRITTEN: usize = 128 << 10;
const FIRST_WRITTEN: usize = 4 << 10;
const STEP_PACKED: usize = 16 << 10;
/// So many steps are taken at once where messages are packed, which cost the same each.
const STEPS: usize = 16;
