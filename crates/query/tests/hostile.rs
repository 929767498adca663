//! Texts that nobody should send: none may panic, overflow the stack, or put a word of its own into what the engine reads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashSet, sync::LazyLock};

use metaflow_query::{Compiled, Request, compile};
use metaflow_schema::TABLES;
use proptest::prelude::*;

/// Real statements, cut at the places where mutations change most.
const SEEDS: &[&str] = &[
    "SELECT auto_service_1, Sum(request) AS requests, Avg(rrt) FROM application WHERE time > now() - 300 GROUP BY auto_service_1 ORDER BY requests DESC",
    "select Sum(byte)/Time_interval as sum_byte, time(time, 120) as time_120 from l4_flow_log group by time_120 having Sum(byte)>=0 limit 10 offset 20",
    "select ((Max(byte_tx))+Avg(rtt ))/(1-Avg(rtt )) as avg_rtt from l4_flow_log limit 1;",
    "select Sum(byte) as `流量总量`, region_0 as `区域` from l4_flow_log where 1=1 group by `区域` order by `流量总量` desc",
    "select byte from l4_flow_log where ip>=('1.1.1.1/24','2.2.2.2') and ip<='::/24'",
    "select TopK(ip_0, pod_0, 10), Uniq(pod) from l7_flow_log where pod in ('a', 'b') or host_1 like '*x' and not exist(vpc_0)",
    "SELECT AAvg(`error_ratio`) AS `AAvg(error_ratio)`, auto_service_id from l7_flow_log group by auto_service_id slimit 5 limit 1",
    "SHOW tag host values from vtap_flow_port where host regexp 'a\\'b' limit 3, 4",
    "select Percentile(rrt, 0.9), Histogram(Sum(request), 10), Apdex(rrt, 1000) from `application_map.1s` where Enum(tap_side) = \"c\"",
];

/// Pieces that are likely to break something.
const PIECES: &[&str] = &[
    "'",
    "\"",
    "`",
    "\\",
    "(",
    ")",
    ",",
    ";",
    "--",
    "/*",
    "*/",
    "/*!",
    "\0",
    "?",
    "{x:String}",
    "$1",
    "@",
    "::",
    "[",
    "]",
    "0x",
    "1e999",
    "99999999999999999999999999999999999999999",
    " SETTINGS ",
    " FORMAT ",
    " INTO OUTFILE ",
    " UNION ALL SELECT ",
    " zzuser ",
    "`zz'user`",
    "'zz\\'user'",
    "file('x')",
    "url('x')",
    "system.tables",
    "NULL",
    " AS ",
    " OVER () ",
    "\u{202e}",
    "\u{0}",
    "é",
    "日",
    " IS NULL ",
    " COLLATE x ",
    " AT TIME ZONE 'x' ",
    " BETWEEN ",
    " NOT ",
    " - ",
    " * ",
    " FROM ",
    " WHERE ",
    " LIMIT ",
    "CASE",
    "now()",
];

fn compiled(text: &str) -> Option<String> {
    match compile(text, &Request { database: None, now_seconds: 1_700_000_000, shards: None }) {
        Ok(Compiled::Select { sql, .. }) => Some(sql),
        Ok(Compiled::Answer { .. }) | Err(_) => None,
    }
}

/// What stands outside of literals.
fn without_literals(sql: &str) -> String {
    let (mut out, mut letters, mut inside) = (String::new(), sql.chars(), false);
    while let Some(letter) = letters.next() {
        match (inside, letter) {
            (true, '\\') => {
                letters.next().expect("a backslash escapes a letter");
            }
            (_, '\'') => {
                inside = !inside;
                out.push('\'');
            }
            (true, _) => {}
            (false, letter) => out.push(letter),
        }
    }
    assert!(!inside, "a literal does not end: {sql}");
    out
}

/// Every word that a statement may hold: columns and tables of the catalogue, and the words of the renderer.
static VOCABULARY: LazyLock<HashSet<String>> = LazyLock::new(|| {
    const WORDS: &str = "SELECT DISTINCT FROM WHERE GROUP BY HAVING ORDER DESC LIMIT OFFSET AS IN AND OR NOT LIKE NULL WITH FILL TO STEP RIGHT ANY JOIN UNION ON g n0 n1 n2 n3 \
        n d q x flow_tag dictionary kind id name toUInt8 toUInt64 toUnixTimestamp toUnixTimestamp64Micro toDateTime toDateTime64 toIPv6 \
        toString toInt64 greatest intDiv nullIf if multiIf transform dictGet startsWith substring isIPv4String like match tuple tupleElement \
        arrayMap arrayFilter arrayReduce arrayElement arrayStringConcat negate toNullable sum count countIf max min any anyIf uniqIf uniqExactIf \
        topKIf sumMappedArrays maxOrNullIf minOrNullIf avgOrNullIf stddevPopOrNullIf argMaxOrNullIf quantileExactOrNullIf \
        quantileTDigestWeightedOrNullIf histogramIf";
    let mut words: HashSet<String> = HashSet::new();
    for word in WORDS.split_whitespace() {
        for suffix in ["", "State", "Merge"] {
            words.insert(format!("{word}{suffix}"));
        }
    }
    for table in TABLES {
        words.insert(table.database.to_owned());
        words.extend(table.name.split('.').map(str::to_owned));
        words.extend((table.columns)().into_iter().map(|column| column.name));
    }
    words
});

fn assert_ours(sql: &str) {
    let bare = without_literals(sql);
    for word in bare.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')) {
        let number = word.trim_start_matches(['k', 'a', 'c']).chars().all(|letter| letter.is_ascii_digit());
        let float = word.chars().next().is_none_or(|letter| letter.is_ascii_digit());
        assert!(number || float || VOCABULARY.contains(word), "{word:?} is not ours: {sql}");
    }
    let strange = bare.chars().find(|letter| !letter.is_ascii() || "?;\"\\#$@{}".contains(*letter));
    assert_eq!(strange, None, "{sql}");
    let open = bare.matches('(').count();
    assert_eq!(open, bare.matches(')').count(), "{sql}");
}

fn mutated() -> impl Strategy<Value = String> {
    let change =
        (any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::sample::select(PIECES), 0..4_u8);
    (prop::sample::select(SEEDS), prop::collection::vec(change, 0..5)).prop_map(|(seed, changes)| {
        let mut letters: Vec<char> = seed.chars().collect();
        for (at, length, piece, kind) in changes {
            let at = at.index(letters.len() + 1);
            let end = at + length.index(12.min(letters.len() - at) + 1);
            match kind {
                0 => {
                    letters.drain(at..end);
                }
                1 => {
                    letters.splice(at..end, piece.chars());
                }
                2 => {
                    letters.splice(at..at, piece.chars());
                }
                _ => {
                    let copy = letters[at..end].to_vec();
                    letters.splice(at..at, copy);
                }
            }
        }
        letters.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_compiled_or_refused(text in any::<String>(), more in "[ -~]{0,80}") {
        for text in [text.clone(), more.clone(), format!("SELECT {more} FROM application WHERE {text}")] {
            let _ = compiled(&text);
        }
    }

    #[test]
    fn mutated_statements_bring_no_word_of_theirs(text in mutated()) {
        if let Some(sql) = compiled(&text) {
            assert_ours(&sql);
        }
    }

    #[test]
    fn literals_and_aliases_stay_what_they_are(name in any::<String>(), alias in "[^`]{1,20}") {
        let quoted = name.replace('\\', "\\\\").replace('\'', "''");
        let text = format!("SELECT Sum(request) AS `{alias}` FROM application WHERE pod = '{quoted}' AND endpoint LIKE '{quoted}' ORDER BY `{alias}`");
        if let Some(sql) = compiled(&text) {
            assert_ours(&sql);
        }
    }
}

#[test]
fn nesting_without_end_is_refused() {
    let many = |piece: &str, count: usize| piece.repeat(count);
    let nested = [
        format!("SELECT {}1 FROM network", many("(", 30_000)),
        format!("SELECT {}1 FROM network", many("-", 30_000)),
        format!("SELECT {}1 FROM network", many("- ", 30_000)),
        format!("SELECT 1{} FROM network", many("+1", 30_000)),
        format!("SELECT 1{} FROM network", many("+1", 700)),
        format!("SELECT {}byte{} FROM network", many("Sum(", 5_000), many(")", 5_000)),
        format!("SELECT byte FROM network WHERE {}1", many("NOT ", 15_000)),
        format!("SELECT byte FROM network WHERE {}1", many("NOT ", 700)),
        format!("SELECT byte FROM network WHERE 1{}", many(" IS NULL", 700)),
        format!("SELECT byte FROM network WHERE 1{}", many(" COLLATE x", 700)),
        format!("SELECT byte FROM network WHERE 1{}", many(" LIKE 1", 1_400)),
        format!("SELECT byte FROM network WHERE a{}", many(".b", 700)),
        format!("SELECT byte FROM network WHERE a{}", many("::int", 700)),
        format!("SELECT byte FROM network WHERE a{}", many("[1]", 400)),
        format!("SELECT byte FROM network WHERE {}", many("CASE WHEN ", 700)),
        format!("SELECT byte FROM network WHERE {}", many("a IN (", 700)),
        format!("SELECT byte FROM network WHERE {}", many("/*", 30_000)),
        format!("SELECT byte{} FROM network", many(", byte", 5_000)),
        format!("SELECT {} FROM network", "x".repeat(100_000)),
        many("SELECT ", 5_000),
        many("SHOW TAG ", 5_000),
    ];
    for text in nested {
        let result = compile(&text, &Request { database: None, now_seconds: 0, shards: None });
        assert!(result.is_err(), "{}", &text[..60]);
    }
}

#[test]
fn groups_of_conditions_within_one_another_are_accepted() {
    let text = "a AND (b OR (c AND (NOT d OR (e AND (f OR (g))))))";
    let text = text.chars().fold(String::new(), |text, letter| match letter {
        'a'..='g' => format!("{text}server_port = {}", letter as u8),
        letter => format!("{text}{letter}"),
    });
    assert!(compiled(&format!("SELECT Count(row) FROM l7_flow_log WHERE {text}")).is_some());
}

#[test]
fn long_lists_and_chains_are_accepted() {
    let list: Vec<String> = (0..3_000).map(|number| format!("'pod-{number}'")).collect();
    let text = format!("SELECT Count(row) FROM l7_flow_log WHERE pod_0 IN ({})", list.join(","));
    assert!(compiled(&text).unwrap().contains("'pod-2999'"));
    let chain: Vec<String> = (0..300).map(|number| format!("server_port = {number}")).collect();
    let sql = compiled(&format!("SELECT Count(row) FROM l7_flow_log WHERE {}", chain.join(" OR "))).unwrap();
    assert_eq!(sql.matches(" OR ").count(), 299);
}
