//! Text from hostile bytes: bounded, valid, and with few distinct values where it becomes a tag.

/// Longest text that a session keeps of anything but statements.
pub(crate) const TEXT_MAX: usize = 1024;
/// Longest short text: names, ids, versions of clients.
pub(crate) const NAME_MAX: usize = 256;
/// Stands for a part that differs from request to request.
pub(crate) const MARK: &str = "*";
/// An endpoint keeps so many segments; what follows is one mark.
const SEGMENTS_MAX: usize = 8;
/// A path segment above this is data, not a name.
const SEGMENT_MAX: usize = 48;
/// So many digits in a row are an id, a time or a count.
const DIGITS_MIN: usize = 4;

/// Bytes as text of at most `max` bytes; what is not UTF-8 is replaced, control characters too.
pub(crate) fn text(bytes: &[u8], max: usize) -> String {
    let bytes = &bytes[..bytes.len().min(max)];
    if bytes.is_empty() {
        return String::new();
    }
    // Copied before it is checked: the allocator's memory is aligned, where the check takes many bytes at a time.
    match String::from_utf8(bytes.to_vec()) {
        Ok(text) if !has_nul(bytes) => text,
        _ => cleaned(bytes, max),
    }
}

/// Eight bytes at a time; the last eight overlap the ones before them, so that hardly any is looked at alone.
fn has_nul(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    // Leaves the high bit of the lowest byte that is 0, and nothing when there is none.
    let nul = |eight: &[u8; 8]| {
        let word = u64::from_le_bytes(*eight);
        word.wrapping_sub(ONES) & !word & (ONES << 7)
    };
    let Some(last) = bytes.last_chunk() else { return bytes.contains(&0) };
    bytes.as_chunks().0.iter().fold(nul(last), |found, eight| found | nul(eight)) != 0
}

#[cold]
fn cleaned(bytes: &[u8], max: usize) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.replace('\0', " "),
        // A cut in the middle of a character is not the sender's fault.
        Err(error) if bytes.len() == max && error.valid_up_to() + 4 > max => {
            String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned()
        }
        Err(_) => {
            let mut text = String::from_utf8_lossy(bytes).into_owned();
            truncate(&mut text, max);
            text
        }
    }
}

/// Cuts at a character boundary.
pub(crate) fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// Without surrounding blanks.
pub(crate) fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

/// `%2C` is a comma.
pub(crate) fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
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

/// The path of a target without query, with every part that looks like an id replaced, so that few distinct values remain.
pub(crate) fn endpoint(target: &str) -> String {
    let path = path_of(target);
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    // What stays is copied at once, from `kept` up to the next segment that does not.
    let (mut kept, mut start, mut digits, mut segments) = (0, 0, 0, 0);
    for end in 0..=bytes.len() {
        match bytes.get(end) {
            Some(b'/') | None => {}
            Some(byte) => {
                digits += usize::from(byte.is_ascii_digit());
                continue;
            }
        }
        if segments > SEGMENTS_MAX {
            out.push_str(&path[kept..start]);
            out.push_str(MARK);
            return out;
        }
        let kind = Kind::of(&bytes[start..end], digits);
        if kind != Kind::Plain {
            out.push_str(&path[kept..start]);
            kind.push(&mut out, &path[start..end]);
            kept = end;
        }
        (start, digits, segments) = (end + 1, 0, segments + 1);
    }
    out.push_str(&path[kept..]);
    out
}

/// A host name with the labels that look like ids replaced.
pub(crate) fn name_endpoint(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (count, label) in name.split('.').enumerate() {
        if count > 0 {
            out.push('.');
        }
        push_segment(&mut out, label);
    }
    out
}

/// A name with long numbers replaced.
pub(crate) fn normalised(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    push_segment(&mut out, name);
    out
}

/// Appends a segment, or what stands for it.
fn push_segment(out: &mut String, segment: &str) {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    Kind::of(segment.as_bytes(), digits).push(out, segment);
}

/// What a segment is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A name.
    Plain,
    /// A name with a long number in it.
    Numbered,
    /// Differs from request to request.
    Id,
}

impl Kind {
    /// Of a segment that has so many digits.
    fn of(bytes: &[u8], digits: usize) -> Kind {
        if (digits == bytes.len() && digits > 0) || bytes.len() > SEGMENT_MAX || is_id(bytes, digits) {
            Kind::Id
        } else if digits < DIGITS_MIN {
            Kind::Plain
        } else {
            Kind::Numbered
        }
    }

    /// Appends a segment of this kind.
    fn push(self, out: &mut String, segment: &str) {
        match self {
            Kind::Plain => out.push_str(segment),
            Kind::Numbered => push_without_numbers(out, segment),
            Kind::Id => out.push_str(MARK),
        }
    }
}

/// UUIDs, hexadecimal and long mixed tokens.
fn is_id(bytes: &[u8], digits: usize) -> bool {
    let is_hex = || bytes.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    let has_letter = || bytes.iter().any(u8::is_ascii_alphabetic);
    match bytes.len() {
        ..8 => false,
        8..16 => digits > 0 && is_hex(),
        16..20 => is_hex(),
        20.. => is_hex() || (digits > 2 && has_letter()),
    }
}

/// Names with a long number in them: the number goes.
fn push_without_numbers(out: &mut String, segment: &str) {
    let bytes = segment.as_bytes();
    let mut plain = 0;
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits >= DIGITS_MIN {
            out.push_str(&segment[plain..at]);
            out.push_str(MARK);
            plain = at + digits;
        }
        at += digits.max(1);
    }
    out.push_str(&segment[plain..]);
}

/// The path of an origin-form or absolute-form target.
fn path_of(target: &str) -> &str {
    let end = memchr::memchr3(b'?', b'#', b';', target.as_bytes()).unwrap_or(target.len());
    let target = &target[..end];
    if target.starts_with('/') {
        return target;
    }
    match target.find("://") {
        Some(scheme) => {
            let rest = &target[scheme + 3..];
            rest.find('/').map_or("/", |slash| &rest[slash..])
        }
        None => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_few_distinct_values() {
        #[track_caller]
        fn check(target: &str, expected: &str) {
            assert_eq!(endpoint(target), expected);
        }
        check("/query?1590632942", "/query");
        check("/", "/");
        check("/users/42/orders/7", "/users/*/orders/*");
        check("/v1/api/v2", "/v1/api/v2");
        check("/o/123e4567-e89b-12d3-a456-426614174000/x", "/o/*/x");
        check("/blob/9f86d081884c7d65", "/blob/*");
        check("/blob/feedfacedeadbeefcafe", "/blob/*");
        check("/facade/decade", "/facade/decade");
        check("/item-20231201.json", "/item-*.json");
        check("http://host:80/a/1?x", "/a/*");
        check("http://host", "/");
        check("/a/b/c/d/e/f/g/h/i/j/k", "/a/b/c/d/e/f/g/h/*");
        check("*", "*");
        check("/caf\u{e9}/1", "/caf\u{e9}/*");
        check(&format!("/{}", "x".repeat(60)), "/*");
    }

    #[test]
    fn text_is_bounded_and_valid() {
        assert_eq!(text(b"abc", 2), "ab");
        assert_eq!(text("caf\u{e9}".as_bytes(), 4), "caf");
        assert_eq!(text(b"a\0b", 9), "a b");
        assert!(text(&[0xff; 100], 10).len() <= 10);
    }
}
