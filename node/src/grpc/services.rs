//! Which service a call is for, by its path: tonic's own router and layers would cost each stream and connection memory of their own.

use std::{convert::Infallible, sync::Arc};

use hyper::body::Incoming;
use metaflow_wire::{
    MESSAGE_BYTES_MAX, agent_service_server::AgentServiceServer, fleet_service_server::FleetServiceServer,
    node_service_server::NodeServiceServer,
};
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture,
        http::{Request, Response},
    },
    server::NamedService,
};
use tower_service::Service as _;

use super::{Agents, Service, admission::Gated, deadline, fleet, nodes::Nodes};
use crate::fleet::Fleet;

/// All services; clones share them.
#[derive(Clone)]
pub(super) struct Services(Arc<All>);

struct All {
    agents: Gated<AgentServiceServer<Service>>,
    nodes: NodeServiceServer<Nodes>,
    fleet: FleetServiceServer<fleet::Service>,
}

impl Services {
    pub(super) fn new(agents: Agents, fleet: Fleet, nodes: Nodes) -> Self {
        let fleet = fleet::Service { fleet, trust: nodes.trust.clone(), stop: agents.stop.serving.clone() };
        let fleet = FleetServiceServer::new(fleet)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let nodes = NodeServiceServer::new(nodes)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let intake = agents.memory.intake.clone();
        let agents = AgentServiceServer::new(Service(Arc::new(agents)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self(Arc::new(All { agents: Gated::new(agents, intake), nodes, fleet }))
    }
}

/// The service of a path `/service/method`.
fn service(path: &str) -> &str {
    path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service)
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let given = deadline::given(request.headers());
        deadline::enforce(given, || self.answer(request))
    }
}

impl Services {
    fn answer(&self, request: Request<Incoming>) -> BoxFuture<Response<Body>, Infallible> {
        let All { agents, nodes, fleet } = &*self.0;
        match service(request.uri().path()) {
            AgentServiceServer::<Service>::NAME => agents.clone().call(request.map(Body::new)),
            NodeServiceServer::<Nodes>::NAME => nodes.clone().call(request),
            FleetServiceServer::<fleet::Service>::NAME => fleet.clone().call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_for_the_service_that_its_path_names() {
        for (path, expected) in [
            ("/metaflow.v1.AgentService/Sync", AgentServiceServer::<Service>::NAME),
            ("/metaflow.v1.NodeService/Ping", NodeServiceServer::<Nodes>::NAME),
            ("/metaflow.v1.FleetService/", FleetServiceServer::<fleet::Service>::NAME),
            ("/metaflow.v1.AgentService", ""),
            ("metaflow.v1.AgentService/Sync", ""),
            ("/", ""),
            ("*", ""),
        ] {
            assert_eq!(service(path), expected, "{path}");
        }
    }
}
