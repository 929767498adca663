//! Enumerations that are stored as small integers and shown by name: declared once, for agents, nodes and queries.
//!
//! Numbers are stored, so a number is never reused. Protocol numbers, close types and statuses are those of DeepFlow, so that
//! existing dashboards that filter on numbers keep their meaning.

/// A value of an enumeration as `SHOW TAG x VALUES` and the reference list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnumValue {
    pub value: u8,
    pub name: &'static str,
    pub doc: &'static str,
}

macro_rules! enumeration {
    ($(#[$meta:meta])* $name:ident { $( #[doc = $doc:literal] $variant:ident = $value:literal $label:literal, )+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $( #[doc = $doc] $variant = $value, )+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [$name] = &[$( $name::$variant, )+];
            /// The same as text for catalogue and queries.
            pub const VALUES: &'static [EnumValue] =
                &[$( EnumValue { value: $value, name: $label, doc: $doc.trim_ascii() }, )+];

            /// Name as shown in answers.
            pub const fn name(self) -> &'static str {
                match self { $( $name::$variant => $label, )+ }
            }

            /// The variant of a stored number.
            pub const fn from_number(value: u8) -> Option<Self> {
                match value { $( $value => Some($name::$variant), )+ _ => None }
            }
        }
    };
}

enumeration! {
    /// Application protocol of a request.
    L7Protocol {
        /// not recognised
        Unknown = 0 "N/A",
        /// HTTP/1.0 and HTTP/1.1 (RFC 9112)
        Http1 = 20 "HTTP",
        /// HTTP/2 (RFC 9113)
        Http2 = 21 "HTTP2",
        /// gRPC over HTTP/2
        Grpc = 41 "gRPC",
        /// MySQL client/server protocol
        MySql = 60 "MySQL",
        /// PostgreSQL frontend/backend protocol 3.0
        PostgreSql = 61 "PostgreSQL",
        /// Redis serialization protocol, versions 2 and 3
        Redis = 80 "Redis",
        /// DNS (RFC 1035)
        Dns = 120 "DNS",
    }
}

enumeration! {
    /// What an `l7_flow_log` row was made from.
    L7Type {
        /// a request without a response
        Request = 0 "request",
        /// a response without a request
        Response = 1 "response",
        /// a request and its response
        Session = 2 "session",
    }
}

enumeration! {
    /// How a request ended.
    ResponseStatus {
        /// success
        Normal = 0 "normal",
        /// no response within the time limit of its protocol
        Timeout = 2 "timeout",
        /// the server failed
        ServerError = 3 "server error",
        /// the request was at fault
        ClientError = 4 "client error",
        /// not known
        Unknown = 5 "unknown",
    }
}

enumeration! {
    /// Where on the path between client and server a row was observed.
    ObservationPoint {
        /// neither end is known to be here
        Rest = 0 "rest",
        /// network interface of the client
        Client = 1 "c",
        /// network interface of the server
        Server = 2 "s",
        /// process of the client
        ClientProcess = 3 "c-p",
        /// process of the server
        ServerProcess = 4 "s-p",
        /// both ends are on this host (loopback)
        Local = 5 "local",
    }
}

enumeration! {
    /// How a row was obtained.
    SignalSource {
        /// network packets
        Packet = 0 "packet",
        /// system calls and functions seen by eBPF
        Ebpf = 3 "ebpf",
        /// spans sent by OpenTelemetry
        Otel = 4 "otel",
    }
}

enumeration! {
    /// How it is known which request a process worked for: what the trace ids of system calls rest on.
    SyscallTraceSource {
        /// it is not known
        None = 0 "none",
        /// its thread, which worked for one request at a time
        Thread = 1 "thread",
        /// its coroutine
        Coroutine = 2 "coroutine",
        /// a guess: the process works for many requests on a thread, and this one is what the thread read last
        EventLoop = 3 "event loop",
    }
}

enumeration! {
    /// How a flow ended; `forced report` is a flow that goes on.
    CloseType {
        /// not known
        Unknown = 0 "unknown",
        /// both sides sent FIN
        Finish = 1 "normal",
        /// the server sent RST
        ServerReset = 2 "server reset",
        /// nothing came for the timeout of its state
        Timeout = 3 "timeout",
        /// still open: the periodic report
        ForcedReport = 5 "forced report",
        /// the client sent SYN and none answered
        ClientSynRepeat = 7 "client syn repeat",
        /// the client closed and the server never did
        ServerHalfClose = 8 "server half close",
        /// the client sent RST
        ClientReset = 9 "client reset",
        /// the server repeated SYN-ACK and the client never acknowledged
        ServerSynAckRepeat = 10 "server synack repeat",
        /// the server closed and the client never did
        ClientHalfClose = 11 "client half close",
        /// the client reset a connection that the server never used
        ClientEstablishReset = 13 "client establish reset",
        /// the server reset a connection that was just established
        ServerEstablishReset = 14 "server establish reset",
        /// flow table full: the oldest flow made room
        Evicted = 15 "evicted",
    }
}

enumeration! {
    /// Kind of a dictionary entry: what a tag id names. Stored with every dictionary row.
    Kind {
        /// an address without a resource; its name is the address itself
        Ip = 255 "ip",
        /// addresses outside all known networks
        Internet = 254 "internet",
        /// region
        Region = 1 "region",
        /// availability zone
        Az = 2 "az",
        /// machine that runs an agent
        Host = 3 "host",
        /// cloud or virtual machine
        Chost = 4 "chost",
        /// virtual private cloud
        Vpc = 5 "vpc",
        /// subnet
        Subnet = 6 "subnet",
        /// Kubernetes cluster
        PodCluster = 7 "pod_cluster",
        /// Kubernetes node
        PodNode = 8 "pod_node",
        /// Kubernetes namespace
        PodNs = 9 "pod_ns",
        /// Kubernetes workload
        PodGroup = 10 "pod_group",
        /// Kubernetes pod
        Pod = 11 "pod",
        /// Kubernetes service
        PodService = 12 "pod_service",
        /// process, as command or script name on a host
        Process = 13 "process",
        /// container
        Container = 14 "container",
        /// systemd unit
        Unit = 15 "unit",
        /// agent, by machine id
        Agent = 16 "agent",
        /// custom service
        Service = 17 "service",
        /// Kubernetes ingress
        PodIngress = 18 "pod_ingress",
        /// load balancer
        Lb = 19 "lb",
        /// NAT gateway
        NatGateway = 20 "natgw",
        /// HTTP method, SQL verb, Redis command
        RequestType = 40 "request_type",
        /// host name, database
        RequestDomain = 41 "request_domain",
        /// normalised path, RPC method, statement shape
        Endpoint = 42 "endpoint",
        /// protocol version
        Version = 43 "version",
        /// user agent
        UserAgent = 44 "user_agent",
        /// error text
        ResponseException = 45 "response_exception",
        /// network interface
        Interface = 46 "interface",
    }
}

/// Kinds below are resources, which an instance or service may be; above stand texts of requests, of which there are many more.
pub const RESOURCE_KINDS_END: u8 = 40;

/// Kinds as values of the `*_type` columns.
pub const VALUES_OF_KIND: &[EnumValue] = Kind::VALUES;

enumeration! {
    /// How the tags of an end were found.
    TagSource {
        /// nothing known about the address
        None = 0 "none",
        /// process that the agent saw
        Process = 1 "process",
        /// process that listens on the address and port
        Listener = 2 "listener",
        /// address of an interface of a known host
        Address = 3 "address",
        /// address within a known subnet
        Subnet = 4 "subnet",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        fn check(values: &[EnumValue]) {
            for (at, value) in values.iter().enumerate() {
                for other in &values[at + 1..] {
                    assert!(value.value != other.value && value.name != other.name, "{value:?} {other:?}");
                }
            }
        }
        check(L7Protocol::VALUES);
        check(ResponseStatus::VALUES);
        check(CloseType::VALUES);
        check(Kind::VALUES);
        check(ObservationPoint::VALUES);
    }
}
