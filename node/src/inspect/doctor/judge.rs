//! The rules: what a measurement means. Pure.

use std::{net::SocketAddr, time::Duration};

use metaflow_schema::{Table, ddl::DEDUPLICATION_WINDOW, tables::Partition};

use super::{Check, Health};

const MIB: u64 = 1 << 20;
/// Buffers of a socket by default on Linux since long; below it, bursts of gossip are lost.
const UDP_BUFFER_MIN: u64 = 128 << 10;
/// IPv4 and UDP headers; IPv6 has 20 more.
const UDP_OVERHEAD: u64 = 28;
/// Gossip takes a moment to arrive, which looks like a clock that is behind.
const SKEW_WARN_MS: u64 = 1_500;
/// Rows of agents whose nodes disagree by more would land in other minutes.
const SKEW_FAIL_MS: u64 = 10_000;
const FSYNC_WARN: Duration = Duration::from_millis(50);
const FSYNC_FAIL: Duration = Duration::from_secs(1);
/// Time to replace a certificate at ease.
const CERTIFICATE_DAYS_WARN: u64 = 30;
/// Files that a node has open beside its connections: database, engine, logs.
const FILES_BESIDE: u64 = 512;

pub(super) fn udp_buffer(bytes: u64) -> Check {
    let found = format!("sockets receive into {} KiB", bytes >> 10);
    if bytes < UDP_BUFFER_MIN {
        let advice =
            "sysctl -w net.core.rmem_default=212992: gossip comes in bursts, and what finds no room is lost";
        return Check::warn("udp buffer", found, advice);
    }
    Check::ok("udp buffer", found)
}

/// `dropped`: datagrams that the kernel threw away because the socket was full; none when the socket was not found.
pub(super) fn gossip_socket(address: SocketAddr, dropped: Option<u64>) -> Check {
    match dropped {
        None => Check::fail(
            "gossip socket",
            format!("nothing is bound to UDP port {}", address.port()),
            "gossip has ended: look for errors of gossip in the log, and restart the node",
        ),
        Some(0) => Check::ok("gossip socket", format!("{address}, no datagram was lost at it")),
        Some(dropped) => Check::warn(
            "gossip socket",
            format!("{address}, {dropped} datagrams found no room and were lost"),
            "the node does not get enough CPU, or net.core.rmem_default is too small; others may take it for dead",
        ),
    }
}

pub(super) fn mtu(name: &str, mtu: u64, largest: u64) -> Check {
    let found = format!("{name}: packets of up to {mtu} bytes; the largest gossip had {largest}");
    if largest + UDP_OVERHEAD > mtu {
        let advice = "it travels in fragments: see that no firewall drops fragments, or use a larger MTU between nodes";
        return Check::warn("mtu", found, advice);
    }
    Check::ok("mtu", found)
}

pub(super) fn clock(name: &str, skew_ms: Option<i64>) -> Check {
    let Some(skew) = skew_ms else {
        return Check::ok("clock", format!("{name}: it did not say yet what its clock shows"));
    };
    let words = if skew < 0 { "behind" } else { "ahead" };
    let found = format!("{name}: {:.1} s {words}", skew.unsigned_abs() as f64 / 1000.0);
    let advice = "set both clocks by NTP (chronyc tracking): rows get the time of the host that saw them";
    match skew.unsigned_abs() {
        SKEW_FAIL_MS.. => Check::fail("clock", found, advice),
        SKEW_WARN_MS.. => Check::warn("clock", found, advice),
        _ => Check::ok("clock", found),
    }
}

/// Space of the file system that has the data folder; `wanted` is what the write-ahead log may take.
pub(super) fn space(free: u64, total: u64, wanted: u64) -> Check {
    let found = format!("{} MiB of {} MiB are free", free / MIB, total / MIB);
    if free < 256 * MIB || free < total / 100 {
        let advice = "free some space now: a full disk stops the log and the engine, and agents keep their rows until theirs are full";
        return Check::fail("disk space", found, advice);
    }
    if free < wanted || free < total / 10 {
        let advice = format!(
            "the write-ahead log alone may take {} MiB: free some space, or lower wal.size_max",
            wanted / MIB
        );
        return Check::warn("disk space", found, advice);
    }
    Check::ok("disk space", found)
}

pub(super) fn fsync(median: Duration) -> Check {
    let found = format!("a synced write of 4 KiB takes {:.1} ms", median.as_secs_f64() * 1000.0);
    let advice = "every acknowledgement waits for a sync: put data_dir on a faster disk, or find who else keeps it busy";
    match median {
        median if median >= FSYNC_FAIL => Check::fail("disk sync", found, advice),
        median if median >= FSYNC_WARN => Check::warn("disk sync", found, advice),
        _ => Check::ok("disk sync", found),
    }
}

pub(super) fn files(limit: u64, open: u64, connections: u64) -> Check {
    let wanted = connections + FILES_BESIDE;
    let found = format!("{open} files are open, {limit} may be");
    let advice = format!(
        "raise LimitNOFILE (ulimit -n) to {wanted} or more: {connections} connections are allowed by the configuration"
    );
    match () {
        () if open * 10 >= limit * 9 => Check::fail("file limit", found, advice),
        () if limit < wanted => Check::warn("file limit", found, advice),
        () => Check::ok("file limit", found),
    }
}

/// `end` and `now` are in seconds since 1970.
pub(super) fn certificate(what: &str, end: u64, now: u64) -> Check {
    let days = end.saturating_sub(now) / (24 * 3600);
    let advice = "put a new one in its place (metaflow ctl cert bootstrap makes one), which needs no restart";
    match () {
        () if end <= now => Check::fail("certificate", format!("{what} has ended: nobody connects"), advice),
        () if days < CERTIFICATE_DAYS_WARN => {
            Check::warn("certificate", format!("{what} ends in {days} days"), advice)
        }
        () => Check::ok("certificate", format!("{what} holds for {days} days")),
    }
}

/// `engine` is what the store says of the table; none when it has no such table.
pub(super) fn table(table: &Table, engine: Option<&str>) -> Check {
    let name = format!("{}.{}", table.database, table.name);
    let Some(engine) = engine else {
        let advice = "restart the node, which makes its tables, and look at its log";
        return Check::fail("table", format!("{name} is not in the store"), advice);
    };
    let window = setting(engine, "deduplication_window");
    // A replicated table has a window by default; a plain one has none.
    let window = window.or_else(|| engine.starts_with("Replicated").then_some(1_000));
    if window.unwrap_or(0) == 0 {
        let advice = format!(
            "ALTER TABLE {name} MODIFY SETTING non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
        );
        let found =
            format!("{name} remembers no insert: one that is repeated after a failure is stored twice");
        return Check::fail("table", found, advice);
    }
    if table.partition == Partition::None {
        return Check::ok("table", format!("{name}: deduplication window {}", window.unwrap_or(0)));
    }
    match (table.ttl_days, engine.contains("TTL ")) {
        (Some(days), false) => Check::warn(
            "table",
            format!("{name} keeps its rows for ever"),
            format!("ALTER TABLE {name} MODIFY TTL toDateTime(time) + INTERVAL {days} DAY"),
        ),
        (days, _) => {
            let is_own = days.is_some_and(|days| engine.contains(&format!("toIntervalDay({days})")));
            let life = if is_own || days.is_none() { "" } else { ", rows live other than by default" };
            Check::ok("table", format!("{name}: deduplication window {}{life}", window.unwrap_or(0)))
        }
    }
}

/// The tables as one check where all are well, else those that are not.
pub(super) fn tables(tables: Vec<Check>) -> Vec<Check> {
    let count = tables.len();
    let wrong: Vec<Check> = tables.into_iter().filter(|check| check.health != Health::Ok).collect();
    if wrong.is_empty() {
        return vec![Check::ok("table", format!("all {count} remember their inserts and let old rows go"))];
    }
    wrong
}

/// A number among the settings of a table, by the end of its name.
fn setting(engine: &str, name: &str) -> Option<u64> {
    let (_, rest) = engine.split_once(&format!("{name} = "))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use metaflow_schema::tables::{DICTIONARY, L7_FLOW_LOG};

    use super::*;

    #[track_caller]
    fn check(made: &Check, health: Health, part: &str) {
        assert_eq!(made.health, health, "{made:?}");
        assert!(made.found.contains(part) || made.advice.contains(part), "{made:?}");
        assert_eq!(made.advice.is_empty(), health == Health::Ok, "what is wrong comes with advice: {made:?}");
    }

    #[test]
    fn the_network_is_judged() {
        check(&udp_buffer(212_992), Health::Ok, "208 KiB");
        check(&udp_buffer(4096), Health::Warn, "rmem_default");
        let address = SocketAddr::from(([127, 0, 0, 1], 20037));
        check(&gossip_socket(address, Some(0)), Health::Ok, "20037");
        check(&gossip_socket(address, Some(3)), Health::Warn, "3 datagrams");
        check(&gossip_socket(address, None), Health::Fail, "restart");
        check(&mtu("n2", 1500, 1472), Health::Ok, "1500");
        check(&mtu("n2", 1500, 1473), Health::Warn, "fragments");
        check(&clock("n2", None), Health::Ok, "n2");
        check(&clock("n2", Some(-900)), Health::Ok, "0.9 s behind");
        check(&clock("n2", Some(-2000)), Health::Warn, "NTP");
        check(&clock("n2", Some(11_000)), Health::Fail, "11.0 s ahead");
    }

    #[test]
    fn the_machine_is_judged() {
        let gib = 1024 * MIB;
        check(&space(50 * gib, 100 * gib, 10 * gib), Health::Ok, "free");
        check(&space(9 * gib, 100 * gib, 0), Health::Warn, "free some space");
        check(&space(50 * gib, 100 * gib, 60 * gib), Health::Warn, "wal.size_max");
        check(&space(100 * MIB, 100 * gib, 0), Health::Fail, "full disk");
        check(&fsync(Duration::from_millis(3)), Health::Ok, "3.0 ms");
        check(&fsync(Duration::from_millis(80)), Health::Warn, "faster disk");
        check(&fsync(Duration::from_secs(2)), Health::Fail, "faster disk");
        check(&files(65_536, 100, 4096), Health::Ok, "65536");
        check(&files(1024, 100, 4096), Health::Warn, "LimitNOFILE");
        check(&files(1024, 1000, 100), Health::Fail, "LimitNOFILE");
    }

    #[test]
    fn certificates_are_judged() {
        let day = 24 * 3600;
        check(&certificate("it", 100 * day, day), Health::Ok, "99 days");
        check(&certificate("it", 10 * day, day), Health::Warn, "9 days");
        check(&certificate("it", day, 2 * day), Health::Fail, "ended");
    }

    #[test]
    fn tables_are_judged() {
        let engine = "MergeTree PARTITION BY x TTL toDateTime(time) + toIntervalDay(3) SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192";
        check(&table(&L7_FLOW_LOG, Some(engine)), Health::Ok, "window 10000");
        check(&table(&L7_FLOW_LOG, None), Health::Fail, "not in the store");
        let without = engine.replace("non_replicated_deduplication_window = 10000, ", "");
        check(&table(&L7_FLOW_LOG, Some(&without)), Health::Fail, "stored twice");
        check(&table(&L7_FLOW_LOG, Some(&engine.replace("10000", "0"))), Health::Fail, "MODIFY SETTING");
        let eternal = engine.replace("TTL toDateTime(time) + toIntervalDay(3) ", "");
        check(&table(&L7_FLOW_LOG, Some(&eternal)), Health::Warn, "for ever");
        let replicated = without.replace("MergeTree", "ReplicatedMergeTree");
        check(&table(&L7_FLOW_LOG, Some(&replicated)), Health::Ok, "window 1000");
        let other = engine.replace("Day(3)", "Day(77)");
        check(&table(&L7_FLOW_LOG, Some(&other)), Health::Ok, "other than by default");
        check(&table(&DICTIONARY, Some(&eternal)), Health::Ok, "window 10000");
        let all = vec![table(&L7_FLOW_LOG, Some(engine)), table(&L7_FLOW_LOG, Some(engine))];
        check(&tables(all)[0], Health::Ok, "all 2");
        let some = vec![table(&L7_FLOW_LOG, Some(engine)), table(&L7_FLOW_LOG, None)];
        assert_eq!(tables(some), [table(&L7_FLOW_LOG, None)]);
    }
}
