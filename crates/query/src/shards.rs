//! Where the rows of a statement are, when they are in several stores.
//!
//! Each store has its part of the rows and, since a name comes into a store before the first row that uses it, the names of all of
//! them. So rows are filtered and summed up where they are, by that store's own dictionary; names are joined to the groups from the
//! dictionaries of all.

use std::{fmt::Write as _, net::SocketAddr};

/// Stores that are read as one, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// Each holds other rows.
    addresses: String,
    user: String,
    password: String,
}

impl Shards {
    /// Addresses of the stores' native protocol. None when there is nothing to read.
    pub fn new(addresses: &[SocketAddr], user: &str, password: &str) -> Option<Self> {
        let mut list = String::new();
        for (at, address) in addresses.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(list, "{comma}{address}").expect("writing to a string does not fail");
        }
        (!list.is_empty()).then(|| Self {
            addresses: list,
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    /// The texts of `remote('addresses', 'database', 'table', 'user', 'password')` around database and table.
    pub(crate) fn parts(&self) -> [&str; 3] {
        [&self.addresses, &self.user, &self.password]
    }
}

#[cfg(test)]
mod tests {
    use crate::{Compiled, Request, Shards, compile};

    fn rendered(sql: &str, shards: Option<&Shards>) -> String {
        match compile(sql, &Request { database: None, now_seconds: 1_700_000_000, shards }).unwrap() {
            Compiled::Select { sql, .. } => sql,
            Compiled::Answer { .. } => panic!("{sql} is answered from the catalogue"),
        }
    }

    #[test]
    fn rows_and_names_come_from_all_stores_and_each_filters_by_its_own_names() {
        let addresses = ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
        let shards = Shards::new(&addresses, "reader", "it's").unwrap();
        let of = |table: &str| {
            let (database, name) = table.split_once('.').unwrap();
            format!(r"remote('127.0.0.1:1,127.0.0.1:2', '{database}', '{name}', 'reader', 'it\'s')")
        };
        let check = |sql: &str, tables: &[&str], here: &[&str]| {
            let text = rendered(sql, Some(&shards));
            for table in tables {
                assert!(text.contains(&format!("FROM {}", of(table))), "{table}: {text}");
            }
            for table in here {
                assert!(text.contains(&format!("FROM {table} ")), "{table}: {text}");
            }
            assert_eq!(text.matches("remote(").count(), tables.len(), "{text}");
        };
        let grouped = "SELECT auto_service_1, Sum(request) AS r FROM application WHERE auto_service_1 = 'a' AND time > 1 GROUP BY \
                       auto_service_1";
        check(grouped, &["flow_tag.dictionary", "flow_metrics.application.1m"], &["flow_tag.dictionary"]);
        check("SELECT Count(row) FROM l7_flow_log WHERE time > 1", &["flow_log.l7_flow_log"], &[]);
        check("SHOW TAG request_domain VALUES FROM l7_flow_log", &["flow_tag.dictionary"], &[]);
        assert!(!rendered(grouped, None).contains("remote("));
    }

    #[test]
    fn without_a_store_there_are_no_shards() {
        assert_eq!(Shards::new(&[], "reader", "secret"), None);
    }
}
