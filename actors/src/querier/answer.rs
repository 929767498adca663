//! An answer: columns, and rows as JSON text that goes to the client as it is.

use metaflow_query::{ColumnKind, ResultColumn, Value};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Error;

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub unit: String,
    pub kind: ColumnKind,
    /// ClickHouse's name of the type.
    pub value_type: String,
}

/// A node whose rows an answer lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub node_id: u16,
    pub name: String,
    pub reason: String,
}

/// What a statement answers.
#[derive(Debug)]
pub struct Answer {
    pub columns: Vec<Column>,
    /// A JSON array of arrays: rows are not taken apart, since nobody here looks into them.
    pub rows: Box<RawValue>,
    pub row_count: u64,
    /// Not empty: the answer is not whole.
    pub missing: Vec<Missing>,
}

/// `FORMAT JSONCompact`.
#[derive(Deserialize)]
struct Compact {
    meta: Vec<Meta>,
    data: Box<RawValue>,
    rows: u64,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "type")]
    value_type: String,
}

impl Answer {
    pub(super) fn from_catalogue(columns: Vec<ResultColumn>, rows: &[Vec<Value>]) -> Self {
        let types: Vec<&str> = (0..columns.len())
            .map(|at| match rows.first().and_then(|row| row.get(at)) {
                Some(Value::Integer(_)) => "Int64",
                Some(Value::Text(_)) | None => "String",
            })
            .collect();
        let cells: Vec<Vec<serde_json::Value>> =
            rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        Self {
            columns: named(columns, types.into_iter().map(str::to_owned)),
            rows: serde_json::value::to_raw_value(&cells).expect("numbers and text are JSON"),
            row_count: rows.len() as u64,
            missing: vec![],
        }
    }

    pub(super) fn from_store(
        columns: Vec<ResultColumn>,
        body: &[u8],
        missing: Vec<Missing>,
    ) -> Result<Self, Error> {
        let Compact { meta, data, rows } = serde_json::from_slice(body).map_err(|error| {
            let start: String = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            Error::Store(format!("its result is not readable ({error}): {start}"))
        })?;
        if meta.len() != columns.len() {
            return Err(Error::Store(format!(
                "it answered {} columns where {} were asked for",
                meta.len(),
                columns.len()
            )));
        }
        let columns = named(columns, meta.into_iter().map(|meta| meta.value_type));
        Ok(Self { columns, rows: data, row_count: rows, missing })
    }
}

fn cell(value: &Value) -> serde_json::Value {
    match value {
        Value::Integer(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
    }
}

fn named(columns: Vec<ResultColumn>, types: impl Iterator<Item = String>) -> Vec<Column> {
    columns
        .into_iter()
        .zip(types)
        .map(|(ResultColumn { name, unit, kind }, value_type)| Column { name, unit, kind, value_type })
        .collect()
}
