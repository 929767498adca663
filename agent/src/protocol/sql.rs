//! SQL as it travels: literals removed, and a short name of what a statement does to which table.
//!
//! One pass over bytes, no grammar: statements are hostile, cut and of many dialects.

use std::borrow::Cow;

use super::text::normalised;
use super::trace::Trace;

/// Statements are kept up to here; generated ones are rarely longer.
pub(crate) const STATEMENT_MAX: usize = 4 * 1024;
/// A statement's table is looked for within so many words.
const WORDS_MAX: usize = 256;

/// The statement with every literal replaced by `?` and without comments. Double quotes hold text, as in MySQL.
pub(crate) fn redact(statement: &str) -> String {
    let bytes = statement.as_bytes();
    let mut out = String::with_capacity(statement.len());
    // What stays is copied at once, from `kept` up to the next token that does not.
    let (mut kept, mut at) = (0, 0);
    while at < bytes.len() {
        let (token, mut end) = token(bytes, at);
        match token {
            Token::Text | Token::Number => {
                out.push_str(&statement[kept..at]);
                out.push('?');
                kept = end;
            }
            Token::Comment => {
                out.push_str(&statement[kept..at]);
                if !out.is_empty() && !out.ends_with(' ') {
                    out.push(' ');
                }
                end += bytes[end..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                kept = end;
            }
            Token::Word | Token::Quoted | Token::Blank | Token::Other => {}
        }
        at = end;
    }
    out.push_str(&statement[kept..]);
    out
}

/// `SELECT orders`: the verb and the first table. Empty when the statement names none.
pub(crate) fn endpoint(statement: &str) -> String {
    let bytes = statement.as_bytes();
    let mut words = Words { bytes, at: 0, left: WORDS_MAX };
    let Some(verb) = words.next() else { return String::new() };
    let verb = verb.to_ascii_uppercase();
    let table = match verb.as_str() {
        "SELECT" | "DELETE" | "WITH" => words.after(&["FROM"]),
        "INSERT" | "REPLACE" => words.after(&["INTO"]),
        "UPDATE" => words.skipping(&["LOW_PRIORITY", "IGNORE", "ONLY"]),
        "CREATE" | "ALTER" | "DROP" | "TRUNCATE" | "RENAME" | "LOCK" | "ANALYZE" | "OPTIMIZE" | "REPAIR" => {
            words.after(&["TABLE", "TABLES", "VIEW"])
        }
        "LOAD" => words.after(&["TABLE"]),
        "CALL" | "DESC" | "DESCRIBE" => words.skipping(&[]),
        _ => None,
    };
    table.map_or_else(String::new, |table| format!("{verb} {}", normalised(&table)))
}

/// The database of `USE x`.
pub(crate) fn used_database(statement: &str) -> Option<String> {
    let mut words = Words { bytes: statement.as_bytes(), at: 0, left: WORDS_MAX };
    words.next().filter(|verb| verb.eq_ignore_ascii_case("USE"))?;
    words.skipping(&[]).map(Cow::into_owned)
}

/// The trace context in a statement's comments, as SQLCommenter writes it: `/*traceparent='00-...-01',tracestate='a%3Db'*/`.
pub(crate) fn trace(statement: &str) -> Trace {
    let bytes = statement.as_bytes();
    let mut trace = Trace::default();
    // Few statements have a comment: the others need not be taken apart.
    if !memchr::memchr_iter(b'/', bytes).any(|slash| bytes.get(slash + 1) == Some(&b'*')) {
        return trace;
    }
    let mut at = 0;
    while at < bytes.len() {
        let (_, end) = token(bytes, at);
        let comment = bytes[at..end].strip_prefix(b"/*").and_then(|comment| comment.strip_suffix(b"*/"));
        for pair in comment.into_iter().flat_map(|comment| comment.split(|byte| *byte == b',')) {
            if let Some(equals) = memchr::memchr(b'=', pair) {
                let value = pair[equals + 1..].trim_ascii();
                let value =
                    value.strip_prefix(b"'").and_then(|value| value.strip_suffix(b"'")).unwrap_or(value);
                trace.header(pair[..equals].trim_ascii(), &percent_decoded(value));
            }
        }
        at = end;
    }
    trace
}

/// `%2C` is a comma.
fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        rest = match rest {
            [b'%', high, low, rest @ ..] if digit(high).is_some() && digit(low).is_some() => {
                out.extend(digit(high).zip(digit(low)).map(|(high, low)| (high * 16 + low) as u8));
                rest
            }
            [byte, rest @ ..] => {
                out.push(*byte);
                rest
            }
            [] => return out,
        };
    }
}

/// Words that stand between a keyword and the name that it announces.
const FILLERS: [&str; 6] = ["IF", "NOT", "EXISTS", "ONLY", "LATERAL", "TABLE"];

/// Words and names of a statement; brackets end a search for a name, everything else is passed over.
struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<Cow<'a, str>> {
        self.step(true)
    }

    /// The next word or name; None at the end, and at an opening bracket unless those are passed over.
    fn step(&mut self, through_brackets: bool) -> Option<Cow<'a, str>> {
        while self.left > 0 && self.at < self.bytes.len() {
            let start = self.at;
            let (token, end) = token(self.bytes, start);
            self.at = end;
            match token {
                Token::Word | Token::Quoted => {
                    self.left -= 1;
                    return Some(self.name(start));
                }
                Token::Other if self.bytes[start] == b'(' && !through_brackets => return None,
                _ => {}
            }
        }
        None
    }

    /// A name with its qualifiers: `` `a`.`b` `` is `a.b`.
    fn name(&mut self, start: usize) -> Cow<'a, str> {
        let mut name = unquoted(&self.bytes[start..self.at]);
        while self.bytes.get(self.at) == Some(&b'.') {
            let next = self.at + 1;
            if next >= self.bytes.len() {
                break;
            }
            let (Token::Word | Token::Quoted, end) = token(self.bytes, next) else { break };
            self.at = end;
            let name = name.to_mut();
            name.push('.');
            name.push_str(&unquoted(&self.bytes[next..end]));
        }
        name
    }

    /// The name behind the first of these keywords; behind a bracket, behind the next one.
    fn after(&mut self, keywords: &[&str]) -> Option<Cow<'a, str>> {
        while let Some(word) = self.next() {
            if keywords.iter().any(|keyword| word.eq_ignore_ascii_case(keyword))
                && let Some(name) = self.skipping(&FILLERS)
            {
                return Some(name);
            }
        }
        None
    }

    fn skipping(&mut self, fillers: &[&str]) -> Option<Cow<'a, str>> {
        loop {
            let word = self.step(false)?;
            if !fillers.iter().any(|filler| word.eq_ignore_ascii_case(filler)) {
                return Some(word);
            }
        }
    }
}

fn unquoted(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"`").unwrap_or(bytes);
    String::from_utf8_lossy(bytes.strip_suffix(b"`").unwrap_or(bytes))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Word,
    /// In backticks.
    Quoted,
    Text,
    Number,
    Comment,
    Blank,
    Other,
}

impl Token {
    /// What begins at a position that is not inside another token.
    fn of(bytes: &[u8], at: usize) -> Token {
        let next = bytes.get(at + 1);
        match bytes[at] {
            b'\'' | b'"' => Token::Text,
            b'`' => Token::Quoted,
            b'#' => Token::Comment,
            b'-' if next == Some(&b'-') && bytes.get(at + 2).is_none_or(u8::is_ascii_whitespace) => {
                Token::Comment
            }
            b'/' if next == Some(&b'*') => Token::Comment,
            b'0'..=b'9' => Token::Number,
            b'.' if next.is_some_and(u8::is_ascii_digit) && (at == 0 || !is_word(bytes[at - 1])) => {
                Token::Number
            }
            byte if is_word(byte) => Token::Word,
            byte if byte.is_ascii_whitespace() => Token::Blank,
            _ => Token::Other,
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'@') || byte >= 0x80
}

/// The token that begins at `at` and its end; the end of the statement when it is cut.
fn token(bytes: &[u8], at: usize) -> (Token, usize) {
    let run = |accept: fn(u8) -> bool| at + bytes[at..].iter().take_while(|byte| accept(**byte)).count();
    let find = |from: usize, byte: u8| {
        memchr::memchr(byte, &bytes[from..]).map_or(bytes.len(), |end| from + end + 1)
    };
    let token = Token::of(bytes, at);
    let end = match token {
        Token::Word => run(is_word),
        Token::Blank => run(|byte| byte.is_ascii_whitespace()),
        Token::Number => number_end(bytes, at),
        Token::Quoted => find(at + 1, b'`'),
        Token::Text => text_end(bytes, at),
        Token::Comment if bytes[at] == b'/' => {
            memchr::memmem::find(&bytes[at..], b"*/").map_or(bytes.len(), |end| at + end + 2)
        }
        Token::Comment => find(at, b'\n'),
        Token::Other => at + 1,
    };
    (token, end)
}

/// Digits, hexadecimal, a fraction and an exponent with its sign.
fn number_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at;
    while let Some(byte) = bytes.get(end) {
        let sign =
            matches!(byte, b'+' | b'-') && matches!(bytes[end - 1], b'e' | b'E') && bytes[at + 1] != b'x';
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || (sign && end > at)) {
            break;
        }
        end += 1;
    }
    end
}

/// A string with backslash escapes and doubled quotes.
fn text_end(bytes: &[u8], at: usize) -> usize {
    let quote = bytes[at];
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'\\' => end += 2,
            byte if *byte == quote && bytes.get(end + 1) == Some(&quote) => end += 2,
            byte if *byte == quote => return end + 1,
            _ => end += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_go() {
        #[track_caller]
        fn check(statement: &str, expected: &str) {
            assert_eq!(redact(statement), expected);
        }
        check("select * from t where id=1", "select * from t where id=?");
        check("a = 'it''s' AND b = \"x\\\"y\" AND c=0xFF", "a = ? AND b = ? AND c=?");
        check("VALUES (1.5e-3,-2,.5,NULL,x'ff')", "VALUES (?,-?,?,NULL,x?)");
        check("select `a1`.b2, t3.c from d4.e5", "select `a1`.b2, t3.c from d4.e5");
        check("select @@version limit 1", "select @@version limit ?");
        check("/* secret */ select 1 -- secret\n, 2 # secret", "select ? , ? ");
        check("select 'cut", "select ?");
        check("select caf\u{e9} '\u{e9}'", "select caf\u{e9} ?");
        check("1-1", "?-?");
    }

    #[test]
    fn endpoints_name_verb_and_table() {
        #[track_caller]
        fn check(statement: &str, expected: &str) {
            assert_eq!(endpoint(statement), expected);
        }
        check("SELECT * FROM `controller` WHERE ip <> ?", "SELECT controller");
        check("select a from(select b from inner_t) x", "SELECT inner_t");
        check("/* hint */ (select x from `db`.`t`)", "SELECT db.t");
        check("insert ignore into t(a) values (1)", "INSERT t");
        check("INSERT INTO `controller` (`cpu_num`) VALUES (?)", "INSERT controller");
        check("update low_priority t set x=1", "UPDATE t");
        check("delete from test_table  where id=1", "DELETE test_table");
        check("drop table if exists test_table_2", "DROP test_table_2");
        check("ALTER TABLE test_table ADD x int", "ALTER test_table");
        check("create table if not exists logs_20240102 (a int)", "CREATE logs_*");
        check("with x as (select 1 from a) select * from x", "WITH a");
        check("call proc(1)", "CALL proc");
        check("select @@version_comment limit 1", "");
        check("create database x", "");
        check("", "");
        check("select from", "");
    }

    #[test]
    fn comments_carry_trace_contexts() {
        #[track_caller]
        fn check(statement: &str, trace_id: &str, span_id: &str) {
            let trace = trace(statement);
            assert_eq!((&*trace.trace_id, &*trace.span_id), (trace_id, span_id), "{statement}");
        }
        let (trace_id, span_id) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let pair = format!("traceparent='00-{trace_id}-{span_id}-01'");
        check(&format!("select 1 /*{pair}*/"), trace_id, span_id);
        check(&format!("/* a='b', {pair} ,tracestate='x%3Dy'*/ select 1"), trace_id, span_id);
        check(&format!("select /* first */ 1 /*db_driver='x',{pair}*/;"), trace_id, span_id);
        check("select 1 /*sw8='1-YWI%3D-ZGVm-6-x'*/", "ab", "def-6");
        check("select 1 /*b3=aa-bb*/", "aa", "bb");
        // No comment, one that is cut, a text that looks like one, and what is no trace.
        check(&format!("select '{pair}'"), "", "");
        check(&format!("select 1 /*{pair}"), "", "");
        check(&format!("select \"/*{pair}*/\""), "", "");
        check("select 1 /*traceparent='%', =,b3,*/ /**/ /*/", "", "");
    }

    #[test]
    fn the_database_of_use() {
        assert_eq!(used_database("use `test`").as_deref(), Some("test"));
        assert_eq!(used_database("select 1"), None);
    }
}
