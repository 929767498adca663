//! SQL as it travels: literals removed, and a short name of what a statement does to which table.
//!
//! One pass over bytes, no grammar: statements are hostile, cut and of many dialects.

use std::borrow::Cow;

use super::text::{normalised, percent_decoded};
use super::trace::Trace;

/// Statements are kept up to here; generated ones are rarely longer.
pub(crate) const STATEMENT_MAX: usize = 4 * 1024;
/// A statement's table is looked for within so many words.
const WORDS_MAX: usize = 256;

/// Where servers differ in how a statement is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Double quotes hold text, backticks names; `#` begins a comment.
    MySql,
    /// Double quotes hold names; text may stand in `$tag$`; a backslash escapes in `E''` alone; comments nest.
    PostgreSql,
}

/// Verbs of statements: enough to tell SQL from other bytes.
const VERBS: [&[u8]; 50] = [
    b"SELECT",
    b"INSERT",
    b"UPDATE",
    b"DELETE",
    b"REPLACE",
    b"SET",
    b"SHOW",
    b"BEGIN",
    b"START",
    b"COMMIT",
    b"ROLLBACK",
    b"USE",
    b"CREATE",
    b"ALTER",
    b"DROP",
    b"TRUNCATE",
    b"DESC",
    b"EXPLAIN",
    b"WITH",
    b"CALL",
    b"LOCK",
    b"UNLOCK",
    b"KILL",
    b"GRANT",
    b"REVOKE",
    b"LOAD",
    b"ANALYZE",
    b"FLUSH",
    b"PREPARE",
    b"EXECUTE",
    b"SAVEPOINT",
    b"XA",
    b"COPY",
    b"VACUUM",
    b"LISTEN",
    b"NOTIFY",
    b"DISCARD",
    b"RESET",
    b"DECLARE",
    b"FETCH",
    b"CLOSE",
    b"DO",
    b"VALUES",
    b"TABLE",
    b"END",
    b"ABORT",
    b"MERGE",
    b"RELEASE",
    b"DEALLOCATE",
    b"REFRESH",
];

/// Whether bytes begin as statements do.
pub(crate) fn begins_with_verb(bytes: &[u8]) -> bool {
    let skipped = bytes.iter().take_while(|byte| byte.is_ascii_whitespace() || **byte == b'(').count();
    let bytes = &bytes[skipped..];
    bytes.starts_with(b"/*")
        || VERBS.iter().any(|verb| {
            bytes.get(..verb.len()).is_some_and(|start| start.eq_ignore_ascii_case(verb))
                && bytes.get(verb.len()).is_none_or(|byte| !byte.is_ascii_alphanumeric())
        })
}

/// The statement with every literal replaced by `?` and without comments.
pub(crate) fn redact(statement: &str, dialect: Dialect) -> String {
    let bytes = statement.as_bytes();
    let mut out = String::with_capacity(statement.len());
    // What stays is copied at once, from `kept` up to the next token that does not.
    let (mut kept, mut at) = (0, 0);
    while at < bytes.len() {
        let (token, mut end) = token(bytes, at, dialect);
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
pub(crate) fn endpoint(statement: &str, dialect: Dialect) -> String {
    let bytes = statement.as_bytes();
    let mut words = Words { bytes, at: 0, left: WORDS_MAX, dialect };
    let Some(verb) = words.next() else { return String::new() };
    let verb = verb.to_ascii_uppercase();
    let table = match verb.as_str() {
        "SELECT" | "DELETE" | "WITH" => words.after(&["FROM"]),
        "INSERT" | "REPLACE" | "MERGE" => words.after(&["INTO"]),
        "UPDATE" => words.skipping(&["LOW_PRIORITY", "IGNORE", "ONLY"]),
        "CREATE" | "ALTER" | "DROP" | "TRUNCATE" | "RENAME" | "LOCK" | "ANALYZE" | "OPTIMIZE" | "REPAIR" => {
            words.after(&["TABLE", "TABLES", "VIEW"])
        }
        "LOAD" => words.after(&["TABLE"]),
        "CALL" | "DESC" | "DESCRIBE" | "COPY" => words.skipping(&[]),
        _ => None,
    };
    table.map_or_else(String::new, |table| format!("{verb} {}", normalised(&table)))
}

/// The database of `USE x`.
pub(crate) fn used_database(statement: &str) -> Option<String> {
    let dialect = Dialect::MySql;
    let mut words = Words { bytes: statement.as_bytes(), at: 0, left: WORDS_MAX, dialect };
    words.next().filter(|verb| verb.eq_ignore_ascii_case("USE"))?;
    words.skipping(&[]).map(Cow::into_owned)
}

/// The trace context in a statement's comments, as SQLCommenter writes it: `/*traceparent='00-...-01',tracestate='a%3Db'*/`.
pub(crate) fn trace(statement: &str, dialect: Dialect) -> Trace {
    let bytes = statement.as_bytes();
    let mut trace = Trace::default();
    // Few statements have a comment: the others need not be taken apart.
    if !memchr::memchr_iter(b'/', bytes).any(|slash| bytes.get(slash + 1) == Some(&b'*')) {
        return trace;
    }
    let mut at = 0;
    while at < bytes.len() {
        let (_, end) = token(bytes, at, dialect);
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

/// Words that stand between a keyword and the name that it announces.
const FILLERS: [&str; 6] = ["IF", "NOT", "EXISTS", "ONLY", "LATERAL", "TABLE"];

/// Words and names of a statement; brackets end a search for a name, everything else is passed over.
struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
    dialect: Dialect,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<Cow<'a, str>> {
        self.step(true)
    }

    /// The next word or name; None at the end, and at an opening bracket unless those are passed over.
    fn step(&mut self, through_brackets: bool) -> Option<Cow<'a, str>> {
        while self.left > 0 && self.at < self.bytes.len() {
            let start = self.at;
            let (token, end) = token(self.bytes, start, self.dialect);
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
            let (Token::Word | Token::Quoted, end) = token(self.bytes, next, self.dialect) else { break };
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
    let quoted = matches!(bytes.first(), Some(b'`' | b'"'));
    let bytes = if quoted { &bytes[1..] } else { bytes };
    let closed = quoted && matches!(bytes.last(), Some(b'`' | b'"'));
    String::from_utf8_lossy(&bytes[..bytes.len() - usize::from(closed)])
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Word,
    /// A name in quotes.
    Quoted,
    Text,
    Number,
    Comment,
    Blank,
    Other,
}

impl Token {
    /// What begins at a position that is not inside another token.
    fn of(bytes: &[u8], at: usize, dialect: Dialect) -> Token {
        let next = bytes.get(at + 1);
        let postgresql = dialect == Dialect::PostgreSql;
        match bytes[at] {
            b'"' if postgresql => Token::Quoted,
            b'\'' | b'"' => Token::Text,
            b'$' if postgresql && dollar_tag(bytes, at).is_some() => Token::Text,
            b'`' if !postgresql => Token::Quoted,
            b'#' if !postgresql => Token::Comment,
            b'-' if next == Some(&b'-')
                && (postgresql || bytes.get(at + 2).is_none_or(u8::is_ascii_whitespace)) =>
            {
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
fn token(bytes: &[u8], at: usize, dialect: Dialect) -> (Token, usize) {
    let run = |accept: fn(u8) -> bool| at + bytes[at..].iter().take_while(|byte| accept(**byte)).count();
    let find = |from: usize, byte: u8| {
        memchr::memchr(byte, &bytes[from..]).map_or(bytes.len(), |end| from + end + 1)
    };
    let token = Token::of(bytes, at, dialect);
    let end = match token {
        Token::Word => run(is_word),
        Token::Blank => run(|byte| byte.is_ascii_whitespace()),
        Token::Number => number_end(bytes, at),
        Token::Quoted => find(at + 1, bytes[at]),
        Token::Text if bytes[at] == b'$' => {
            let tag = dollar_tag(bytes, at).unwrap_or_default();
            let from = at + tag.len();
            memchr::memmem::find(&bytes[from..], tag).map_or(bytes.len(), |end| from + end + tag.len())
        }
        Token::Text => text_end(bytes, at, dialect),
        Token::Comment if bytes[at] == b'/' && dialect == Dialect::PostgreSql => nested_end(bytes, at),
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

/// `$$` or `$tag$` where it begins a text; `$1` is a parameter, and inside a word the sign is a letter.
fn dollar_tag(bytes: &[u8], at: usize) -> Option<&[u8]> {
    if at > 0 && is_word(bytes[at - 1]) {
        return None;
    }
    let rest = &bytes[at + 1..];
    let length = rest.iter().take_while(|byte| is_word(**byte) && **byte != b'$').count();
    let named = rest.first().is_none_or(|byte| !byte.is_ascii_digit());
    (named && rest.get(length) == Some(&b'$')).then(|| &bytes[at..at + length + 2])
}

/// The end of a comment that may hold others.
fn nested_end(bytes: &[u8], at: usize) -> usize {
    let (mut end, mut depth) = (at + 2, 1);
    while depth > 0 {
        match (bytes.get(end), bytes.get(end + 1)) {
            (Some(b'/'), Some(b'*')) => (end, depth) = (end + 2, depth + 1),
            (Some(b'*'), Some(b'/')) => (end, depth) = (end + 2, depth - 1),
            (Some(_), _) => end += 1,
            (None, _) => return bytes.len(),
        }
    }
    end
}

/// A string with doubled quotes, and with backslash escapes where the dialect has them.
fn text_end(bytes: &[u8], at: usize, dialect: Dialect) -> usize {
    let quote = bytes[at];
    let prefixed = || at > 0 && matches!(bytes[at - 1], b'e' | b'E') && (at == 1 || !is_word(bytes[at - 2]));
    let escapes = dialect == Dialect::MySql || prefixed();
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'\\' if escapes => end += 2,
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
            assert_eq!(redact(statement, Dialect::MySql), expected);
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
    fn postgresql_reads_quotes_and_comments_in_its_own_way() {
        #[track_caller]
        fn check(statement: &str, expected: &str) {
            assert_eq!(redact(statement, Dialect::PostgreSql), expected);
        }
        check(
            "select \"a b\" from t where c = 'x' and d = $1",
            "select \"a b\" from t where c = ? and d = $1",
        );
        // A backslash is a letter like any other, but not behind an E.
        check("select 'a\\', 'secret'", "select ?, ?");
        check("select E'a\\', secret', 1", "select E?, ?");
        check("select type'a\\', 'secret'", "select type?, ?");
        check("do $$ secret 'x' $$, $f$ it's $$ secret $f$ from a$b$c", "do ?, ? from a$b$c");
        check("select $1::int, $$cut", "select $1::int, ?");
        check("select a #> '{b}' /* x /* y */ secret */ --secret", "select a #> ? ");
        check("select \"cut", "select \"cut");
        let names = endpoint("select 1 from \"S\".\"orders\" o", Dialect::PostgreSql);
        assert_eq!(names, "SELECT S.orders");
        assert_eq!(endpoint("copy orders (a) from stdin", Dialect::PostgreSql), "COPY orders");
        assert_eq!(endpoint("copy (select a from t) to stdout", Dialect::PostgreSql), "");
    }

    #[test]
    fn endpoints_name_verb_and_table() {
        #[track_caller]
        fn check(statement: &str, expected: &str) {
            assert_eq!(endpoint(statement, Dialect::MySql), expected);
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
            let trace = trace(statement, Dialect::MySql);
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
