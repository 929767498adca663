//! The text of a planned statement.

use super::{Fill, Plan};
use crate::{
    ColumnKind,
    sql::{Layer, Sql, Writer},
};

/// Writes the whole statement.
pub(super) fn statement(plan: &Plan) -> String {
    let mut out = layers(plan);
    if let Some(limit) = plan.series_limit {
        out = series_limited(plan, limit, out);
    }
    if let Some(fill) = &plan.fill {
        out = filled(plan, fill, &out);
    }
    out.order(plan, true);
    if !cut_first(plan) {
        out.limit(plan.limit, plan.offset);
    }
    out.out
}

/// Whether rows are ordered and cut before they are named: where they are listed, unless they are ordered by a name.
fn cut_first(plan: &Plan) -> bool {
    plan.group.is_none() && is_named(plan) && plan.order.iter().all(|order| !order.looked_up)
}

fn is_named(plan: &Plan) -> bool {
    plan.outputs.iter().any(|output| output.looked_up)
        || plan.order.iter().any(|order| order.looked_up)
        || plan.group.iter().flatten().any(|part| !matches!(part, Sql::Key(_)))
}

/// All but the final order and limit.
fn layers(plan: &Plan) -> Writer<'_> {
    match (&plan.group, is_named(plan)) {
        (_, false) => flat(plan),
        (Some(group), true) => grouped(plan, group),
        (None, true) => listed(plan),
    }
}

/// One layer: nothing has to be named.
fn flat(plan: &Plan) -> Writer<'_> {
    let mut out = Writer::new(&plan.registry, Layer::Rows);
    out.outputs(plan);
    out.rows(plan);
    if let Some(group) = plan.group.as_deref().filter(|group| !group.is_empty()) {
        out.raw(" GROUP BY ");
        out.list(group);
    }
    out.having(plan);
    out
}

/// Groups by ids inside; names and merges outside.
fn grouped<'a>(plan: &'a Plan, group: &[Sql]) -> Writer<'a> {
    let mut inner = Writer::new(&plan.registry, Layer::Rows);
    inner.raw("SELECT ");
    inner.keys();
    for number in 0..plan.registry.aggregates.len() {
        inner.raw(", ");
        inner.partial(number);
        inner.raw(" AS ");
        inner.alias('a', number);
    }
    inner.rows(plan);
    inner.raw(" GROUP BY ");
    inner.key_aliases();
    let mut out = Writer::new(&plan.registry, Layer::Outer);
    out.outputs(plan);
    out.named_groups(&inner);
    out.raw(" GROUP BY ");
    // A name follows from an id that is grouped by, which the engine cannot know: it is grouped by too.
    let outputs = plan.outputs.iter().map(|output| (&output.sql, output.looked_up));
    let orders = plan.order.iter().map(|order| (&order.sql, order.looked_up));
    let mut parts: Vec<&Sql> = group.iter().collect();
    for (sql, looked_up) in outputs.chain(orders) {
        if looked_up && !parts.contains(&sql) {
            parts.push(sql);
        }
    }
    for (at, part) in parts.into_iter().enumerate() {
        out.raw(if at > 0 { ", " } else { "" });
        match plan.outputs.iter().position(|output| output.sql == *part) {
            Some(output) => out.alias('c', output),
            None => out.sql(part),
        }
    }
    out.having(plan);
    out
}

/// Picks rows inside; names them outside.
fn listed(plan: &Plan) -> Writer<'_> {
    let mut inner = Writer::new(&plan.registry, Layer::Rows);
    inner.raw("SELECT ");
    inner.keys();
    inner.rows(plan);
    if cut_first(plan) {
        inner.order(plan, false);
        inner.limit(plan.limit, plan.offset);
    }
    let mut out = Writer::new(&plan.registry, Layer::Outer);
    out.outputs(plan);
    out.named_groups(&inner);
    out
}

/// Keeps the series whose first metric reaches highest.
fn series_limited<'a>(plan: &'a Plan, limit: u64, groups: Writer<'a>) -> Writer<'a> {
    let tags = series_tags(plan);
    if tags.is_empty() || plan.group.is_none() {
        return groups;
    }
    let mut out = Writer::new(&plan.registry, groups.layer);
    let names = |out: &mut Writer<'a>| {
        for (at, tag) in tags.iter().enumerate() {
            out.raw(if at > 0 { ", " } else { "" });
            out.alias('c', *tag);
        }
    };
    out.raw("SELECT ");
    out.output_aliases(plan);
    out.from(&groups);
    out.raw(" WHERE (");
    names(&mut out);
    out.raw(") IN (SELECT ");
    names(&mut out);
    out.from(&groups);
    out.raw(" GROUP BY ");
    names(&mut out);
    out.raw(" ORDER BY ");
    if let Some(metric) = plan.outputs.iter().position(|output| output.kind == ColumnKind::Metric) {
        out.raw("max(");
        out.alias('c', metric);
        out.raw(") DESC, ");
    }
    names(&mut out);
    out.raw(" LIMIT ");
    out.number(limit);
    out.raw(")");
    out
}

/// The selected columns that tell one series from another.
fn series_tags(plan: &Plan) -> Vec<usize> {
    let is_key = |at: &usize| {
        let output = &plan.outputs[*at];
        output.kind == ColumnKind::Tag && !output.sql.has_aggregate()
    };
    (0..plan.outputs.len()).filter(is_key).collect()
}

/// Adds the buckets of time that no row fell into, to each series.
fn filled<'a>(plan: &'a Plan, fill: &Fill, series: &Writer<'a>) -> Writer<'a> {
    let mut out = Writer::new(&plan.registry, series.layer);
    out.raw("SELECT ");
    out.output_aliases(plan);
    out.raw(" FROM (");
    out.out.push_str(&series.out);
    out.raw(" ORDER BY ");
    // The engine fills within what is ordered by before the time: within a series.
    for tag in series_tags(plan) {
        out.alias('c', tag);
        out.raw(", ");
    }
    out.alias('c', fill.output);
    out.raw(" WITH FILL");
    if let Some((from, to)) = fill.range {
        out.raw(" FROM ");
        out.number(from);
        out.raw(" TO ");
        out.number(to);
    }
    out.raw(" STEP ");
    out.sql(&fill.step);
    out.raw(")");
    out
}

impl Writer<'_> {
    fn outputs(&mut self, plan: &Plan) {
        self.raw("SELECT ");
        let nulls = plan.fill.as_ref().is_some_and(|fill| fill.null);
        for (at, output) in plan.outputs.iter().enumerate() {
            self.raw(if at > 0 { ", " } else { "" });
            let nullable = nulls && output.kind == ColumnKind::Metric && !self.is_histogram(&output.sql);
            self.raw(if nullable { "toNullable(" } else { "" });
            self.sql(&output.sql);
            self.raw(if nullable { ")" } else { "" });
            self.raw(" AS ");
            self.alias('c', at);
        }
    }

    /// An array, which cannot be null.
    fn is_histogram(&self, sql: &Sql) -> bool {
        match sql {
            Sql::Aggregate(number) => self.registry.aggregates[*number].function == "histogram",
            Sql::Call("arrayReduce", arguments) => {
                matches!(arguments.first(), Some(Sql::Text(function)) if function.starts_with("histogram"))
            }
            _ => false,
        }
    }

    fn output_aliases(&mut self, plan: &Plan) {
        for at in 0..plan.outputs.len() {
            self.raw(if at > 0 { ", " } else { "" });
            self.alias('c', at);
        }
    }

    fn keys(&mut self) {
        let keys = &self.registry.keys;
        for (at, key) in keys.iter().enumerate() {
            self.raw(if at > 0 { ", " } else { "" });
            self.sql(key);
            self.raw(" AS ");
            self.alias('k', at);
        }
    }

    fn key_aliases(&mut self) {
        for at in 0..self.registry.keys.len() {
            self.raw(if at > 0 { ", " } else { "" });
            self.alias('k', at);
        }
    }

    fn from(&mut self, inner: &Writer<'_>) {
        self.raw(" FROM (");
        self.out.push_str(&inner.out);
        self.raw(")");
    }

    fn rows(&mut self, plan: &Plan) {
        self.raw(" FROM ");
        self.table(plan.table);
        if let Some(filter) = &plan.filter {
            self.raw(" WHERE ");
            self.sql(filter);
        }
    }

    fn having(&mut self, plan: &Plan) {
        if let Some(having) = &plan.having {
            self.raw(" HAVING ");
            self.sql(having);
        }
    }

    /// `outputs`: the columns of the result have their names here.
    fn order(&mut self, plan: &Plan, outputs: bool) {
        for (at, order) in plan.order.iter().enumerate() {
            self.raw(if at > 0 { ", " } else { " ORDER BY " });
            match order.output.filter(|_| outputs) {
                Some(output) => self.alias('c', output),
                None => self.sql(&order.sql),
            }
            self.raw(if order.descending { " DESC" } else { "" });
        }
    }

    pub(crate) fn limit(&mut self, limit: u64, offset: u64) {
        self.raw(" LIMIT ");
        self.number(limit);
        if offset > 0 {
            self.raw(" OFFSET ");
            self.number(offset);
        }
    }
}
