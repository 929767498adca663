//! `SELECT`: from clauses to a statement of the store.
//!
//! Rows are grouped by ids; names are put on the groups. When a name is asked for, the statement has two layers: the inner one groups rows
//! by ids and keeps partial aggregates, the outer one turns ids into names and merges the groups of one name. A name may have several ids
//! (two nodes allocated for it at once), so merging by name is what makes its figures whole; every aggregate can be merged, as a sum, a
//! maximum or an intermediate state. Looking up a name for each group instead of each row is about 2.5 times cheaper.

mod aggregate;
mod bucket;
mod render;
mod value;

use sqlparser::ast::Expr;

pub(crate) use aggregate::FUNCTIONS;

use metaflow_schema::{Table, catalogue::Family};

use crate::{
    ColumnKind, Compiled, Error, ROWS_DEFAULT, Request, ResultColumn,
    expr::{check, refuse, start},
    filter,
    range::{self, Range},
    sql::{Registry, Sql},
    statement::{Item, Select},
};

/// A value that a statement selects, groups, orders or filters groups by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Output {
    pub(crate) sql: Sql,
    pub(crate) unit: String,
    pub(crate) kind: ColumnKind,
    /// A name is looked up for it.
    pub(crate) looked_up: bool,
}

/// The statement that is being compiled.
pub(crate) struct Compiler<'a> {
    items: &'a [Item],
    family: &'static Family,
    table: &'static Table,
    range: Range,
    bucket_micros: Option<u64>,
    fill_with: Option<bucket::Empty>,
    now: u32,
    registry: Registry,
    /// The statement groups rows; else it lists them.
    grouped: bool,
    /// The selected columns, once they are compiled.
    outputs: Vec<Output>,
    names: Vec<String>,
}

/// All that rendering needs.
pub(crate) struct Plan {
    pub(crate) table: &'static Table,
    pub(crate) registry: Registry,
    pub(crate) outputs: Vec<Output>,
    pub(crate) filter: Option<Sql>,
    /// What the result is grouped by; none where rows are listed.
    pub(crate) group: Option<Vec<Sql>>,
    pub(crate) having: Option<Sql>,
    pub(crate) fill: Option<Fill>,
    /// Groups that are alike but for the time are a series; so many series are kept.
    pub(crate) series_limit: Option<u64>,
    pub(crate) order: Vec<Ordering>,
    pub(crate) limit: u64,
    pub(crate) offset: u64,
}

/// Buckets without rows are shown too.
pub(crate) struct Fill {
    /// The selected column that is the bucket.
    pub(crate) output: usize,
    pub(crate) step: Sql,
    /// First bucket, and the end behind the last; none fills between the first and last that have rows.
    pub(crate) range: Option<(i64, i64)>,
    /// With null instead of 0.
    pub(crate) null: bool,
}

pub(crate) struct Ordering {
    pub(crate) sql: Sql,
    /// The selected column that it is.
    pub(crate) output: Option<usize>,
    pub(crate) looked_up: bool,
    pub(crate) descending: bool,
}

pub(crate) fn compile(statement: &Select, request: &Request<'_>) -> Result<Compiled, Error> {
    for expr in expressions(statement) {
        check(expr)?;
    }
    let now = request.now_seconds;
    let source = range::source(&statement.table, request)?;
    let range = range::bounds(statement.filter.as_ref(), now)?;
    let bucket = bucket::of(statement, now)?;
    let bucket_micros = bucket.map(|bucket| bucket.micros);
    let table = source.table(range, bucket_micros, now);
    let grouped = !statement.group.is_empty()
        || statement.having.is_some()
        || statement.items.iter().any(|item| aggregate::is_in(&item.expr));
    let mut compiler = Compiler {
        items: &statement.items,
        family: source.family,
        table,
        range,
        bucket_micros,
        fill_with: bucket.and_then(|bucket| bucket.fill),
        now,
        registry: Registry::new(request.shards),
        grouped,
        outputs: vec![],
        names: statement.items.iter().map(name_of).collect(),
    };
    let plan = compiler.plan(statement)?;
    let limit = plan.limit;
    let columns = plan
        .outputs
        .iter()
        .zip(compiler.names)
        .map(|(output, name)| ResultColumn { name, unit: output.unit.clone(), kind: output.kind })
        .collect();
    Ok(Compiled::Select { sql: render::statement(&plan), columns, limits: crate::limits(limit) })
}

fn expressions(statement: &Select) -> impl Iterator<Item = &Expr> {
    let Select { items, table: _, filter, group, having, order, series_limit: _, limit: _, offset: _ } =
        statement;
    items
        .iter()
        .map(|item| &item.expr)
        .chain(filter)
        .chain(group)
        .chain(having)
        .chain(order.iter().map(|(expr, _)| expr))
}

/// A column's name: as the user named it, else as the user wrote it.
fn name_of(item: &Item) -> String {
    item.alias.clone().unwrap_or_else(|| item.expr.to_string().replace('`', ""))
}

impl Compiler<'_> {
    fn plan(&mut self, statement: &Select) -> Result<Plan, Error> {
        let scope = filter::Scope { family: self.family, items: self.items, now: self.now };
        let filter = statement.filter.as_ref().map(|expr| filter::condition(expr, &scope)).transpose()?;
        for item in self.items {
            let output = self.value(&item.expr, false)?;
            self.outputs.push(output);
        }
        let group = if self.grouped { Some(self.groups(&statement.group)?) } else { None };
        let having = statement.having.as_ref().map(|expr| self.having(expr)).transpose()?;
        let mut order = Vec::with_capacity(statement.order.len());
        for (expr, descending) in &statement.order {
            order.push(self.ordering(expr, *descending, group.as_deref())?);
        }
        let fill = self.fill(statement)?;
        if fill.is_some() || statement.series_limit.is_some() {
            self.order_is_selected(statement)?;
        }
        Ok(Plan {
            table: self.table,
            registry: std::mem::take(&mut self.registry),
            outputs: self.outputs.clone(),
            filter,
            group,
            having,
            fill,
            series_limit: statement.series_limit,
            order,
            limit: statement.limit.unwrap_or(ROWS_DEFAULT),
            offset: statement.offset,
        })
    }

    /// What `GROUP BY` says, and that every selected column without an aggregate follows from it.
    fn groups(&mut self, exprs: &[Expr]) -> Result<Vec<Sql>, Error> {
        let mut group: Vec<Sql> = vec![];
        for expr in exprs {
            let output = self.value(expr, true)?;
            if output.sql.has_aggregate()
                || (output.kind == ColumnKind::Metric && output.sql.keys().is_empty())
            {
                return Err(refuse(expr, "not a tag: rows are grouped by tags")
                    .hint(format!("SHOW TAGS FROM {} lists them", self.family.name)));
            }
            // What is shown of a key follows from the key; only a looked-up name joins groups.
            let parts = if output.looked_up { vec![output.sql] } else { output.sql.keys() };
            for part in parts {
                if !group.contains(&part) {
                    group.push(part);
                }
            }
        }
        for (item, output) in self.items.iter().zip(&self.outputs) {
            if !follows(&output.sql, &group) {
                let name = name_of(item);
                return Err(refuse(&item.expr, format!("{name} is selected but not grouped by"))
                    .hint(format!("add it to GROUP BY, or write Any({name})")));
            }
        }
        Ok(group)
    }

    fn ordering(&mut self, expr: &Expr, descending: bool, group: Option<&[Sql]>) -> Result<Ordering, Error> {
        let value = self.value(expr, true)?;
        if group.is_some_and(|group| !follows(&value.sql, group)) {
            return Err(refuse(expr, "ordered by what is not grouped by").hint("add it to GROUP BY"));
        }
        let output = self.outputs.iter().position(|output| output.sql == value.sql);
        Ok(Ordering { sql: value.sql, output, looked_up: value.looked_up, descending })
    }

    /// Series are picked and buckets filled in a layer that has the selected columns only.
    fn order_is_selected(&self, statement: &Select) -> Result<(), Error> {
        match statement.order.iter().find(|(expr, _)| self.selected(expr).is_none()) {
            None => Ok(()),
            Some((expr, _)) => Err(refuse(expr, "ordered by what is not selected")
                .hint("select it: with SLIMIT or filled buckets, only selected columns can order")),
        }
    }

    fn unknown(&self, expr: &Expr, name: &str) -> Error {
        crate::tag::unknown(self.family, name, start(expr))
    }
}

/// Whether a value is made of aggregates and of what is grouped by alone.
fn follows(sql: &Sql, group: &[Sql]) -> bool {
    group.contains(sql) || sql.keys().iter().all(|key| group.contains(key))
}
