//! JSON to the same tree.
//!
//! The reader is that of the format's reference library, not of RFC 8259: it stops after the first
//! object whatever follows, forgives a missing end and a trailing comma, and does not see truth values
//! or inner lists in lists. Objects of objects and lists of objects count as blocks with labels.
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever token is not asked for is refused")]

use super::cursor::{Cursor, END, Syntax, is_digit, is_letter};
use super::error::HclError;
use super::token::{Kind, Token};
use super::tree::{Body, Item, Key, Literal, Node};
use super::{MAX_DEPTH, too_deep};

/// Parses JSON.
pub(super) fn parse(source: &[u8]) -> Result<Body, HclError> {
    let mut parser = Parser { cursor: Cursor::new(source, Syntax::Json), token: None, unreadable: None };
    let parsed = parser.file();
    if let Some(fault) = parser.cursor.take_fault() {
        return Err(fault);
    }
    let mut body = match parsed {
        Ok(body) => body,
        Err(Stop::Broken(error)) => return Err(error),
        Err(Stop::End) => return Err(HclError::bare("EOF token found")),
    };
    if let Some(error) = parser.unreadable {
        return Err(error);
    }
    flatten(&mut body);
    Ok(body)
}

enum Stop {
    End,
    Broken(HclError),
}

impl From<HclError> for Stop {
    fn from(error: HclError) -> Self {
        Self::Broken(error)
    }
}

fn broken(text: impl Into<String>) -> Stop {
    Stop::Broken(HclError::bare(text))
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    token: Option<Token>,
    /// The first string that could not be unquoted. Whatever else is wrong is reported before it.
    unreadable: Option<HclError>,
}

impl Parser<'_> {
    fn file(&mut self) -> Result<Body, Stop> {
        let token = self.scan();
        match token.kind {
            Kind::ObjectStart => self.object(0),
            Kind::End => Err(Stop::End),
            _ => Err(broken(format!("Expected object, got unknown token: {token}"))),
        }
    }

    /// Reads an object after its brace, up to whatever token follows its items.
    fn object(&mut self, depth: usize) -> Result<Body, Stop> {
        if depth >= MAX_DEPTH {
            return Err(too_deep(None).into());
        }
        let mut body = Body::default();
        loop {
            match self.item(depth) {
                Ok(item) => body.items.push(item),
                Err(Stop::End) => return Ok(body),
                Err(stop) => {
                    let closed = self.token.as_ref().is_some_and(|token| token.kind == Kind::ObjectEnd);
                    return if closed { Ok(body) } else { Err(stop) };
                }
            }
            if self.scan().kind != Kind::Comma {
                return Ok(body);
            }
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item, Stop> {
        let mut keys = Vec::new();
        loop {
            let token = self.scan();
            match token.kind {
                Kind::Text => {
                    let key = self.note(Key::from_json(token));
                    keys.push(key);
                }
                Kind::Colon if !keys.is_empty() => break,
                Kind::End => return Err(Stop::End),
                Kind::Illegal => return Err(broken("illegal")),
                kind => return Err(broken(format!("expected: STRING got: {kind}"))),
            }
        }
        Ok(Item { keys, assigned: true, value: self.value(depth)? })
    }

    fn value(&mut self, depth: usize) -> Result<Node, Stop> {
        let token = self.scan();
        match token.kind {
            Kind::Number | Kind::Float | Kind::Bool | Kind::Null | Kind::Text => Ok(self.literal(token)),
            Kind::ObjectStart => Ok(Node::Object { at: None, body: self.object(depth + 1)? }),
            Kind::ListStart => self.list(depth + 1),
            Kind::End => Err(Stop::End),
            _ => Err(broken(format!("Expected object value, got unknown token: {token}"))),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Node, Stop> {
        let mut nodes = Vec::new();
        loop {
            let token = self.scan();
            match token.kind {
                Kind::Number | Kind::Float | Kind::Text => nodes.push(self.literal(token)),
                // Truth values and the starts of inner lists are passed over.
                Kind::Comma | Kind::Bool | Kind::ListStart => {}
                Kind::ObjectStart => nodes.push(Node::Object { at: None, body: self.object(depth + 1)? }),
                Kind::ListEnd => return Ok(Node::List { at: None, nodes }),
                kind => return Err(broken(format!("unexpected token while parsing list: {kind}"))),
            }
        }
    }

    fn literal(&mut self, token: Token) -> Node {
        Node::Literal(self.note(Literal::from_json(token)))
    }

    fn note<T>(&mut self, (read, error): (T, Option<HclError>)) -> T {
        self.unreadable = self.unreadable.take().or(error);
        read
    }

    fn scan(&mut self) -> Token {
        let token = token(&mut self.cursor);
        self.token = Some(token.clone());
        token
    }
}

fn token(cursor: &mut Cursor<'_>) -> Token {
    let mut character = cursor.next();
    while matches!(character, ' ' | '\t' | '\n' | '\r') {
        character = cursor.next();
    }
    let start = cursor.last_offset();
    let at = cursor.place();
    let kind = match character {
        _ if is_letter(character) => word(cursor, start),
        '0'..='9' => number(cursor, character),
        END => Kind::End,
        '"' => {
            string(cursor);
            Kind::Text
        }
        '.' => point(cursor),
        '[' => Kind::ListStart,
        ']' => Kind::ListEnd,
        '{' => Kind::ObjectStart,
        '}' => Kind::ObjectEnd,
        ',' => Kind::Comma,
        ':' => Kind::Colon,
        '-' if cursor.peek().is_ascii_digit() => {
            let first = cursor.next();
            number(cursor, first)
        }
        '-' => {
            cursor.fail("illegal char");
            Kind::Illegal
        }
        _ => {
            cursor.fail(&format!("illegal char: {character}"));
            Kind::Illegal
        }
    };
    let text = String::from_utf8_lossy(cursor.slice(start, cursor.offset())).into_owned();
    Token { kind, at, text }
}

fn word(cursor: &mut Cursor<'_>, start: usize) -> Kind {
    let mut character = cursor.next();
    while is_letter(character) || is_digit(character) || character == '-' {
        character = cursor.next();
    }
    if character != END {
        cursor.step_back();
    }
    match cursor.slice(start, cursor.offset()) {
        b"true" | b"false" => Kind::Bool,
        b"null" => Kind::Null,
        _ => {
            cursor.fail("illegal char");
            Kind::Illegal
        }
    }
}

fn number(cursor: &mut Cursor<'_>, first: char) -> Kind {
    let start = cursor.offset();
    cursor.digits(first);
    let character = cursor.next();
    match character {
        'e' | 'E' => {
            cursor.exponent(character);
            return Kind::Float;
        }
        '.' => {
            cursor.fraction_and_exponent();
            return Kind::Float;
        }
        END => {}
        _ => cursor.step_back(),
    }
    // Nor can they end the text, which is the reference library's own oddity.
    if first == '0' && (cursor.offset() != start || character == END) {
        cursor.fail("numbers cannot start with 0");
    }
    Kind::Number
}

fn point(cursor: &mut Cursor<'_>) -> Kind {
    let first = cursor.peek();
    if !first.is_ascii_digit() {
        return Kind::Point;
    }
    let letter = cursor.digits(first);
    cursor.exponent(letter);
    Kind::Float
}

/// Reads a string after its opening quote. A template has no quotes of its own here.
fn string(cursor: &mut Cursor<'_>) {
    loop {
        match cursor.next() {
            '\n' | END => {
                cursor.fail("literal not terminated");
                return;
            }
            '"' => return,
            // The brace of a template is passed over, which matters for no text but an unfinished one.
            '$' if cursor.peek() == '{' => {
                cursor.next();
            }
            '\\' => cursor.escape(),
            _ => {}
        }
    }
}

/// Makes blocks with labels of objects that hold nothing but objects, and repeated blocks of lists of
/// objects, from the outside in.
fn flatten(body: &mut Body) {
    let items = std::mem::take(&mut body.items);
    for item in items {
        spread(item, &mut body.items);
    }
    for item in &mut body.items {
        flatten_node(&mut item.value);
    }
}

fn flatten_node(node: &mut Node) {
    match node {
        Node::Object { body, .. } => flatten(body),
        Node::List { nodes, .. } => nodes.iter_mut().for_each(flatten_node),
        Node::Literal(_) => {}
    }
}

fn spread(item: Item, out: &mut Vec<Item>) {
    match item.value {
        Node::Object { body, .. }
            if !body.items.is_empty()
                && body.items.iter().all(|inner| matches!(inner.value, Node::Object { .. })) =>
        {
            for inner in body.items {
                let keys = item.keys.iter().cloned().chain(inner.keys).collect();
                spread(Item { keys, assigned: item.assigned, value: inner.value }, out);
            }
        }
        Node::List { nodes, .. }
            if !nodes.is_empty() && nodes.iter().all(|node| matches!(node, Node::Object { .. })) =>
        {
            for value in nodes {
                spread(Item { keys: item.keys.clone(), assigned: item.assigned, value }, out);
            }
        }
        value => out.push(Item { value, ..item }),
    }
}
