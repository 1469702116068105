//! Tokens of HCL to a tree.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever token is not asked for is refused")]

use super::error::HclError;
use super::scan::Scanner;
use super::token::{Kind, Token};
use super::tree::{Body, Item, Key, Literal, Node};
use super::{MAX_DEPTH, too_deep};

/// Parses HCL.
///
/// The scanner reads on after what it cannot read, and its last complaint wins over what the parser
/// says: error places are those of the format's reference library.
pub(super) fn parse(source: &[u8]) -> Result<Body, HclError> {
    let source = without_carriage_returns(source);
    let mut parser = Parser::new(&source);
    let parsed = match parser.items(Within::File, 0) {
        Ok(body) => Ok(body),
        Err(Stop::Broken(error)) => Err(error),
        Err(Stop::End) => Err(HclError::bare("EOF token found")),
    };
    if let Some(fault) = parser.scanner.take_fault() {
        return Err(fault);
    }
    let body = parsed?;
    match parser.unreadable {
        Some(error) => Err(error),
        None => Ok(body),
    }
}

/// Line ends of two bytes count as one.
fn without_carriage_returns(source: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(source.len());
    let mut bytes = source.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'\r' || bytes.peek() != Some(&b'\n') {
            out.push(byte);
        }
    }
    out
}

/// What the items stand in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    File,
    Braces,
}

/// Why parsing stopped.
enum Stop {
    /// The text ended where something could start. At the end of a file that is fine.
    End,
    /// The text is wrong.
    Broken(HclError),
}

impl From<HclError> for Stop {
    fn from(error: HclError) -> Self {
        Self::Broken(error)
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    /// The token read last, or the one to be read again.
    token: Token,
    again: bool,
    /// The first string that could not be unquoted. Whatever else is wrong is reported before it.
    unreadable: Option<HclError>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a [u8]) -> Self {
        let nowhere = super::Position { line: 0, column: 0 };
        let token = Token { kind: Kind::Illegal, at: nowhere, text: String::new() };
        Self { scanner: Scanner::new(source), token, again: false, unreadable: None }
    }

    fn items(&mut self, within: Within, depth: usize) -> Result<Body, Stop> {
        let mut body = Body::default();
        loop {
            if within == Within::Braces && self.peek() == Kind::ObjectEnd {
                return Ok(body);
            }
            match self.item(depth) {
                Ok(item) => body.items.push(item),
                Err(Stop::End) => return Ok(body),
                Err(stop) => return Err(stop),
            }
            if self.scan() != Kind::Comma {
                self.again = true;
            }
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, Stop> {
        let (keys, stop) = self.keys();
        match stop {
            None => {}
            // A key without a value: the error below says so.
            Some(Stop::End) if !keys.is_empty() => {}
            Some(_) if !keys.is_empty() && self.token.kind == Kind::ObjectEnd => self.token.kind = Kind::End,
            Some(stop) => return Err(stop),
        }
        let (assigned, value) = match self.token.kind {
            Kind::Assign => (true, self.value(depth)?),
            Kind::ObjectStart => (false, self.object(depth)?),
            _ => {
                let written: Vec<&str> = keys.iter().map(|key| key.text.as_str()).collect();
                let text = format!(
                    "key '{}' expected start of object ('{{') or assignment ('=')",
                    written.join(" ")
                );
                return Err(self.broken(text));
            }
        };
        let keys = keys.into_iter().map(|key| self.note(Key::from_hcl(key))).collect();
        // The reference library looks ahead for a comment here, and finds errors by that.
        self.peek();
        Ok(Item { keys, assigned, value })
    }

    /// Reads keys up to what follows them; gives those read before anything went wrong too.
    fn keys(&mut self) -> (Vec<Token>, Option<Stop>) {
        let mut keys = Vec::new();
        loop {
            let kind = self.scan();
            match kind {
                Kind::Word | Kind::Text => keys.push(self.token.clone()),
                Kind::End => return (keys, Some(Stop::End)),
                Kind::Assign => match keys.len() {
                    0 => return (keys, Some(self.broken("no object keys found!"))),
                    1 => return (keys, None),
                    _ => {
                        let stop = self.broken("nested object expected: LBRACE got: ASSIGN");
                        return (Vec::new(), Some(stop));
                    }
                },
                Kind::ObjectStart if keys.is_empty() => {
                    return (keys, Some(self.broken("expected: IDENT | STRING got: LBRACE")));
                }
                Kind::ObjectStart => return (keys, None),
                Kind::Illegal => return (keys, Some(self.broken("illegal character"))),
                _ => {
                    let text = format!("expected: IDENT | STRING | ASSIGN | LBRACE got: {kind}");
                    return (keys, Some(self.broken(text)));
                }
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, Stop> {
        match self.scan() {
            Kind::Number | Kind::Float | Kind::Bool | Kind::Text | Kind::Heredoc => Ok(self.literal()),
            Kind::ObjectStart => self.object(depth),
            Kind::ListStart => self.list(depth),
            Kind::End => Err(Stop::End),
            _ => {
                let text = format!("Unknown token: {}", self.token);
                Err(self.broken(text))
            }
        }
    }

    fn literal(&mut self) -> Node {
        let literal = Literal::from_hcl(self.token.clone());
        Node::Literal(self.note(literal))
    }

    fn note<T>(&mut self, (read, error): (T, Option<HclError>)) -> T {
        self.unreadable = self.unreadable.take().or(error);
        read
    }

    /// Reads an object after its brace.
    fn object(&mut self, depth: usize) -> Result<Node, Stop> {
        let at = Some(self.token.at);
        if depth >= MAX_DEPTH {
            return Err(too_deep(at).into());
        }
        let body = self.items(Within::Braces, depth + 1)?;
        match self.scan() {
            Kind::ObjectEnd => Ok(Node::Object { at, body }),
            kind => Err(self.broken(format!("object expected closing RBRACE got: {kind}"))),
        }
    }

    /// Reads a list after its bracket.
    fn list(&mut self, depth: usize) -> Result<Node, Stop> {
        let at = Some(self.token.at);
        if depth >= MAX_DEPTH {
            return Err(too_deep(at).into());
        }
        let mut nodes = Vec::new();
        let mut needs_comma = false;
        loop {
            let kind = self.scan();
            if needs_comma && !matches!(kind, Kind::Comma | Kind::ListEnd) {
                let text = format!("error parsing list, expected comma or list end, got: {kind}");
                return Err(self.broken(text));
            }
            let start = self.token.at;
            match kind {
                Kind::Bool | Kind::Number | Kind::Float | Kind::Text | Kind::Heredoc => {
                    nodes.push(self.literal());
                    needs_comma = true;
                }
                Kind::Comma => {
                    self.peek();
                    needs_comma = false;
                }
                Kind::ObjectStart => {
                    let node = self.object(depth + 1).map_err(|stop| within_list(start, "object", stop))?;
                    nodes.push(node);
                    needs_comma = true;
                }
                // No comma is asked for between lists.
                Kind::ListStart => {
                    let node = self.list(depth + 1).map_err(|stop| within_list(start, "list", stop))?;
                    nodes.push(node);
                }
                Kind::ListEnd => return Ok(Node::List { at, nodes }),
                _ => return Err(self.broken(format!("unexpected token while parsing list: {kind}"))),
            }
        }
    }

    /// The next token that is no comment.
    fn scan(&mut self) -> Kind {
        if self.again {
            self.again = false;
        } else {
            self.token = self.scanner.token();
            while self.token.kind == Kind::Comment {
                self.token = self.scanner.token();
            }
        }
        self.token.kind
    }

    fn peek(&mut self) -> Kind {
        let kind = self.scan();
        self.again = true;
        kind
    }

    fn broken(&self, text: impl std::fmt::Display) -> Stop {
        Stop::Broken(HclError::at(Some(self.token.at), text))
    }
}

fn within_list(start: super::Position, what: &str, stop: Stop) -> Stop {
    let inner = match stop {
        Stop::Broken(error) => error.to_string(),
        Stop::End => "EOF token found".to_owned(),
    };
    HclError::at(Some(start), format_args!("error while trying to parse {what} within list: {inner}")).into()
}
