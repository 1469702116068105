//! `agent_path_template`: the part of Go's templates that agent paths are written with.
//!
//! Text with `{{ .. }}` actions: fields (`.Subject.CommonName`), string and integer literals, function
//! calls, parentheses, pipelines, trim markers and comments. A field that does not exist is an error,
//! as is anything that is not understood: an agent must not get a path that nobody meant. Control
//! structures and variables are not there.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::vec::IntoIter;

/// The most characters of a path that are made.
const MAX_PATH: usize = 2048;

/// What a template is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(usize),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Number(number) => *number == 0,
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
        }
    }

    fn print(&self) -> Result<String, TemplateError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Number(number) => Ok(number.to_string()),
            Self::List(_) | Self::Map(_) => Err(TemplateError::NotText),
        }
    }

    fn number(&self) -> Result<usize, TemplateError> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(_) | Self::List(_) | Self::Map(_) => Err(TemplateError::NotNumber),
        }
    }
}

/// Why a template is refused, or gives no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("unclosed action")]
    Unclosed,
    #[error("unexpected {0:?} in action")]
    Unexpected(String),
    #[error("function {0:?} not defined")]
    NoFunction(String),
    #[error("wrong number of arguments for {0:?}")]
    Arguments(String),
    #[error("no entry for key {0:?}")]
    NoField(String),
    #[error("a list or map is no text")]
    NotText,
    #[error("a number is expected")]
    NotNumber,
    #[error("index out of range")]
    OutOfRange,
    #[error("the result is too long")]
    TooLong,
}

/// A template that was understood.
#[derive(Clone, Debug)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Action(Expression),
}

#[derive(Clone, Debug)]
enum Expression {
    Literal(Value),
    Field(Vec<String>),
    Call(Function, Vec<Self>),
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        let mut trim_next = false;
        loop {
            let (before, action) = match rest.split_once("{{") {
                Some((before, action)) => (before, Some(action)),
                None => (rest, None),
            };
            let before = if trim_next { before.trim_start() } else { before };
            let trims_before = action.is_some_and(|action| action.starts_with("- "));
            let before = if trims_before { before.trim_end() } else { before };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let Some(action) = action else { return Ok(Self(pieces)) };
            let action = if trims_before { action.get(1..).unwrap_or_default() } else { action };
            let (inside, after) = split_action(action)?;
            trim_next = inside.ends_with(" -");
            let inside = inside.strip_suffix(" -").unwrap_or(inside).trim();
            let is_comment = inside.starts_with("/*") && inside.ends_with("*/");
            if !is_comment {
                let mut tokens = tokens(inside)?.into_iter().peekable();
                pieces.push(Piece::Action(pipeline(&mut tokens)?));
                if let Some(token) = tokens.next() {
                    return Err(TemplateError::Unexpected(token.to_string()));
                }
            }
            rest = after;
        }
    }

    /// Fills the template.
    pub(crate) fn fill(&self, data: &BTreeMap<String, Value>) -> Result<String, TemplateError> {
        let mut path = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Action(expression) => path.push_str(&expression.value(data)?.print()?),
            }
            if path.len() > MAX_PATH {
                return Err(TemplateError::TooLong);
            }
        }
        Ok(path)
    }
}

impl Expression {
    fn value(&self, data: &BTreeMap<String, Value>) -> Result<Value, TemplateError> {
        match self {
            Self::Literal(value) => Ok(value.clone()),
            Self::Field(names) => {
                let missing = |name: &str| TemplateError::NoField(name.to_owned());
                let (first, rest) = names.split_first().ok_or_else(|| missing("."))?;
                let mut value = data.get(first).ok_or_else(|| missing(first))?;
                for name in rest {
                    let Value::Map(map) = value else { return Err(missing(name)) };
                    value = map.get(name).ok_or_else(|| missing(name))?;
                }
                Ok(value.clone())
            }
            Self::Call(function, arguments) => {
                let values: Result<Vec<_>, _> =
                    arguments.iter().map(|argument| argument.value(data)).collect();
                function.call(&values?)
            }
        }
    }
}

/// The functions that there are: those of SPIRE's list that make sense in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Lower,
    Upper,
    Trim,
    TrimAll,
    TrimPrefix,
    TrimSuffix,
    Nospace,
    Trunc,
    Substr,
    Replace,
    Cat,
    Join,
    SplitList,
    First,
    Last,
    Index,
    Default,
    Sha1sum,
    Sha256sum,
    ToString,
}

const FUNCTIONS: [(&str, Function, usize, usize); 20] = [
    ("lower", Function::Lower, 1, 1),
    ("upper", Function::Upper, 1, 1),
    ("trim", Function::Trim, 1, 1),
    ("trimAll", Function::TrimAll, 2, 2),
    ("trimPrefix", Function::TrimPrefix, 2, 2),
    ("trimSuffix", Function::TrimSuffix, 2, 2),
    ("nospace", Function::Nospace, 1, 1),
    ("trunc", Function::Trunc, 2, 2),
    ("substr", Function::Substr, 3, 3),
    ("replace", Function::Replace, 3, 3),
    ("cat", Function::Cat, 1, 16),
    ("join", Function::Join, 2, 2),
    ("splitList", Function::SplitList, 2, 2),
    ("first", Function::First, 1, 1),
    ("last", Function::Last, 1, 1),
    ("index", Function::Index, 2, 2),
    ("default", Function::Default, 2, 2),
    ("sha1sum", Function::Sha1sum, 1, 1),
    ("sha256sum", Function::Sha256sum, 1, 1),
    ("toString", Function::ToString, 1, 1),
];

impl Function {
    fn call(self, arguments: &[Value]) -> Result<Value, TemplateError> {
        let argument = |at: usize| arguments.get(at).ok_or(TemplateError::OutOfRange);
        let text = |at: usize| argument(at)?.print();
        let list = |at: usize| match argument(at)? {
            Value::List(list) => Ok(list),
            Value::Text(_) | Value::Number(_) | Value::Map(_) => Err(TemplateError::NotText),
        };
        Ok(match self {
            Self::Lower => Value::text(text(0)?.to_lowercase()),
            Self::Upper => Value::text(text(0)?.to_uppercase()),
            Self::Trim => Value::text(text(0)?.trim()),
            Self::TrimAll => {
                let cut = text(0)?;
                Value::text(text(1)?.trim_matches(|c| cut.contains(c)))
            }
            Self::TrimPrefix => {
                let (prefix, whole) = (text(0)?, text(1)?);
                Value::text(whole.strip_prefix(&prefix).unwrap_or(&whole))
            }
            Self::TrimSuffix => {
                let (suffix, whole) = (text(0)?, text(1)?);
                Value::text(whole.strip_suffix(&suffix).unwrap_or(&whole))
            }
            Self::Nospace => Value::text(text(0)?.split_whitespace().collect::<String>()),
            Self::Trunc => Value::text(text(1)?.chars().take(argument(0)?.number()?).collect::<String>()),
            Self::Substr => {
                let (start, end) = (argument(0)?.number()?, argument(1)?.number()?);
                let length = end.checked_sub(start).ok_or(TemplateError::OutOfRange)?;
                Value::text(text(2)?.chars().skip(start).take(length).collect::<String>())
            }
            Self::Replace => Value::text(text(2)?.replace(&text(0)?, &text(1)?)),
            Self::Cat => {
                let texts: Result<Vec<_>, _> = arguments.iter().map(Value::print).collect();
                Value::text(texts?.join(" "))
            }
            Self::Join => {
                let texts: Result<Vec<_>, _> = list(1)?.iter().map(Value::print).collect();
                Value::text(texts?.join(&text(0)?))
            }
            Self::SplitList => Value::List(text(1)?.split(&text(0)?).map(Value::text).collect()),
            Self::First => list(0)?.first().cloned().ok_or(TemplateError::OutOfRange)?,
            Self::Last => list(0)?.last().cloned().ok_or(TemplateError::OutOfRange)?,
            Self::Index => match argument(0)? {
                Value::List(list) => {
                    list.get(argument(1)?.number()?).cloned().ok_or(TemplateError::OutOfRange)?
                }
                Value::Map(map) => {
                    let name = text(1)?;
                    map.get(&name).cloned().ok_or(TemplateError::NoField(name))?
                }
                Value::Text(_) | Value::Number(_) => return Err(TemplateError::NotText),
            },
            Self::Default => {
                let value = argument(1)?;
                if value.is_empty() { argument(0)?.clone() } else { value.clone() }
            }
            Self::Sha1sum => {
                let digest = aws_lc_rs::digest::digest(
                    &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
                    text(0)?.as_bytes(),
                );
                Value::text(super::hex(digest.as_ref()))
            }
            Self::Sha256sum => {
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text(0)?.as_bytes());
                Value::text(super::hex(digest.as_ref()))
            }
            Self::ToString => Value::text(text(0)?),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Field(Vec<String>),
    Text(String),
    Number(usize),
    Pipe,
    Open,
    Close,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) | Self::Text(word) => f.write_str(word),
            Self::Field(names) => write!(f, ".{}", names.join(".")),
            Self::Number(number) => write!(f, "{number}"),
            Self::Pipe => f.write_str("|"),
            Self::Open => f.write_str("("),
            Self::Close => f.write_str(")"),
        }
    }
}

/// The inside of an action and what follows its end; a `}}` in a literal does not end it.
fn split_action(text: &str) -> Result<(&str, &str), TemplateError> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None => {
                if let Some(after) = text.get(at..).and_then(|rest| rest.strip_prefix("}}")) {
                    return Ok((text.get(..at).unwrap_or_default(), after));
                }
            }
        }
    }
    Err(TemplateError::Unclosed)
}

fn tokens(text: &str) -> Result<Vec<Token>, TemplateError> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            '|' | '(' | ')' => {
                chars.next();
                tokens.push(match c {
                    '|' => Token::Pipe,
                    '(' => Token::Open,
                    _ => Token::Close,
                });
            }
            '"' | '`' => {
                chars.next();
                tokens.push(Token::Text(literal(&mut chars, c)?));
            }
            c if c.is_whitespace() => {
                chars.next();
            }
            c if c.is_ascii_digit() => {
                let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
                let number = digits.parse().map_err(|_| TemplateError::Unexpected(digits.clone()))?;
                tokens.push(Token::Number(number));
            }
            '.' => {
                let mut names = Vec::new();
                while chars.next_if_eq(&'.').is_some() {
                    let name: String = std::iter::from_fn(|| chars.next_if(|c| is_word(*c))).collect();
                    if name.is_empty() {
                        return Err(TemplateError::Unexpected(".".to_owned()));
                    }
                    names.push(name);
                }
                tokens.push(Token::Field(names));
            }
            c if is_word(c) => {
                tokens.push(Token::Word(std::iter::from_fn(|| chars.next_if(|c| is_word(*c))).collect()));
            }
            c => return Err(TemplateError::Unexpected(c.to_string())),
        }
    }
    Ok(tokens)
}

fn literal(chars: &mut Peekable<std::str::Chars<'_>>, quote: char) -> Result<String, TemplateError> {
    let mut text = String::new();
    loop {
        match chars.next().ok_or(TemplateError::Unclosed)? {
            c if c == quote => return Ok(text),
            '\\' if quote == '"' => match chars.next().ok_or(TemplateError::Unclosed)? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                c @ ('"' | '\\') => text.push(c),
                c => return Err(TemplateError::Unexpected(format!("\\{c}"))),
            },
            c => text.push(c),
        }
    }
}

/// Commands joined by `|`: each gives the next its last argument.
fn pipeline(tokens: &mut Peekable<IntoIter<Token>>) -> Result<Expression, TemplateError> {
    let mut value = command(tokens, None)?;
    while tokens.next_if_eq(&Token::Pipe).is_some() {
        value = command(tokens, Some(value))?;
    }
    Ok(value)
}

fn command(
    tokens: &mut Peekable<IntoIter<Token>>,
    piped: Option<Expression>,
) -> Result<Expression, TemplateError> {
    let name = match tokens.next() {
        Some(Token::Word(name)) => name,
        Some(token) if piped.is_none() => return operand(token, tokens),
        token => return Err(TemplateError::Unexpected(token.map_or_else(String::new, |t| t.to_string()))),
    };
    let mut arguments = Vec::new();
    while let Some(token) = tokens.next_if(|token| !matches!(token, Token::Pipe | Token::Close)) {
        arguments.push(operand(token, tokens)?);
    }
    arguments.extend(piped);
    let known = FUNCTIONS.iter().find(|(known, ..)| *known == name);
    let Some((_, function, least, most)) = known else { return Err(TemplateError::NoFunction(name)) };
    if arguments.len() < *least || arguments.len() > *most {
        return Err(TemplateError::Arguments(name));
    }
    Ok(Expression::Call(*function, arguments))
}

fn operand(token: Token, tokens: &mut Peekable<IntoIter<Token>>) -> Result<Expression, TemplateError> {
    match token {
        Token::Text(text) => Ok(Expression::Literal(Value::Text(text))),
        Token::Number(number) => Ok(Expression::Literal(Value::Number(number))),
        Token::Field(names) => Ok(Expression::Field(names)),
        Token::Open => {
            let value = pipeline(tokens)?;
            match tokens.next() {
                Some(Token::Close) => Ok(value),
                _ => Err(TemplateError::Unclosed),
            }
        }
        Token::Word(_) | Token::Pipe | Token::Close => Err(TemplateError::Unexpected(token.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> Result<String, TemplateError> {
        let subject = BTreeMap::from([
            ("CommonName".to_owned(), Value::text("Web-1")),
            ("Organization".to_owned(), Value::List(vec![Value::text("a"), Value::text("b")])),
        ]);
        let data = BTreeMap::from([
            ("PluginName".to_owned(), Value::text("x509pop")),
            ("Subject".to_owned(), Value::Map(subject)),
            ("Empty".to_owned(), Value::text("")),
        ]);
        Template::parse(template)?.fill(&data)
    }

    fn ok(template: &str, path: &str) {
        assert_eq!(fill(template).as_deref(), Ok(path), "{template}");
    }

    #[test]
    fn templates_are_filled() {
        ok("/{{ .PluginName }}/{{.Subject.CommonName}}", "/x509pop/Web-1");
        ok("/{{ .Subject.CommonName | lower | trimPrefix \"web-\" }}", "/1");
        ok("/{{ lower (trimSuffix \"-1\" .Subject.CommonName) }}", "/web");
        ok("/{{ index .Subject.Organization 1 }}/{{ join \"-\" .Subject.Organization }}", "/b/a-b");
        ok("/{{ .Empty | default `none` }}", "/none");
        ok("/a {{- /* gone */ -}} /b", "/a/b");
        ok("/{{ \"}}\" }}", "/}}");
        ok("/{{ trunc 3 .Subject.CommonName }}{{ substr 1 2 .PluginName }}", "/Web5");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert_eq!(fill("/{{ .Subject"), Err(TemplateError::Unclosed));
        assert_eq!(fill("/{{ .Nope }}"), Err(TemplateError::NoField("Nope".into())));
        assert_eq!(fill("/{{ .PluginName.X }}"), Err(TemplateError::NoField("X".into())));
        assert_eq!(fill("/{{ nope 1 }}"), Err(TemplateError::NoFunction("nope".into())));
        assert_eq!(fill("/{{ lower }}"), Err(TemplateError::Arguments("lower".into())));
        assert_eq!(fill("/{{ .Subject }}"), Err(TemplateError::NotText));
        assert_eq!(fill("/{{ if .Empty }}x{{ end }}"), Err(TemplateError::NoFunction("if".into())));
        assert_eq!(fill("/{{ .PluginName .Empty }}"), Err(TemplateError::Unexpected(".Empty".into())));
    }
}
