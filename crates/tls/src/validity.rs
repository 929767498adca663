//! Until when a certificate holds.
//!
//! The verifier checks this for what peers show, and not for the authorities that files name: an authority that has ended would be
//! believed for ever. It reads the few elements before the validity (RFC 5280, 4.1) and nothing else.

use rustls::time_provider::{DefaultTimeProvider, TimeProvider as _};

const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, which the oldest do not have.
const VERSION: u8 = 0xa0;

/// The wall clock that certificates are checked with, in seconds since 1970.
pub(crate) fn now() -> u64 {
    DefaultTimeProvider.current_time().map_or(0, |time| time.as_secs())
}

/// The end of a certificate, in seconds since 1970; none when it is not readable.
pub(crate) fn end(certificate: &[u8]) -> Option<u64> {
    let (mut outer, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(outer, SEQUENCE)?;
    if let Some((_, after)) = element(rest, VERSION) {
        rest = after;
    }
    // Serial number, algorithm and issuer stand before it.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = element(rest, tag)?;
    }
    (outer, _) = element(rest, SEQUENCE)?;
    let tag = *outer.first()?;
    let (_, after) = element(outer, tag)?;
    let tag = *after.first()?;
    let (text, _) = element(after, tag)?;
    seconds(tag, text)
}

/// The content of the element at the front, which must have this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[first, length], rest) = bytes.split_first_chunk::<2>()?;
    if first != tag {
        return None;
    }
    if length < 0x80 {
        return rest.split_at_checked(usize::from(length));
    }
    let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
    if length.is_empty() || length.len() > 4 {
        return None;
    }
    let length = length.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
fn seconds(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let number = |from: usize, count: usize| -> Option<u64> {
        std::str::from_utf8(digits.get(from..from + count)?).ok()?.parse().ok()
    };
    let (year, rest) = match tag {
        // Two digits of a year mean 1950 to 2049.
        UTC_TIME if digits.len() == 12 => {
            (number(0, 2).map(|year| year + if year < 50 { 2000 } else { 1900 })?, 2)
        }
        GENERALIZED_TIME if digits.len() == 14 => (number(0, 4)?, 4),
        _ => return None,
    };
    let (month, day) = (number(rest, 2)?, number(rest + 2, 2)?);
    let (hour, minute, second) = (number(rest + 4, 2)?, number(rest + 6, 2)?, number(rest + 8, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Of the Gregorian calendar; years begin in March here, so that the leap day is the last one.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month > 2 { year } else { year.checked_sub(1)? };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    // 719,468 days lie between the first of March of the year 0 and 1970.
    (365 * year + year / 4 - year / 100 + year / 400 + day_of_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_forms_are_read() {
        let check = |tag, text: &str, expected| assert_eq!(seconds(tag, text.as_bytes()), expected, "{text}");
        check(UTC_TIME, "700101000000Z", Some(0));
        check(UTC_TIME, "000229123456Z", Some(951_827_696));
        check(UTC_TIME, "491231235959Z", Some(2_524_607_999));
        check(GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000));
        check(GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799));
        check(GENERALIZED_TIME, "19600101000000Z", None);
        check(UTC_TIME, "20500101000000Z", None);
        check(UTC_TIME, "701301000000Z", None);
        check(UTC_TIME, "7001010000", None);
    }

    #[test]
    fn the_end_of_a_certificate_is_found_and_nonsense_has_none() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 5, 6);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let der = certificate.der();
        assert_eq!(end(der), Some(1_935_792_000));
        for length in 0..200.min(der.len()) {
            assert_eq!(end(&der[..length]), None, "{length}");
        }
    }
}
