//! Redis commands: their names, and which of their arguments may be shown.

use super::{View, name};
use crate::protocol::text::{TEXT_MAX, text, truncate};
use crate::protocol::{Envelope, Request};
use crate::session::{Config, redact};

/// Bytes of an argument that are looked at.
pub(super) const ARGUMENT_MAX: usize = 256;
/// The longest command name is GEORADIUSBYMEMBER_RO with 20 bytes.
pub(super) const NAME_MAX: usize = 32;

/// A command while its arguments come in.
pub(super) struct Command {
    left: u64,
    count: u64,
    shown: Shown,
    name: String,
    line: String,
    start: (u64, u32, u64, u64),
}

/// Arguments that hold no values of the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    All,
    /// The command and so many arguments.
    First(u64),
}

impl Command {
    pub(super) fn new(arguments: i64, view: View<'_>) -> Self {
        Command {
            left: arguments.max(1) as u64,
            count: 0,
            shown: Shown::All,
            name: String::new(),
            line: String::new(),
            start: (view.timestamp, view.tcp_seq, view.offset, view.captured),
        }
    }

    /// Takes an argument's first bytes in. False when it was the last one.
    pub(super) fn argument(&mut self, config: &Config, bytes: &[u8], length: u64) -> bool {
        if self.count == 0 {
            self.name = name(bytes);
            self.shown = if config.redact { shown(&self.name) } else { Shown::All };
            self.line.push_str(&self.name);
        } else if self.line.len() < TEXT_MAX {
            self.line.push(' ');
            match self.shown {
                Shown::First(count) if self.count > count => self.line.push('?'),
                _ => self.line.push_str(&text(bytes, ARGUMENT_MAX)),
            }
            if length > ARGUMENT_MAX as u64 {
                self.line.push_str("...");
            }
        }
        self.count += 1;
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }

    /// The request, when its last step has `size` bytes of which `have` were seen.
    pub(super) fn finish(self, view: View<'_>, size: u64, have: u64) -> Request {
        let Command { name, mut line, start: (start_time, tcp_seq, offset, captured), .. } = self;
        truncate(&mut line, TEXT_MAX);
        redact::cards(&mut line);
        Request {
            envelope: Envelope {
                id: 0,
                start_time,
                end_time: view.now,
                tcp_seq,
                length: (view.offset + size).saturating_sub(offset),
                captured: (view.captured + have).saturating_sub(captured),
            },
            endpoint: name.clone(),
            request_type: name,
            resource: line,
            ..Request::default()
        }
    }
}

/// Commands whose arguments are keys, ranges and options only are shown whole; of the others the key.
fn shown(name: &str) -> Shown {
    match name {
        "AUTH" | "HELLO" | "ACL" | "CONFIG" | "EVAL" | "EVAL_RO" | "MIGRATE" | "FUNCTION" | "PUBLISH"
        | "SPUBLISH" | "ECHO" | "PING" | "SCRIPT" => Shown::First(0),
        _ if READS.binary_search(&name).is_ok() => Shown::All,
        _ => Shown::First(1),
    }
}

/// Whether a word is a command, in any case.
pub(super) fn is_known(word: &[u8]) -> bool {
    if word.len() > NAME_MAX || !word.first().is_some_and(u8::is_ascii_alphabetic) {
        return false;
    }
    let mut upper = [0; NAME_MAX];
    let upper = &mut upper[..word.len()];
    upper.copy_from_slice(word);
    upper.make_ascii_uppercase();
    let Ok(upper) = std::str::from_utf8(upper) else { return false };
    let module = upper.split_once('.').is_some_and(|(module, _)| MODULES.contains(&module));
    module || READS.binary_search(&upper).is_ok() || OTHERS.binary_search(&upper).is_ok()
}

/// Prefixes of the commands that common modules add.
const MODULES: [&str; 8] = ["BF", "CF", "CMS", "FT", "JSON", "TDIGEST", "TOPK", "TS"];

/// Commands without values, sorted.
const READS: &[&str] = &[
    "ASKING",
    "BGREWRITEAOF",
    "BGSAVE",
    "BITCOUNT",
    "BITPOS",
    "BLPOP",
    "BRPOP",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "CLUSTER",
    "COMMAND",
    "COPY",
    "DBSIZE",
    "DECR",
    "DECRBY",
    "DEL",
    "DISCARD",
    "DUMP",
    "EXEC",
    "EXISTS",
    "EXPIRE",
    "EXPIREAT",
    "EXPIRETIME",
    "FLUSHALL",
    "FLUSHDB",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GET",
    "GETBIT",
    "GETDEL",
    "GETEX",
    "GETRANGE",
    "HDEL",
    "HEXISTS",
    "HEXPIRE",
    "HGET",
    "HGETALL",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HRANDFIELD",
    "HSCAN",
    "HSTRLEN",
    "HTTL",
    "HVALS",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "INFO",
    "KEYS",
    "LASTSAVE",
    "LINDEX",
    "LLEN",
    "LMOVE",
    "LMPOP",
    "LPOP",
    "LRANGE",
    "LTRIM",
    "MEMORY",
    "MGET",
    "MONITOR",
    "MOVE",
    "MULTI",
    "OBJECT",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PEXPIRETIME",
    "PFCOUNT",
    "PFMERGE",
    "PSUBSCRIBE",
    "PTTL",
    "PUBSUB",
    "PUNSUBSCRIBE",
    "QUIT",
    "RANDOMKEY",
    "READONLY",
    "READWRITE",
    "RENAME",
    "RENAMENX",
    "RESET",
    "ROLE",
    "RPOP",
    "RPOPLPUSH",
    "SCAN",
    "SCARD",
    "SDIFF",
    "SELECT",
    "SINTER",
    "SINTERCARD",
    "SMEMBERS",
    "SPOP",
    "SRANDMEMBER",
    "SSCAN",
    "STRLEN",
    "SUBSCRIBE",
    "SUBSTR",
    "SUNION",
    "TIME",
    "TOUCH",
    "TTL",
    "TYPE",
    "UNLINK",
    "UNSUBSCRIBE",
    "UNWATCH",
    "WAIT",
    "WATCH",
    "XACK",
    "XDEL",
    "XINFO",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREAD",
    "XREADGROUP",
    "XREVRANGE",
    "XTRIM",
    "ZCARD",
    "ZCOUNT",
    "ZDIFF",
    "ZINTER",
    "ZINTERSTORE",
    "ZLEXCOUNT",
    "ZMSCORE",
    "ZPOPMAX",
    "ZPOPMIN",
    "ZRANDMEMBER",
    "ZRANGE",
    "ZRANGEBYLEX",
    "ZRANGEBYSCORE",
    "ZRANGESTORE",
    "ZRANK",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    "ZREVRANGE",
    "ZREVRANGEBYLEX",
    "ZREVRANGEBYSCORE",
    "ZREVRANK",
    "ZSCAN",
    "ZSCORE",
    "ZUNION",
    "ZUNIONSTORE",
];

/// The other commands, sorted.
const OTHERS: &[&str] = &[
    "ACL",
    "APPEND",
    "AUTH",
    "BITFIELD",
    "BITFIELD_RO",
    "BITOP",
    "BLMOVE",
    "BLMPOP",
    "BRPOPLPUSH",
    "CLIENT",
    "CONFIG",
    "DEBUG",
    "ECHO",
    "EVAL",
    "EVALSHA",
    "EVALSHA_RO",
    "EVAL_RO",
    "FAILOVER",
    "FCALL",
    "FCALL_RO",
    "FUNCTION",
    "GEOADD",
    "GEORADIUS",
    "GEORADIUSBYMEMBER",
    "GEORADIUSBYMEMBER_RO",
    "GEORADIUS_RO",
    "GEOSEARCH",
    "GEOSEARCHSTORE",
    "GETSET",
    "HELLO",
    "HMSET",
    "HSET",
    "HSETNX",
    "LATENCY",
    "LCS",
    "LINSERT",
    "LPOS",
    "LPUSH",
    "LPUSHX",
    "LREM",
    "LSET",
    "MIGRATE",
    "MODULE",
    "MSET",
    "MSETNX",
    "PFADD",
    "PING",
    "PSETEX",
    "PSYNC",
    "PUBLISH",
    "REPLCONF",
    "REPLICAOF",
    "RESTORE",
    "RPUSH",
    "RPUSHX",
    "SADD",
    "SAVE",
    "SCRIPT",
    "SDIFFSTORE",
    "SENTINEL",
    "SET",
    "SETBIT",
    "SETEX",
    "SETNX",
    "SETRANGE",
    "SHUTDOWN",
    "SINTERSTORE",
    "SISMEMBER",
    "SLAVEOF",
    "SLOWLOG",
    "SMISMEMBER",
    "SMOVE",
    "SORT",
    "SORT_RO",
    "SPUBLISH",
    "SREM",
    "SSUBSCRIBE",
    "SUNIONSTORE",
    "SUNSUBSCRIBE",
    "SWAPDB",
    "SYNC",
    "XADD",
    "XAUTOCLAIM",
    "XCLAIM",
    "XGROUP",
    "ZADD",
    "ZINCRBY",
    "ZREM",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_so_that_they_can_be_searched() {
        assert!(READS.is_sorted() && OTHERS.is_sorted());
        assert!(!READS.iter().any(|name| OTHERS.contains(name)));
    }

    #[test]
    fn commands_are_known_in_any_case() {
        for word in ["get", "GET", "Set", "ft.search", "zrevrange"] {
            assert!(is_known(word.as_bytes()), "{word}");
        }
        for word in ["", "xxx", "message", "GETT", "1", "html.body"] {
            assert!(!is_known(word.as_bytes()), "{word}");
        }
    }
}
