//! Clauses: from text to the parts of a `SELECT` or `SHOW`.
//!
//! Tokens and expressions are sqlparser's; the grammar of clauses is our own, because what it does not know cannot be written at all
//! (joins, subqueries, unions, table functions, `SETTINGS`, `FORMAT`, `INTO`). Leaves out what names mean.

use sqlparser::{
    ast::Expr,
    dialect::MySqlDialect,
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Word},
};

use crate::{Error, ROWS_MAX, TEXT_BYTES_MAX};

/// Levels of brackets, calls and operators. The parser needs up to 90 KiB of stack for each in an unoptimised build, and a thread has
/// 2 MiB; seven groups of conditions within one another fit.
const DEPTH_MAX: usize = 16;
/// Tokens that are not commas or literals: operators nest, and what nests is dropped by recursion. List entries are not counted.
const WORDS_MAX: usize = 1_500;
/// Entries of one list; the text's length bounds the rest.
const LIST_MAX: usize = 128;
/// `OFFSET` makes the engine compute and drop rows.
const OFFSET_MAX: u64 = 10_000_000;

const DIALECT: MySqlDialect = MySqlDialect {};

#[derive(Debug)]
pub(crate) enum Statement {
    Select(Box<Select>),
    Show(Box<Show>),
}

#[derive(Debug)]
pub(crate) struct Select {
    pub(crate) items: Vec<Item>,
    pub(crate) table: Name,
    pub(crate) filter: Option<Expr>,
    pub(crate) group: Vec<Expr>,
    pub(crate) having: Option<Expr>,
    /// Expression, and whether it descends.
    pub(crate) order: Vec<(Expr, bool)>,
    pub(crate) series_limit: Option<u64>,
    pub(crate) limit: Option<u64>,
    pub(crate) offset: u64,
}

#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) expr: Expr,
    pub(crate) alias: Option<String>,
}

/// A name with its place.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Show {
    pub(crate) what: What,
    pub(crate) filter: Option<Expr>,
    pub(crate) limit: Option<u64>,
    pub(crate) offset: u64,
}

#[derive(Debug)]
pub(crate) enum What {
    Databases,
    Tables,
    Tags {
        table: Name,
    },
    TagValues {
        tag: Name,
        table: Name,
    },
    /// The values of every enumeration.
    EnumValues,
    Metrics {
        table: Option<Name>,
    },
    Functions,
}

/// Reads one statement.
pub(crate) fn parse(text: &str) -> Result<Statement, Error> {
    let start = Location::new(1, 1);
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the text has {} bytes, at most {TEXT_BYTES_MAX} are accepted", text.len());
        return Err(Error::at(start, message));
    }
    let tokens = Tokenizer::new(&DIALECT, text)
        .tokenize_with_location()
        .map_err(|error| Error::at(error.location, error.message))?;
    let mut words = 0;
    for token in &tokens {
        words += usize::from(is_word(&token.token));
        if words > WORDS_MAX {
            let message = format!("the text has more than {WORDS_MAX} names and operators");
            return Err(Error::span(token.span, message).hint("use IN with a list of values"));
        }
    }
    let parser = Parser::new(&DIALECT).with_recursion_limit(DEPTH_MAX).with_tokens_with_locations(tokens);
    Clauses { parser }.statement()
}

fn is_word(token: &Token) -> bool {
    !matches!(
        token,
        Token::Whitespace(_)
            | Token::Comma
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
    )
}

struct Clauses<'a> {
    parser: Parser<'a>,
}

impl Clauses<'_> {
    fn statement(mut self) -> Result<Statement, Error> {
        let statement = if self.keyword(Keyword::SELECT) {
            Statement::Select(Box::new(self.select()?))
        } else if self.keyword(Keyword::SHOW) {
            Statement::Show(Box::new(self.show()?))
        } else {
            return Err(self.unexpected("SELECT or SHOW"));
        };
        while self.parser.consume_token(&Token::SemiColon) {}
        match self.parser.peek_token_ref().token {
            Token::EOF => Ok(statement),
            _ => Err(self.unexpected("the end of the statement")),
        }
    }

    fn select(&mut self) -> Result<Select, Error> {
        let items = self.list("selected columns", Self::item)?;
        let table = self.from()?;
        let filter = self.filter()?;
        let group = if self.keyword(Keyword::GROUP) {
            self.expect(Keyword::BY, "BY")?;
            self.list("GROUP BY", Self::expr)?
        } else {
            vec![]
        };
        let having = if self.keyword(Keyword::HAVING) { Some(self.expr()?) } else { None };
        let order = if self.keyword(Keyword::ORDER) {
            self.expect(Keyword::BY, "BY")?;
            self.list("ORDER BY", Self::ordering)?
        } else {
            vec![]
        };
        let series_limit = if self.word("slimit") { Some(self.number("SLIMIT", ROWS_MAX)?) } else { None };
        let (limit, offset) = self.limit()?;
        Ok(Select { items, table, filter, group, having, order, series_limit, limit, offset })
    }

    fn show(&mut self) -> Result<Show, Error> {
        let what = if self.keyword(Keyword::DATABASES) {
            What::Databases
        } else if self.keyword(Keyword::TABLES) {
            What::Tables
        } else if self.word("tags") {
            What::Tags { table: self.from()? }
        } else if self.word("tag") {
            if self.parser.consume_token(&Token::Minus) {
                self.expect(Keyword::VALUES, "VALUES")?;
                What::EnumValues
            } else {
                let tag = self.name("the name of a tag")?;
                self.expect(Keyword::VALUES, "VALUES")?;
                What::TagValues { tag, table: self.from()? }
            }
        } else if self.word("metrics") {
            if self.word("functions") {
                What::Functions
            } else if self.parser.peek_keyword(Keyword::FROM) {
                What::Metrics { table: Some(self.from()?) }
            } else {
                What::Metrics { table: None }
            }
        } else {
            return Err(self.unexpected(
                "DATABASES, TABLES, TAGS FROM, TAG x VALUES FROM, METRICS or METRICS FUNCTIONS",
            ));
        };
        let filter = self.filter()?;
        let (limit, offset) = self.limit()?;
        Ok(Show { what, filter, limit, offset })
    }

    fn item(&mut self) -> Result<Item, Error> {
        if matches!(self.parser.peek_token_ref().token, Token::Mul) {
            return Err(self.unexpected("columns by name").hint("SHOW TAGS FROM table lists them"));
        }
        let expr = self.expr()?;
        let explicit = self.keyword(Keyword::AS);
        let implicit = matches!(&self.parser.peek_token_ref().token,
            Token::Word(word) if word.quote_style.is_some() || word.keyword == Keyword::NoKeyword);
        let alias = if explicit || implicit { Some(self.alias()?) } else { None };
        Ok(Item { expr, alias })
    }

    /// An alias may be any word, also a keyword; unlike a name it says nothing about the catalogue.
    fn alias(&mut self) -> Result<String, Error> {
        let token = self.parser.next_token();
        match token.token {
            Token::Word(word) => Ok(word.value),
            Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) => Ok(text),
            other => Err(Error::span(token.span, format!("expected an alias, found {other}"))),
        }
    }

    fn from(&mut self) -> Result<Name, Error> {
        self.expect(Keyword::FROM, "FROM")?;
        let table = self.name("the name of a table")?;
        match &self.parser.peek_token_ref().token {
            Token::LParen => Err(Error::span(table.span, format!("{} is not a table", table.text))
                .hint("table functions are not accepted; SHOW TABLES lists the tables")),
            Token::Comma => Err(self.unexpected("one table").hint("a statement reads one table")),
            _ => Ok(table),
        }
    }

    /// A name of one or more parts: `a`, `a.b`, `` `a.b` ``, `application.1s`.
    fn name(&mut self, what: &str) -> Result<Name, Error> {
        let token = self.parser.next_token();
        let Token::Word(Word { value, .. }) = token.token else {
            return Err(expected(what, &token));
        };
        let mut name = Name { text: value, span: token.span };
        loop {
            match self.parser.peek_token_ref().token.clone() {
                Token::Period => {
                    let _ = self.parser.next_token();
                    let token = self.parser.next_token();
                    let Token::Word(Word { value, .. }) = token.token else {
                        return Err(expected(what, &token));
                    };
                    name.text = format!("{}.{value}", name.text);
                }
                // `application.1s`: the tokenizer sees the number `.1` and the word `s`.
                Token::Number(digits, false) if digits.starts_with('.') => {
                    let _ = self.parser.next_token();
                    name.text.push_str(&digits);
                    if let Token::Word(Word { value, quote_style: None, .. }) =
                        self.parser.peek_token_ref().token.clone()
                    {
                        let _ = self.parser.next_token();
                        name.text.push_str(&value);
                    }
                }
                _ => return Ok(name),
            }
        }
    }

    fn filter(&mut self) -> Result<Option<Expr>, Error> {
        if self.keyword(Keyword::WHERE) { self.expr().map(Some) } else { Ok(None) }
    }

    fn ordering(&mut self) -> Result<(Expr, bool), Error> {
        let expr = self.expr()?;
        let descending = self.keyword(Keyword::DESC);
        let _ = !descending && self.keyword(Keyword::ASC);
        Ok((expr, descending))
    }

    /// `LIMIT n`, `LIMIT offset, n`, `LIMIT n OFFSET offset`.
    fn limit(&mut self) -> Result<(Option<u64>, u64), Error> {
        if !self.keyword(Keyword::LIMIT) {
            return Ok((None, 0));
        }
        let place = self.parser.peek_token_ref().span;
        let first = self.number("LIMIT", u64::MAX)?;
        let (limit, offset) = if self.parser.consume_token(&Token::Comma) {
            (self.number("LIMIT", u64::MAX)?, first)
        } else if self.keyword(Keyword::OFFSET) {
            (first, self.number("OFFSET", u64::MAX)?)
        } else {
            (first, 0)
        };
        if limit > ROWS_MAX || offset > OFFSET_MAX {
            let message = format!("LIMIT {limit} OFFSET {offset} is too high");
            let hint = format!("at most {ROWS_MAX} rows after {OFFSET_MAX}");
            return Err(Error::span(place, message).hint(hint));
        }
        Ok((Some(limit), offset))
    }

    fn number(&mut self, what: &str, max: u64) -> Result<u64, Error> {
        let token = self.parser.next_token();
        let number = match &token.token {
            Token::Number(digits, _) => digits.parse::<u64>().ok(),
            _ => None,
        };
        number
            .filter(|number| *number <= max)
            .ok_or_else(|| expected(&format!("a whole number up to {max} after {what}"), &token))
    }

    fn list<T>(
        &mut self,
        what: &str,
        mut one: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut entries = vec![one(self)?];
        while self.parser.consume_token(&Token::Comma) {
            if entries.len() == LIST_MAX {
                let place = self.parser.peek_token_ref().span;
                return Err(Error::span(place, format!("more than {LIST_MAX} {what}")));
            }
            entries.push(one(self)?);
        }
        Ok(entries)
    }

    fn expr(&mut self) -> Result<Expr, Error> {
        let place = self.parser.peek_token_ref().span.start;
        self.parser.parse_expr().map_err(|error| parser_error(error, place))
    }

    fn keyword(&mut self, keyword: Keyword) -> bool {
        self.parser.parse_keyword(keyword)
    }

    fn expect(&mut self, keyword: Keyword, what: &str) -> Result<(), Error> {
        if self.keyword(keyword) { Ok(()) } else { Err(self.unexpected(what)) }
    }

    /// A word that is not a keyword of sqlparser.
    fn word(&mut self, word: &str) -> bool {
        let found = matches!(&self.parser.peek_token_ref().token,
            Token::Word(Word { value, quote_style: None, .. }) if value.eq_ignore_ascii_case(word));
        if found {
            let _ = self.parser.next_token();
        }
        found
    }

    fn unexpected(&self, what: &str) -> Error {
        expected(what, self.parser.peek_token_ref())
    }
}

fn expected(what: &str, token: &TokenWithSpan) -> Error {
    let found = match &token.token {
        Token::EOF => "the end of the text".to_owned(),
        token => clip(&token.to_string()),
    };
    Error::span(token.span, format!("expected {what}, found {found}"))
}

/// The start of a text that may be long, for a message.
pub(crate) fn clip(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut clipped: String = text.chars().take(SHOWN).collect();
    if clipped.len() < text.len() {
        clipped.push_str("...");
    }
    clipped
}

/// The parser writes the place into its message; takes it out again.
fn parser_error(error: ParserError, place: Location) -> Error {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => {
            return Error::at(place, format!("nested more than {DEPTH_MAX} levels deep"));
        }
    };
    let Some((text, at)) = message.rsplit_once(" at Line: ") else {
        return Error::at(place, clip(&message));
    };
    let place = at
        .split_once(", Column: ")
        .and_then(|(line, column)| Some(Location::new(line.parse().ok()?, column.parse().ok()?)))
        .unwrap_or(place);
    Error::at(place, clip(text))
}
