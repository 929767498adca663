//! The first packet of ClickHouse's native protocol, in which a client says who it is; read, checked and written with another user.
//!
//! Source: `Connection::sendHello` of ClickHouse: type 0, name of the client, two numbers of its version, revision, database, user,
//! password. Numbers are unsigned LEB128; texts have their length in front.

/// Client and database names are short; what has not said hello within this is no engine.
const BYTES_MAX: usize = 4096;
const HELLO: u64 = 0;

/// Who connects.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Up to the user's name.
    head: Vec<u8>,
    pub(super) user: String,
    pub(super) password: String,
    /// Bytes that it took.
    pub(super) length: usize,
}

/// What the bytes are so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Whole(Hello),
    More,
    /// Something else.
    No,
}

/// Reads a hello from the start of a connection.
pub(super) fn read(bytes: &[u8]) -> Read {
    let mut cursor = Cursor { bytes, at: 0 };
    match hello(&mut cursor) {
        Some(Some(hello)) => Read::Whole(hello),
        Some(None) => Read::No,
        None if bytes.len() >= BYTES_MAX => Read::No,
        None => Read::More,
    }
}

impl Hello {
    /// The same from another user.
    pub(super) fn with(&self, user: &str, password: &str) -> Vec<u8> {
        let mut out = self.head.clone();
        for text in [user, password] {
            let mut length = text.len();
            while length >= 0x80 {
                out.push((length as u8 & 0x7f) | 0x80);
                length >>= 7;
            }
            out.push(length as u8);
            out.extend_from_slice(text.as_bytes());
        }
        out
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// None: more bytes are needed. Some(None): longer than a number can be.
    fn number(&mut self) -> Option<Option<u64>> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(Some(value));
            }
        }
        Some(None)
    }

    fn text(&mut self) -> Option<Option<&'a str>> {
        let Some(length) = self.number()? else { return Some(None) };
        let Some(end) = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length)) else {
            return Some(None);
        };
        if end > BYTES_MAX {
            return Some(None);
        }
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(std::str::from_utf8(bytes).ok())
    }
}

/// None: more bytes are needed. Some(None): no hello.
fn hello(cursor: &mut Cursor<'_>) -> Option<Option<Hello>> {
    if cursor.number()? != Some(HELLO) {
        return Some(None);
    }
    if cursor.text()?.is_none() {
        return Some(None);
    }
    for _ in 0..3 {
        if cursor.number()?.is_none() {
            return Some(None);
        }
    }
    if cursor.text()?.is_none() {
        return Some(None);
    }
    let head = cursor.bytes[..cursor.at].to_vec();
    let (Some(user), Some(password)) = (cursor.text()?, cursor.text()?) else { return Some(None) };
    let (user, password) = (user.to_owned(), password.to_owned());
    Some(Some(Hello { head, user, password, length: cursor.at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an engine of version 26.7 says it.
    fn said(user: &str, password: &str) -> Vec<u8> {
        let mut bytes = vec![0];
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        };
        text(&mut bytes, "ClickHouse server");
        bytes.extend_from_slice(&[26, 7, 0xd1, 0xa9, 0x03]);
        for part in ["flow_log", user, password] {
            text(&mut bytes, part);
        }
        bytes
    }

    #[test]
    fn a_hello_is_read_at_any_cut_and_written_with_another_user() {
        let whole = said("reader", "one");
        for cut in 0..whole.len() {
            assert_eq!(read(&whole[..cut]), Read::More, "{cut}");
        }
        let mut more = whole.clone();
        more.extend_from_slice(b"rest");
        let Read::Whole(hello) = read(&more) else { panic!("not read") };
        assert_eq!(
            (hello.user.as_str(), hello.password.as_str(), hello.length),
            ("reader", "one", whole.len())
        );
        assert_eq!(hello.with("reader", "one"), whole);
        let long = "x".repeat(300);
        let Read::Whole(other) = read(&hello.with("other", &long)) else { panic!("not read") };
        assert_eq!((other.user.as_str(), other.password), ("other", long));
    }

    #[test]
    fn what_is_no_hello_is_refused_early() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            &[1],
            &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0, 0xff, 0x7f],
            &[0, 2, 0xff, 0xfe],
        ] {
            assert_eq!(read(bytes), Read::No, "{bytes:?}");
        }
        assert_eq!(read(&vec![0x80; BYTES_MAX]), Read::No);
    }
}
