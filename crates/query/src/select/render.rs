//! The text of a planned statement.

use super::Plan;
use crate::sql::{Layer, Sql, Writer};

/// Writes the whole statement.
pub(super) fn statement(plan: &Plan) -> String {
    let named = plan.outputs.iter().any(|output| output.looked_up)
        || plan.order.iter().any(|order| order.looked_up)
        || plan.group.iter().flatten().any(|part| !matches!(part, Sql::Key(_)));
    match (&plan.group, named) {
        (_, false) => flat(plan),
        (Some(group), true) => grouped(plan, group),
        (None, true) => listed(plan),
    }
}

/// One layer: nothing has to be named.
fn flat(plan: &Plan) -> String {
    let mut out = Writer::new(&plan.registry, Layer::Rows);
    out.outputs(plan);
    out.rows(plan);
    if let Some(group) = plan.group.as_deref().filter(|group| !group.is_empty()) {
        out.raw(" GROUP BY ");
        out.list(group);
    }
    out.having(plan);
    out.order(plan, true);
    out.limit(plan.limit, plan.offset);
    out.out
}

/// Groups by ids inside; names and merges outside.
fn grouped(plan: &Plan, group: &[Sql]) -> String {
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
    out.from(&inner);
    out.raw(" GROUP BY ");
    for (at, part) in group.iter().enumerate() {
        out.raw(if at > 0 { ", " } else { "" });
        match plan.outputs.iter().position(|output| output.sql == *part) {
            Some(output) => out.alias('c', output),
            None => out.sql(part),
        }
    }
    out.having(plan);
    out.order(plan, true);
    out.limit(plan.limit, plan.offset);
    out.out
}

/// Picks rows inside; names them outside.
fn listed(plan: &Plan) -> String {
    // Rows are ordered and cut before they are named, unless they are ordered by a name.
    let cut_first = plan.order.iter().all(|order| !order.looked_up);
    let mut inner = Writer::new(&plan.registry, Layer::Rows);
    inner.raw("SELECT ");
    inner.keys();
    inner.rows(plan);
    if cut_first {
        inner.order(plan, false);
        inner.limit(plan.limit, plan.offset);
    }
    let mut out = Writer::new(&plan.registry, Layer::Outer);
    out.outputs(plan);
    out.from(&inner);
    out.order(plan, true);
    if !cut_first {
        out.limit(plan.limit, plan.offset);
    }
    out.out
}

impl Writer<'_> {
    fn outputs(&mut self, plan: &Plan) {
        self.raw("SELECT ");
        for (at, output) in plan.outputs.iter().enumerate() {
            self.raw(if at > 0 { ", " } else { "" });
            self.sql(&output.sql);
            self.raw(" AS ");
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
        self.table(plan.table.into());
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
