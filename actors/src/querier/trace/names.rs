//! Names of what rows have ids of. They are asked for in one statement of their own, once the rows are known: a statement that joins each
//! name to its rows takes the engine five times as long as the rows themselves.

use std::collections::{BTreeSet, HashMap};

use metaflow_schema::enums::Kind;

use super::row::Row;

/// A kind, and an id of it.
pub(super) type NameId = (u8, u64);

/// Ids whose names rows need.
pub(super) fn ids(rows: &[Row]) -> Vec<NameId> {
    let ids: BTreeSet<NameId> =
        rows.iter().flat_map(|row| plain(row).into_iter().chain(typed(row))).collect();
    let is_named = |(kind, id): &NameId| *id != 0 && *kind != 0 && !is_address(*kind);
    ids.into_iter().filter(is_named).collect()
}

/// Writes names into rows; what has none stays empty.
pub(super) fn write(rows: &mut [Row], names: &HashMap<NameId, String>) {
    let name = |id: NameId| names.get(&id).cloned().unwrap_or_default();
    for row in rows {
        let [instance_0, instance_1, service_0, service_1] = typed(row);
        let typed = |id: NameId, ip: &str| match Kind::from_number(id.0) {
            Some(Kind::Ip) => ip.to_owned(),
            Some(Kind::Internet) => Kind::Internet.name().to_owned(),
            _ => name(id),
        };
        row.auto_instance_0 = typed(instance_0, &row.ip_0);
        row.auto_instance_1 = typed(instance_1, &row.ip_1);
        row.auto_service_0 = typed(service_0, &row.ip_0);
        row.auto_service_1 = typed(service_1, &row.ip_1);
        [row.agent, row.request_type, row.request_domain, row.endpoint] = plain(row).map(name);
    }
}

/// The name is the address, or that of all addresses outside.
fn is_address(kind: u8) -> bool {
    matches!(Kind::from_number(kind), Some(Kind::Ip | Kind::Internet))
}

fn plain(row: &Row) -> [NameId; 4] {
    [
        (Kind::Agent as u8, u64::from(row.agent_id)),
        (Kind::RequestType as u8, row.request_type_id),
        (Kind::RequestDomain as u8, row.request_domain_id),
        (Kind::Endpoint as u8, row.endpoint_id),
    ]
}

fn typed(row: &Row) -> [NameId; 4] {
    [
        (row.auto_instance_type_0, u64::from(row.auto_instance_id_0)),
        (row.auto_instance_type_1, u64::from(row.auto_instance_id_1)),
        (row.auto_service_type_0, u64::from(row.auto_service_id_0)),
        (row.auto_service_type_1, u64::from(row.auto_service_id_1)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_is_asked_for_once_and_written_where_it_was() {
        let row = Row {
            agent_id: 3,
            request_type_id: 7,
            ip_0: "10.0.0.1".into(),
            auto_service_type_0: Kind::Ip as u8,
            auto_service_type_1: 12,
            auto_service_id_1: 9,
            auto_instance_type_1: Kind::Internet as u8,
            ..Row::default()
        };
        let mut rows = vec![row.clone(), row];
        let (agent, get, service) = ((Kind::Agent as u8, 3), (Kind::RequestType as u8, 7), (12, 9));
        assert_eq!(ids(&rows), [service, agent, get]);
        let names = [(agent, "a"), (get, "GET"), (service, "shop")];
        write(&mut rows, &names.map(|(id, name)| (id, name.to_owned())).into());
        let Row { agent, request_type, auto_service_0, auto_service_1, auto_instance_1, endpoint, .. } =
            &rows[1];
        assert_eq!([agent, request_type, auto_service_0], ["a", "GET", "10.0.0.1"]);
        assert_eq!([auto_service_1, auto_instance_1, endpoint], ["shop", "internet", ""]);
    }
}
