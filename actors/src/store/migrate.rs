//! Brings a store to the catalogue: databases, tables, columns, indexes and projections that came with this release, the dictionary of names.
//!
//! Never drops a column, and changes only what an earlier release made and this one knows to hold the same values ([`ddl::is_outdated`]).
//! What differs else is reported, because only its owner knows what the data is worth.

use std::collections::HashMap;

use metaflow_schema::{TABLES, Table, ddl};

use super::{Error, client::Client};

/// What was found and done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migration {
    /// Columns that were added, as `database.table.column`.
    pub added: Vec<String>,
    /// Columns of an earlier release that have another type now.
    pub changed: Vec<String>,
    /// Columns whose type is not the catalogue's, in words.
    pub differing: Vec<String>,
}

pub(super) async fn migrate(client: &Client) -> Result<Migration, Error> {
    let (user, password) = client.credentials();
    for statement in ddl::statements() {
        client.execute(&with_credentials(&statement, &user, &password), &[]).await?;
    }
    let mut migration = Migration::default();
    for table in TABLES {
        complete(client, table, &mut migration).await?;
    }
    Ok(migration)
}

async fn complete(client: &Client, table: &Table, migration: &mut Migration) -> Result<(), Error> {
    let Table { database, name, .. } = table;
    let sql = format!(
        "SELECT name, replaceAll(type, '\\'', '\"') FROM system.columns WHERE database = '{database}' AND table = '{name}'"
    );
    let stored: HashMap<_, _> = client
        .rows(&sql, super::OWN_ANSWER_BYTES_MAX)
        .await?
        .into_iter()
        .filter_map(|row| <[String; 2]>::try_from(row).ok().map(|[name, kind]| (name, kind)))
        .collect();
    for column in &(table.columns)() {
        let full_name = format!("{database}.{name}.{}", column.name);
        match stored.get(&column.name) {
            None => {
                let declared = ddl::declare_column(column);
                let sql = format!("ALTER TABLE {database}.`{name}` ADD COLUMN IF NOT EXISTS {declared}");
                client.execute(&sql, &[]).await?;
                tracing::info!(column = full_name, "added a column");
                migration.added.push(full_name);
            }
            Some(kind) if ddl::is_outdated(column, kind) => {
                let declared = ddl::declare_column(column);
                let sql = format!("ALTER TABLE {database}.`{name}` MODIFY COLUMN {declared}");
                // Parts are rewritten in the background; until then they are converted when they are read.
                client.execute(&sql, &[("alter_sync", "0".to_owned())]).await?;
                tracing::info!(column = full_name, from = kind, to = column.clickhouse, "changed a column");
                migration.changed.push(full_name);
            }
            Some(kind) if *kind != column.clickhouse.replace('\'', "\"") => {
                let difference =
                    format!("{full_name} is {kind} in the store, {} in this release", column.clickhouse);
                tracing::error!(
                    difference,
                    "a column has another type: inserts may fail until it is altered"
                );
                migration.differing.push(difference);
            }
            Some(_) => {}
        }
    }
    for index in table.indexes {
        let index = ddl::declare_index(index).replacen("INDEX", "INDEX IF NOT EXISTS", 1);
        client.execute(&format!("ALTER TABLE {database}.`{name}` ADD {index}"), &[]).await?;
    }
    for projection in table.projections {
        let projection =
            ddl::declare_projection(projection).replacen("PROJECTION", "PROJECTION IF NOT EXISTS", 1);
        client.execute(&format!("ALTER TABLE {database}.`{name}` ADD {projection}"), &[]).await?;
    }
    Ok(())
}

/// A dictionary that reads a table of the same server does so as a user of its own, `default` unless it is named. Its password changes
/// with each start of an embedded engine, so the dictionary is made anew.
fn with_credentials(statement: &str, user: &str, password: &str) -> String {
    let quote = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    statement.replacen("CREATE DICTIONARY IF NOT EXISTS", "CREATE OR REPLACE DICTIONARY", 1).replacen(
        "SOURCE(CLICKHOUSE(",
        &format!("SOURCE(CLICKHOUSE(USER '{}' PASSWORD '{}' ", quote(user), quote(password)),
        1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_names_its_user_and_tables_stay_as_they_are() {
        let statements = ddl::statements();
        let dictionary = with_credentials(statements.last().unwrap(), "o'x", "p");
        assert!(dictionary.starts_with("CREATE OR REPLACE DICTIONARY flow_tag.names"));
        assert!(
            dictionary.contains("SOURCE(CLICKHOUSE(USER 'o\\'x' PASSWORD 'p' HOST '127.0.0.1' DB 'flow_tag'")
        );
        assert_eq!(with_credentials(&statements[1], "u", "p"), statements[1]);
    }
}
