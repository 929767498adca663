//! The engine's configuration files: limits, log, and its users.
//!
//! `default` cannot be removed and cannot have a password, because the engine starts its own session with it. It may do nothing but
//! that: its quota is the three statements of the start, its grants are what those need. The node's user has all of MetaFlow's databases
//! and nothing of the machine: no files, no URLs. In a cluster it reads other engines too, as their reader, who sees MetaFlow's tables.

use std::{fmt::Write, io::Write as _, os::unix::fs::OpenOptionsExt, path::Path};

use super::{Config, Passwords};

/// Name of the node's user.
pub(super) const USER: &str = "metaflow";
/// Name of the user that other engines read as.
pub(super) const READER: &str = "reader";

/// What the engine may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    /// Merges at a time.
    pub merges: u32,
    /// Threads of one query.
    pub query_threads: u32,
    /// Makes inserts survive power loss, at about a third more time each.
    pub sync_inserts: bool,
    /// Keeps `system.query_log`.
    pub query_log: bool,
}

impl Default for Limits {
    fn default() -> Self {
        // Two merges and two threads keep a laptop usable; 2 GiB is four times what the engine was measured to need under load.
        Self { memory_bytes: 2 << 30, merges: 2, query_threads: 2, sync_inserts: false, query_log: false }
    }
}

/// Databases that the node's user owns.
fn databases() -> Vec<&'static str> {
    let mut databases: Vec<_> = metaflow_schema::TABLES.iter().map(|table| table.database).collect();
    databases.sort_unstable();
    databases.dedup();
    databases
}

pub(super) fn write(config: &Config, passwords: &Passwords) -> std::io::Result<()> {
    let Config { executable: _, library: _, folder, limits, is_shard, ready_within: _ } = config;
    std::fs::create_dir_all(folder.join("data"))?;
    write_private(&folder.join("config.xml"), &server(folder, limits))?;
    write_private(&folder.join("users.xml"), &users(limits, passwords, *is_shard))
}

/// Readable by this user alone.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

fn server(folder: &Path, limits: &Limits) -> String {
    let Limits { memory_bytes, merges, query_threads: _, sync_inserts, query_log } = limits;
    let log = escape(&folder.join("engine.log").to_string_lossy());
    let users = escape(&folder.join("users.xml").to_string_lossy());
    let query_log = if *query_log {
        "<query_log><database>system</database><table>query_log</table><ttl>event_date + INTERVAL 3 DAY</ttl></query_log>"
    } else {
        ""
    };
    // The caches are a tenth of the engine's defaults, which are made for servers; the pools likewise.
    format!(
        "<clickhouse>
<users_config>{users}</users_config>
<logger><level>warning</level><log>{log}</log><size>10M</size><count>3</count></logger>
<max_server_memory_usage>{memory_bytes}</max_server_memory_usage>
<mark_cache_size>67108864</mark_cache_size>
<uncompressed_cache_size>0</uncompressed_cache_size>
<background_pool_size>{merges}</background_pool_size>
<background_schedule_pool_size>4</background_schedule_pool_size>
<max_thread_pool_size>1000</max_thread_pool_size>
<max_concurrent_queries>100</max_concurrent_queries>
<shutdown_wait_unfinished>1</shutdown_wait_unfinished>
<merge_tree>
<number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
<number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
<number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
<fsync_after_insert>{}</fsync_after_insert>
<fsync_part_directory>{}</fsync_part_directory>
</merge_tree>
{query_log}
</clickhouse>
",
        u8::from(*sync_inserts),
        u8::from(*sync_inserts),
    )
}

fn users(limits: &Limits, passwords: &Passwords, is_shard: bool) -> String {
    let Passwords { node, reader } = passwords;
    let mut grants = String::new();
    let mut reads = String::new();
    for database in databases() {
        // Writing to a String does not fail.
        let _infallible = write!(grants, "<query>GRANT ALL ON {database}.*</query>");
        let _infallible = write!(reads, "<query>GRANT SELECT, dictGet ON {database}.*</query>");
    }
    let reader = if is_shard {
        grants.push_str(
            "<query>GRANT READ ON REMOTE</query><query>GRANT CREATE TEMPORARY TABLE ON *.*</query>",
        );
        format!(
            "<{READER}>
<password>{reader}</password>
<networks><ip>127.0.0.1</ip></networks>
<profile>node</profile>
<quota>default</quota>
<access_management>0</access_management>
<grants>{reads}</grants>
</{READER}>
"
        )
    } else {
        String::new()
    };
    format!(
        "<clickhouse>
<profiles>
<default><log_queries>0</log_queries></default>
<node><log_queries>{}</log_queries><max_threads>{}</max_threads></node>
</profiles>
<quotas>
<default/>
<start><interval><duration>1000000000</duration><queries>3</queries></interval></start>
</quotas>
<users>
<default>
<password></password>
<networks><ip>127.0.0.1</ip></networks>
<profile>default</profile>
<quota>start</quota>
<grants><query>GRANT SYSTEM LISTEN ON *.*</query><query>GRANT READ ON FILE</query><query>GRANT CREATE TEMPORARY TABLE ON *.*</query></grants>
</default>
<{USER}>
<password>{node}</password>
<networks><ip>127.0.0.1</ip></networks>
<profile>node</profile>
<quota>default</quota>
<access_management>0</access_management>
<grants>{grants}<query>GRANT SELECT ON system.*</query><query>GRANT KILL QUERY ON *.*</query><query>GRANT TABLE ENGINE ON *</query><query>GRANT SYSTEM RELOAD DICTIONARY, SYSTEM MERGES, SYSTEM FLUSH LOGS ON *.*</query></grants>
</{USER}>
{reader}</users>
</clickhouse>
",
        u8::from(limits.query_log),
        limits.query_threads,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_for_this_user_alone_even_when_they_were_there_before() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("users.xml"), "old").unwrap();
        let config = Config::new("".into(), "".into(), folder.path().to_owned());
        let passwords = Passwords { node: "secret".to_owned(), reader: "other".to_owned() };
        write(&config, &passwords).unwrap();
        for name in ["config.xml", "users.xml"] {
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let users = std::fs::read_to_string(folder.path().join("users.xml")).unwrap();
        assert!(users.contains("secret") && !users.contains("other") && !users.contains("REMOTE"), "{users}");
        write(&Config { is_shard: true, ..config }, &passwords).unwrap();
        let users = std::fs::read_to_string(folder.path().join("users.xml")).unwrap();
        assert!(users.contains("other") && users.contains("GRANT READ ON REMOTE"), "{users}");
    }

    #[test]
    fn paths_cannot_change_the_configuration() {
        let text = server(Path::new("/a</log>&"), &Limits::default());
        assert!(text.contains("<log>/a&lt;/log&gt;&amp;/engine.log</log>"));
    }
}
