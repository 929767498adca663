//! What must not leave the host: secrets and personal data in resources and error texts, replaced before anything is kept.
//!
//! On unless the configuration switches it off. Leaves out what is never kept at all: Authorization, cookies, bodies.

use super::Config;
use crate::protocol::text::{text, truncate};

/// Stands for what was removed.
const GONE: &str = "?";
/// Parameter names that carry secrets only as a whole name.
const SECRET_NAMES: [&str; 10] =
    ["auth", "code", "key", "otp", "pin", "session", "sessionid", "sid", "sig", "signature"];
/// Mixed values from this length on are taken for tokens; a UUID is 36 bytes and an exception.
const TOKEN_MIN: usize = 32;
/// Lengths of payment card numbers (ISO/IEC 7812).
const CARD_DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

/// A request target or URL without secret query values, user information and card numbers.
pub(crate) fn url(config: &Config, bytes: &[u8], max: usize) -> String {
    let url = text(bytes, max);
    if !config.redact || url.is_empty() {
        return url;
    }
    let url = without_user(url);
    let mut url = match memchr::memchr(b'?', url.as_bytes()) {
        Some(mark) => without_secrets(url, mark + 1),
        None => url,
    };
    cards(&mut url);
    url
}

/// An error text of a server without what it puts in quotes, which is taken from the request.
pub(crate) fn quoted(config: &Config, bytes: &[u8], quote: char, max: usize) -> String {
    let message = text(bytes, max);
    if !config.redact {
        return message;
    }
    let mut out = String::with_capacity(message.len());
    let mut inside = false;
    for part in message.split_inclusive(quote) {
        let closed = part.ends_with(quote);
        if inside {
            out.push_str(GONE);
            out.extend(closed.then_some(quote));
        } else {
            out.push_str(part);
        }
        inside ^= closed;
    }
    cards(&mut out);
    truncate(&mut out, max);
    out
}

/// Replaces payment card numbers.
pub(crate) fn cards(value: &mut String) {
    let bytes = value.as_bytes();
    if !has_digits(bytes, *CARD_DIGITS.start()) {
        return;
    }
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let end = number_end(bytes, at);
        if is_card(&bytes[at..end]) {
            found.push(at..end);
        }
        at = end;
    }
    for range in found.into_iter().rev() {
        value.replace_range(range, GONE);
    }
}

/// Whether there are at least so many digits. Counted in single bytes, of which the machine adds up many at a time.
fn has_digits(bytes: &[u8], least: usize) -> bool {
    let digits = |chunk: &[u8]| chunk.iter().fold(0u8, |sum, byte| sum + u8::from(byte.is_ascii_digit()));
    bytes.len() >= least && bytes.chunks(255).map(|chunk| usize::from(digits(chunk))).sum::<usize>() >= least
}

/// End of digits that single blanks or hyphens may group.
fn number_end(bytes: &[u8], start: usize) -> usize {
    let mut end = start;
    while end < bytes.len() {
        let grouped = matches!(bytes[end], b' ' | b'-') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        if !bytes[end].is_ascii_digit() && !grouped {
            break;
        }
        end += 1;
    }
    end
}

/// Length, first digit and check digit (Luhn) of a payment card.
fn is_card(number: &[u8]) -> bool {
    let digits = number.iter().filter(|byte| byte.is_ascii_digit()).count();
    if !CARD_DIGITS.contains(&digits) || !(b'2'..=b'6').contains(&number[0]) {
        return false;
    }
    let sum: u32 = (number.iter().rev().filter(|byte| byte.is_ascii_digit()).enumerate())
        .map(|(place, byte)| {
            let digit = u32::from(byte - b'0') << (place % 2);
            if digit > 9 { digit - 9 } else { digit }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// `http://user:password@host/` without the part before the `@`.
fn without_user(mut url: String) -> String {
    if url.starts_with('/') {
        return url;
    }
    let Some(scheme) = url.find("://") else { return url };
    let start = scheme + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |end| start + end);
    if let Some(at) = url[start..end].rfind('@') {
        url.replace_range(start..start + at, GONE);
    }
    url
}

fn without_secrets(url: String, query: usize) -> String {
    let pairs = || url.as_bytes()[query..].split(|byte| *byte == b'&');
    if !pairs().any(|pair| secret_value(pair).is_some()) {
        return url;
    }
    let mut out = String::with_capacity(url.len());
    let (mut start, mut kept) = (query, 0);
    for pair in pairs() {
        if let Some(value) = secret_value(pair) {
            out.push_str(&url[kept..start + value]);
            out.push_str(GONE);
            kept = start + pair.len();
        }
        start += pair.len() + 1;
    }
    out.push_str(&url[kept..]);
    out
}

/// Where the value of `name=value` begins, when it is a secret.
fn secret_value(pair: &[u8]) -> Option<usize> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&pair[..equals], &pair[equals + 1..]);
    let is_secret = has_secret_part(name)
        || SECRET_NAMES.iter().any(|secret| name.eq_ignore_ascii_case(secret.as_bytes()))
        || is_token(value);
    (is_secret && !value.is_empty()).then_some(equals + 1)
}

fn has_secret_part(name: &[u8]) -> bool {
    name.iter().enumerate().any(|(at, first)| {
        let is_here = |part: &&str| {
            name[at..].get(..part.len()).is_some_and(|here| here.eq_ignore_ascii_case(part.as_bytes()))
        };
        secret_parts(*first).iter().any(is_here)
    })
}

/// Parts of parameter names that carry secrets, wherever they appear in a name: those that begin with this letter.
fn secret_parts(first: u8) -> &'static [&'static str] {
    match first.to_ascii_lowercase() {
        b'a' => &["apikey", "api_key", "api-key", "access_key", "authorization"],
        b'c' => &["credential"],
        b'j' => &["jwt"],
        b'p' => &["passw", "passphrase", "pwd"],
        b's' => &["secret"],
        b't' => &["token"],
        _ => &[],
    }
}

/// A JSON web token, or a long mixture of letters and digits that is no UUID.
fn is_token(value: &[u8]) -> bool {
    if value.starts_with(b"eyJ") && value.len() > 20 {
        return true;
    }
    let uuid = || value.len() == 36 && [8, 13, 18, 23].iter().all(|at| value[*at] == b'-');
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_+/=.%~".contains(byte);
    value.len() >= TOKEN_MIN
        && !uuid()
        && value.iter().all(known)
        && value.iter().any(u8::is_ascii_digit)
        && value.iter().any(u8::is_ascii_alphabetic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_secrets() {
        #[track_caller]
        fn check(input: &str, expected: &str) {
            assert_eq!(url(&Config::default(), input.as_bytes(), 1024), expected);
            let off = Config { redact: false, ..Config::default() };
            assert_eq!(url(&off, input.as_bytes(), 1024), input);
        }
        check("/a?channel=web&type=bff", "/a?channel=web&type=bff");
        check("/a?x=1&Access_Token=abc&y=2", "/a?x=1&Access_Token=?&y=2");
        check("/login?user=joe&password=s3cret", "/login?user=joe&password=?");
        check("/a?q=eyJhbGciOiJIUzI1NiJ9.e30.abc", "/a?q=?");
        check("/a?h=0123456789abcdef0123456789abcdef", "/a?h=?");
        check("/a?id=123e4567-e89b-12d3-a456-426614174000", "/a?id=123e4567-e89b-12d3-a456-426614174000");
        check("/pay/4111111111111111/now", "/pay/?/now");
        check("/pay?n=4111-1111-1111-1111", "/pay?n=?");
        check("/t?at=1701689136165", "/t?at=1701689136165");
        check("http://joe:pw@host/x", "http://?@host/x");
        check("/a?key=&code=7", "/a?key=&code=?");
        check("/a?monkey=1&ptoke=2&apikez=3&pas=4&jw=5", "/a?monkey=1&ptoke=2&apikez=3&pas=4&jw=5");
        for name in ["passw", "passphrase", "pwd", "secret", "token", "apikey", "api_key", "api-key"] {
            check(&format!("/a?my_{name}_2=1"), &format!("/a?my_{name}_2=?"));
        }
        for name in ["access_key", "credential", "jwt", "authorization"] {
            check(&format!("/a?{}=1", name.to_uppercase()), &format!("/a?{}=?", name.to_uppercase()));
        }
    }

    #[test]
    fn error_texts_lose_what_they_quote() {
        let check = |input: &str, expected: &str| {
            assert_eq!(quoted(&Config::default(), input.as_bytes(), '\'', 1024), expected);
        };
        check("Duplicate entry 'joe@x' for key 'users.mail'", "Duplicate entry '?' for key '?'");
        check("near 'select", "near '?");
        check("no quotes", "no quotes");
    }
}
